"""Rows and transcripts of chats: against numbers worked out by hand, and pieces against all that tokens say."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cautious_imitation.comparison.chat_records import COMPARED_TOKENS, _pieces, records_of, row_of
from cautious_imitation.demonstrations import actor_codes
from cautious_imitation.environments.transcripts import Transcript, Turn
from cautious_imitation.finetuning.chat_evaluation import PlayedChat
from cautious_imitation.judging.complexity import complexity
from cautious_imitation.language.small_gpt import shipped_tokenizer
from cautious_imitation.report.chat_episodes import read_chat_episodes
from cautious_imitation.report.chat_rows import check_chat_rows
from cautious_imitation.types import Actor
from tests.tiny_folders import SPECIALS, tiny_tokenizer

ENVIRONMENT, IMITATOR, ORACLE = map(int, actor_codes([Actor.ENVIRONMENT, Actor.IMITATOR, Actor.ORACLE]))
NAME = {"anchor": "bayesian", "phase": "after", "budget_nats": 5.0, "seed": 3, "length": 12}
Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
LETTERS = tiny_tokenizer()
TEXTS = [
    "hello there, how are you?",
    "naïve café — “quoted”",
    "🙂🙃 family 👨‍👩‍👧‍👦 flag 🇫🇷",
    "你好，老师。",
    f"{SPECIALS[1]}user\nhi{SPECIALS[2]}\n{SPECIALS[1]}assistant\n🙂{SPECIALS[2]}",
    "a\ufffdb \ufffd",
    "  two  blanks \n\n and breaks\t",
    "",
]


def letter(character: str) -> int:
    """The one token of a letter."""
    (token,) = LETTERS(character, add_special_tokens=False)["input_ids"]
    return int(token)


def chat(
    words: str,
    actors: list[int],
    spoken: list[Turn],
    *,
    charges: dict[int, float] | None = None,
    rewards: dict[int, float] | None = None,
    kl: dict[int, float] | None = None,
    questions: tuple[int, ...] = (),
    decisions: int = 0,
) -> PlayedChat:
    """A chat of a token a letter, two of which are the opening's."""
    n = len(words)
    arrays = []
    for values in (charges, rewards, kl or {}):
        array = np.zeros(n)
        for place, value in (values or {}).items():
            array[place] = value
        arrays.append(array)
    turns = np.full(n, -1)
    for number, turn in enumerate(spoken):
        turns[turn.begin : turn.end] = number
    script = Transcript(
        np.array([letter(one) for one in words]),
        np.array(actors, dtype=np.uint8),
        turns,
        tuple(spoken),
        arrays[0],
        arrays[1],
        2,
        questions,
        words,
    )
    return PlayedChat(script, None if kl is None else arrays[2], decisions, len(questions))


def two_chats(known: bool = True) -> list[PlayedChat]:
    """A teacher who says "cd", then nothing twice; and one who says "wxy" in two replies, asking once, and is cut."""
    first = chat(
        "abcd!ef!!gh!",
        [ENVIRONMENT] * 2 + [IMITATOR] * 3 + [ENVIRONMENT] * 3 + [IMITATOR] + [ENVIRONMENT] * 2 + [IMITATOR],
        [
            Turn(True, 2, 5, "cd", True),
            Turn(False, 5, 8, "ef", True),
            Turn(True, 8, 9, "", True),
            Turn(False, 9, 11, "gh", True),
            Turn(True, 11, 12, "", True),
        ],
        charges={2: 0.25, 4: 0.5, 8: 1.0},
        rewards={7: 0.75, 10: 0.5},
        kl={2: 0.125, 8: 1.5} if known else None,
        decisions=5,
    )
    second = chat(
        "abwx!efgh!yz",
        [ENVIRONMENT] * 2 + [IMITATOR, ORACLE, ORACLE] + [ENVIRONMENT] * 5 + [IMITATOR] * 2,
        [Turn(True, 2, 5, "wx", True), Turn(False, 5, 10, "efgh", True), Turn(True, 10, 12, "yz", False)],
        charges={10: 2.0},
        rewards={9: 0.25},
        kl={10: 0.25} if known else None,
        questions=(3,),
        decisions=4,
    )
    return [first, second]


