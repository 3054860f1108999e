"""Answers as demonstrations: what is exported is what is learned, and what is imported is what was exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cautious_imitation import ContextTree, Demonstrations
from cautious_imitation.cli import app
from cautious_imitation.demonstrations import read_chats
from cautious_imitation.language.chat_reader import read_messages
from cautious_imitation.language.chats import chat_context, tokenized_chats
from cautious_imitation.language.small_gpt import shipped_tokenizer
from cautious_imitation.oracles.chat_files import demonstrations, export_chats, import_chats
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, AnswerConflict, Decline, OracleError, PlausibleAction, Query
from cautious_imitation.oracles.vocabulary import Vocabulary
from tests.tiny_folders import CHATML, tiny_tokenizer

TOKENIZERS = {"chatml": tiny_tokenizer(CHATML), "none": tiny_tokenizer(None), "shipped": shipped_tokenizer()}


@pytest.fixture
def log(tmp_path: Path) -> QueryLog:
    return QueryLog(tmp_path / "questions.db")


def answered(log: QueryLog, query: Query, answer: Act | Decline, by: str = "Ada") -> None:
    log.post([query])
    log.answer(query.id, answer, by)


def ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def question(tokenizer: Any, said: list[dict[str, str]], begun: str = "", **more: Any) -> Query:
    context = (*(int(token) for token in chat_context(tokenizer, said)), *ids(tokenizer, begun))
    return Query(context, len(tokenizer), messages=read_messages(tokenizer, context) or (), **more)


WORDS = st.text("abehlo .?!", max_size=6).map(str.strip)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_learned_is_the_answer_at_the_context_asked(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer, folder = TOKENIZERS[name], tmp_path_factory.mktemp("log")
    vocabulary = Vocabulary.tokenizer(tokenizer)
    log, path = QueryLog(folder / "questions.db"), folder / "answers.jsonl"
    expected = []
    for number in range(data.draw(st.integers(1, 3))):
        said = [{"role": "user", "content": data.draw(WORDS)}, {"role": "assistant", "content": data.draw(WORDS)}]
        said = (said * 2)[: data.draw(st.sampled_from([0, 1, 3]))]
        begun = data.draw(WORDS)
        lead = " " if name == "none" and begun else ""
        query = question(tokenizer, said, lead + begun, id=f"q{number}")
        text = data.draw(WORDS)
        reply = vocabulary.reply(query.context, text)
        kind = data.draw(st.sampled_from(["words", "whole", "part", "stand-in"]))
        if kind == "part":
            part = ids(tokenizer, " a" if begun or name == "none" else "a")
            answered(log, query, Act(part))
            expected.append((query.context, part))
        else:
            act = Act(reply) if kind == "whole" else Act(text=text, evidence=kind != "stand-in")
            answered(log, query, act)
            expected += [] if kind == "stand-in" else [(query.context, reply)]
    if not expected:
        with pytest.raises(ValueError, match="holds no answer to a question that may be learned from"):
            demonstrations(log, vocabulary=tokenizer)
        return
    export_chats(log, path, vocabulary=tokenizer)
    for found in (demonstrations(log, vocabulary=tokenizer), tokenized_chats(path, tokenizer)):
        learned = []
        for tokens, mask in zip(found.sequences, found.learned(), strict=True):
            np.testing.assert_array_equal(mask, tokens_after(mask))
            if mask.any():
                begin, end = np.flatnonzero(mask)[[0, -1]]
                learned.append((tuple(tokens[:begin].tolist()), tuple(tokens[begin : end + 1].tolist())))
        assert learned == expected
        assert found.n_learned("all") == found.n_learned()


def tokens_after(mask: np.ndarray) -> np.ndarray:
    """The mask itself, if it is one unbroken run."""
    run = np.zeros_like(mask)
    if mask.any():
        begin, end = np.flatnonzero(mask)[[0, -1]]
        run[begin : end + 1] = True
    return run


def everything(log: QueryLog) -> None:
    """Questions of every kind, with all that can be said about them."""
    chatml = TOKENIZERS["chatml"]
    plausible = (PlausibleAction(1, 0.125, 0.25, 0.5, "green"), PlausibleAction(0, 0.0, 0.1, 0.2))
    answered(log, Query((0, 1), 3, 0.3, plausible, "red, green", id="a", asker="run", episode=4), Act((1,)))
    answered(log, Query((2,), 3, id="b", deadline=9e12), Act((2, 0), evidence=False, independent=False), by="Grace")
    answered(log, Query((), 3, id="c"), Decline("too hard"))
    answered(log, Query((1,), 3, id="d", asker="run"), Decline("enough", independent=True), by="Grace")
    said = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi\nthere 日"}]
    answered(log, question(chatml, said, "hello", id="e"), Act(text=", you"))
    twice = [*said, {"role": "assistant", "content": "hello"}]
    answered(log, question(chatml, twice, id="f"), Act(text=""))
    answered(log, question(chatml, [*twice, said[1]], "you", id="g"), Act(ids(chatml, " too")))
    answered(log, question(chatml, said, "he", id="h"), Decline("no idea"))
    log.post([Query((1,), 3, id="open")])


@pytest.mark.parametrize("vocabulary", [TOKENIZERS["chatml"], None])
def test_export_import_export_is_the_identity(log: QueryLog, tmp_path: Path, vocabulary: Any) -> None:
    everything(log)
    if vocabulary is None:
        # Without words for tokens in a conversation nothing could be written.
        log.undo("g", "Ada")
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    n_lines = export_chats(log, first, declined=True, vocabulary=vocabulary)
    assert n_lines == len(lines(first)) == 8 - (vocabulary is None)
    other = QueryLog(tmp_path / "other.db")
    assert import_chats(other, first) == n_lines
    assert export_chats(other, second, declined=True, vocabulary=vocabulary) == n_lines
    assert second.read_bytes() == first.read_bytes()
    for entry in other.entries():
        known = log.entry(entry.query.id)
        assert (entry.query, entry.answer, entry.status) == (known.query, known.answer, known.status)
        assert (entry.answered_by, entry.answered_at, entry.seconds) == (
            known.answered_by,
            known.answered_at,
            known.seconds,
        )
        assert entry.posted_at == known.posted_at
    # Once more is no more.
    assert import_chats(other, first) == import_chats(log, first) == 0
    assert export_chats(other, second, declined=True, vocabulary=vocabulary) == n_lines
    assert second.read_bytes() == first.read_bytes()


def test_a_line_in_full(log: QueryLog, tmp_path: Path) -> None:
    tokenizer, path = TOKENIZERS["chatml"], tmp_path / "answers.jsonl"
    said = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "?"},
    ]
    query = question(tokenizer, said, "you", id="q", asker="tuesday", episode=3)
    answered(log, query, Act(text=" too"))
    assert export_chats(log, path) == 1
    (line,) = lines(path)
    assert line["messages"] == [
        said[0],
        {**said[1], "weight": 0},
        said[2],
        {"role": "assistant", "content": "you too", "given_characters": 3},
    ]
    entry = log.entry("q")
    wanted = {
        "id": "q",
        "asker": "tuesday",
        "episode": 3,
        "context": list(query.context),
        "actions": [],
        "text": " too",
    }
    wanted |= {"answered_by": "Ada", "answered_at": entry.answered_at, "seconds": entry.seconds, "evidence": True}
    assert {key: line[key] for key in wanted} == wanted
    # An act is read from a whole message, of which the answer is a part only.
    assert [mask.any() for mask in tokenized_chats(path, tokenizer).learned()] == [True]
    with pytest.raises(ValueError, match="holds no whole message"):
        Demonstrations.from_chats(path)


def test_what_is_written_of_which_questions(log: QueryLog, tmp_path: Path) -> None:
    everything(log)
    path = tmp_path / "answers.jsonl"

    def found(**settings: Any) -> list[str]:
        n_lines = export_chats(log, path, vocabulary=TOKENIZERS["chatml"], **settings)
        assert n_lines == len(lines(path))
        return [line["id"] for line in lines(path)]

    assert found() == ["a", "b", "e", "f", "g"]
    assert found(declined=True) == ["a", "b", "c", "d", "e", "f", "g", "h"]
    assert found(asker="run", declined=True) == ["a", "d"]
    assert found(asker="nobody") == []
    found(declined=True)
    weights = {line["id"]: line["messages"][-1].get("weight", 1) for line in lines(path)}
    assert weights == {"a": 1, "b": 0, "c": 0, "d": 0, "e": 1, "f": 1, "g": 1, "h": 0}
    assert [line["declined"] for line in lines(path)][2:4] == ["too hard", "enough"]
    for _, chat in read_chats(path):
        assert all(message.weight == 0 for message in chat.messages[:-1] if message.role == "assistant")


def test_texts_of_symbols(log: QueryLog, tmp_path: Path) -> None:
    plausible = (PlausibleAction(1, 0.125, 0.25, 0.5, "green"),)
    answered(log, Query((0, 1), 3, plausible=plausible, text="first red", id="a"), Act((1,)))
    answered(log, Query((0, 2), 3, plausible=plausible, id="b"), Act((1, 2)))

    def said(vocabulary: Any) -> list[tuple[str, ...]]:
        export_chats(log, tmp_path / "a.jsonl", vocabulary=vocabulary)
        return [tuple(message["content"] for message in line["messages"]) for line in lines(tmp_path / "a.jsonl")]

    assert said(None) == [("first red", "green"), ("0 2", "1 2")]
    assert said(["red", "green", "blue"]) == [("red, green", "green"), ("red, blue", "green, blue")]


def test_words_that_came_with_the_question(log: QueryLog, tmp_path: Path) -> None:
    tokenizer, path = TOKENIZERS["chatml"], tmp_path / "answers.jsonl"
    (the,) = ids(tokenizer, "you")
    part = ids(tokenizer, "日")[0]
    listed = tuple(
        PlausibleAction(token, 0.1, 0.1, 0.1, Vocabulary.tokenizer(tokenizer).label(token)) for token in (the, part)
    )
    query = question(tokenizer, [{"role": "user", "content": "hi"}], plausible=listed, id="q")
    answered(log, query, Act((the,)))
    export_chats(log, path)
    assert lines(path)[0]["messages"][-1] == {"role": "assistant", "content": "you", "unfinished": True}
    before = path.read_bytes()
    answered(log, question(tokenizer, [], "a", plausible=listed, id="r"), Act((part,)))
    with pytest.raises(ValueError, match=r"answer to question 'r' is the actions \(\d+,\).*pass vocabulary="):
        export_chats(log, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.glob("*.jsonl*")] == ["answers.jsonl"]
    assert not list(tmp_path.glob(".*"))


def test_learning_from_answers_again(log: QueryLog, tmp_path: Path) -> None:
    tree = ContextTree(n_symbols=2, depth=1)
    for number, context in enumerate([(0,), (1, 0), (0, 0), (1,)] * 5):
        answered(log, Query(context, 2, id=str(number)), Act((1 - context[-1],)))
    found = demonstrations(log)
    assert len(found) == 20
    assert np.exp(tree.fit(found).mixture([0]))[1] > 0.8
    with pytest.raises(ValueError, match="no answer to a question of 'nobody'"):
        demonstrations(log, asker="nobody")


def test_replies_in_words_need_a_vocabulary(log: QueryLog) -> None:
    answered(log, Query((0, 1), 3, id="q"), Act(text="green"))
    with pytest.raises(
        ValueError, match=r"answer to question 'q' is in words, 'green', and only who asked.*vocabulary="
    ):
        demonstrations(log)
    assert demonstrations(log, vocabulary=["red", "green"]).sequences[0].tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match=r"question 'q' cannot be written in actions: text does not name a symbol"):
        demonstrations(log, vocabulary=["red", "blue"])
    with pytest.raises(OracleError, match=r"action in 0..2, .* got 3"):
        demonstrations(log, vocabulary=["red", "a", "b", "green"])


GOOD = (
    '{"messages": [{"role": "user", "content": "0"}, {"role": "assistant", "content": "1"}], "id": "q", '
    '"asker": "run", "context": [0], "n_actions": 2, "conversation": false, "actions": [1], "posted_at": 1.0, '
    '"answered_by": "Ada", "answered_at": 2.0}'
)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": [{"role": "user", "content": "hi"}]}', r"2: id: Field required; a line must be an answer that"),
        (GOOD[:-3], r"2: Invalid JSON"),
        (GOOD.replace('"context": [0], ', ""), r"2: context: Field required"),
        (GOOD.replace('"actions": [1]', '"actions": [2]'), r"2: oracle must answer with an action in 0..1, .* got 2"),
        (GOOD.replace('"actions": [1]', '"actions": []'), r"2: an Act must hold actions"),
        (GOOD.replace('"answered_by": "Ada", ', ""), r"2: answered_by: is missing; pass by="),
        (GOOD.replace("false", "true").replace("assistant", "user"), r"2: messages.1: the answer must come last"),
        (GOOD.replace("[1]", "[0]"), r"2: question 'q' has another answer in .*, by 'Ada'"),
        (GOOD.replace("[0]", "[1]"), r"2: question 'q' is another one in "),
    ],
)
def test_files_that_cannot_be_imported(log: QueryLog, tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"answers\.jsonl:" + words):
        import_chats(log, path)
    # Nothing of it was kept.
    assert log.entries() == []


def test_import_into_a_log_where_things_happen(log: QueryLog, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(GOOD, encoding="utf-8")
    log.post([Query((0,), 2, id="q", asker="run")])
    log.claim("Grace")
    with pytest.raises(AnswerConflict, match=r"jsonl:1: question 'q' is being answered by 'Grace'"):
        import_chats(log, path)
    log.release("q", "Grace")
    assert import_chats(log, path, by="Ada L.") == 1
    assert log.take(["q"]) == {"q": Act((1,))}
    assert (log.entry("q").answered_by, log.entry("q").answered_at) == ("Ada L.", 2.0)
    late = QueryLog(tmp_path / "late.db")
    late.post([Query((0,), 2, id="q", asker="run", deadline=1.0)])
    assert isinstance(late.take(["q"])["q"], Decline)
    with pytest.raises(AnswerConflict, match="went on without an answer"):
        import_chats(late, path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        import_chats(log, tmp_path / "nothing.jsonl")


def test_a_killed_export_leaves_the_old_file(log: QueryLog, tmp_path: Path) -> None:
    for number in range(3):
        answered(log, Query((0,), 2, id=str(number)), Act((1,)))
    path = tmp_path / "answers.jsonl"
    export_chats(log, path)
    before = path.read_bytes()
    answered(log, Query((0,), 2, id="more"), Act((1,)))
    script = (
        "import os, signal, sys\n"
        "from cautious_imitation.oracles import chat_files\n"
        "from cautious_imitation.oracles.log import QueryLog\n"
        "written = chat_files.written_line\n"
        "def killed(entry, vocabulary):\n"
        "    if entry.query.id == 'more': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return written(entry, vocabulary)\n"
        "chat_files.written_line = killed\n"
        "chat_files.export_chats(QueryLog(sys.argv[1]), sys.argv[2])\n"
    )
    run = subprocess.run([sys.executable, "-c", script, log.path, path], check=False, env=os.environ)
    assert run.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert export_chats(log, path) == 4


def test_more_questions_than_are_read_at_once(log: QueryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cautious_imitation.oracles.chat_files._AT_ONCE", 3)
    for number in range(6):
        answered(log, Query((0,), 2, id=str(number)), Act((1,)))
        assert export_chats(log, tmp_path / "answers.jsonl") == number + 1
    assert [line["id"] for line in lines(tmp_path / "answers.jsonl")] == list("012345")


@pytest.fixture
def typed() -> Callable[..., Any]:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["oracle", *map(str, arguments)], catch_exceptions=False)

    return run


def test_the_command_line(log: QueryLog, tmp_path: Path, typed: Callable[..., Any]) -> None:
    everything(log)
    folder, path, other = tmp_path / "tokenizer", tmp_path / "answers.jsonl", tmp_path / "other.db"
    TOKENIZERS["chatml"].save_pretrained(folder)
    told = typed("export", log.path, path)
    assert told.exit_code == 2
    assert "--tokenizer" in told.stderr
    assert typed("export", log.path, path, "--tokenizer", folder).stdout == f"5 answers in {path}\n"
    assert typed("export", log.path, path, "--declined", "--asker", "run").stdout == f"2 answers in {path}\n"
    assert [line["id"] for line in lines(path)] == ["a", "d"]
    assert typed("import", other, path, "--by", "Alan").stdout == f"2 new answers in {other}\n"
    assert typed("import", other, path).stdout == f"0 new answers in {other}\n"
    assert {entry.answered_by for entry in QueryLog(other).entries(Status.ANSWERED)} == {"Alan"}
    for wrong in (("export", tmp_path / "no.db", path), ("import", tmp_path / "no.db", tmp_path / "no.jsonl")):
        told = typed(*wrong)
        assert told.exit_code == 2
        assert told.stderr.startswith("error: no ")
        assert not (tmp_path / "no.db").exists()
