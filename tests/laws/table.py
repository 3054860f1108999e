"""Every implementation of ``Hypotheses``, in one table: a law is tested for all of them.

A new class is entered here once, in each variant that answers differently; ``test_table_is_complete.py`` sees to it.
All have three actions and contexts of the symbols 0..3, where 3 is context only and pads what is too short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cautious_imitation.hypotheses.base import Hypotheses
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.dirichlet_tree import DirichletTree
from cautious_imitation.hypotheses.event_refined import EventRefined
from cautious_imitation.hypotheses.event_set import EventSet, SingleAction
from cautious_imitation.hypotheses.events import EmptyReplies
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.hypotheses.language_models import LanguageModels
from cautious_imitation.hypotheses.logit_adapters import LogitAdapters
from cautious_imitation.hypotheses.logit_ball import LogitBall
from cautious_imitation.hypotheses.low_rank_heads import LowRankHeads
from cautious_imitation.language.model_stack import ModelStack
from cautious_imitation.plausible_sets import PlausibleSet
from tests.tiny_models import tiny_model

N_SYMBOLS, N_CONTEXT_SYMBOLS = 3, 4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Implementation:
    """One class in one variant.

    Attributes:
        name: shown in the test's name.
        make: a new instance that has learned nothing.
        load: reads what ``save`` wrote.
        mixture_learns: whether learning moves the mixture; where not, only how sure the class is of it.
    """

    name: str
    make: Callable[[], Hypotheses]
    load: Callable[[Path], Hypotheses] = field(repr=False)
    mixture_learns: bool = True


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


def dirichlet_tree(**settings: Any) -> Implementation:
    return Implementation(
        "DirichletTree " + ", ".join(map(str, settings)),
        lambda: DirichletTree(N_SYMBOLS, 2, n_context_symbols=N_CONTEXT_SYMBOLS, **settings),
        DirichletTree.load,
    )


def finite(name: str, members: list[Any], functions: tuple[int, ...] = (), **settings: Any) -> Implementation:
    """``functions`` are the places of those members that no file can hold."""

    def make() -> FiniteHypotheses:
        return FiniteHypotheses(members, n_symbols=N_SYMBOLS, start_symbol=N_CONTEXT_SYMBOLS - 1, **settings)

    def load(folder: Path) -> FiniteHypotheses:
        return FiniteHypotheses.load(folder, {i: members[i] for i in functions})

    return Implementation(f"FiniteHypotheses {name}", make, load)


def language_models() -> Implementation:
    models = [tiny_model(seed=seed) for seed in (1, 2, 3)]
    return Implementation(
        "LanguageModels", lambda: LanguageModels(models), lambda folder: LanguageModels.load(folder, models)
    )


def low_rank_heads() -> Implementation:
    model = tiny_model(seed=4)
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 2, model.n_features), (4, 3, 2), (4, 3)
    changes = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    adapters = LogitAdapters(torch.tensor([0, 2]), *changes)
    return Implementation(
        "LowRankHeads", lambda: LowRankHeads(model, adapters), lambda folder: LowRankHeads.load(folder, model)
    )


def gaussian_head(**settings: Any) -> Implementation:
    model = tiny_model(seed=7)
    return Implementation(
        "GaussianHead " + ", ".join(map(str, settings.values())),
        lambda: GaussianHead(model, **settings),
        lambda folder: GaussianHead.load(folder, model),
        mixture_learns=False,
    )


def event_refined(name: str, **settings: Any) -> Implementation:
    """Replies begin after the symbol that is context only."""
    stack = ModelStack([tiny_model(seed=seed) for seed in (5, 6)])

    def make() -> EventRefined:
        events = EmptyReplies(N_SYMBOLS, start_suffix=[N_CONTEXT_SYMBOLS - 1], **settings)
        return EventRefined(LanguageModels(stack), events)

    def load(folder: Path) -> EventRefined:
        return EventRefined.load(folder, stack, language=LanguageModels.load(folder / "language", stack))

    return Implementation(f"EventRefined {name}", make, load)


IMPLEMENTATIONS = (
    tree(leaf="kt"),
    tree(leaf="kt", plausible="total"),
    tree(leaf="profile", complexity="none"),
    tree(leaf="profile", plausible="anytime"),
    tree(leaf="profile", complexity="support", stop_prob=0.3),
    tree(leaf="profile", complexity="bic", stop_prob=0.9),
    dirichlet_tree(),
    dirichlet_tree(concentrations=(2.0,)),
    finite("best", tables()),
    finite("cumulative", tables(), plausible="cumulative", prior=[0.1, 0.2, 0.3, 0.2, 0.2]),
    finite("anytime", tables(), plausible="anytime", temperature=0.5),
    finite("switching", tables(), switching_rate=0.05),
    finite("functions", [shrinking, tables()[2], uniform], (0, 2)),
    finite("torch", [CausalNetwork(1), CausalNetwork(2), CausalNetwork(3)], (0, 1, 2)),
    language_models(),
    low_rank_heads(),
    gaussian_head(covariance="isotropic"),
    gaussian_head(covariance="fisher", ridge=0.3),
    event_refined("memory", end_tokens=[0], memory=1),
    event_refined("two end", end_tokens=[0, 1]),
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


def arrays_of(members: Any) -> Iterator[Any]:
    """All that a plausible set holds, that of sets within it too, as arrays."""
    if isinstance(members, tuple) or is_dataclass(members):
        for value in members if isinstance(members, tuple) else vars(members).values():
            yield from arrays_of(value)
    else:
        yield np.asarray(members)


def balls(members: Any) -> Iterator[tuple[Floats, float]]:
    """Centre ``[V]`` and radius in nats of each plausible ball at one context."""
    if isinstance(members, EventSet):
        yield from combined(members, balls)
    elif isinstance(members, LogitBall):
        log_centre, *others = sampled_members(members, np.random.default_rng(0))
        yield log_centre, max(kl(np.exp(log_centre), log_nu) for log_nu in others)
    else:
        centres, radii = np.asarray(members.log_centres), np.asarray(members.radii_nats)
        yield from zip(centres[members.plausible], radii[members.plausible], strict=True)


def combined(
    members: EventSet, of: Callable[[PlausibleSet], Iterable[tuple[Floats, float]]]
) -> Iterator[tuple[Floats, float]]:
    """Each way to put one of ``of(set)`` for the events and one for every event together; the radius of the former."""
    [part] = members.parts

    def among(known: Any) -> list[tuple[Floats, float]]:
        if isinstance(known, SingleAction):
            return [(np.zeros(N_SYMBOLS), 0.0)]
        return list(of(replace(known, **{name: value[0] for name, value in vars(known).items()})))

    of_events = [(np.zeros(1), 0.0)] if part.tree is None else among(part.tree)
    for (log_events, radius), *within in product(of_events, *map(among, part.within)):
        log_nu = np.full(N_SYMBOLS, -np.inf)
        for member, log_event, (inside, _) in zip(part.members.numpy(), log_events, within, strict=True):
            log_nu[member] = log_event + inside[member]
        yield log_nu, radius


def shifted(members: LogitBall, rng: np.random.Generator) -> Iterator[Floats]:
    """The centre, and members on the boundary and within: along each logit, towards each action, and anywhere."""
    log_centre, radius = np.asarray(members.log_centre), float(members.radius)
    scale = np.ones(len(log_centre)) if members.scale is None else np.asarray(members.scale)
    axes, towards = np.eye(len(log_centre)), np.eye(len(log_centre)) - np.exp(log_centre)
    yield log_centre
    for direction in (*axes, *-axes, *(scale * towards), *-(scale * towards), *rng.normal(size=(6, len(log_centre)))):
        length = float(np.linalg.norm(direction))
        for share in (1.0, rng.random()):
            shift = scale * direction * (share * radius / length if length else 0.0)
            yield log_centre + shift - np.logaddexp.reduce(log_centre + shift)


def sampled_members(members: Any, rng: np.random.Generator) -> Iterator[Floats]:
    """Log-probabilities ``[V]`` of distributions in the set at one context: centres, and points of every ball."""
    if isinstance(members, EventSet):
        for log_nu, _ in combined(members, lambda known: ((member, 0.0) for member in sampled_members(known, rng))):
            yield log_nu
        return
    if isinstance(members, LogitBall):
        yield from shifted(members, rng)
        return
    for log_centre, radius in balls(members):
        centre = np.exp(log_centre)
        yield log_centre
        if radius == 0:
            continue
        for other in rng.dirichlet(np.full(len(centre), 0.3), size=3):
            low, high = 0.0, 1.0
            for _ in range(50):
                middle = 0.5 * (low + high)
                inside = kl(centre, logs((1 - middle) * centre + middle * other)) <= radius
                low, high = (middle, high) if inside else (low, middle)
            yield logs((1 - low) * centre + low * other)
