"""What a context tree can be set to, and what it refuses."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np

Leaf: TypeAlias = Literal["profile", "kt"]
Complexity: TypeAlias = Literal["none", "support", "bic"]
Plausible: TypeAlias = Literal["best", "total", "anytime"]


def check_sizes(n_symbols: int, depth: int, n_context_symbols: int) -> None:
    """Raise ``ValueError`` unless trees of these sizes exist and their contexts fit in 62 bits."""
    k = n_context_symbols
    if n_symbols < 1:
        raise ValueError(f"n_symbols must be at least 1, got {n_symbols}; it counts the actions 0..n_symbols-1")
    if depth < 0:
        raise ValueError(f"depth must be at least 0, got {depth}; 0 ignores the context")
    if k < 1:
        raise ValueError(f"n_context_symbols must be at least 1, got {k}; it counts the start symbol too")
    if depth > 0 and k < n_symbols:
        raise ValueError(
            f"n_context_symbols must be at least n_symbols={n_symbols}, got {k}; actions become context, too"
        )
    if (k + 1) ** depth >= 2**62:
        most = int(62 * np.log(2) / np.log(k + 1))
        raise ValueError(
            f"depth must be at most {most} with {k} context symbols, got {depth}; a context has to fit in 62 bits"
        )


def check_choices(stop_prob: float | None, leaf: Leaf, complexity: Complexity, plausible: Plausible) -> None:
    """Raise ``ValueError`` unless the settings are known and go together."""
    if stop_prob is not None and not 0 < stop_prob < 1:
        raise ValueError(
            f"stop_prob must be in (0, 1), got {stop_prob!r}; 1 - 2**(1-k) rounds to 1 from k = 55 on, "
            "leave it out for (k-1)/k"
        )
    for name, value, known in (
        ("leaf", leaf, get_args(Leaf)),
        ("complexity", complexity, get_args(Complexity)),
        ("plausible", plausible, get_args(Plausible)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if leaf == "kt" and complexity != "none":
        raise ValueError(f'complexity must be "none" with leaf="kt", got {complexity!r}; KT scores are complete')
    if plausible == "total" and leaf != "kt":
        raise ValueError(
            'plausible must be "best" or "anytime" with leaf="profile", got "total"; profile scores have no total'
        )
    if plausible == "anytime" and leaf != "profile":
        raise ValueError('leaf must be "profile" with plausible="anytime", got "kt"; a KT leaf is one distribution')
    if plausible == "anytime" and complexity != "none":
        raise ValueError(
            f'complexity must be "none" with plausible="anytime", got {complexity!r}; no tree is compared with another'
        )
