"""Demonstrations: whose action is learned from, the shipped chats, and the user's own JSONL with all its faults."""

from __future__ import annotations

import bz2
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cautious_imitation.demonstrations import Demonstrations, Message, actor_codes
from cautious_imitation.dialogue_labels import ACTS, label
from cautious_imitation.types import Actor

BUILDER = Path(__file__).parents[1] / "baselines" / "build_dialogue_acts.py"

recordings = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(list(Actor))), max_size=12), min_size=1, max_size=5
)
chat_messages = st.lists(
    st.tuples(
        st.sampled_from(["system", "user", "assistant"]),
        st.sampled_from(["", " \n", "hi", "ok", "Why?", "the train leaves at nine", "I love this song"]),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def builder() -> dict:
    return runpy.run_path(str(BUILDER))


def write_chats(path: Path, *chats: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"messages": [{"role": role, "content": content} for role, content in chat]}) for chat in chats]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@given(recordings)
def test_evidence_learns_from_exactly_the_actors_it_names(recording: list[list[tuple[int, Actor]]]):
    demonstrations = Demonstrations(
        tuple([symbol for symbol, _ in sequence] for sequence in recording),
        tuple(actor_codes(actor for _, actor in sequence) for sequence in recording),
    )
    wanted = {"demonstrator": {Actor.DEMONSTRATOR}, "all": {Actor.DEMONSTRATOR, Actor.IMITATOR}}
    for evidence, actors in wanted.items():
        expected = [[actor in actors for _, actor in sequence] for sequence in recording]
        assert [mask.tolist() for mask in demonstrations.learned(evidence)] == expected
        assert demonstrations.n_learned(evidence) == sum(map(sum, expected))
    assert len(demonstrations) == len(recording)


@given(st.lists(st.lists(st.integers(0, 20)), min_size=1), st.integers(1, 12))
def test_from_symbols_tells_actors_by_the_symbol(sequences: list[list[int]], n_symbols: int):
    demonstrations = Demonstrations.from_symbols(sequences, n_symbols)
    assert [s.tolist() for s in demonstrations.sequences] == sequences
    for evidence in ("demonstrator", "all"):
        assert [m.tolist() for m in demonstrations.learned(evidence)] == [[x < n_symbols for x in s] for s in sequences]


