"""K low-rank heads on one frozen language model: an ensemble for the price of one forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from cautious_imitation.demonstrations import Demonstrations, Evidence
from cautious_imitation.hypotheses.logit_adapters import AdaptedLogits, LogitAdapters
from cautious_imitation.hypotheses.low_rank_optimizer import TrainingSettings
from cautious_imitation.hypotheses.low_rank_training import train_adapters
from cautious_imitation.hypotheses.posterior import Posterior, Rule
from cautious_imitation.hypotheses.weighted_rows import DEFAULT_SWITCHING_RATE, WeightedRows, read_saved
from cautious_imitation.language.demonstration_features import model_digest
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.types import Array

Tensor = torch.Tensor

_SCHEMA = 1
_NAME = "low_rank_heads"


class LowRankHeads(WeightedRows):
    """K heads that change a frozen language model's logits by low-rank adapters, weighed by one posterior.

    ``LowRankHeads.train`` makes them from demonstrations. After that the heads stay as they are: ``fit`` and ``update``
    are Bayes' rule over the K of them and nothing else. All questions are answered from the frozen model's logits,
    computed once, and K numbers a supported token; see ``AdaptedLogits``.

    Args:
        model: the frozen language model.
        adapters: the heads; they are moved to the model's device and precision.
        prior: ``[K]`` probabilities that sum to one; default uniform.
        temperature: eta in (0, 1], the power of the likelihood in Bayes' rule, see ``Posterior``.
        switching_rate: s in [0, 1), the share of weight that flows back to the prior after each learned token, see
            ``DEFAULT_SWITCHING_RATE``.
        plausible: which members are plausible at level alpha, see ``Posterior.plausible_members``.

    Raises:
        ValueError: if the adapters do not fit the model, or a setting is out of its range.

    >>> import transformers
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> model = LanguageModel(transformers.LlamaForCausalLM(config), start_token=0)
    >>> heads = LowRankHeads.train(model, [[1, 2, 3, 1, 2, 3]] * 4, n_heads=3, rank=2, n_blocks=2)
    >>> heads.mixture([1, 2]).shape, len(heads.log_weights)
    (torch.Size([6]), 3)

    Sources: Pearce et al., "Uncertainty in Neural Networks: Approximately Bayesian Ensembling" (AISTATS 2020), for the
    pull towards random start values; Osband et al., "Randomized Prior Functions for Deep Reinforcement Learning"
    (NeurIPS 2018), for what they are good for; Hu et al., "LoRA" (ICLR 2022), for low rank.
    """

    def __init__(
        self,
        model: LanguageModel,
        adapters: LogitAdapters,
        *,
        prior: ArrayLike | None = None,
        temperature: float = 1.0,
        switching_rate: float = DEFAULT_SWITCHING_RATE,
        plausible: Rule = "best",
    ) -> None:
        super().__init__(
            model,
            len(adapters),
            prior=prior,
            temperature=temperature,
            switching_rate=switching_rate,
            plausible=plausible,
        )
        if adapters.down.shape[-1] != model.n_features or int(adapters.support[-1]) >= model.n_symbols:
            raise ValueError(
                f"adapters must read {model.n_features} features and change tokens in 0..{model.n_symbols - 1}, got "
                f"{adapters.down.shape[-1]} features and token {int(adapters.support[-1])}; they are another model's"
            )
        self.adapters = adapters.to(model.device, model.dtype)
        self._last: tuple[Tensor, int, AdaptedLogits] | None = None

    @classmethod
    def train(
        cls,
        model: LanguageModel,
        demonstrations: Demonstrations | Iterable[Array],
        *,
        n_heads: int = 8,
        rank: int = 8,
        n_blocks: int = 8,
        epochs: float = 2.0,
        learning_rate: float = 0.01,
        prior_scale: float = 1.0,
        bias_scale: float = 1.0,
        batch_tokens: int = 256,
        seed: int = 0,
        support: ArrayLike | None = None,
        prior: ArrayLike | None = None,
        temperature: float = 1.0,
        switching_rate: float = DEFAULT_SWITCHING_RATE,
        plausible: Rule = "best",
        evidence: Evidence = "demonstrator",
        cache: str | PathLike[str] | None = None,
        progress: bool = False,
    ) -> LowRankHeads:
        """Train heads on demonstrations and weigh them by how well they predicted what they had not yet seen.

        Demonstrations are taken in blocks of whole sequences, in order. Each block is first predicted by the heads as
        they are, which updates the posterior, and then trained on, together with the blocks before it. So a head is
        weighed by predictions and never by what it was fitted to. What all heads share is taken from all sequences
        (``support``) or from the first block (the scale of features), which favours none of them.

        Training maximises the likelihood, each head on its own resample: every sequence counts Poisson(1) times. Heads
        start at random and are pulled towards their start values, as strongly as a Gaussian prior of ``prior_scale``
        asks, so that they keep disagreeing where demonstrations say nothing.

        Args:
            model: the frozen language model.
            demonstrations: with the actor of every token; or plain sequences, of which every token below ``n_symbols``
                is learned.
            n_heads: K.
            rank: r of the logit changes; each token has a change of its own on top.
            n_blocks: number of blocks, of about as many tokens each; fewer if there are fewer sequences.
            epochs: tokens trained on, as a multiple of the tokens learned.
            learning_rate: of Adam, in prior standard deviations a step.
            prior_scale: standard deviation of the logit changes, in nats, that heads start with at a context that is
                typical of the first block; more at others.
            bias_scale: prior standard deviation of each token's own change, in nats; it starts at 0.
            batch_tokens: tokens a minibatch.
            seed: the same seed gives the same heads on the same machine.
            support: tokens with changes of their own, all others sharing one; default: those that occur in the
                demonstrations, whoever said them, and special tokens.
            prior: ``[K]`` probabilities, as for ``LowRankHeads``.
            temperature: likewise.
            switching_rate: likewise.
            plausible: likewise.
            evidence: whose tokens are learned.
            cache: folder for features (see ``read_demonstrations``) and for the state after each block. Training that
                was interrupted goes on after the last block that was finished, and ends with the same heads.
            progress: show progress bars.

        Raises:
            ValueError: if a setting is out of its range, demonstrations hold nothing to learn or do not fit the model,
                training diverges, or ``cache`` holds training under other settings, or is damaged.
        """
        if not isinstance(demonstrations, Demonstrations):
            demonstrations = Demonstrations.from_symbols(demonstrations, model.n_symbols)
        settings = TrainingSettings(
            n_heads, rank, n_blocks, epochs, learning_rate, prior_scale, bias_scale, batch_tokens, seed
        )
        weighing: dict[str, Any] = {"temperature": temperature, "switching_rate": switching_rate}
        untrained = Posterior.over(n_heads, prior, rule=plausible, **weighing)
        adapters, posterior = train_adapters(
            model,
            demonstrations,
            untrained,
            settings,
            support=None if support is None else torch.as_tensor(support),
            evidence=evidence,
            cache=cache,
            progress=progress,
        )
        heads = cls(model, adapters, prior=prior, plausible=plausible, **weighing)
        heads.posterior = posterior
        return heads

    def rows_from(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """What each head predicts, see ``WeightedRows.rows_from``; as wide as K vocabularies, and never needed here."""
        return self._adapted(features, given).log_centres

    def mixture_from(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """See ``WeightedRows.mixture_from``."""
        adapted = self._adapted(features, given)
        return adapted.mixture(torch.from_numpy(self.posterior.log_weights).to(adapted.log_ratios))

    def plausible_from(self, features: Tensor, alpha: float, given: Tensor | None = None) -> Any:
        """The plausible heads at features ``[..., d]``, an ``AdaptedLogits``: ask it whatever is to be known there."""
        return self._plausible(features, alpha, given)

    def minimum_from(self, features: Tensor, alpha: float, given: Tensor | None = None) -> Tensor:
        """See ``WeightedRows.minimum_from``."""
        return self._plausible(features, alpha, given).minimum()

    def worst_kl_from(self, features: Tensor, log_pi: Tensor, alpha: float, given: Tensor | None = None) -> Tensor:
        """See ``WeightedRows.worst_kl_from``."""
        return self._plausible(features, alpha, given).worst_kl(log_pi)

    def log_likelihoods_from(self, features: Tensor, symbols: Tensor, given: Tensor | None = None) -> Tensor:
        """See ``WeightedRows.log_likelihoods_from``."""
        return self._adapted(features, given).log_likelihoods(symbols)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``low_rank_heads.safetensors`` (heads, weights, prior) and ``low_rank_heads.json`` into ``folder``.

        The model is not written: pass it to ``load`` again.
        """
        values = {name: value.cpu().numpy() for name, value in vars(self.adapters).items()}
        self._write(folder, _NAME, _SCHEMA, values, {"model": model_digest(self.model)})

    @classmethod
    def load(cls, folder: str | PathLike[str], model: LanguageModel) -> LowRankHeads:
        """Read what ``save`` wrote; ``model`` is the language model that the heads were trained on.

        Raises:
            FileNotFoundError: if ``folder`` holds no saved class.
            ValueError: if it was written by another version of the format, is damaged, or is of another model.
        """
        arrays, settings = read_saved(folder, _NAME, _SCHEMA)
        path = Path(folder) / f"{_NAME}.safetensors"
        if settings.get("model") != model_digest(model):
            raise ValueError(
                f"model must be the one that was saved in {folder}, got another; pass the same model in the same "
                "precision, with the same actions and start token"
            )
        names = ("support", "down", "up", "bias")
        missing = sorted(set(names) - set(arrays))
        if missing:
            raise ValueError(f"{path} is damaged, it lacks {', '.join(missing)}; train and save again")
        adapters = LogitAdapters(*(torch.from_numpy(arrays[name]) for name in names))
        weighing = {key: settings[key] for key in ("temperature", "switching_rate")}
        loaded = cls(model, adapters, plausible=settings["rule"], **weighing)
        loaded._restore(arrays, path)
        return loaded

    def _plausible(self, features: Tensor, alpha: float, given: Tensor | None) -> AdaptedLogits:
        return self._adapted(features, given).among(torch.from_numpy(self.plausible_members(alpha)))

    def _adapted(self, features: Tensor, given: Tensor | None) -> AdaptedLogits:
        """What the heads predict; asked again about the same features, as decoding does, the same answer."""
        if given is not None or features.is_inference():
            return self.adapters.at(features, self.model.logits(features), given)
        if self._last is not None and self._last[0] is features and self._last[1] == features._version:
            return self._last[2]
        adapted = self.adapters.at(features, self.model.logits(features))
        self._last = (features, features._version, adapted)
        return adapted
