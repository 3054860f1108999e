"""Divergence x controller x ask accounting: what keeps a fine-tuned policy close to its anchor.

The three accountings differ in what asking costs in nats. Charges are exact expectations, never sampled log-ratios.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal, TypeAlias, get_args

from array_api_compat import array_namespace

from cautious_imitation.types import Array

Accounting: TypeAlias = Literal["free", "forbidden", "outcome"]


@dataclass(frozen=True)
class ExpectedBudget:
    """The expected charge of an episode is at most ``nats``; single trajectories may exceed it."""

    nats: float

    def __post_init__(self) -> None:
        if not self.nats >= 0:
            raise ValueError(f"nats must be at least 0, got {self.nats!r}; it bounds the expected charge of an episode")


@dataclass(frozen=True)
class HardBudget:
    """No trajectory is charged more than ``nats``; the policy has to keep it by itself, as ``BudgetedMixtureHead``."""

    nats: float

    def __post_init__(self) -> None:
        if not 0 <= self.nats < inf:
            raise ValueError(
                f"nats must be at least 0 and finite, got {self.nats!r}; it bounds the charge of any episode"
            )


@dataclass(frozen=True)
class Penalty:
    """Each nat costs ``multiplier`` units of reward."""

    multiplier: float

    def __post_init__(self) -> None:
        if not self.multiplier > 0:
            raise ValueError(
                f"multiplier must be positive, got {self.multiplier!r}; it is the price of a nat in reward"
            )

    def begin(self) -> float:
        """Reward that a nat costs in the first update."""
        return self.multiplier

    def after(self, multiplier: float, mean_charge_nats: float) -> float:
        """Reward that a nat costs in the next update: the same.

        Raises:
            ValueError: if the mean charge is not a finite number.
        """
        _check_charge(mean_charge_nats)
        return multiplier


@dataclass(frozen=True)
class AdaptivePenalty:
    """A price of a nat that rises by a few percent where an episode costs more than ``target_nats``, and falls if less.

    The multiplier is multiplied by 1 + ``gain`` e with e = (charge - target) / target, cut off at +-``clip``. It may
    take hundreds of updates to get there and swing about the target; nothing is guaranteed, on trajectories or in
    expectation.

    Attributes:
        target_nats: what an episode should be charged on average.
        initial: the multiplier of the first update, in reward a nat.
        gain: how fast the multiplier changes.
        clip: the largest relative error that counts.

    Raises:
        ValueError: if a setting is not positive and finite, or ``gain`` times ``clip`` is not below 1.

    >>> penalty = AdaptivePenalty(2.0, initial=0.1)
    >>> round(penalty.after(penalty.begin(), mean_charge_nats=50.0), 6)
    0.102

    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2.
    """

    target_nats: float
    initial: float = 0.1
    gain: float = 0.1
    clip: float = 0.2

    def __post_init__(self) -> None:
        for name in ("target_nats", "initial", "gain", "clip"):
            value = getattr(self, name)
            if not 0 < value < inf:
                raise ValueError(
                    f"{name} must be positive and finite, got {value!r}; the error is relative to a target"
                )
        if not self.gain * self.clip < 1:
            raise ValueError(
                f"gain times clip must be below 1, got {self.gain!r} times {self.clip!r}; the multiplier would "
                "not stay positive"
            )

    def begin(self) -> float:
        """Reward that a nat costs in the first update."""
        return self.initial

    def after(self, multiplier: float, mean_charge_nats: float) -> float:
        """Reward that a nat costs in the next update.

        Args:
            multiplier: what it cost in this one.
            mean_charge_nats: of its episodes.

        Raises:
            ValueError: if the mean charge is not a finite number.
        """
        _check_charge(mean_charge_nats)
        error = (mean_charge_nats - self.target_nats) / self.target_nats
        return multiplier * (1 + self.gain * min(max(error, -self.clip), self.clip))


@dataclass(frozen=True)
class Lagrangian:
    """A price of a nat by dual ascent: it rises by ``rate`` for each nat above ``nats``, falls below, and is never < 0.

    Where it settles above 0 the mean charge of an episode is ``nats``; at 0 the budget does not bind. It is kept in
    expectation, and only once the multiplier has settled. A large rate swings, or cycles where the charge jumps.

    Attributes:
        nats: what an episode may be charged on average.
        rate: step size, in reward a nat a nat.
        initial: the multiplier of the first update, in reward a nat.

    Raises:
        ValueError: if ``nats`` or ``initial`` is negative, ``rate`` is not positive, or one is not finite.

    >>> lagrangian = Lagrangian(nats=2.0, rate=0.1, initial=0.1)
    >>> [lagrangian.after(0.1, mean_charge_nats=charge) for charge in (2.0, 7.0, 0.0)]
    [0.1, 0.6, 0.0]

    Source: Altman 1999, "Constrained Markov Decision Processes"; Ray et al. 2019 (PPO with a Lagrangian).
    """

    nats: float
    rate: float
    initial: float = 0.0

    def __post_init__(self) -> None:
        for name in ("nats", "initial"):
            value = getattr(self, name)
            if not 0 <= value < inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {value!r}")
        if not 0 < self.rate < inf:
            raise ValueError(f"rate must be positive and finite, got {self.rate!r}; the multiplier would not move")

    def begin(self) -> float:
        """Reward that a nat costs in the first update."""
        return self.initial

    def after(self, multiplier: float, mean_charge_nats: float) -> float:
        """Reward that a nat costs in the next update.

        Args:
            multiplier: what it cost in this one.
            mean_charge_nats: of its episodes.

        Raises:
            ValueError: if the mean charge is not a finite number.
        """
        _check_charge(mean_charge_nats)
        return max(0.0, multiplier + self.rate * (mean_charge_nats - self.nats))


Multiplier: TypeAlias = Penalty | AdaptivePenalty | Lagrangian
"""Those that put a price on a nat, which may change from update to update.

