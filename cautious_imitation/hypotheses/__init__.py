"""Hypothesis classes: candidates for the demonstrator, weighted by what it was seen to do."""

from __future__ import annotations

from importlib import import_module
from os import PathLike
from typing import Any

from cautious_imitation.hypotheses.base import Hypotheses

_HOME = {
    "ContextTree": "context_tree",
    "DirichletTree": "dirichlet_tree",
    "EventRefined": "event_refined",
    "FiniteHypotheses": "finite",
    "GaussianHead": "gaussian_head",
    "LanguageModels": "language_models",
    "LowRankHeads": "low_rank_heads",
}
_READ_WITH_A_MODEL = ("EventRefined", "GaussianHead", "LanguageModels", "LowRankHeads")


def load_hypotheses(kind: str, folder: str | PathLike[str], model: Any = None) -> Hypotheses:
    """Load a saved hypothesis class by the name of its class.

    Args:
        kind: the name of the class.
        folder: where it was saved.
        model: what classes of language models read with, which is not saved; None for the others.

    Raises:
        ValueError: if ``kind`` is no class of this package, or ``model`` is missing where it is needed, or given where
            it is not.
    """
    if kind not in _HOME:
        raise ValueError(f"kind must be one of {', '.join(_HOME)}, got {kind!r}")
    if (model is not None) != (kind in _READ_WITH_A_MODEL):
        wanted = "the language model that it reads with" if kind in _READ_WITH_A_MODEL else "None"
        raise ValueError(f"model must be {wanted} to load a {kind}, got {model!r:.200}")
    read_with = () if model is None else (model,)
    loaded: Hypotheses = getattr(import_module(f"{__name__}.{_HOME[kind]}"), kind).load(folder, *read_with)
    return loaded
