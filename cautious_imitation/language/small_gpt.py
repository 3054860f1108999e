"""The small language models that come with the library: a demonstrator that is known exactly, and an ensemble.

All share one tokenizer of 2,048 tokens. The demonstrator was trained on real chats, the members on chats that were
sampled from it; ``baselines/build_small_gpt.py`` built them, ``cautious_imitation/data/README.md`` has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.language.loading import load_language_model, load_tokenizer
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.recent_context import RecentContext
from cautious_imitation.types import Actor

Tensor = torch.Tensor

_FOLDER = Path(str(files("cautious_imitation") / "data" / "small_gpt"))
_TOKENIZER = "tokenizer"
_MEMBER = "member-"
_ROLES = ("<|start|>", "<|assistant|>", "<|user|>", "<|end|>")


def small_gpt(
    name: str = "demonstrator",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    recent: RecentContext | None = None,
) -> LanguageModel:
    """One of the models that come with the library: ``"demonstrator"``, or ``"member-0"`` and so on.

    Args:
        name: which one.
        device: as for ``load_language_model``.
        dtype: precision that it computes in. The weights are stored in half precision, which all others represent.
        recent: a second half of the features, as in ``LanguageModel``.

    Raises:
        ValueError: if there is no model of that name, or as ``load_language_model``.

    >>> small_gpt().n_symbols
    2048
    """
    folders = _folders()
    if name not in folders:
        raise ValueError(f"name must be one of {', '.join(folders)}, got {name!r}")
    return load_language_model(folders[name], tokenizer=shipped_tokenizer(), device=device, dtype=dtype, recent=recent)


def small_gpt_ensemble(
    *, device: str | torch.device | None = None, dtype: str | torch.dtype = "float32"
) -> list[LanguageModel]:
    """The members of the ensemble, in order; arguments and errors as for ``small_gpt``."""
    return [small_gpt(name, device=device, dtype=dtype) for name in _folders() if name.startswith(_MEMBER)]


def shipped_tokenizer() -> Any:
    """The tokenizer that all of these models share."""
    return load_tokenizer(_FOLDER / _TOKENIZER)


def sample_chats(
    model: LanguageModel,
    n_tokens: int,
    generator: torch.Generator,
    *,
    max_length: int | None = None,
    chats_at_once: int = 64,
) -> Demonstrations:
    """Chats that one of these models speaks by itself, both roles, from the beginning.

    A chat begins with the agent's turn and is over when the model says ``<|start|>`` again. The demonstrator's are the
    tokens after ``<|assistant|>`` up to and with ``<|end|>``; everything else is the environment's.

    Args:
        model: one of the models of this module, or another one with their special tokens.
        n_tokens: at least so many tokens in all; the last chat is whole.
        generator: source of randomness; the same state gives the same chats.
        max_length: a chat is cut after so many tokens; default the model's context window.
        chats_at_once: how many are sampled together, which is quicker and gives other chats.

    Raises:
        ValueError: if a number is out of range, or the tokenizer lacks one of the special tokens.
    """
    length = model.max_length if max_length is None else max_length
    if length is None or not 2 < length <= (model.max_length or length):
        raise ValueError(f"max_length must be in 3..{model.max_length}, what the model reads at once, got {max_length}")
    for name, value in (("n_tokens", n_tokens), ("chats_at_once", chats_at_once)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    start, assistant, user, end = _role_tokens(model.tokenizer)
    demonstrator, environment = actor_codes([Actor.DEMONSTRATOR, Actor.ENVIRONMENT])
    sequences: list[NDArray[np.int64]] = []
    actors = []
    left = n_tokens
    while left > 0:
        for chat in _sampled(model, chats_at_once, length, (start, assistant), generator):
            sequences.append(chat)
            actors.append(np.where(_agents(chat, assistant, (start, user, end)), demonstrator, environment))
            left -= len(chat)
            if left <= 0:
                break
    return Demonstrations(tuple(sequences), tuple(actors))


@torch.no_grad()
def _sampled(
    model: LanguageModel, n_chats: int, length: int, opening: tuple[int, int], generator: torch.Generator
) -> Iterator[NDArray[np.int64]]:
    """Chats from ``opening`` on, each up to the first time that it is over, or ``length`` tokens."""
    fresh = torch.tensor(opening).repeat(n_chats, 1)
    drawn = [fresh]
    cache: Any = None
    over = torch.zeros(n_chats, dtype=torch.bool)
    while sum(part.shape[1] for part in drawn) < length and not bool(over.all()):
        features, cache = model.features(fresh, cache=cache)
        probabilities = model.logits(features[:, -1]).softmax(-1).to(generator.device)
        fresh = torch.multinomial(probabilities, 1, generator=generator).cpu()
        drawn.append(fresh)
        over |= fresh[:, 0] == opening[0]
    for row in torch.cat(drawn, 1).numpy():
        ends = np.flatnonzero(row[1:] == opening[0])
        yield row[: ends[0] + 2] if len(ends) else row


def _agents(chat: NDArray[np.int64], assistant: int, others: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which tokens ``[T]`` the agent chose: those before which ``assistant`` was the last word on whose turn it is."""
    turns = np.isin(chat, (assistant, *others))
    last = np.maximum.accumulate(np.where(turns, np.arange(len(chat)), -1))
    ours = np.zeros(len(chat), dtype=np.bool_)
    ours[1:] = (last[:-1] >= 0) & (chat[last[:-1]] == assistant)
    return ours


def _role_tokens(tokenizer: Any) -> tuple[int, int, int, int]:
    known = {} if tokenizer is None else tokenizer.get_vocab()
    for token in _ROLES:
        if token not in known:
            raise ValueError(
                f"model must have a tokenizer with the token {token!r}, got one without; use small_gpt(...)"
            )
    start, assistant, user, end = (int(known[token]) for token in _ROLES)
    return start, assistant, user, end


def _folders() -> dict[str, Path]:
    """Folders of the models by name."""
    return {path.parent.name.replace("_", "-"): path.parent for path in sorted(_FOLDER.glob("*/config.json"))}
