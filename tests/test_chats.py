"""Chats as tokens: the demonstrator's are exactly what the agent wrote and the end of its turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cautious_imitation import Demonstrations
from cautious_imitation.language.chats import chat_context, tokenized_chats
from cautious_imitation.language.small_gpt import shipped_tokenizer
from tests.tiny_folders import CHATML, TEXT, tiny_tokenizer

LOOP = "{% for message in messages %}"
HEADERS = (
    "{{ '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    # The header ends with two line breaks, and contents are trimmed.
    "trimming": LOOP + HEADERS,
    # No header before a reply, and a blank on both sides of it.
    "blanks": LOOP
    + "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' <|im_end|>' }}"
    + "{% else %}{{ '[' + message['content'] | trim + ']' }}{% endif %}{% endfor %}",
    # Its prompt for a reply is wrong where nothing was said: what the model is told first is missing.
    "default system": LOOP
    + "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nbe kind<|im_end|>\n' }}{% endif %}"
    + CHATML.removeprefix(LOOP),
    # It has no prompt for a reply, and its header ends with a blank.
    "no prompt": LOOP + "{{ message['role'] + ': ' + message['content'] + '<|im_end|>\n' }}{% endfor %}",
    # The end of a turn is a line break and nothing else.
    "line break": LOOP
    + "{{ message['role'] + ':' + message['content'] | trim + '\n' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
    "none": None,
}
TOKENIZERS = {name: tiny_tokenizer(template) for name, template in TEMPLATES.items()}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = [
    message("system", "be kind"),
    message("user", "hello there"),
    message("assistant", "hello, how are you?"),
    message("user", "fine"),
    message("assistant", ""),
    message("assistant", "thank you"),
    message("user", "bye"),
]


def learned_texts(demonstrations: Demonstrations, tokenizer: Any) -> list[str]:
    """What stands in each unbroken run of the demonstrator's tokens."""
    texts = []
    for tokens, mask in zip(demonstrations.sequences, demonstrations.learned(), strict=True):
        edges = np.flatnonzero(np.diff(np.r_[0, mask.astype(int), 0]))
        texts += [tokenizer.decode(tokens[a:b]) for a, b in edges.reshape(-1, 2)]
    return texts


def test_chatml() -> None:
    tokenizer = TOKENIZERS["chatml"]
    found = tokenized_chats([{"messages": CHAT}], tokenizer)
    assert tokenizer.decode(found.sequences[0]) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
        "hello, how are you?<|im_end|>\n<|im_start|>user\nfine<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
        "<|im_start|>assistant\nthank you<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n"
    )
    assert learned_texts(found, tokenizer) == ["hello, how are you?<|im_end|>", "<|im_end|>", "thank you<|im_end|>"]
    assert not np.any(found.actors[0] == 1)


def test_plain_lines() -> None:
    tokenizer = TOKENIZERS["none"]
    found = tokenized_chats([CHAT], tokenizer)
    assert tokenizer.decode(found.sequences[0]) == (
        "System: be kind\nUser: hello there\nAssistant: hello, how are you?\nUser: fine\nAssistant:\n"
        "Assistant: thank you\nUser: bye\n"
    )
    assert learned_texts(found, tokenizer) == [" hello, how are you?\n", "\n", " thank you\n"]


def test_plain_lines_begin_with_the_token_that_the_tokenizer_puts_first() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(None, bos="<|endoftext|>")
    assert tokenized_chats([CHAT], tokenizer).sequences[0][0] != tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    found = tokenized_chats([CHAT], tokenizer).sequences[0]
    assert (found == tokenizer.bos_token_id).nonzero()[0].tolist() == [0]
    assert chat_context(tokenizer, [])[0] == tokenizer.bos_token_id


CONTENT = st.text(st.sampled_from(" \n\tabehlo.?!:'äß日🙂"), max_size=8)


@st.composite
def conversations(draw: st.DrawFn, one_line: bool) -> list[dict[str, str]]:
    roles = draw(st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=6))
    system = draw(st.booleans())
    contents = [draw(CONTENT) for _ in roles]
    if one_line:
        contents = [content.replace("\n", " ") for content in contents]
    said = [message(role, content) for role, content in zip([*roles, "assistant"], [*contents, "ok"], strict=True)]
    return [message("system", "be kind"), *said] if system else said


