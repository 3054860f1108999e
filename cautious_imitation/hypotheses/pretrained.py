"""From a pretrained language model and recorded chats to hypotheses, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from inspect import signature
from os import PathLike
from typing import Any, Literal, TypeAlias

import torch

from cautious_imitation.demonstrations import Demonstrations, Evidence, read_chats
from cautious_imitation.hypotheses.feature_hypotheses import FeatureHypotheses
from cautious_imitation.language.chats import LongChats, tokenized_chats
from cautious_imitation.language.loading import load_language_model
from cautious_imitation.language.model import Reader
from cautious_imitation.language.model_stack import ModelStack, Stack
from cautious_imitation.language.recent_context import RecentContext
from cautious_imitation.language.stacked_lora import StackedLora

Kind: TypeAlias = Literal["gaussian", "low_rank", "ensemble"]

_CLASSES = {
    "gaussian": ("gaussian_head", "GaussianHead"),
    "low_rank": ("low_rank_heads", "LowRankHeads"),
    "ensemble": ("language_models", "LanguageModels"),
}
_OWN = ("model", "models", "demonstrations", "evidence", "cache", "progress", "seed")
"""What classes are given anyway, so that it is no setting of theirs."""


def build_hypotheses(
    kind: Kind,
    model: Any,
    demonstrations: str | PathLike[str] | Demonstrations | Iterable[Any],
    *,
    adapters: Sequence[str | PathLike[str]] | None = None,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    n_symbols: int | None = None,
    start_token: int | None = None,
    recent: RecentContext | None = None,
    agent_role: str = "assistant",
    other_role: str = "user",
    long_chats: LongChats = "error",
    evidence: Evidence = "demonstrator",
    cache: str | PathLike[str] | None = None,
    progress: bool = True,
    seed: int = 0,
    **settings: Any,
) -> FeatureHypotheses:
    """Load a language model, turn chats into its tokens, and learn from them.

    Args:
        kind: ``"gaussian"`` (``GaussianHead``), ``"low_rank"`` (``LowRankHeads``) or ``"ensemble"``
            (``LanguageModels``).
        model: what ``load_language_model`` takes, or a ``LanguageModel``. For ``"ensemble"`` a list of these, or one
            with ``adapters``, or a ``Stack``.
        demonstrations: a JSONL file of chats or a list of chats, as for ``tokenized_chats``, or ``Demonstrations`` of
            tokens.
        adapters: folders of LoRA adapters, each a hypothesis; for ``"ensemble"`` only.
        tokenizer: as for ``load_language_model``, like the next five.
        device: where the model computes.
        dtype: precision of its weights.
        n_symbols: V, the tokens that are actions.
        start_token: stands in for an empty context.
        recent: a second half of the features, which ``GaussianHead`` can read.
        agent_role: role of the speaker to imitate, as for ``tokenized_chats``, like the next two.
        other_role: role of whoever the agent talks to.
        long_chats: what becomes of chats longer than the model's context window.
        evidence: whose tokens are learned.
        cache: folder for what was read and trained, so that an interrupted call goes on where it stopped.
        progress: show progress bars.
        seed: of what is random, which only the training of ``"low_rank"`` is.
        **settings: of the class: of ``GaussianHead``, ``LowRankHeads.train`` or ``LanguageModels``.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        OSError: if the hub cannot be reached.
        TypeError: if the class has no such setting.
        ValueError: as ``load_language_model``, ``tokenized_chats`` and the class; or if ``model`` is not what ``kind``
            needs.
    """
    make = _maker(kind, settings)
    many = isinstance(model, (list, tuple, Stack)) or adapters is not None
    if many != (kind == "ensemble"):
        wanted = "a list of models, or one model with adapters=[...]," if kind == "ensemble" else "a single model"
        raise ValueError(f'model must be {wanted} for hypotheses="{kind}", got {model!r:.200}')
    if isinstance(demonstrations, (str, PathLike)):
        # A wrong path is told before a large model is loaded.
        next(read_chats(demonstrations), None)
    reader = read_with(
        model,
        adapters,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        n_symbols=n_symbols,
        start_token=start_token,
        recent=recent,
    )
    if not isinstance(demonstrations, Demonstrations):
        if reader.tokenizer is None:
            raise ValueError(
                "tokenizer must be given where a network without one is to read chats, got None; pass tokenizer=..., "
                "or Demonstrations of tokens"
            )
        demonstrations = tokenized_chats(
            demonstrations,
            reader.tokenizer,
            agent_role=agent_role,
            other_role=other_role,
            max_tokens=reader.max_length,
            long_chats=long_chats,
        )
    learning: dict[str, Any] = {"evidence": evidence, "cache": cache, "progress": progress}
    built: FeatureHypotheses
    if kind == "low_rank":
        built = make(reader, demonstrations, seed=seed, **learning, **settings)
    else:
        built = make(reader, **settings).fit(demonstrations, **learning)
    return built


def read_with(model: Any, adapters: Sequence[str | PathLike[str]] | None = None, **loading: Any) -> Any:
    """What reads contexts: a language model, or several as one.

    Args:
        model: what ``load_language_model`` takes, or a list of these; what is loaded already comes back as it is.
        adapters: folders of LoRA adapters of the model, to be read as several models.
        **loading: as for ``load_language_model``; None leaves a choice to it.

    Raises:
        ValueError: as ``load_language_model``, or if ``loading`` is given for a model that is loaded already.
    """
    if isinstance(model, (list, tuple)):
        return ModelStack([read_with(one, **loading) for one in model])
    chosen = {name: value for name, value in loading.items() if value is not None}
    if isinstance(model, Reader):
        if chosen:
            name, value = next(iter(chosen.items()))
            raise ValueError(
                f"{name} must be chosen where the model is loaded, got {value!r} with a {type(model).__name__}"
            )
        loaded: Any = model
    else:
        loaded = load_language_model(model, **chosen)
    if adapters is None:
        return loaded
    if loaded.recent is not None:
        raise ValueError(f"recent must be None for adapters, got {loaded.recent!r}; they are read without it")
    return StackedLora(
        loaded.network, adapters, loaded.tokenizer, n_symbols=loaded.n_symbols, start_token=loaded.start_token
    )


def _maker(kind: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
    """What makes hypotheses of that kind out of a reader and ``settings``, whose names are checked."""
    if kind not in _CLASSES:
        raise ValueError(f"hypotheses must be one of {', '.join(_CLASSES)}, got {kind!r}")
    module, name = _CLASSES[kind]
    found = getattr(import_module(f"cautious_imitation.hypotheses.{module}"), name)
    make: Callable[..., Any] = found.train if kind == "low_rank" else found
    known = [key for key in signature(make).parameters if key not in _OWN]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise TypeError(f'settings for hypotheses="{kind}" are {", ".join(known)}; got {unknown[0]!r}')
    return make
