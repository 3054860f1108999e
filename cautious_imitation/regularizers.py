"""Divergence x controller x ask accounting: what keeps a fine-tuned policy close to its anchor.

The three accountings differ in what asking costs in nats. Charges are exact expectations, never sampled log-ratios.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
class Penalty:
    """Each nat costs ``multiplier`` units of reward."""

    multiplier: float

    def __post_init__(self) -> None:
        if not self.multiplier > 0:
            raise ValueError(
                f"multiplier must be positive, got {self.multiplier!r}; it is the price of a nat in reward"
            )


Controller: TypeAlias = ExpectedBudget | Penalty


@dataclass(frozen=True)
class Regularizer:
    """How a policy is kept close to an anchor.

    Attributes:
        controller: what the charge is weighed by: ``ExpectedBudget`` or ``Penalty``.
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