@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_laws_of_any_chat(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    chat = data.draw(conversations(one_line=TEMPLATES[name] is None))
    demonstrations = tokenized_chats([chat], tokenizer)
    (tokens,), (mask,) = demonstrations.sequences, demonstrations.learned()

    # All tokens together are the text that the template writes.
    text = tokenizer.decode(tokens)
    if TEMPLATES[name] is not None:
        assert text == tokenizer.apply_chat_template(chat, tokenize=False)

    # The demonstrator's are unbroken runs, one a reply.
    replies = [i for i, m in enumerate(chat) if m["role"] == "assistant"]
    begins = []
    for i in replies:
        before = chat_context(tokenizer, chat[:i])
        # What stands before a reply are the tokens that the model will be given there.
        np.testing.assert_array_equal(tokens[: len(before)], before)
        begins.append(len(before))
    ours = np.flatnonzero(mask)
    runs = []
    for begin, following in zip(begins, [*begins[1:], len(tokens)], strict=True):
        end = int(ours[ours < following].max()) + 1
        assert mask[begin:end].all()
        runs.append((begin, end))
    assert mask.sum() == sum(end - begin for begin, end in runs)
    for i, (begin, end) in zip(replies, runs, strict=True):
        said, content = tokenizer.decode(tokens[begin:end]), chat[i]["content"]
        if name in ("chatml", "default system", "no prompt"):
            assert said == content + "<|im_end|>"
        elif name == "trimming":
            assert said == content.strip() + "<|im_end|>"
        elif name == "blanks":
            assert said == f" {content.strip()} <|im_end|>"
        elif name == "line break":
            assert said == content.strip() + "\n"
        else:
            assert said == (f" {content}\n" if content else "\n")


@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_laws_of_partial_messages(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    chat: list[dict[str, Any]] = [
        {**m, "weight": 0} if m["role"] == "assistant" else m
        for m in data.draw(conversations(one_line=TEMPLATES[name] is None))
    ]
    letters = " abehlo.?" + ("" if TEMPLATES[name] is None else "\n")
    given_part, rest, other = (data.draw(st.text(letters, min_size=1, max_size=6)) for _ in range(3))
    # Templates may trim contents, so let there be nothing to trim.
    given_part, rest, other = "x" + given_part, rest + "x", other + "y"
    unfinished = data.draw(st.booleans())

    def written(continued: str, length: int) -> tuple[list[int], list[int], str]:
        said = {"role": "assistant", "content": given_part + continued, "given_characters": length}
        demonstrations = tokenized_chats([[*chat, {**said, "unfinished": unfinished}]], tokenizer)
        (tokens,), (mask,) = demonstrations.sequences, demonstrations.learned()
        ours = np.flatnonzero(mask)
        # One unbroken run, and nothing of what is context whatever the evidence.
        assert mask[ours[0] : ours[-1] + 1].all()
        np.testing.assert_array_equal(mask, demonstrations.learned("all")[0])
        return tokens[: ours[0]].tolist(), tokens[mask].tolist(), tokenizer.decode(tokens[mask])

    before, _, said = written(rest, len(given_part))
    # What stands before the rest does not depend on it, and begins with what stood before the reply.
    assert written(other, len(given_part))[0] == before
    context = chat_context(tokenizer, chat).tolist()
    assert before[: len(context)] == context
    assert tokenizer.decode(before[len(context) :]).strip() == given_part.strip()
    endings = {"blanks": " <|im_end|>", "line break": "\n", "none": "\n"}
    assert said == rest + ("" if unfinished else endings.get(name, "<|im_end|>"))


def test_no_token_reaches_from_what_was_given_into_the_rest() -> None:
    tokenizer = TOKENIZERS["chatml"]
    whole = tokenizer("hello", add_special_tokens=False)["input_ids"]
    assert len(whole) == 1
    said = {"role": "assistant", "content": "hello", "given_characters": 3}
    found = tokenized_chats([[message("user", "fine"), said]], tokenizer)
    expected = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("hel", "lo<|im_end|>")]
    (tokens,), (mask,) = found.sequences, found.learned()
    assert tokens[mask].tolist() == expected[1]
    begin = int(mask.argmax())
    assert tokens[begin - len(expected[0]) : begin].tolist() == expected[0]


def test_what_was_given_does_not_join_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.tiny_folders.TEXT", ("\n\n", *TEXT))
    template = LOOP + "{{ message['role'] + '\n' + message['content'] + '<|im_end|>' }}{% endfor %}"
    joining = tiny_tokenizer(template + "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}")
    # Two line breaks are one token unless a word follows.
    assert len(joining("\n\n", add_special_tokens=False)["input_ids"]) == 1
    said = {"role": "assistant", "content": "\nyou", "given_characters": 1}
    found = tokenized_chats([[message("user", "fine"), said]], joining)
    context = chat_context(joining, [message("user", "fine")])
    (tokens,), (mask,) = found.sequences, found.learned()
    np.testing.assert_array_equal(tokens[: len(context)], context)
    assert joining.decode(tokens[len(context) : mask.argmax()]) == "\n"
    assert joining.decode(tokens[mask]) == "you<|im_end|>"


def test_weight_0_is_context() -> None:
    tokenizer = TOKENIZERS["chatml"]
    chat = [{**m, "weight": int(i != 2)} for i, m in enumerate(CHAT)]
    found, plain = tokenized_chats([chat], tokenizer), tokenized_chats([CHAT], tokenizer)
    np.testing.assert_array_equal(found.sequences[0], plain.sequences[0])
    assert learned_texts(found, tokenizer) == learned_texts(plain, tokenizer)[1:]
    assert not np.any(found.actors[0] == 1)
    with pytest.raises(ValueError, match="chats must hold a message by agent_role='assistant' with a weight other"):
        tokenized_chats([[{**m, "weight": 0} for m in CHAT]], tokenizer)


def test_long_chats_are_split_with_their_weights() -> None:
    tokenizer = TOKENIZERS["chatml"]
    chat = [{**m, "weight": i // 2 % 2} for i, m in enumerate(long_chat(16))]
    whole = tokenized_chats([chat], tokenizer)
    split = tokenized_chats([chat], tokenizer, max_tokens=90, long_chats="split")
    assert len(split) > 3
    assert learned_texts(split, tokenizer) == learned_texts(whole, tokenizer)
    assert len(learned_texts(whole, tokenizer)) == 8


def test_the_agents_opening_follows_what_the_template_puts_first() -> None:
    tokenizer = TOKENIZERS["default system"]
    opening = tokenizer.decode(chat_context(tokenizer, []))
    assert opening == "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>assistant\n"


def test_prompts_that_go_missing_later_in_a_chat() -> None:
    template = (
        LOOP + "{{ message['role'] + ':' + message['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt and messages | length < 4 %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = tiny_tokenizer(template)
    chat = [message("user", "hello"), message("assistant", "you")] * 3
    assert tokenizer.decode(chat_context(tokenizer, chat)).endswith("you<|im_end|>assistant:")
    found = tokenized_chats([[*chat, message("assistant", "")]], tokenizer)
    assert learned_texts(found, tokenizer) == ["you<|im_end|>"] * 3 + ["<|im_end|>"]


def test_small_gpt_tokens_are_role_content_end() -> None:
    tokenizer = shipped_tokenizer()
    start, ours, theirs, end = tokenizer.convert_tokens_to_ids(["<|start|>", "<|assistant|>", "<|user|>", "<|end|>"])
    chat = [message("assistant", "hi\nthere  "), message("user", " so?"), message("assistant", ""), message("user", "")]
    tokens: list[int] = [start]
    mask = [False]
    for m in chat:
        content = tokenizer(m["content"], add_special_tokens=False)["input_ids"]
        tokens += [ours if m["role"] == "assistant" else theirs, *content, end]
        mask += [False, *([m["role"] == "assistant"] * (len(content) + 1))]
    found = tokenized_chats([chat], tokenizer)
    assert found.sequences[0].tolist() == tokens
    assert found.learned()[0].tolist() == mask
    assert chat_context(tokenizer, chat).tolist() == [*tokens, ours]
    with pytest.raises(ValueError, match=r"chats\[0\]: the chat template cannot write this chat: .*'system'"):
        tokenized_chats([CHAT], tokenizer)


def written(path: Path, *chats: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return path


def test_a_file_and_other_names_of_roles(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["chatml"]
    renamed = [{**m, "role": {"user": "pupil", "assistant": "tutor"}.get(m["role"], m["role"])} for m in CHAT]
    path = written(tmp_path / "chats.jsonl", renamed, renamed[:3])
    found = tokenized_chats(path, tokenizer, agent_role="tutor", other_role="pupil")
    expected = tokenized_chats([CHAT, {"messages": CHAT[:3], "id": 7}], tokenizer)
    for one, two in zip(found.sequences + found.actors, expected.sequences + expected.actors, strict=True):
        np.testing.assert_array_equal(one, two)
    context = chat_context(tokenizer, renamed[:4], agent_role="tutor", other_role="pupil")
    np.testing.assert_array_equal(context, chat_context(tokenizer, CHAT[:4]))


def test_unlike_dialogue_acts_messages_of_one_role_stay_apart(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["chatml"]
    chat = [message("user", "hello"), message("assistant", "you"), message("assistant", "there")]
    assert learned_texts(tokenized_chats([chat], tokenizer), tokenizer) == ["you<|im_end|>", "there<|im_end|>"]


GOOD = json.dumps({"messages": CHAT})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"mine\.jsonl must hold at least one chat"),
        ("\n\n", r"mine\.jsonl must hold at least one chat"),
        (f"{GOOD}\n{GOOD[:-3]}\n", r"mine\.jsonl:2: .*each line must be one chat"),
        (f"{GOOD}\n\n[1]\n", r"mine\.jsonl:3:"),
        (
            GOOD.replace("assistant", "tutor"),
            r"mine\.jsonl:1: unknown role 'tutor'; known are 'assistant', 'user', 'sys",
        ),
        (GOOD.replace("assistant", "user"), r"mine\.jsonl must hold a message by .*agent_role='assistant', got none"),
        (GOOD.replace('"fine"', "3"), r"mine\.jsonl:1: messages\.3\.content"),
        (
            f"{GOOD}\n{GOOD.replace('fine', '<|im_end|>')}",
            r"mine\.jsonl:2: messages\[3\] must not contain '<\|im_end\|>'",
        ),
    ],
)
def test_unusable_files(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        tokenized_chats(tmp_path / "mine.jsonl", TOKENIZERS["chatml"])


def test_unusable_lists() -> None:
    tokenizer = TOKENIZERS["chatml"]
    with pytest.raises(ValueError, match="chats must hold at least one chat"):
        tokenized_chats([], tokenizer)
    with pytest.raises(ValueError, match=r"chats\[1\]: messages: "):
        tokenized_chats([CHAT, []], tokenizer)
    with pytest.raises(ValueError, match=r"chats\[1\]: messages\.0\.role: .*a message is"):
        tokenized_chats([CHAT, [{"content": "who?"}]], tokenizer)
    with pytest.raises(ValueError, match=r"messages: unknown role 'tutor'"):
        chat_context(tokenizer, [message("tutor", "hello")])
    with pytest.raises(ValueError, match="two different roles"):
        tokenized_chats([CHAT], tokenizer, agent_role="user")
    with pytest.raises(ValueError, match="two different roles"):
        tokenized_chats([CHAT], tokenizer, other_role="system")
    with pytest.raises(FileNotFoundError, match=r"no file of demonstrations at none\.jsonl"):
        tokenized_chats("none.jsonl", tokenizer)


def test_line_breaks_need_a_template() -> None:
    chat = [message("user", "hello"), message("assistant", "one\ntwo")]
    with pytest.raises(ValueError, match=r"chats\[0\]: messages\[1\] must be one line.*or set tokenizer.chat_template"):
        tokenized_chats([chat], TOKENIZERS["none"])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOP + "{{ message['role'] + message['content'] | upper + '<|im_end|>' }}{% endfor %}", "as it is"),
        # As models that think do: what was thought is left out once another turn follows.
        (
            LOOP + "{{ message['role'] + ':' + ('<think>' if loop.last else '') + message['content'] + '<|im_end|>' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
            "and the same whatever follows",
        ),
        (LOOP + "{{ message['role'] + message['content'] }}{% endfor %}", "must end the turn"),
        ("{{ raise_exception('roles must alternate') }}", "cannot write this chat: roles must alternate"),
        ("{{ messages[0].nothing.at_all }}", "cannot write this chat"),
        ("{% for %}", "cannot write this chat"),
    ],
)
def test_templates_that_hide_the_replies(template: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"chats\[0\]: the chat template .*{words}"):
        tokenized_chats([CHAT], tiny_tokenizer(template))


def test_slow_tokenizers() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"tokenizer must be a fast one.*got Slow"):
        tokenized_chats([CHAT], Slow())
    with pytest.raises(ValueError, match=r"tokenizer must be a fast one.*got NoneType"):
        chat_context(None, [])


def long_chat(n_exchanges: int) -> list[dict[str, str]]:
    said = [message("system", "be kind")]
    for i in range(n_exchanges):
        said += [message("user", f"hello {i}"), message("assistant", "thank you" * (1 + i % 3))]
    return [*said, message("user", "bye " * 30)]


@pytest.mark.parametrize("name", ["chatml", "none"])
def test_long_chats_are_split_between_turns(name: str, tmp_path: Path) -> None:
    tokenizer, chat = TOKENIZERS[name], long_chat(16)
    whole = tokenized_chats([chat], tokenizer)
    length = len(whole.sequences[0])
    fitting = tokenized_chats([chat], tokenizer, max_tokens=length, long_chats="split")
    np.testing.assert_array_equal(np.concatenate(fitting.sequences), whole.sequences[0])
    path = written(tmp_path / "long.jsonl", CHAT[:3], chat)
    with pytest.raises(
        ValueError, match=rf'long\.jsonl:2: a chat must have at most 90 tokens.*got {length}; pass .*"split"'
    ):
        tokenized_chats(path, tokenizer, max_tokens=90)
    split = tokenized_chats(path, tokenizer, max_tokens=90, long_chats="split")
    assert len(split) > 3
    lengths = [len(tokens) for tokens in split.sequences]
    assert max(lengths) <= 90
    first = tokenized_chats([CHAT[:3]], tokenizer)
    assert learned_texts(split, tokenizer) == learned_texts(first, tokenizer) + learned_texts(whole, tokenizer)
    lead = tokenizer.decode(first.sequences[0]).split("hello")[0]
    for tokens in split.sequences:
        assert tokenizer.decode(tokens).startswith(lead)
        assert "bye" not in tokenizer.decode(tokens)
    # Nothing is cut that would have fitted.
    pieces = [tokenizer.decode(tokens).removeprefix(lead) for tokens in split.sequences[1:]]
    for piece, following, used in zip(pieces, pieces[1:], lengths[1:], strict=False):
        assert piece
        exchange = following.split("hello")[1]
        assert used + len(tokenizer(exchange)["input_ids"]) > 85


@pytest.mark.parametrize("name", ["chatml", "none"])
def test_no_longer_than_one_exchange(name: str) -> None:
    tokenizer, chat = TOKENIZERS[name], long_chat(4)
    alone = [tokenized_chats([[chat[0], *chat[i : i + 2]]], tokenizer).sequences[0] for i in range(1, 9, 2)]
    split = tokenized_chats([chat], tokenizer, max_tokens=max(map(len, alone)), long_chats="split")
    for tokens, expected in zip(split.sequences, alone, strict=True):
        np.testing.assert_array_equal(tokens, expected)


def test_replies_that_are_too_long_even_alone() -> None:
    chat = [message("user", "hello"), message("assistant", "no " * 50)]
    with pytest.raises(ValueError, match=r"chats\[0\]: a reply with what it answers must have at most 40 .*'hello'"):
        tokenized_chats([chat], TOKENIZERS["chatml"], max_tokens=40, long_chats="split")


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match='long_chats must be "error" or "split", got'):
        tokenized_chats([CHAT], TOKENIZERS["chatml"], long_chats="cut")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        tokenized_chats([CHAT], TOKENIZERS["chatml"], max_tokens=0)
