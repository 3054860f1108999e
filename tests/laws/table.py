"""Every implementation of ``Hypotheses``, in one table: a law is tested for all of them.

A new class is entered here once, in each variant that answers differently; ``test_table_is_complete.py`` sees to it.
All have three actions and contexts of the symbols 0..3, where 3 is context only and pads what is too short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cautious_imitation.hypotheses.base import Hypotheses
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.plausible_sets import PlausibleSet

N_SYMBOLS, N_CONTEXT_SYMBOLS = 3, 4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Implementation:
    """One class in one variant.

    Attributes:
        name: shown in the test's name.
        make: a new instance that has learned nothing.
        load: reads what ``save`` wrote.
    """

    name: str
    make: Callable[[], Hypotheses]
    load: Callable[[Path], Hypotheses] = field(repr=False)


class CausalNetwork(torch.nn.Module):
    """Logits for the next symbol from an average over the symbols so far: ``[B, L]`` to ``[B, L, V]``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(N_CONTEXT_SYMBOLS, N_SYMBOLS, generator=generator, dtype=torch.float64)

    def forward(self, contexts: torch.Tensor) -> torch.Tensor:
        lengths = torch.arange(1, contexts.shape[1] + 1)
        return torch.cumsum(self.weights[contexts], dim=1) / lengths[:, None]


def tables() -> list[Floats]:
    """Markov tables of order 0, 1 and 2; one of them rules an action out."""
    rng = np.random.default_rng(0)
    shapes = [(), (N_CONTEXT_SYMBOLS,), (N_CONTEXT_SYMBOLS,) * 2, (N_CONTEXT_SYMBOLS,) * 2]
    members = [rng.dirichlet(np.ones(N_SYMBOLS), size=shape) for shape in shapes]
    members.append(np.array([0.4, 0.6, 0.0]))
    with np.errstate(divide="ignore"):
        return [np.log(member) for member in members]


def shrinking(context: Any) -> Floats:
    """A function of the whole context: an action is likelier the more often it occurred."""
    counts = np.array([np.count_nonzero(np.asarray(context) == a) for a in range(N_SYMBOLS)])
    return np.log((counts + 1.0) / (counts.sum() + N_SYMBOLS))


def uniform(context: Any) -> Floats:
    return np.full(N_SYMBOLS, -np.log(N_SYMBOLS))


def tree(**settings: Any) -> Implementation:
    def make() -> ContextTree:
        return ContextTree(N_SYMBOLS, 2, n_context_symbols=N_CONTEXT_SYMBOLS, **settings)

    return Implementation("ContextTree " + ", ".join(map(str, settings.values())), make, ContextTree.load)


def finite(name: str, members: list[Any], functions: tuple[int, ...] = (), **settings: Any) -> Implementation:
    """``functions`` are the places of those members that no file can hold."""

    def make() -> FiniteHypotheses:
        return FiniteHypotheses(members, n_symbols=N_SYMBOLS, start_symbol=N_CONTEXT_SYMBOLS - 1, **settings)

    def load(folder: Path) -> FiniteHypotheses:
        return FiniteHypotheses.load(folder, {i: members[i] for i in functions})

    return Implementation(f"FiniteHypotheses {name}", make, load)


IMPLEMENTATIONS = (
    tree(leaf="kt"),
    tree(leaf="kt", plausible="total"),
    tree(leaf="profile", complexity="none"),
    tree(leaf="profile", complexity="support", stop_prob=0.3),
    tree(leaf="profile", complexity="bic", stop_prob=0.9),
    finite("best", tables()),
    finite("cumulative", tables(), rule="cumulative", prior=[0.1, 0.2, 0.3, 0.2, 0.2]),
    finite("prior", tables(), rule="prior", temperature=0.5),
    finite("switching", tables(), switching_rate=0.05),
    finite("functions", [shrinking, tables()[2], uniform], (0, 2)),
    finite("torch", [CausalNetwork(1), CausalNetwork(2), CausalNetwork(3)], (0, 1, 2)),
)


def sequences() -> list[list[int]]:
    """What every implementation learns from, context-only symbols among it."""
    rng = np.random.default_rng(1)
    table = rng.dirichlet(np.full(N_CONTEXT_SYMBOLS, 0.5), size=N_CONTEXT_SYMBOLS)
    found = []
    for length in (40, 1, 25):
        sequence = [int(rng.integers(N_SYMBOLS))]
        while len(sequence) < length:
            sequence.append(int(rng.choice(N_CONTEXT_SYMBOLS, p=table[sequence[-1]])))
        found.append(sequence)
    return found


drawn = settings(max_examples=30)
"""For laws over drawn values: thirty of them, for each of the implementations."""

contexts = st.lists(st.integers(0, N_CONTEXT_SYMBOLS - 1), max_size=4)
alphas = st.floats(-12.0, 0.0).map(np.exp).map(float)
policies = (
    st.lists(st.sampled_from([0.0, 1e-6]) | st.floats(0.01, 1.0), min_size=N_SYMBOLS, max_size=N_SYMBOLS)
    .map(np.array)
    .filter(lambda weights: weights.sum() > 0.01)
    .map(lambda weights: weights / weights.sum())
)


def logs(probabilities: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def like(hypotheses: Hypotheses, values: Floats) -> Any:
    """``values`` as the kind of array that ``hypotheses`` answers with."""
    return torch.tensor(values) if isinstance(hypotheses.mixture([0]), torch.Tensor) else values


def kl(pi: Floats, log_nu: Floats) -> float:
    """KL(pi || nu) in nats, infinite where nu excludes what pi does."""
    return float(sum(p * (np.log(p) - q) for p, q in zip(pi, log_nu, strict=True) if p > 0))


def sampled_members(members: PlausibleSet, rng: np.random.Generator) -> Iterator[Floats]:
    """Log-probabilities ``[V]`` of distributions in the set at one context: centres, and points of every ball."""
    centres, radii = np.asarray(members.log_centres), np.asarray(members.radii_nats)
    for log_centre, radius in zip(centres[members.plausible], radii[members.plausible], strict=True):
        centre = np.exp(log_centre)
        yield log_centre
        if radius == 0:
            continue
        for other in rng.dirichlet(np.full(N_SYMBOLS, 0.3), size=3):
            low, high = 0.0, 1.0
            for _ in range(50):
                middle = 0.5 * (low + high)
                inside = kl(centre, logs((1 - middle) * centre + middle * other)) <= radius
                low, high = (middle, high) if inside else (low, middle)
            yield logs((1 - low) * centre + low * other)
