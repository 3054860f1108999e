"""Numbers and counts as people read them."""

from __future__ import annotations

import math

DEPLOYMENT_MEANINGS = {"same": "situations as in the recordings", "novel": "situations hardly ever recorded"}
"""The deployments of the shipped worlds, for readers."""


def nats(value: float | None) -> str:
    """A number of nats (or of reward) with about three figures.

    >>> nats(0.0), nats(0.004), nats(1.257), nats(56.13), nats(None)
    ('0', '<0.01', '1.26', '56.1', '–')
    """
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if 0 < size < 0.005:
        return "<0.01" if value > 0 else "0"
    text = f"{size:.2f}" if size < 10 else f"{size:.1f}" if size < 100 else f"{size:,.0f}"
    return "0" if size == 0 else ("−" if value < 0 else "") + text


def percent(share: float | None) -> str:
    """A share as a percentage.

    >>> percent(0.0), percent(0.0004), percent(0.055), percent(0.38)
    ('0 %', '<0.1 %', '5.5 %', '38 %')
    """
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "<0.1 %"
    digits = 1 if 0 < share < 0.0995 else 0
    return f"{100 * share:.{digits}f} %"


def setting(value: float | str | None) -> str:
    """The value of a setting, in full.

    >>> setting(30_000), setting(10.0), setting(0.05), setting(None)
    ('30,000', '10', '0.05', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def count_of(count: int, total: int) -> str:
    """A count out of a total.

    >>> count_of(0, 8), count_of(8, 8), count_of(3, 8), count_of(1, 1)
    ('none of 8', 'all 8', '3 of 8', 'the only one')
    """
    if count == total:
        return "the only one" if total == 1 else f"all {total}"
    return f"none of {total}" if count == 0 else f"{count} of {total}"


def listed(words: list[str]) -> str:
    """Words joined as in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