``begin()`` is the price in the first update, ``after(multiplier, mean_charge_nats)`` that of the next one. They keep
nothing themselves: the multiplier is the state, a number for a checkpoint.
"""

Controller: TypeAlias = ExpectedBudget | HardBudget | Multiplier


@dataclass(frozen=True)
class Regularizer:
    """How a policy is kept close to an anchor.

    Attributes:
        controller: what the charge is weighed by: ``ExpectedBudget``, ``HardBudget``, ``Penalty``, ``AdaptivePenalty``
            or ``Lagrangian``. ``ExactSolver`` knows ``ExpectedBudget`` and ``Penalty``.
        divergence: ``"kl"``.
        accounting: ``"free"`` (asking costs no nats: q KL(pi || nu)), ``"forbidden"`` (never ask) or ``"outcome"``
            (asking is one more symbol, charged against the anchor's own ask probability; protects nobody, offered for
            comparison).
        ask_price: units of reward that a question costs.
        ask_budget: most expected questions in an episode; None for no limit.

    Raises:
        ValueError: if a setting is unknown or negative.

    >>> Regularizer(ExpectedBudget(2.0), ask_price=0.05).accounting
    'free'
    """

    controller: Controller = field(default_factory=lambda: ExpectedBudget(2.0))
    divergence: Literal["kl"] = "kl"
    accounting: Accounting = "free"
    ask_price: float = 0.0
    ask_budget: float | None = None

    def __post_init__(self) -> None:
        if self.divergence != "kl":
            raise ValueError(f'divergence must be "kl", got {self.divergence!r}; only KL adds up over an episode')
        if self.accounting not in get_args(Accounting):
            raise ValueError(f"accounting must be one of {', '.join(get_args(Accounting))}, got {self.accounting!r}")
        if not self.ask_price >= 0:
            raise ValueError(f"ask_price must be at least 0 units of reward, got {self.ask_price!r}")
        if self.ask_budget is not None and not self.ask_budget >= 0:
            raise ValueError(f"ask_budget must be at least 0 questions an episode or None, got {self.ask_budget!r}")


def step_charge(accounting: Accounting, act_share: Array, act_charge: Array, log_ask: Array) -> Array:
    """Expected charge of one step, in nats.

    Args:
        accounting: see ``Regularizer``.
        act_share: ``[...]`` probability q that the policy acts rather than asks.
        act_charge: ``[...]`` charge of its action distribution given that it acts, in nats.
        log_ask: ``[...]`` log of the anchor's own ask probability theta.

    Returns:
        ``[...]`` nats. 0 times infinity is 0: what is never done costs nothing.

    Raises:
        ValueError: if ``accounting`` is unknown, or is ``"forbidden"`` and some step asks.

    >>> import numpy as np
    >>> q, charge, log_ask = np.array(0.5), np.array(1.0), np.log(0.25)
    >>> [round(float(step_charge(how, q, charge, log_ask)), 3) for how in ("free", "outcome")]
    [0.5, 0.5]
    """
    xp = array_namespace(act_share, act_charge)
    acts = act_share > 0
    free = xp.where(acts, act_share * xp.where(acts, act_charge, 0.0), 0.0)
    if accounting == "free":
        return free
    if accounting == "forbidden":
        if bool(xp.any(act_share < 1)):
            raise ValueError('act_share must be 1 everywhere under accounting "forbidden"; this policy asks')
        return free
    if accounting != "outcome":
        raise ValueError(f"accounting must be one of {', '.join(get_args(Accounting))}, got {accounting!r}")
    asks = act_share < 1
    acting = xp.where(acts, act_share * xp.log(xp.where(acts, act_share, 1.0)), 0.0)
    ask = xp.where(asks, 1 - act_share, 1.0)
    asking = xp.where(asks, ask * (xp.log(ask) - xp.where(asks, log_ask, 0.0)), 0.0)
    return free + acting + asking


def _check_charge(mean_charge_nats: float) -> None:
    if not isfinite(mean_charge_nats):
        raise ValueError(
            f"mean_charge_nats must be a finite number, got {mean_charge_nats!r}; let the policy ask where acting "
            "costs infinitely much"
        )
