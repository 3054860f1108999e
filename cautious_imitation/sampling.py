"""What an imitator does next, drawn from its prediction: an action, or a question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.types import Prediction


@dataclass(frozen=True)
class Drawn:
    """What was drawn in n contexts.

    Attributes:
        asks: ``[n]`` whether it asks.
        symbols: ``[n]`` the action; where it asks, the one that it takes if nobody answers, and V if it can take none.
    """

    asks: NDArray[np.bool_]
    symbols: NDArray[np.int64]


def draw(prediction: Prediction, uniforms: NDArray[np.float64]) -> Drawn:
    """Invert the distribution function at one uniform number in [0, 1) a context.

    Args:
        prediction: at n contexts, or at one.
        uniforms: ``[n]``.

    >>> drawn = draw(Prediction(np.log([[0.2, 0.3]]), np.log([0.5])), np.array([0.9]))
    >>> drawn.asks.tolist(), drawn.symbols.tolist()
    ([True], [1])
    """
    log_ask = on_host(prediction.log_ask).reshape(-1)
    log_probs = on_host(prediction.log_probs).reshape(len(log_ask), prediction.log_probs.shape[-1])
    # In double precision: over a vocabulary, rounding in single precision adds up.
    acting = np.cumsum(np.exp(log_probs), axis=1, dtype=np.float64)
    mass = acting[:, -1]
    asking = np.exp(log_ask, dtype=np.float64)
    sought = uniforms * (mass + asking)
    asks = sought >= mass
    # Given that it asks, what the number exceeds the actions' mass by is uniform as well.
    with np.errstate(divide="ignore", invalid="ignore"):
        instead = np.where(asks, (sought - mass) / asking * mass, sought)
    return Drawn(asks, (acting <= instead[:, None]).sum(axis=1))


class CountedGenerator:
    """Random numbers that depend on a seed and on where they are wanted, whatever was drawn before.

    Philox is made for this; setting its counter takes a tenth of the time that a new generator takes.

    Args:
        *seed: integers >= 0.

    >>> dice = CountedGenerator(0)
    >>> first = dice.at(3, 1).random()
    >>> dice.at(3, 2).random() == first, dice.at(3, 1).random() == first
    (False, True)
    """

    def __init__(self, *seed: int) -> None:
        key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._generator = np.random.Generator(np.random.Philox(key=key))
        self._state = self._generator.bit_generator.state

    def at(self, row: int, position: int) -> np.random.Generator:
        """A generator that begins at this place; the same object each time, so it is of use until the next call."""
        self._state["state"]["counter"][:] = (0, 0, position, row)
        self._generator.bit_generator.state = self._state
        return self._generator


def on_host(array: Any) -> NDArray[Any]:
    """A NumPy view or copy for work on the host; the caller's array stays what it is."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
