"""Counted complexity: what repeats itself is simple, and how long it is makes no difference."""

from __future__ import annotations

import lzma
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cautious_imitation.judging.complexity import complexity

WORDS = [f"{a}{b}" for a in "bdfglmnprst" for b in ("a", "ei", "on", "ush")]


def chosen(n_words: int, length: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS[:n_words], k=length))


@pytest.mark.parametrize("length", [20, 60, 400])
def test_repetition_is_simpler_than_variety(length: int) -> None:
    found = [complexity([chosen(n, length, seed) for seed in range(5)], length) for n in (1, 4, 40)]
    for name in ("bits_per_token", "distinct_1", "distinct_2", "distinct_3"):
        dull, middling, varied = (getattr(one, name) for one in found)
        # Of so few words most triples are new for a while, but pairs are not.
        assert dull < middling <= varied, name


def test_a_longer_transcript_is_not_simpler_for_its_length() -> None:
    short, long = ([chosen(20, n, seed) for seed in range(5)] for n in (50, 500))
    assert complexity([text[: len(text)] for text in short], 50) == complexity(
        [" ".join(text.split()[:50]) for text in short], 50
    )
    assert complexity(long, 50) == complexity([" ".join(text.split()[:50]) for text in long], 50)
    # At their own lengths the longer ones do look simpler, which is why the length is an argument.
    at_full_length = complexity(long, 500)
    assert at_full_length.bits_per_token < complexity(long, 50).bits_per_token  # type: ignore[operator]
    assert at_full_length.distinct_2 < complexity(long, 50).distinct_2  # type: ignore[operator]


@given(st.lists(st.integers(0, 3), min_size=3, max_size=30))
def test_distinct_runs_are_counted(tokens: list[int]) -> None:
    found = complexity([tokens], len(tokens))
    for n, share in ((1, found.distinct_1), (2, found.distinct_2), (3, found.distinct_3)):
        windows = np.lib.stride_tricks.sliding_window_view(np.array(tokens), n)
        assert share == len(np.unique(windows, axis=0)) / len(windows)


def test_bits_come_near_the_entropy_of_a_long_memoryless_source() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.choice(256, size=20_000).tolist()
    ascii_only = rng.choice(64, size=20_000).tolist()
    # 64 symbols take 6 bits each, and no compressor can do with less; LZMA comes within a few per cent.
    assert 6.0 <= complexity([ascii_only], 20_000).bits_per_token <= 6.4  # type: ignore[operator]
    assert 8.0 <= complexity([tokens], 20_000).bits_per_token <= 9.5  # type: ignore[operator]
    assert complexity([[7] * 20_000], 20_000).bits_per_token < 0.05  # type: ignore[operator]


def test_the_compressor_writes_no_header_and_what_it_writes_for_nothing_does_not_count() -> None:
    found = complexity(["word"], 1).bits_per_token
    assert found is not None
    assert 0 < found <= 8 * (len("word ") + 3)
    assert found < 8 * len(lzma.compress(b"word "))


def test_texts_pieces_and_numbers_of_the_same_characters_are_the_same() -> None:
    text = chosen(10, 40)
    pieces = [f"{word} " for word in text.split()]
    assert complexity([text], 40) == complexity([pieces], 40)
    letters = list("abracadabra" * 3)
    assert complexity([letters], 33) == complexity([[ord(letter) for letter in letters]], 33)


def test_numbers_that_are_no_characters_of_their_own_are_tokens_too() -> None:
    assert complexity([[0xD800, 0x10FFFF, 0]], 3).distinct_1 == 1.0
    for bad in (-1, 0x110000):
        with pytest.raises(ValueError, match=r"tokens in 0\.\.1114111"):
            complexity([[bad]], 1)


def test_samples_that_are_too_short_are_counted_and_means_are_of_the_others() -> None:
    found = complexity(["a a a", "a b c", "a b", ""], 3)
    assert (found.n_samples, found.n_short, found.distinct_1) == (2, 2, pytest.approx((1 / 3 + 1) / 2))
    nothing = complexity(["a"], 3)
    assert (nothing.n_samples, nothing.n_short, nothing.bits_per_token, nothing.distinct_1) == (0, 1, None, None)
    assert complexity(["a b"], 2).distinct_3 is None


@pytest.mark.parametrize("length", [0, -1, 2.0, True])
def test_the_length_must_be_one(length: object) -> None:
    with pytest.raises(ValueError, match="length must be an integer of at least 1"):
        complexity(["a"], length)  # type: ignore[arg-type]
