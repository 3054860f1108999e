"""Classes whose K members each predict one distribution at given features, weighed by one posterior.

Such a class says what its members predict, and how it is saved; mixture, minimum, worst divergence and learning follow.
Each of these can be replaced by a route that does without all members' rows, where a class has one.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cautious_imitation.atomic_files import write_safetensors, write_text
from cautious_imitation.hypotheses.feature_hypotheses import FeatureHypotheses
from cautious_imitation.hypotheses.posterior import Posterior, Rule
from cautious_imitation.hypotheses.wide_minimum import wide_minimum
from cautious_imitation.language.model import Reading
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.types import Array

Tensor = torch.Tensor

DEFAULT_SWITCHING_RATE = 1e-3
"""Share of weight that flows back to the prior after each learned token, where a class does not choose it.

Among models of language there is hardly ever the demonstrator itself. Without switching the differences between
members, some tenths of a nat a token, add up until one member has all the weight after a few hundred tokens, and a set
of one member asks nobody. With it no weight falls below a thousandth of its prior, at a price of at most a thousandth
of a nat a token; the posterior then speaks about the last stretch of demonstrations more than about the first. An
``alpha`` of a thousandth of the least prior or below keeps every member plausible under each rule.
"""

_VALUES_AT_ONCE = 1 << 23
"""Log-probabilities held while learning: 64 MiB in double precision, whatever the number of tokens."""


class WeightedRows(FeatureHypotheses):
    """K members, one distribution each at every context, and their exact posterior.

    Args:
        model: what reads, a ``Reader``.
        n_members: K.
        prior: ``[K]`` probabilities that sum to one; default uniform.
        temperature: eta in (0, 1], the power of the likelihood in Bayes' rule, see ``Posterior``.
        switching_rate: s in [0, 1), the share of weight that flows back to the prior after each learned token, see
            ``Posterior`` and ``DEFAULT_SWITCHING_RATE``.
        plausible: which members are plausible at level alpha, see ``Posterior.plausible_members``.

    Raises:
        ValueError: if a setting is out of its range.
    """

    def __init__(
        self,
        model: Any,
        n_members: int,
        *,
        prior: ArrayLike | None = None,
        temperature: float = 1.0,
        switching_rate: float = DEFAULT_SWITCHING_RATE,
        plausible: Rule = "best",
    ) -> None:
        super().__init__(model)
        self.posterior = Posterior.over(
            n_members, prior, temperature=temperature, switching_rate=switching_rate, rule=plausible
        )

    @abstractmethod
    def rows_from(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """What all members predict at features ``[..., d]``: ``[..., K, V]`` log-probabilities in nats.

        ``given [..., V]`` or ``[V]`` as in ``mixture_from``; ``log_softmax_given`` does that part.
        """

    def some_rows_from(self, features: Tensor, members: NDArray[np.int64], given: Tensor | None = None) -> Tensor:
        """The rows of the members at indices ``members [M]``: ``[..., M, V]``; a class may skip work for the others."""
        rows = self.rows_from(features, given)
        return rows if len(members) == len(self) else rows[..., torch.as_tensor(members, device=rows.device), :]

    def minimum_from(self, features: Tensor, alpha: float, given: Tensor | None = None) -> Tensor:
        """Least probability of each action over the plausible members: ``[..., V]`` log-probabilities in nats."""
        log_min: Tensor = wide_minimum(self._plausible_rows(features, alpha, given))[0]
        return log_min

    def worst_kl_from(self, features: Tensor, log_pi: Tensor, alpha: float, given: Tensor | None = None) -> Tensor:
        """Largest KL(pi || nu) over the plausible members nu, in nats: ``[...]`` for ``log_pi [..., V]``."""
        charge: Tensor = PlausibleSet.points(self._plausible_rows(features, alpha, given)).worst_kl(log_pi)
        return charge

    def log_likelihoods_from(self, features: Tensor, symbols: Tensor, given: Tensor | None = None) -> Tensor:
        """Log-probability of each of ``symbols [N]`` at features ``[N, d]`` under each member: ``[N, K]`` in nats."""
        rows = self.rows_from(features, given)
        picked = symbols.to(rows.device)[:, None, None].expand(-1, rows.shape[-2], 1)
        return rows.gather(-1, picked).squeeze(-1)

    def __len__(self) -> int:
        """K, the number of members."""
        return len(self.posterior)

    @property
    def log_weights(self) -> NDArray[np.float64]:
        """Log of the posterior weights ``[K]``, in nats; their exp sums to one."""
        return self.posterior.log_weights.copy()

    def plausible_members(self, alpha: float) -> NDArray[np.bool_]:
        """Which members are plausible at level ``alpha``, ``[K]``; see ``Posterior.plausible_members``."""
        return self.posterior.plausible_members(alpha)

    def mixture_from(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """See ``FeatureHypotheses.mixture_from``. Each member predicts conditionally; the weights stay as they are."""
        # A member that is ruled out has no say, whatever it predicts.
        weighed = np.flatnonzero(self.posterior.log_weights > -np.inf)
        rows = self.some_rows_from(features, weighed, given)
        weights = torch.as_tensor(self.posterior.log_weights[weighed], dtype=rows.dtype, device=rows.device)
        return (rows + weights[:, None]).logsumexp(-2)

    def plausible_from(self, features: Tensor, alpha: float, given: Tensor | None = None) -> PlausibleSet:
        """All members' predictions at features ``[..., d]`` as single points, with the plausible ones marked."""
        members = self.plausible_members(alpha)
        rows = self.rows_from(features, given)
        mask = torch.as_tensor(members, device=rows.device).expand(rows.shape[:-1]).clone()
        return PlausibleSet.points(rows, mask)

    @torch.no_grad()
    def learn_from(self, features: Tensor, symbols: Tensor, given: Tensor | None = None) -> None:
        """See ``FeatureHypotheses.learn_from``.

        Raises:
            ValueError: if no member of positive weight allows a symbol; nothing is learned then.
        """
        at_once = max(1, _VALUES_AT_ONCE // (len(self) * self.n_symbols))
        log_likelihoods = np.empty((len(symbols), len(self)))
        for start in range(0, len(symbols), at_once):
            part = slice(start, start + at_once)
            masks = given[part] if given is not None and given.ndim > 1 else given
            found = self.log_likelihoods_from(features[part], symbols[part], masks)
            log_likelihoods[part] = found.cpu().double().numpy()
        self.posterior = self.posterior.learned(log_likelihoods, symbols.cpu().numpy())

    def plausible_min(self, context: Array | Reading, alpha: float) -> Tensor:
        """Least probability of each action over the plausible members: ``[..., V]`` log-probabilities in nats."""
        return self.minimum_from(self.model.read(context).features, alpha)

    def worst_kl(self, context: Array | Reading, log_pi: Tensor, alpha: float) -> Tensor:
        """Largest KL(pi || nu) over the plausible members nu, in nats, shape ``[...]``; see ``Hypotheses.worst_kl``."""
        return self.worst_kl_from(self.model.read(context).features, log_pi, alpha)

    def _plausible_rows(self, features: Tensor, alpha: float, given: Tensor | None) -> Tensor:
        return self.some_rows_from(features, np.flatnonzero(self.plausible_members(alpha)), given)

    def _write(
        self,
        folder: str | PathLike[str],
        name: str,
        schema: int,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ``<name>.safetensors`` (posterior, ``arrays``) and ``<name>.json`` (its settings, ``settings``)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        posterior = self.posterior
        weights = {"log_prior": posterior.log_prior, "log_weights": posterior.log_weights}
        write_safetensors(folder / f"{name}.safetensors", {**weights, **(arrays or {})})
        document = {
            "schema": schema,
            "n_members": len(self),
            "n_symbols": self.n_symbols,
            "temperature": posterior.temperature,
            "switching_rate": posterior.switching_rate,
            "rule": posterior.rule,
            **(settings or {}),
        }
        write_text(folder / f"{name}.json", json.dumps(document, indent=1) + "\n")

    def _restore(self, arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
        """Take prior and weights out of what ``read_saved`` read."""
        for key in ("log_prior", "log_weights"):
            got = arrays[key].shape if key in arrays else None
            if got != (len(self),):
                raise ValueError(f"{path} must hold {key} of {len(self)} members, got {got}; fit and save it again")
        self.posterior = replace(self.posterior, log_prior=arrays["log_prior"], log_weights=arrays["log_weights"])


def read_saved(folder: str | PathLike[str], name: str, schema: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and settings that a class wrote to ``folder`` as ``<name>.safetensors`` and ``<name>.json``.

    Raises:
        FileNotFoundError: if they are not there.
        ValueError: if they were written by another version of the format, or are damaged.
    """
    path = Path(folder) / f"{name}.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        found = settings.pop("schema", None)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); fit and save it again") from error
    if found != schema:
        raise ValueError(f"{path} has another schema than {schema}, got {found!r}; fit and save it again")
    try:
        return load_file(path.with_suffix(".safetensors")), settings
    except SafetensorError as error:
        raise ValueError(f"{path.with_suffix('.safetensors')} is damaged ({error}); fit and save it again") from error


def log_softmax_given(logits: Tensor, given: Tensor | None = None) -> Tensor:
    """Log-probabilities of members ``[..., K, V]`` from their logits, conditional on ``given [..., V]`` or ``[V]``.

    Raises:
        ValueError: if ``given`` leaves no action in some context.
    """
    if given is None:
        return logits.log_softmax(-1)
    mask = given.to(logits.device)
    if not bool(mask.any(-1).all()):
        raise ValueError("given must leave at least one action in every context, got a context with none")
    return logits.masked_fill(~mask[..., None, :], -torch.inf).log_softmax(-1)