def test_a_row_holds_what_was_worked_out_by_hand() -> None:
    row = row_of(NAME, two_chats(), LETTERS, updates=4, seconds=1.5)
    # Four finished replies of 3, 1, 1 and 3 tokens, of which two are empty; rewards 1.25 and 0.25.
    centre, spread = (2 + Z**2 / 2) / (4 + Z**2), Z / (4 + Z**2) * math.sqrt(2 * 2 / 4 + Z**2 / 4)
    expected = {
        **NAME,
        "episodes": 2,
        "reward": 0.75,
        "reward_se": 0.5,
        "charge_nats": 1.875,
        "largest_charge_nats": 2.0,
        "kl_demonstrator_nats": 0.9375,
        "kl_demonstrator_se": 0.6875,
        "decisions": 9,
        "asks": 1,
        "ask_rate": 1 / 9,
        "replies": 4,
        "empty_replies": 2,
        "empty_reply_share": 0.5,
        "empty_reply_low": centre - spread,
        "empty_reply_high": centre + spread,
        "reply_tokens": 2.0,
        # Nobody said as much as is compared.
        "bits_per_token": None,
        "distinct_1": None,
        "distinct_2": None,
        "distinct_3": None,
        "updates": 4,
        "seconds": 1.5,
    }
    assert row.keys() == expected.keys()
    for key, value in expected.items():
        assert row[key] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), key
    check_chat_rows([row])
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_standard_errors_are_those_of_a_mean() -> None:
    rewards = [0.0, 0.5, 0.25, 1.0, 0.75]
    chats = [chat("abcd", [0, 0, 1, 1], [Turn(True, 2, 4, "cd", False)], rewards={3: reward}) for reward in rewards]
    row = row_of(NAME, chats, LETTERS)
    assert row["reward"] == pytest.approx(np.mean(rewards))
    assert row["reward_se"] == pytest.approx(np.std(rewards, ddof=1) / math.sqrt(5))


def test_where_nothing_is_known_there_is_null_and_no_zero() -> None:
    cut = chat("abcd", [0, 0, 1, 1], [Turn(True, 2, 4, "cd", False)])
    row = row_of(NAME, [cut], LETTERS)
    for key in ("kl_demonstrator_nats", "kl_demonstrator_se", "empty_reply_share", "empty_reply_low", "reply_tokens"):
        assert row[key] is None, key
    assert (row["replies"], row["ask_rate"], row["reward_se"]) == (0, 0.0, 0.0)


def test_complexity_is_of_the_teachers_words_alone_each_at_the_same_length() -> None:
    teacher = "abcdefghij" * 4
    first, second = teacher[:15], teacher[15:]
    long = chat(
        f"xy{first}zzzzzzzz{second}",
        [ENVIRONMENT] * 2 + [IMITATOR] * 15 + [ENVIRONMENT] * 8 + [IMITATOR] * 25,
        [Turn(True, 2, 17, first, True), Turn(False, 17, 25, "zzzzzzzz", True), Turn(True, 25, 50, second, False)],
    )
    row = row_of(NAME, [long, *two_chats()], LETTERS)
    alone = complexity([list(teacher)], COMPARED_TOKENS)
    assert alone.bits_per_token is not None
    assert row["bits_per_token"] == pytest.approx(alone.bits_per_token)
    assert row["distinct_1"] == pytest.approx(10 / COMPARED_TOKENS)
    assert row["distinct_3"] == pytest.approx(10 / (COMPARED_TOKENS - 2))


@pytest.mark.parametrize("known", [True, False])
def test_transcripts_hold_everything_token_by_token(known: bool) -> None:
    chats = two_chats(known)
    records = records_of(NAME, chats, LETTERS)
    assert [record["episode"] for record in records] == [0, 1]
    for record, one in zip(records, chats, strict=True):
        script = one.transcript
        assert {key: record[key] for key in NAME} == NAME
        assert record["given"] == 2
        assert record["pieces"] == list(script.text)
        assert record["turns"] == script.turns.tolist()
        np.testing.assert_allclose(record["charges"], script.charges)
        np.testing.assert_allclose(record["rewards"], script.rewards)
        assert record["questions"] == list(script.questions)
        spoken = [Turn(s["is_teacher"], s["begin"], s["end"], s["text"], s["finished"]) for s in record["speakers"]]
        assert tuple(spoken) == script.spoken
        assert [s["empty"] for s in record["speakers"]] == [turn.text == "" for turn in script.spoken]
        if one.kl_demonstrator_nats is None:
            assert record["kl_demonstrator"] is None
        else:
            np.testing.assert_allclose(record["kl_demonstrator"], one.kl_demonstrator_nats)
    assert (
        records[1]["actors"]
        == ["environment"] * 2 + ["imitator"] + ["oracle"] * 2 + ["environment"] * 5 + ["imitator"] * 2
    )
    # As plain JSON, and as the report takes it.
    assert len(read_chat_episodes(json.loads(json.dumps(records, allow_nan=False)))) == 2


