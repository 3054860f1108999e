"""The posterior over a finite list of hypotheses: Bayes' rule, forgetting, and who is plausible."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from cautious_imitation.hypotheses.base import check_alpha

Rule: TypeAlias = Literal["best", "cumulative", "anytime"]

_MASS_TOLERANCE = 1e-6
_ROUNDING_NATS = 1e-12


@dataclass(frozen=True, eq=False)
class Posterior:
    """Weights of K hypotheses, before or after learning; learning gives a new one.

    Attributes:
        log_prior: ``[K]`` in nats; exp of it sums to one.
        log_weights: ``[K]``, likewise.
        temperature: eta in (0, 1], the power of the likelihood in Bayes' rule; below one learns slower, and forgives
            more where no candidate is right.
        switching_rate: s in [0, 1), the share of weight that flows back to the prior after each learned action ("fixed
            share": the demonstrator may change), w <- (1 - s) w + s prior. Keeps the posterior of a class without the
            demonstrator from collapsing on one member.
        rule: which members are plausible at level alpha, see ``plausible_members``.

    Raises:
        ValueError: if a setting is out of its range.

    Source: Cohen, Hutter, Nanda, "Fully General Online Imitation Learning" (JMLR 23, 2022).
    """

    log_prior: NDArray[np.float64]
    log_weights: NDArray[np.float64]
    temperature: float = 1.0
    switching_rate: float = 0.0
    rule: Rule = "best"

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 1:
            raise ValueError(
                f"temperature must be in (0, 1], got {self.temperature!r}; above 1 the posterior outruns its evidence "
                "and the demonstrator may be ruled out"
            )
        if not 0 <= self.switching_rate < 1:
            raise ValueError(f"switching_rate must be in [0, 1), got {self.switching_rate!r}; 0 never forgets")
        if self.rule not in get_args(Rule):
            raise ValueError(f"plausible, the rule, must be one of {', '.join(get_args(Rule))}, got {self.rule!r}")

    @classmethod
    def over(
        cls,
        n_members: int,
        prior: ArrayLike | None = None,
        *,
        temperature: float = 1.0,
        switching_rate: float = 0.0,
        rule: Rule = "best",
    ) -> Posterior:
        """The posterior of ``n_members`` hypotheses that have learned nothing; ``prior [K]``, uniform if None.

        Raises:
            ValueError: if ``prior`` is not a distribution over them.
        """
        log_prior = _log_prior(prior, n_members)
        return cls(log_prior, log_prior, float(temperature), float(switching_rate), rule)

    def __len__(self) -> int:
        """K, the number of members."""
        return len(self.log_prior)

    def plausible_members(self, alpha: float) -> NDArray[np.bool_]:
        """Which members are plausible at level ``alpha``, ``[K]``; a member of weight 0 never is.

        - ``best``: weight at least ``alpha`` times the largest.
        - ``cumulative``: by falling weight (ties as listed), weight at least ``alpha`` times the sum of the weights up
          to and with it; the rule of Cohen, Hutter and Nanda.
        - ``anytime``: weight at least ``alpha`` times the member's own prior; that is, the mixture of all members is
          ahead of the member by a factor of 1 / alpha at most.

        If the demonstrator is a member of prior w_0, nothing but its actions is learned and ``switching_rate`` is 0, it
        stays plausible at all times at once with probability 1 - delta: under the first two rules for ``alpha`` up to
        delta w_0, under the last for ``alpha`` = delta.

        Raises:
            ValueError: if ``alpha`` is outside (0, 1].
        """
        # Equal weights that rounding has told apart stand or fall together, and no set is empty.
        log_alpha = np.log(check_alpha(alpha)) - _ROUNDING_NATS
        weights = self.log_weights
        plausible: NDArray[np.bool_]
        if self.rule == "best":
            plausible = weights >= weights.max() + log_alpha
        elif self.rule == "cumulative":
            order = np.argsort(-weights, kind="stable")
            plausible = np.empty(len(weights), dtype=np.bool_)
            plausible[order] = weights[order] >= log_alpha + np.logaddexp.accumulate(weights[order])
        else:
            plausible = weights >= log_alpha + self.log_prior
        plausible &= weights > -np.inf
        return plausible

    def learned(self, log_likelihoods: NDArray[np.float64], symbols: NDArray[np.int64]) -> Posterior:
        """The posterior after the demonstrator did ``symbols [N]``, one by one.

        Args:
            log_likelihoods: ``[N, K]`` log-probability of each action under each member, in nats.
            symbols: what was done, for the error.

        Raises:
            ValueError: if no member of positive weight allows one of them.
        """
        log_weights, impossible = _learn(
            self.log_weights, np.exp(self.log_prior), log_likelihoods, self.temperature, self.switching_rate
        )
        if impossible >= 0:
            raise ValueError(
                f"evidence must be possible under a member of positive weight, got symbol {symbols[impossible]} "
                f"(number {impossible} of those learned in this sequence) with probability 0 under all of them; add a "
                "member that gives it some"
            )
        return replace(self, log_weights=log_weights)


@njit(cache=True, nogil=True)
def _learn(
    log_weights: NDArray[np.float64],
    prior: NDArray[np.float64],
    log_likelihoods: NDArray[np.float64],
    temperature: float,
    switching_rate: float,
) -> tuple[NDArray[np.float64], int]:
    """Bayes' rule and switching, once for each row of ``log_likelihoods [N, K]``: new log-weights ``[K]``.

    Also returns the first row that is impossible under every member, or -1.
    """
    log_weights = log_weights.copy()
    for n in range(len(log_likelihoods)):
        largest = -np.inf
        for k in range(len(log_weights)):
            log_weights[k] += temperature * log_likelihoods[n, k]
            largest = max(largest, log_weights[k])
        if largest == -np.inf:
            return log_weights, n
        log_total = largest + np.log(np.sum(np.exp(log_weights - largest)))
        for k in range(len(log_weights)):
            log_weights[k] -= log_total
            if switching_rate > 0:
                log_weights[k] = np.log((1 - switching_rate) * np.exp(log_weights[k]) + switching_rate * prior[k])
    return log_weights, -1


def _log_prior(prior: ArrayLike | None, n_members: int) -> NDArray[np.float64]:
    if prior is None:
        return np.full(n_members, -np.log(n_members))
    probabilities = np.asarray(prior, dtype=np.float64)
    if probabilities.shape != (n_members,):
        raise ValueError(f"prior must have shape ({n_members},), one a member, got {probabilities.shape}")
    total = float(probabilities.sum())
    if not ((probabilities >= 0).all() and abs(total - 1) <= _MASS_TOLERANCE):
        raise ValueError(
            f"prior must be probabilities that sum to one, got {probabilities} with sum {total:.6g}; divide it by that"
        )
    with np.errstate(divide="ignore"):
        log_prior: NDArray[np.float64] = np.log(probabilities / total)
    return log_prior
