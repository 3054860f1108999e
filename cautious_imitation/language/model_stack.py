"""K language models over one alphabet, read as one: features side by side, one row of logits each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch

from cautious_imitation.language.model import LanguageModel, Reader

Tensor = torch.Tensor


class Stack(Reader):
    """Several language models behind one interface; what classes over a list of models are built on.

    Features ``[..., d]`` hold those of the K models one after the other.
    """

    @abstractmethod
    def __len__(self) -> int:
        """K, the number of models."""

    @abstractmethod
    def logits(self, features: Tensor, members: Sequence[int] | None = None) -> Tensor:
        """Logits of the next token at ``features [..., d]``, at least single precision: ``[..., K, V]``.

        Args:
            features: of all models.
            members: the M models that are wanted, by their indices; the result is ``[..., M, V]``. None for all.
        """


class ModelStack(Stack):
    """K language models that may have different networks. Each reads the context itself, so K forward passes a step.

    Args:
        models: language models with the same actions, and the same tokens as far as their tokenizers are known. They
            may be on different devices; what they predict is brought to the first one's.

    Raises:
        ValueError: if there is none, or their actions, tokens or start tokens differ.
    """

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        self.models = tuple(models)
        if not self.models:
            raise ValueError("models must hold at least one language model, got none")
        self.n_symbols = self.models[0].n_symbols
        for i, model in enumerate(self.models):
            if model.n_symbols != self.n_symbols:
                raise ValueError(
                    f"models must have the same actions, got n_symbols = {self.n_symbols} for models[0] and "
                    f"{model.n_symbols} for models[{i}]; pass n_symbols=len(tokenizer) where heads are padded"
                )
        _check_tokenizers(self.models)
        self.tokenizer = next((model.tokenizer for model in self.models if model.tokenizer is not None), None)
        self.start_token = _common_start(self.models)
        self.n_tokens = min(model.n_tokens for model in self.models)
        self.n_features = sum(model.n_features for model in self.models)
        self.network = torch.nn.ModuleList(model.network for model in self.models)

    def __len__(self) -> int:
        """K, the number of models."""
        return len(self.models)

    @property
    def device(self) -> torch.device:
        """Where the first model is."""
        return self.models[0].device

    @property
    def computed_dtype(self) -> torch.dtype:
        """The finest precision in which one of the models computes."""
        return reduce(torch.promote_types, [model.computed_dtype for model in self.models])

    @property
    def max_length(self) -> int | None:
        """Longest context in tokens that all models can read, None if no model sets a limit."""
        return min((model.max_length for model in self.models if model.max_length is not None), default=None)

    def features(self, tokens: Tensor, present: Tensor | None = None, cache: Any = None) -> tuple[Tensor, list[Any]]:
        """What the models' heads read, one after the other; ``cache`` is a list of theirs. See ``Reader.features``."""
        caches = [None] * len(self) if cache is None else cache
        read = [model.features(tokens, present, before) for model, before in zip(self.models, caches, strict=True)]
        return torch.cat([part.to(self.device, self.dtype) for part, _ in read], dim=-1), [after for _, after in read]

    def logits(self, features: Tensor, members: Sequence[int] | None = None) -> Tensor:
        """One head a model, each on its own part of the features; see ``Stack.logits``."""
        parts = torch.split_with_sizes(features, [model.n_features for model in self.models], dim=-1)
        indices = range(len(self)) if members is None else members
        rows = [self.models[i].logits(parts[i].to(self.models[i].device)) for i in indices]
        return torch.stack([row.to(self.device, self.dtype) for row in rows], dim=-2)


def _check_tokenizers(models: Sequence[LanguageModel]) -> None:
    """Models that write with different tokens cannot be compared token by token; the error says which one differs."""
    known = [(i, _tokens_by_number(model.tokenizer)) for i, model in enumerate(models) if model.tokenizer is not None]
    for (i, one), (j, other) in pairwise(known):
        if one == other:
            continue
        number = min(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))
        raise ValueError(
            f"models must share one vocabulary, got token {number} as {one.get(number)!r} for models[{i}] and "
            f"{other.get(number)!r} for models[{j}]; use models of one family with one tokenizer"
        )


def _tokens_by_number(tokenizer: Any) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items()}


def _common_start(models: Sequence[LanguageModel]) -> int | None:
    starts = {i: model.start_token for i, model in enumerate(models) if model.start_token is not None}
    if len(set(starts.values())) > 1:
        raise ValueError(
            f"models must start with the same token, got {', '.join(f'{t} for models[{i}]' for i, t in starts.items())}"
            "; pass the same start_token=... to each"
        )
    return next(iter(starts.values()), None)
