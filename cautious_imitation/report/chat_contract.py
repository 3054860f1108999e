"""The records of a chat experiment, checked key by key, so that an error names the record and the key.

A record is a JSON object. Every function takes the record, the key and where the record stands, and returns the value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]

PHASES = ("before", "after", "asking", "longer", "transfer")
"""What a policy had been through when it was evaluated, in the order of tables."""

CHAT_ANCHORS = ("bayesian", "cautious-pointwise", "cautious-minimax")
"""The anchors of chat experiments, in the order of ``report.anchors``."""

SLACK = 1e-6
"""How far numbers that are counted twice may differ, relative to 1 or to their size."""


def value_of(record: Record, key: str, where: str) -> Any:
    """The value of ``key``.

    Raises:
        ValueError: if ``record`` is no object or has no such key.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} must be an object with keys, got {record!r}")
    if key not in record:
        raise ValueError(f"{where} must have the key {key!r}, got {sorted(record)}; use null where there is no value")
    return record[key]


def number(record: Record, key: str, where: str, *, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in ``[low, high]``."""
    found = optional_number(record, key, where, low=low, high=high)
    if found is None:
        raise ValueError(f"{where} {key} must be a number, got null; only some keys may have no value")
    return found


def optional_number(
    record: Record, key: str, where: str, *, low: float = -math.inf, high: float = math.inf
) -> float | None:
    """A finite number in ``[low, high]``, or None."""
    found = value_of(record, key, where)
    return None if found is None else _checked_number(found, f"{where} {key}", low, high)


def integer(record: Record, key: str, where: str, *, low: int | None = None) -> int:
    """A whole number of at least ``low``."""
    found = value_of(record, key, where)
    if not isinstance(found, int) or isinstance(found, bool) or (low is not None and found < low):
        least = "" if low is None else f" of at least {low}"
        raise ValueError(f"{where} {key} must be a whole number{least}, got {found!r}; correct the record")
    return found


def word(record: Record, key: str, where: str, known: Sequence[str]) -> str:
    """One of the words ``known``."""
    found = value_of(record, key, where)
    if not isinstance(found, str) or found not in known:
        raise ValueError(f"{where} {key} must be one of {', '.join(known)}, got {found!r}; correct the record")
    return found


def text(record: Record, key: str, where: str) -> str:
    """Any text."""
    found = value_of(record, key, where)
    if not isinstance(found, str):
        raise ValueError(f"{where} {key} must be text, got {found!r}; correct the record")
    return found


def flag(record: Record, key: str, where: str) -> bool:
    """True or false."""
    found = value_of(record, key, where)
    if not isinstance(found, bool):
        raise ValueError(f"{where} {key} must be true or false, got {found!r}; correct the record")
    return found


def entries(record: Record, key: str, where: str, *, length: int | None = None) -> list[Any]:
    """A list, of ``length`` entries if that is given."""
    found = value_of(record, key, where)
    if not isinstance(found, (list, tuple)):
        raise ValueError(f"{where} {key} must be a list, got {found!r}; correct the record")
    if length is not None and len(found) != length:
        raise ValueError(f"{where} {key} must have {length} entries, got {len(found)}; correct the record")
    return list(found)


def numbers(record: Record, key: str, where: str, *, length: int, low: float = -math.inf) -> list[float]:
    """A list of ``length`` finite numbers of at least ``low``."""
    found = entries(record, key, where, length=length)
    return [_checked_number(one, f"{where} {key}[{place}]", low, math.inf) for place, one in enumerate(found)]


def quantiles(record: Record, key: str, where: str) -> list[float]:
    """The 5, 25, 50, 75 and 95 % quantiles: five numbers that do not fall."""
    found = numbers(record, key, where, length=5)
    if any(second < first - SLACK * max(1.0, abs(first)) for first, second in pairwise(found)):
        raise ValueError(f"{where} {key} must be five quantiles in increasing order, got {found}; correct the record")
    return found


def _checked_number(found: Any, name: str, low: float, high: float) -> float:
    numeric = isinstance(found, (int, float)) and not isinstance(found, bool)
    if not numeric or not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number, got {found!r}; use null where a value may be missing")
    if not low - SLACK <= found <= high + SLACK:
        limits = f"at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be {limits}, got {found!r}; correct the record")
    return float(found)
