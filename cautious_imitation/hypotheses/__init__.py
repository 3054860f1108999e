"""Hypothesis classes: candidates for the demonstrator, weighted by what it was seen to do."""

from __future__ import annotations

from importlib import import_module
from os import PathLike

from cautious_imitation.hypotheses.base import Hypotheses

_HOME = {"ContextTree": "context_tree", "FiniteHypotheses": "finite"}


def load_hypotheses(kind: str, folder: str | PathLike[str]) -> Hypotheses:
    """Load a saved hypothesis class by the name of its class.

    Raises:
        ValueError: if ``kind`` is no class of this package.
    """
    if kind not in _HOME:
        raise ValueError(f"kind must be one of {', '.join(_HOME)}, got {kind!r}")
    loaded: Hypotheses = getattr(import_module(f"{__name__}.{_HOME[kind]}"), kind).load(folder)
    return loaded