def test_arrays_are_read_only_copies():
    mine = np.array([1, 2, 3])
    demonstrations = Demonstrations.from_symbols([mine], 2)
    mine[0] = 9
    assert demonstrations.sequences[0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        demonstrations.sequences[0][0] = 9
    with pytest.raises(ValueError, match="read-only"):
        demonstrations.actors[0][0] = 1


def test_repr_counts_instead_of_printing_everything():
    assert repr(Demonstrations.from_symbols([[0, 9], [1]], 2)) == (
        "Demonstrations(2 sequences, 3 symbols: 2 demonstrator, 1 environment)"
    )


@pytest.mark.parametrize(
    ("sequences", "actors", "message"),
    [
        ((), (), "at least one sequence"),
        (([0, 1],), ([0],), r"actors\[0\] must name the actor of each of 2 symbols, got 1"),
        (([0], [1]), ([0],), "one array a sequence, got 1 for 2"),
        (([0, 1], [-2]), ([0, 0], [0]), r"sequences\[1\] must hold symbols >= 0, got -2"),
        (([0.5],), ([0],), r"sequences\[0\] must be integers in one dimension, got shape \(1,\) of float64"),
        (([[0, 1]],), ([0, 0],), r"sequences\[0\] must be integers in one dimension, got shape \(1, 2\)"),
        (([0],), ([4],), r"actors\[0\] must be codes 0..3 \(demonstrator, imitator, environment, oracle\)"),
        (([0],), (["demonstrator"],), r"actor_codes\(\[...\]\) writes them"),
        (([0],), ([[0]],), r"actors\[0\] must be codes 0..3 .* in one dimension"),
    ],
)
def test_records_that_contradict_themselves(sequences: tuple, actors: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Demonstrations(sequences, actors)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="n_symbols must be at least 1, got 0"):
        Demonstrations.from_symbols([[0]], 0)
    with pytest.raises(ValueError, match=r"evidence must be .* got 'everyone'"):
        Demonstrations.from_symbols([[0]], 1).learned("everyone")
    with pytest.raises(ValueError, match="robot"):
        actor_codes(["robot"])


def test_shipped_chats_are_alternating_turns_without_an_empty_one():
    demonstrations = Demonstrations.dialogue_acts()
    for symbols in demonstrations.sequences:
        speaker, act = np.divmod(symbols, len(ACTS))
        ends = np.flatnonzero(act == 0)
        assert len(ends) >= 6
        assert ends[-1] == len(symbols) - 1
        assert np.diff(ends, prepend=-1).min() >= 2
        assert speaker[ends].tolist() == [turn % 2 for turn in range(len(ends))]
        turn = np.searchsorted(ends, np.arange(len(symbols)))
        assert (speaker == turn % 2).all()


def test_shipped_header_tells_the_truth(builder: dict):
    packed = builder["SHIPPED"].read_bytes()
    assert len(packed) < 300_000
    header = json.loads(bz2.decompress(packed).split(b"\n", 1)[0])
    demonstrations = Demonstrations.dialogue_acts()
    n_agent = demonstrations.n_learned()
    n_all = sum(map(len, demonstrations.sequences))
    assert header["acts"] == list(ACTS)
    assert header["n_chats"] == len(demonstrations)
    assert header["n_symbols_by_speaker"] == [n_agent, n_all - n_agent]
    notice = (builder["SHIPPED"].parent / "README.md").read_text(encoding="utf-8")
    assert f"| symbols | {n_agent:,} | {n_all - n_agent:,} |" in notice
    assert "Copyright (c) 2019 Perception, Control and Cognition Lab" in notice


def test_shipped_chats_are_loaded_once():
    assert Demonstrations.dialogue_acts() is Demonstrations.dialogue_acts()


def test_relabelling_the_source_gives_the_shipped_sequences(builder: dict):
    shipped = Demonstrations.dialogue_acts().sequences
    chats = list(builder["chosen_chats"]())
    assert len(chats) == len(shipped)
    for index in np.random.default_rng(0).choice(len(chats), size=150, replace=False):
        assert builder["act_sequence"](chats[index]) == shipped[index].tolist(), f"chat {index}"


def test_packing_is_the_shipped_file_bit_for_bit(builder: dict):
    sequences = [symbols.tolist() for symbols in Demonstrations.dialogue_acts().sequences]
    assert builder["pack"](sequences) == builder["SHIPPED"].read_bytes()


def test_chat_becomes_turns_of_acts(tmp_path: Path):
    path = write_chats(
        tmp_path / "chats.jsonl",
        [("system", "Be kind."), ("user", "Hi"), ("user", "how are you?"), ("assistant", "I love this song so much")],
        [("assistant", "Why?"), ("system", "Go on."), ("assistant", "ok"), ("user", ""), ("assistant", " \n")],
    )
    demonstrations = Demonstrations.from_chats(path)
    assert [s.tolist() for s in demonstrations.sequences] == [[10, 14, 9, 6, 0], [5, 4, 0, 9, 0]]
    assert [m.tolist() for m in demonstrations.learned()] == [[False] * 3 + [True] * 2, [True] * 3 + [False, True]]


@given(chats=st.lists(chat_messages, min_size=1, max_size=4))
def test_chats_agree_with_a_message_by_message_reading(tmp_path_factory: pytest.TempPathFactory, chats: list):
    chats = [chat for chat in chats if any(role != "system" for role, _ in chat)]
    chats.append([("assistant", "ok")])
    expected = []
    for chat in chats:
        symbols, last = [], None
        for role, content in chat:
            if role == "system":
                continue
            if last not in (None, role):
                symbols.append(9 * (last == "user"))
            symbols += [9 * (role == "user") + label(content)] if content.strip() else []
            last = role
        expected.append([*symbols, 9 * (last == "user")])
    path = write_chats(tmp_path_factory.getbasetemp() / "any_chats.jsonl", *chats)
    assert [s.tolist() for s in Demonstrations.from_chats(path).sequences] == expected


def said(role: str, content: str, **more: object) -> dict:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("messages", "symbols", "actors"),
    [
        # Each act is its message's, the end of a turn the last message's.
        ([said("assistant", "Hi", weight=0), said("assistant", "Why?")], [1, 5, 0], [1, 0, 0]),
        ([said("assistant", "Hi"), said("assistant", "Why?", weight=0)], [1, 5, 0], [0, 1, 1]),
        ([said("assistant", "Hi"), said("assistant", " ", weight=0)], [1, 0], [0, 1]),
        ([said("assistant", "Hi", weight=0), said("user", "Why?", weight=0)], [1, 0, 14, 9], [1, 1, 2, 2]),
        ([said("assistant", "Hi", given_characters=1)], [1, 0], [1, 1]),
        # Unfinished: the turn goes on.
        ([said("assistant", "Hi", unfinished=True)], [1], [1]),
        ([said("assistant", "", unfinished=True)], [], []),
        ([said("assistant", "Hi"), said("assistant", "Why?", unfinished=True), said("user", "ok")], None, [0, 1, 2, 2]),
        ([said("assistant", "Hi", weight=None, given_characters=None, unfinished=None)], [1, 0], [0, 0]),
    ],
)
def test_what_is_not_the_speakers_alone_is_the_imitators(tmp_path: Path, messages: list, symbols: list, actors: list):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": m}) for m in (messages, [said("assistant", "Hi")])))
    found = Demonstrations.from_chats(path)
    assert symbols is None or found.sequences[0].tolist() == symbols
    assert found.actors[0].tolist() == actors


