"""A finite class of language models: each is one candidate for the demonstrator."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cautious_imitation.hypotheses.posterior import Rule
from cautious_imitation.hypotheses.weighted_rows import (
    DEFAULT_SWITCHING_RATE,
    WeightedRows,
    log_softmax_given,
    read_saved,
)
from cautious_imitation.language.demonstration_features import model_digest
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.model_stack import ModelStack, Stack

Tensor = torch.Tensor

_SCHEMA = 1
_NAME = "language_models"


class LanguageModels(WeightedRows):
    """K language models, or K LoRA adapters of one, weighed by how well they predict the demonstrator.

    The networks stay as they are; what is learned are the K weights. A context costs one forward pass of each model,
    or a single one for all adapters (``StackedLora``), whatever is asked.

    Args:
        models: the candidates: language models with one vocabulary, or a ``ModelStack`` or ``StackedLora`` of them.
        prior: ``[K]`` probabilities that sum to one; default uniform.
        temperature: eta in (0, 1], the power of the likelihood in Bayes' rule, see ``Posterior``.
        switching_rate: s in [0, 1), the share of weight that flows back to the prior after each learned token. On by
            default, see ``DEFAULT_SWITCHING_RATE``; 0 is Bayes' rule alone.
        plausible: which members are plausible at level alpha, see ``Posterior.plausible_members``.

    Raises:
        ValueError: if the models do not share one vocabulary, or a setting is out of its range.

    >>> import transformers
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> networks = [transformers.LlamaForCausalLM(config) for _ in range(2)]
    >>> models = LanguageModels([LanguageModel(network, start_token=0) for network in networks])
    >>> models.fit([[1, 2, 3]]).mixture([1, 2]).shape
    torch.Size([6])

    Source: Cohen, Hutter, Nanda, "Fully General Online Imitation Learning" (JMLR 23, 2022).
    """

    def __init__(
        self,
        models: Stack | Sequence[LanguageModel],
        *,
        prior: ArrayLike | None = None,
        temperature: float = 1.0,
        switching_rate: float = DEFAULT_SWITCHING_RATE,
        plausible: Rule = "best",
    ) -> None:
        self.models = models if isinstance(models, Stack) else ModelStack(models)
        super().__init__(
            self.models,
            len(self.models),
            prior=prior,
            temperature=temperature,
            switching_rate=switching_rate,
            plausible=plausible,
        )

    def rows_from(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """What each model predicts, see ``WeightedRows.rows_from``."""
        return log_softmax_given(self.models.logits(features), given)

    def some_rows_from(self, features: Tensor, members: NDArray[np.int64], given: Tensor | None = None) -> Tensor:
        """The same of the models at indices ``members [M]``; the heads of others are not run."""
        return log_softmax_given(self.models.logits(features, members.tolist()), given)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``language_models.safetensors`` (weights, prior) and ``language_models.json`` into ``folder``.

        The models are not written: pass them to ``load`` again.
        """
        self._write(folder, _NAME, _SCHEMA, settings={"models": model_digest(self.models)})

    @classmethod
    def load(cls, folder: str | PathLike[str], models: Stack | Sequence[LanguageModel]) -> LanguageModels:
        """Read what ``save`` wrote.

        Args:
            folder: where it was written.
            models: the models that it was made of, in the same order.

        Raises:
            FileNotFoundError: if ``folder`` holds no saved class.
            ValueError: if it was written by another version of the format, is damaged, or is of other models.
        """
        arrays, settings = read_saved(folder, _NAME, _SCHEMA)
        stack = models if isinstance(models, Stack) else ModelStack(models)
        if settings.get("models") != model_digest(stack):
            raise ValueError(
                f"models must be those that were saved in {folder}, got others; pass the same models in the same order "
                "and precision, with the same actions and start token"
            )
        loaded = cls(
            stack, plausible=settings["rule"], **{key: settings[key] for key in ("temperature", "switching_rate")}
        )
        loaded._restore(arrays, Path(folder) / f"{_NAME}.safetensors")
        return loaded
