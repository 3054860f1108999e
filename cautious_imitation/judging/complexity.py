"""How complex texts are, counted: bits per token after compression, and how many of its n-grams are distinct."""

from __future__ import annotations

import lzma
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any, TypeAlias

Sample: TypeAlias = "str | Sequence[str] | Sequence[int]"
"""A text, the pieces that its tokens are, or the tokens themselves."""

_NGRAMS = (1, 2, 3)
# Without a container: no header, no checksum. An adaptive code needs no table either, which would weigh on short texts.
_FILTERS: list[dict[str, Any]] = [
    # The window is longer than any sample here; that of the preset takes most of a gigabyte and of the time.
    {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "dict_size": 1 << 20}
]


@dataclass(frozen=True)
class Complexity:
    """Means over samples that were all cut to the same number of tokens.

    Attributes:
        length: that number.
        n_samples: samples that are long enough.
        n_short: samples that are shorter, which are left out. Where they are many, the others are a selection.
        bits_per_token: length of a sample compressed by LZMA, in bits, divided by its tokens; what the compressor
            writes for nothing at all is subtracted. None without samples, like the others.
        distinct_1: distinct tokens, divided by all.
        distinct_2: distinct pairs of neighbours, divided by all; None also if a sample has no pair.
        distinct_3: the same of three in a row.
    """

    length: int
    n_samples: int
    n_short: int
    bits_per_token: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None


def complexity(samples: Iterable[Sample], length: int) -> Complexity:
    """Measure how much samples repeat themselves.

    The shorter a sample, the more bits a token takes and the larger is the share of distinct n-grams, whatever it says:
    the measures compare samples of equal length only. So all are cut to their first ``length`` tokens, and groups that
    are compared must be given the same ``length``.

    The bits are an upper bound on what a description takes, from a compressor that knows repetition and frequent
    characters but no language: at a few hundred tokens several times what a language model needs. They say which of two
    groups repeats itself more, not how surprising a reader finds it, and depend on how samples are given: pieces or
    texts cost their characters, tokens their numbers. Compare like with like, from one tokenizer.

    Args:
        samples: texts, whose tokens are their words, divided by white space; or, for each sample, the pieces of text
            that its tokens are, in order; or its tokens as numbers, in 0..1114111.
        length: tokens that a sample is cut to.

    Raises:
        ValueError: if ``length`` is below 1, or a token is a number that is out of range.

    >>> dull, other = complexity(["yes " * 40], 30), complexity([" ".join(map(str, range(40)))], 30)
    >>> dull.bits_per_token < other.bits_per_token, dull.distinct_1 < other.distinct_1
    (True, True)
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"length must be an integer of at least 1, got {length!r}; all samples are cut to it")
    tokens = [_tokens(sample) for sample in samples]
    cut = [one[:length] for one in tokens if len(one) >= length]
    bits = [8 * (_compressed(_bytes(one)) - _compressed(b"")) / length for one in cut]
    distinct = [_mean([_distinct(one, n) for one in cut if length >= n]) for n in _NGRAMS]
    return Complexity(length, len(cut), len(tokens) - len(cut), _mean(bits), *distinct)


def _tokens(sample: Sample) -> list[str] | list[int]:
    # Each with the blank after it, so that a word is the same token wherever it stands.
    return [f"{word} " for word in sample.split()] if isinstance(sample, str) else list(sample)  # type: ignore[return-value]


def _bytes(tokens: Sequence[str] | Sequence[int]) -> bytes:
    """As the compressor reads them; a number is written as the character of that number, in one to four bytes."""
    pieces = []
    for token in tokens:
        try:
            pieces.append(token if isinstance(token, str) else chr(token))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"samples must hold tokens in 0..{sys.maxunicode}, got {token!r}") from error
    return "".join(pieces).encode("utf-8", "surrogatepass")


def _compressed(data: bytes) -> int:
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=_FILTERS))


def _distinct(tokens: Sequence[str] | Sequence[int], n: int) -> float:
    runs = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(runs)) / len(runs)


def _mean(values: Sequence[float]) -> float | None:
    return fsum(values) / len(values) if values else None
