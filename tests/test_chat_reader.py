"""Tokens read back: a conversation that is written is the one that is read, and nothing else is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cautious_imitation.language.chat_reader import chat_reader, read_messages
from cautious_imitation.language.chats import chat_context, tokenized_chats
from cautious_imitation.language.small_gpt import shipped_tokenizer
from tests.tiny_folders import CHATML, tiny_tokenizer

LOOP = "{% for message in messages %}"
TEMPLATES = {
    "chatml": CHATML,
    # As SmolLM2's: a system message of its own if there is none.
    "default system": LOOP
    + "{% if loop.first and messages[0]['role'] != 'system' %}"
    + "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    + CHATML.removeprefix(LOOP),
    # As Llama 3's: headers of their own, contents trimmed, a token in front.
    "headers": "{{ '<|endoftext|>' }}"
    + LOOP
    + "{{ '<|im_start|>' + message['role'] + '<|im_start|>\n\n' + message['content'] | trim + '<|im_end|>' }}"
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_start|>\n\n' }}{% endif %}",
    # As Llama 2's: roles alternate, the system message is a part of the first user's, blanks around replies.
    "brackets": "{% if messages[0]['role'] == 'system' %}{% set said = messages[1:] %}"
    + "{% set first = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    + "{% else %}{% set said = messages %}{% set first = '' %}{% endif %}{% for message in said %}"
    + "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    + "{% if message['role'] == 'user' %}"
    + "{{ '<|im_start|>[INST] ' + (first if loop.first else '') + message['content'] | trim + ' [/INST]' }}"
    + "{% else %}{{ ' ' + message['content'] | trim + ' <|im_end|>' }}{% endif %}{% endfor %}",
    # It has no prompt for a reply.
    "no prompt": LOOP + "{{ message['role'] + ': ' + message['content'] + '<|im_end|>\n' }}{% endfor %}",
    "none": None,
}
TOKENIZERS = {name: tiny_tokenizer(template) for name, template in TEMPLATES.items()} | {"shipped": shipped_tokenizer()}
LEADS = {"brackets": " ", "none": " "}
"""What stands between the header of a reply and its words."""


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


CONTENT = st.text(st.sampled_from(" \nabehlo.?!:'äß日🙂"), max_size=8)


@st.composite
def conversations(draw: st.DrawFn, name: str) -> list[dict[str, str]]:
    """Ends where a reply of the agent may begin."""
    n_messages = draw(st.integers(1, 5))
    if name == "brackets":
        roles = ["user", "assistant"] * 2 + ["user"]
        roles = roles[: n_messages - (n_messages % 2 == 0)]
    else:
        roles = [draw(st.sampled_from(["user", "assistant"])) for _ in range(n_messages)]
    contents = [draw(CONTENT) for _ in roles]
    if name == "none":
        contents = [content.replace("\n", " ") for content in contents]
    if name in ("headers", "brackets"):
        # What is trimmed cannot be read.
        contents = [content.strip() for content in contents]
    said = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    if name != "shipped" and draw(st.booleans()):
        return [{"role": "system", "content": "be kind"}, *said]
    return said


def read(tokenizer: Any, tokens: list[int]) -> list[dict[str, str]] | None:
    found = read_messages(tokenizer, tokens)
    return None if found is None else [{"role": m.role, "content": m.content} for m in found]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    chat = data.draw(conversations(name))
    context = chat_context(tokenizer, chat).tolist()
    nothing_yet = [{"role": "assistant", "content": ""}] if chat[-1]["role"] == "assistant" else []
    assert read(tokenizer, context) == [*chat, *nothing_yet]

    begun = data.draw(st.text("abehlo .?!", min_size=1, max_size=6).filter(lambda text: text.strip() == text))
    started = context + tokens_of(tokenizer, LEADS.get(name, "") + begun)
    assert read(tokenizer, started) == [*chat, {"role": "assistant", "content": begun}]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_is_read_is_what_was_written_or_nothing(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    context = chat_context(tokenizer, data.draw(conversations(name))).tolist()
    place, token = data.draw(st.integers(0, len(context) - 1)), data.draw(st.integers(0, len(tokenizer) - 1))
    damaged = data.draw(
        st.sampled_from([context[:place], [*context[:place], token, *context[place:]], context[place:], context[::-1]])
    )
    found = read_messages(tokenizer, damaged)
    if found is None:
        return
    said, unfinished = (found[:-1], found[-1].content) if found and found[-1].role == "assistant" else (found, "")
    again = chat_context(tokenizer, said).tolist()
    assert damaged[: len(again)] == again
    assert tokenizer.decode(damaged[len(again) :]).removeprefix(LEADS.get(name, "")) == unfinished


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_reply_is_what_is_learned_of_it(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    chat = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in data.draw(conversations(name))]
    begun = data.draw(st.text("abehlo.?!", max_size=4))
    said = data.draw(st.text("abehlo .?!", max_size=6).filter(lambda text: text.strip() == text))
    lead = LEADS.get(name, "") if begun else ""
    context = chat_context(tokenizer, chat).tolist() + tokens_of(tokenizer, lead + begun)
    reply = chat_reader(tokenizer).reply(context, said)
    answered = {"role": "assistant", "content": begun + said, "given_characters": len(begun)}
    demonstrations = tokenized_chats([[*chat, answered]], tokenizer)
    (tokens,), (mask,) = demonstrations.sequences, demonstrations.learned()
    np.testing.assert_array_equal(tokens[mask], reply)
    assert tokens[: mask.argmax()].tolist() == context
    assert chat_reader(tokenizer).said(context, reply) == (said, True)
    unended = tokens_of(tokenizer, "hello there")
    assert chat_reader(tokenizer).said(context, unended) == ("hello there", False)


def test_the_default_system_message_is_nobodys() -> None:
    tokenizer = TOKENIZERS["default system"]
    assert read(tokenizer, chat_context(tokenizer, []).tolist()) == []
    said = [{"role": "user", "content": "hello"}]
    default = {"role": "system", "content": "You are a helpful AI assistant"}
    # Both are the same tokens.
    assert read(tokenizer, chat_context(tokenizer, [default, *said]).tolist()) == said


def test_a_template_that_wants_a_system_message_and_alternating_roles() -> None:
    strict = (
        LOOP + "{% set wanted = 'system' if loop.first else ('user' if loop.index0 % 2 else 'assistant') %}"
        "{% if message['role'] != wanted %}{{ raise_exception('no') }}{% endif %}" + CHATML.removeprefix(LOOP)
    )
    tokenizer = tiny_tokenizer(strict)
    contents = [("system", "be kind"), ("user", "hello"), ("assistant", "you"), ("user", "there")]
    said = [{"role": role, "content": content} for role, content in contents]
    assert read(tokenizer, chat_context(tokenizer, said).tolist()) == said


def test_a_finished_message_is_told_from_an_unfinished_one() -> None:
    tokenizer = TOKENIZERS["chatml"]
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]
    finished = chat_context(tokenizer, said).tolist()
    unfinished = [*chat_context(tokenizer, said[:1]).tolist(), *tokens_of(tokenizer, "you")]
    assert read(tokenizer, finished) == [*said, {"role": "assistant", "content": ""}]
    assert read(tokenizer, unfinished) == said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<|im_start|>user\nhello<|im_end|>\n", "it is not the agent's turn"),
        ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>", "the header has not ended"),
        ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nyou<|im_end|>", "the turn has ended"),
        ("<|im_start|>tool\nhello<|im_end|>\n<|im_start|>assistant\n", "nobody has that role"),
        ("user\nhello<|im_end|>\n<|im_start|>assistant\n", "the beginning is missing"),
        ("once upon a time", "it is no chat"),
        ("", "it is nothing"),
    ],
)
def test_what_is_no_conversation(text: str, why: str) -> None:
    tokenizer = TOKENIZERS["chatml"]
    assert read_messages(tokenizer, tokens_of(tokenizer, text)) is None, why


def test_other_tokens_of_the_same_text_are_not_read() -> None:
    tokenizer = TOKENIZERS["chatml"]
    context = chat_context(tokenizer, [{"role": "user", "content": "hello"}]).tolist()
    (whole,) = tokens_of(tokenizer, "hello")
    place = context.index(whole)
    letters = [token for letter in "hello" for token in tokens_of(tokenizer, letter)]
    assert read_messages(tokenizer, [*context[:place], *letters, *context[place + 1 :]]) is None
    half_a_character = tokens_of(tokenizer, "日")[:1]
    assert read_messages(tokenizer, context + half_a_character) is None


def test_another_template_is_read_by_another_reader() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    said = [{"role": "user", "content": "hello"}]
    assert read(tokenizer, chat_context(tokenizer, said).tolist()) == said
    assert chat_reader(tokenizer) is chat_reader(tokenizer)
    tokenizer.chat_template = TEMPLATES["headers"]
    assert read(tokenizer, chat_context(tokenizer, said).tolist()) == said
    tokenizer.chat_template = None
    assert read(tokenizer, chat_context(tokenizer, said).tolist()) == said


def test_replies_outside_of_conversations() -> None:
    for name, ending in (("chatml", "<|im_end|>"), ("none", "\n")):
        tokenizer = TOKENIZERS[name]
        context = tokens_of(tokenizer, "once upon a time")
        assert chat_reader(tokenizer).reply(context, " there") == (*tokens_of(tokenizer, " there" + ending),)
    with pytest.raises(ValueError, match=r"must not contain '<\|im_end\|>'"):
        chat_reader(TOKENIZERS["chatml"]).reply([1], "no<|im_end|>")
    with pytest.raises(ValueError, match="must be one line"):
        chat_reader(TOKENIZERS["none"]).reply([1], "one\ntwo")
    endless = tiny_tokenizer(LOOP + "{{ message['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="does not show how a reply ends"):
        chat_reader(endless).reply(tokens_of(endless, "hello"), "you")


def test_words_of_a_reply_leave_out_special_tokens_and_join_characters() -> None:
    tokenizer = TOKENIZERS["chatml"]
    context = chat_context(tokenizer, [{"role": "user", "content": "hello"}]).tolist()
    reader = chat_reader(tokenizer)
    assert reader.said(context, tokens_of(tokenizer, "you<|endoftext|>")) == ("you", False)
    whole = tokens_of(tokenizer, "日")
    assert len(whole) > 1
    assert reader.said([*context, whole[0]], whole[1:])[1] is False
    assert reader.said(context, whole) == ("日", False)


def test_slow_tokenizers() -> None:
    with pytest.raises(ValueError, match=r"tokenizer must be a fast one.*got NoneType"):
        read_messages(None, [1, 2])


@pytest.mark.parametrize("name", ["chatml", "brackets", "none"])
def test_tokenizers_that_put_blanks_after_special_tokens(name: str) -> None:
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    pieces.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    specials = [AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>", "<unk>")]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    pieces.train_from_iterator(["hello there user\nassistant system:", "UserAssistant[INST]/ q0z1q2z3"] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>", chat_template=TEMPLATES[name])
    said = [{"role": "user", "content": "hello"}]
    context = chat_context(tokenizer, said).tolist()
    assert name == "none" or "<|im_start|> " in tokenizer.decode(context)
    assert read(tokenizer, context) == said
