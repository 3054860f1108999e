"""Hypotheses that read a context through a frozen language model and differ only in what they make of its features.

Whatever the number of hypotheses, a prediction costs one forward pass of the model: the features that its output head
reads. Wherever a context is taken, a ``Reading`` is taken too; who decodes with a cache brings the features along.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from os import PathLike
from typing import Any

import torch

from cautious_imitation.demonstrations import Demonstrations, Evidence
from cautious_imitation.hypotheses.base import Hypotheses
from cautious_imitation.language.demonstration_features import read_demonstrations
from cautious_imitation.language.model import Reader, Reading
from cautious_imitation.types import Array

Tensor = torch.Tensor


class FeatureHypotheses(Hypotheses):
    """What all such classes share: reading contexts and demonstrations, one forward pass each.

    Predictions are torch tensors on the model's device, in at least single precision. A context is ``[..., L]`` tokens,
    a list of ``[L]`` tokens of different lengths, or a ``Reading``.

    Args:
        model: the frozen language model, or several read as one; its ``n_symbols`` tokens are the actions.
    """

    def __init__(self, model: Reader) -> None:
        self.model = model
        self.n_symbols = model.n_symbols

    @abstractmethod
    def mixture_from(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """Posterior mixture at features ``[..., d]``: ``[..., V]`` log-probabilities in nats.

        Args:
            features: what the output head reads.
            given: ``[..., V]`` or ``[V]`` booleans: actions among which the next one is known to be. Each member then
                predicts by its probabilities conditional on that, so others get ``-inf``. None for all.
        """

    @abstractmethod
    def plausible_from(self, features: Tensor, alpha: float, given: Tensor | None = None) -> Any:
        """The plausible set at features ``[..., d]``, as ``Hypotheses.plausible`` returns it; ``given`` as above."""

    @abstractmethod
    def learn_from(self, features: Tensor, symbols: Tensor, given: Tensor | None = None) -> None:
        """Learn, in their order, that the demonstrator did ``symbols [N]`` at features ``[N, d]``.

        ``given [N, V]`` or ``[V]`` as above: then members are weighed by their conditional probabilities.
        """

    def mixture(self, context: Array | Reading) -> Tensor:
        """Posterior mixture at ``context``: ``[..., V]`` log-probabilities in nats."""
        return self.mixture_from(self.model.read(context).features)

    def plausible(self, context: Array | Reading, alpha: float) -> Any:
        """The plausible set at ``context``.

        Raises:
            ValueError: if ``alpha`` is outside (0, 1].
        """
        return self.plausible_from(self.model.read(context).features, alpha)

    def update(self, context: Array | Reading, symbol: Array) -> None:
        """Learn that the demonstrator did ``symbol`` at ``context`` (``[L]`` and an int, or ``[B, L]`` and ``[B]``).

        Raises:
            ValueError: if shapes disagree or a symbol is outside the alphabet; nothing is learned then.
        """
        features = self.model.read(context).features
        symbols = self._checked_symbols(symbol)
        if symbols.shape != features.shape[:-1]:
            raise ValueError(
                f"symbol must have shape {tuple(features.shape[:-1])} to go with context, got {tuple(symbols.shape)}"
            )
        self.learn_from(features.reshape(-1, features.shape[-1]), symbols.reshape(-1))

    def fit(
        self,
        demonstrations: Demonstrations | Iterable[Array],
        *,
        evidence: Evidence = "demonstrator",
        cache: str | PathLike[str] | None = None,
        progress: bool = False,
    ) -> FeatureHypotheses:
        """Learn from whole sequences of tokens, in order; returns self.

        Args:
            demonstrations: with the actor of every token; or plain sequences, of which every token below ``n_symbols``
                is learned.
            evidence: whose actions are learned.
            cache: folder for the features, see ``read_demonstrations``.
            progress: show a progress bar.

        Raises:
            ValueError: as ``read_demonstrations``; nothing is learned then.
        """
        if not isinstance(demonstrations, Demonstrations):
            demonstrations = Demonstrations.from_symbols(demonstrations, self.n_symbols)
        read = read_demonstrations(self.model, demonstrations, evidence=evidence, cache=cache, progress=progress)
        self.learn_from(read.features, read.tokens)
        return self

    def _checked_symbols(self, symbol: Array) -> Tensor:
        symbols = torch.as_tensor(symbol, device=self.model.device)
        if symbols.is_floating_point() or symbols.dtype == torch.bool:
            raise ValueError(f"symbol must hold integer tokens, got {symbols.dtype}")
        outside = (symbols < 0) | (symbols >= self.n_symbols)
        if bool(outside.any()):
            raise ValueError(
                f"symbol must hold tokens in 0..{self.n_symbols - 1}, which the model can say, got "
                f"{int(symbols[outside][0])}"
            )
        return symbols.long()
