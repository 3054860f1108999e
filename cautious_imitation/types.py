"""Records that every other module speaks in: predictions and actions.

Logs are natural; log-probabilities are ``-inf`` where a probability is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from array_api_compat import array_namespace

Array: TypeAlias = Any
"""A NumPy array or a torch tensor: whichever came in goes out, nothing is converted silently."""


def mass_tolerance(log_probs: Array) -> float:
    """How far probabilities in the precision of ``log_probs`` may be from a sum of one: 1e-6 in double precision.

    In single precision 1e-4: over a vocabulary of 50,000 a softmax alone is off by 1e-5.
    """
    return 1e-6 if log_probs.dtype.itemsize >= 8 else 1e-4


class Actor(StrEnum):
    """Who chose a recorded action. Only the demonstrator's actions are evidence about the demonstrator.

    ``ORACLE`` is an answer that nobody may learn from: somebody stood in for the demonstrator, or repeated it.
    """

    DEMONSTRATOR = "demonstrator"
    IMITATOR = "imitator"
    ENVIRONMENT = "environment"
    ORACLE = "oracle"


@dataclass(frozen=True)
class Prediction:
    """What a base policy says about the next action.

    Attributes:
        log_probs: log-probability of each action, shape ``[..., V]``, in nats. May sum to less than one.
        log_ask: log-probability of asking the oracle instead of acting, shape ``[...]``, in nats.

    Raises:
        ValueError: if shapes disagree or the probabilities and the ask probability do not sum to one within 1e-6.

    >>> import numpy as np
    >>> p = Prediction(np.log([0.5, 0.25]), np.log(0.25))
    >>> float(p.ask_probability)
    0.25
    """

    log_probs: Array
    log_ask: Array

    def __post_init__(self) -> None:
        xp = array_namespace(self.log_probs, self.log_ask)
        if tuple(self.log_probs.shape[:-1]) != tuple(self.log_ask.shape):
            raise ValueError(
                f"log_ask must have shape {tuple(self.log_probs.shape[:-1])} to go with log_probs "
                f"{tuple(self.log_probs.shape)}, got {tuple(self.log_ask.shape)}"
            )
        total = xp.sum(xp.exp(self.log_probs), axis=-1) + xp.exp(self.log_ask)
        tolerance = mass_tolerance(self.log_probs)
        if not bool(xp.all(xp.abs(total - 1) <= tolerance)):
            raise ValueError(
                f"log_probs and log_ask must hold a total probability of 1 within {tolerance:.0e}, "
                f"got totals from {float(xp.min(total))} to {float(xp.max(total))}; normalise them together"
            )

    @property
    def ask_probability(self) -> Array:
        """Probability of asking, shape ``[...]``."""
        return array_namespace(self.log_ask).exp(self.log_ask)


@dataclass(frozen=True)
class Action:
    """One action taken and who chose it."""

    symbol: int
    actor: Actor