def test_numbers_are_short_and_sums_stay() -> None:
    charges = {place: 1 / (place + 3) for place in range(2, 12)}
    one = chat("abcdefghijkl", [0, 0] + [1] * 10, [Turn(True, 2, 12, "cdefghijkl", False)], charges=charges)
    (record,) = records_of(NAME, [one], LETTERS)
    assert all(len(repr(value)) <= 13 for value in record["charges"])
    assert sum(record["charges"]) == pytest.approx(sum(charges.values()), abs=1e-8)


def slowly(tokens: Any, tokenizer: Any) -> list[str]:
    """The pieces by reading everything from the beginning, for each token."""
    pieces, before = [], ""
    for n in range(1, len(tokens) + 1):
        whole: str = tokenizer.decode(list(tokens[:n]), clean_up_tokenization_spaces=False)
        done = whole.rstrip("\ufffd") if n < len(tokens) else whole
        pieces.append(done[len(before) :])
        assert done.startswith(before)
        before = done
    return pieces


def with_leading_blanks() -> Any:
    """A tokenizer as SentencePiece makes them: a blank belongs to the word after it, and none stands at the beginning.

    Bytes of characters that it does not know are tokens of their own.
    """
    words = ["▁", "▁hello", "▁there", "hello", "lo", "!", "é"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + n for n, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<0x00>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BLANKS = with_leading_blanks()


@pytest.mark.parametrize("tokenizer", [LETTERS, shipped_tokenizer()], ids=["letters", "shipped"])
@pytest.mark.parametrize("text", TEXTS, ids=[str(number) for number in range(len(TEXTS))])
def test_pieces_join_to_the_text(tokenizer: Any, text: str) -> None:
    for repeats in (1, 7):
        tokens = np.array(tokenizer(text * repeats, add_special_tokens=False)["input_ids"], dtype=np.int64)
        pieces = _pieces(tokens, tokenizer)
        assert len(pieces) == len(tokens)
        assert "".join(pieces) == tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False)
        assert "".join(pieces) == text * repeats
        assert pieces == slowly(tokens.tolist(), tokenizer)


def test_a_character_stands_with_its_last_token_and_special_tokens_as_they_are() -> None:
    tokens = LETTERS(f"a🙂{SPECIALS[2]}b", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 7
    assert _pieces(np.array(tokens), LETTERS) == ["a", "", "", "", "🙂", SPECIALS[2], "b"]


@given(st.lists(st.integers(0, len(LETTERS) - 1), max_size=60))
def test_whatever_a_policy_says_pieces_are_those_of_reading_everything(tokens: list[int]) -> None:
    """Most of these are broken characters."""
    assert _pieces(np.array(tokens, dtype=np.int64), LETTERS) == slowly(tokens, LETTERS)


@given(
    st.lists(st.sampled_from(["▁hello", "▁", "lo", "!", "▁there", "é", "<0xC3>|<0xA9>", "<0xF0>|<0x9F>|<0x99>|<0x82>"]))
)
def test_blanks_that_depend_on_what_stands_before_are_kept(words: list[str]) -> None:
    tokens = [BLANKS.convert_tokens_to_ids(token) for word in words for token in word.split("|")]
    pieces = _pieces(np.array(tokens, dtype=np.int64), BLANKS)
    assert "".join(pieces) == BLANKS.decode(tokens, clean_up_tokenization_spaces=False)


def test_what_follows_a_broken_character_is_shown() -> None:
    """Such a tokenizer reads a run of bytes as broken from its beginning if its end is."""
    whole, begun = BLANKS.convert_tokens_to_ids(["<0xC3>", "<0xA9>"]), BLANKS.convert_tokens_to_ids(["<0xC3>"])
    tokens = np.array([*whole, *begun, *BLANKS.convert_tokens_to_ids(["▁hello", "▁there", "!"] * 9)])
    pieces = _pieces(tokens, BLANKS)
    assert pieces[0:2] == ["", "é"]
    assert "".join(pieces).endswith(" hello there!" * 9)


def test_the_time_that_it_takes_grows_with_the_length_and_not_its_square() -> None:
    class Counted:
        n_read = 0

        def decode(self, tokens: list[int], **settings: Any) -> str:
            self.n_read += len(tokens)
            text: str = LETTERS.decode(tokens, **settings)
            return text

    found = []
    for length in (1_000, 2_000):
        counted = Counted()
        _pieces(np.array(LETTERS("hello 🙂 there! " * length)["input_ids"][:length]), counted)
        found.append(counted.n_read)
    assert found[1] < 2.1 * found[0]
    assert found[1] < 40 * 2_000