def test_chats_of_which_nothing_counts(tmp_path: Path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [said("assistant", "Hi", weight=0), said("user", "ok")]}))
    with pytest.raises(
        ValueError, match=r"holds no whole message by agent_role='assistant' with a weight other than 0"
    ):
        Demonstrations.from_chats(path)


def test_messages_are_values():
    one, other = Message(role="user", content="Hi"), Message(role="user", content="Hi", weight=1)
    assert one == other
    assert hash(one) == hash(other)
    with pytest.raises(ValidationError, match="frozen"):
        one.content = "no"


def test_roles_are_the_users_choice(tmp_path: Path):
    path = write_chats(tmp_path / "chats.jsonl", [("student", "Hi"), ("teacher", "ok")])
    demonstrations = Demonstrations.from_chats(path, agent_role="teacher", other_role="student")
    assert demonstrations.sequences[0].tolist() == [10, 9, 4, 0]


def test_byte_order_mark_windows_line_ends_further_keys_and_blank_lines(tmp_path: Path):
    path = tmp_path / "chats.jsonl"
    line = '{"id": 7, "messages": [{"role": "assistant", "content": "Hi", "name": "Ada"}]}'
    path.write_bytes(f"\ufeff{line}\r\n\r\n{line}".encode())
    assert [s.tolist() for s in Demonstrations.from_chats(path).sequences] == [[1, 0], [1, 0]]


GOOD = '{"messages": [{"role": "assistant", "content": "Hi"}]}'


@pytest.mark.parametrize(
    ("second_line", "fault"),
    [
        ('{"messages": [', "Invalid JSON"),
        ('[{"role": "user", "content": "Hi"}]', "Input should be an object"),
        ('{"dialogue": []}', "messages: Field required"),
        ('{"messages": []}', "messages: List should have at least 1 item"),
        ('{"messages": "Hi"}', "messages: Input should be a valid array"),
        ('{"messages": [{"role": "user"}]}', "messages.0.content: Field required"),
        ('{"messages": [{"role": "user", "content": null}]}', "messages.0.content: Input should be a valid string"),
        ('{"messages": [{"role": "user", "content": 5}]}', "messages.0.content: Input should be a valid string"),
        (
            '{"messages": [{"role": "user", "content": "Hi", "weight": 0.5}]}',
            "messages.0.weight: Input should be 0 or 1",
        ),
        (
            '{"messages": [{"role": "user", "content": "Hi", "given_characters": 3}]}',
            "messages.0: Value error, given_characters must be at most the 2 characters of the content, got 3",
        ),
        ('{"messages": [{"role": "system", "content": "Hi"}]}', "nobody speaks"),
        (
            '{"messages": [{"role": "bot", "content": "Hi"}]}',
            "unknown role 'bot'; known are 'assistant', 'user' and 'system' (ignored): rename it, or pass agent_role",
        ),
    ],
)
def test_faulty_line_is_named(tmp_path: Path, second_line: str, fault: str):
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{GOOD}\n{second_line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: {fault}")):
        Demonstrations.from_chats(path)


def test_line_that_is_not_utf8(tmp_path: Path):
    path = tmp_path / "chats.jsonl"
    path.write_bytes(GOOD.replace("Hi", "caf\xe9").encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: Invalid JSON")):
        Demonstrations.from_chats(path)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file(tmp_path: Path, content: str):
    path = tmp_path / "chats.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path} is empty; write one chat a line")):
        Demonstrations.from_chats(path)


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no file of demonstrations at {tmp_path / 'none.jsonl'}")):
        Demonstrations.from_chats(tmp_path / "none.jsonl")


def test_agent_that_never_speaks(tmp_path: Path):
    path = write_chats(tmp_path / "chats.jsonl", [("user", "Hi")], [("user", "ok")])
    with pytest.raises(ValueError, match=r"no turn by agent_role='assistant'.*pass the role to imitate as agent_role"):
        Demonstrations.from_chats(path)


@pytest.mark.parametrize(("agent", "other"), [("user", "user"), ("system", "user"), ("assistant", "system")])
def test_roles_that_make_no_dialogue(tmp_path: Path, agent: str, other: str):
    with pytest.raises(ValueError, match=f"two different roles.*got '{agent}' and '{other}'"):
        Demonstrations.from_chats(tmp_path / "chats.jsonl", agent_role=agent, other_role=other)
