"""One cell of a comparison: an imitator learned, a policy optimised, its metrics written as a row."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.config import CONTROLS, NEVER_ASKS, Anchor, CompareConfig
from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.environments.dialogue_acts import (
    N_ACTS,
    N_SYMBOLS,
    STUDENT_ENDED,
    dialogue_acts_world,
    sample_demonstrations,
)
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.exact import BudgetInfeasible, ExactSolver, Solution
from cautious_imitation.finetuning.metrics import Metrics, evaluate
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.dirichlet_tree import DirichletTree
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.regularizers import ExpectedBudget, Penalty, Regularizer

Row = dict[str, Any]

_CAUTIOUS: tuple[Anchor, ...] = ("cautious-pointwise", "cautious-minimax")
_LEARNS = frozenset({"bayesian", *_CAUTIOUS, *CONTROLS})

_MATCH_TOLERANCE = 0.002
_MATCH_ROUNDS = 8
_UNBOUNDED_MULTIPLIER = 1e-6

METRICS = (
    "reward",
    "charge_nats",
    "kl_demonstrator_nats",
    "excess_nats",
    "coverage",
    "ask_rate",
    "asks_per_episode",
    "empty_reply_share",
    "free_charge_nats",
    "largest_charge_nats",
)


@dataclass(frozen=True)
class Cell:
    """Settings of one policy; None where a setting has no meaning for the anchor.

    Accounting is ``"free"`` unless the anchor is cautious: the others ask never, or where they are told to.
    """

    anchor: Anchor
    log_inverse_alpha: float | None
    accounting: str
    budget_nats: float | None
    n_demonstrations: int | None
    deployment: str
    horizon: int
    ask_price: float | None
    seed: int | None


def cells(config: CompareConfig) -> Iterator[Cell]:
    """Every cell of the grids, each once, in a fixed order."""
    seen: set[Cell] = set()
    usual = -math.log(new_hypotheses(config).default_alpha)
    for grid in config.grids.values():
        levels: tuple[float | None, ...] = (usual,) if grid.log_inverse_alphas is None else grid.log_inverse_alphas
        for anchor in grid.anchors:
            learns, budgeted = anchor in _LEARNS, anchor not in ("none", "always-ask")
            for accounting in grid.accountings if anchor in _CAUTIOUS else ("free",):
                if anchor == "cautious-minimax" and accounting == "outcome":
                    continue  # a set of several references has no ask probability that could be charged
                for cell in (
                    Cell(anchor, level, accounting, budget, n, deployment, horizon, price, seed)
                    for level in (levels if anchor in (*_CAUTIOUS, *CONTROLS) else (None,))
                    for n in (grid.n_demonstrations if learns else (None,))
                    for seed in (grid.seeds if learns else (None,))
                    for deployment in grid.deployments
                    for horizon in grid.horizons
                    for price in (grid.ask_prices if anchor not in NEVER_ASKS else (None,))
                    for budget in (grid.budgets_nats if budgeted else (None,))
                ):
                    if cell not in seen:
                        seen.add(cell)
                        yield cell


class Experiment:
    """Worlds and learned imitators of one comparison, shared by its cells."""

    def __init__(self, config: CompareConfig) -> None:
        self.config = config
        source = config.world.demonstrations
        self.chats = (
            Demonstrations.dialogue_acts()
            if source is None
            else Demonstrations.from_chats(source, config.world.agent_role, config.world.other_role)
        )
        self.solver = ExactSolver(config.tolerance)
        self.world = lru_cache(maxsize=16)(self._world)
        self.tree = lru_cache(maxsize=256)(self._tree)
        self._ask_rates: dict[Cell, float] = {}

    def row(self, cell: Cell) -> Row:
        """Solve one cell and write it as a row of ``results.json``."""
        began = time.perf_counter()
        row: Row = {
            "anchor": cell.anchor,
            "alpha": None if cell.log_inverse_alpha is None else math.exp(-cell.log_inverse_alpha),
            **{k: v for k, v in asdict(cell).items() if k not in ("anchor", "log_inverse_alpha")},
            "status": "optimal",
            **dict.fromkeys(METRICS),
            "duality_gap": None,
        }
        try:
            solution, metrics = self.solve(cell)
        except BudgetInfeasible as error:
            least = error.least_charge_nats
            row.update(status="infeasible", least_charge_nats=least if math.isfinite(least) else None)
        else:
            self._ask_rates[cell] = metrics.ask_rate
            row.update(status="optimal" if solution.status == "penalty" else solution.status)
            row.update({name: getattr(metrics, name) for name in METRICS}, duality_gap=solution.duality_gap)
            if cell.anchor == "none":
                row.update(dict.fromkeys(("charge_nats", "free_charge_nats", "excess_nats", "coverage"), None))
                row.update(largest_charge_nats=None)
        return {**row, "seconds": time.perf_counter() - began}

    def solve(self, cell: Cell) -> tuple[Solution, Metrics]:
        """The optimal policy of a cell and its exact metrics.

        Raises:
            BudgetInfeasible: if no policy meets the budget.
        """
        world = self.world(cell.deployment, cell.horizon)
        references = self.references(cell, world)
        if cell.anchor in ("bayesian-asks-max-prob", "bayesian-asks-count"):
            return self._matched(cell, world, references)
        gate = None
        if cell.anchor == "always-ask":
            gate = np.ones(int(world.agent_turn.sum()))
        elif cell.anchor == "bayesian-asks-random":
            gate = np.full(int(world.agent_turn.sum()), self._minimax_ask_rate(cell))
        return self._optimise(cell, world, references, gate)

    def references(self, cell: Cell, world: FiniteWorld) -> PlausibleSet:
        """What the cell's anchor charges against, at the agent's states."""
        contexts = world.contexts[world.agent_turn]
        if cell.anchor == "none":
            return PlausibleSet.points(np.full((len(contexts), 1, N_ACTS), -math.log(N_ACTS)))
        if cell.n_demonstrations is None or cell.seed is None:
            with np.errstate(divide="ignore"):
                return PlausibleSet.points(np.log(world.demonstrator[world.agent_turn])[:, None, :])
        tree = self.tree(cell.n_demonstrations, cell.seed)
        if not cell.anchor.startswith("cautious") or cell.log_inverse_alpha is None:
            return BayesianImitator(tree, evidence="demonstrator").references(contexts)
        caution: Any = cell.anchor.removeprefix("cautious-")
        return CautiousImitator(tree, math.exp(-cell.log_inverse_alpha), caution).references(contexts)

    def _optimise(
        self, cell: Cell, world: FiniteWorld, references: PlausibleSet, gate: NDArray[np.float64] | None = None
    ) -> tuple[Solution, Metrics]:
        accounting: Any = cell.accounting
        budget = cell.budget_nats
        controller = Penalty(_UNBOUNDED_MULTIPLIER) if budget is None else ExpectedBudget(budget)
        solution = self.solver.solve(
            world,
            references,
            Regularizer(controller, accounting=accounting, ask_price=cell.ask_price or 0.0),
            ask_probability=gate,
            may_ask=cell.anchor not in NEVER_ASKS,
        )
        return solution, evaluate(world, solution, references, accounting)

    def _matched(self, cell: Cell, world: FiniteWorld, references: PlausibleSet) -> tuple[Solution, Metrics]:
        """A Bayesian anchor that has to ask where a score is low, as often as the minimax anchor asks.

        More places to ask mean more questions, though not evenly: the policy avoids or seeks them. So the share of
        places is found by regula falsi; where the ask rate jumps past the target, the policies on both sides of the
        jump are mixed, each followed for whole episodes, and both are within the budget.
        """
        target = self._minimax_ask_rate(cell)
        score = self._score(cell, world, references)
        below = self._optimise(cell, world, references, np.zeros(len(score)))
        visits = below[1].visits
        above: tuple[Solution, Metrics] | None = None
        low, high, share = (0.0, -target), (1.0, 1.0 - target), target
        last = 0.0
        for _ in range(_MATCH_ROUNDS):
            if min(target, 1.0 - target) <= _MATCH_TOLERANCE:
                break
            found = self._optimise(cell, world, references, _lowest(score, visits, share))
            miss = found[1].ask_rate - target
            if abs(miss) <= _MATCH_TOLERANCE:
                return found
            # Where the same end moves twice, the other's miss counts half (Illinois rule), or the search would creep.
            if miss < 0:
                below, low, high = found, (share, miss), (high[0], high[1] / 2 if last < 0 else high[1])
            else:
                above, high, low = found, (share, miss), (low[0], low[1] / 2 if last > 0 else low[1])
            last = miss
            share = low[0] + (high[0] - low[0]) * -low[1] / (high[1] - low[1])
        if above is None:
            above = self._optimise(cell, world, references, np.ones(len(score)))
        solution = _mixed(below, above, target)
        return solution, evaluate(world, solution, references, "free")

    def _score(self, cell: Cell, world: FiniteWorld, references: PlausibleSet) -> NDArray[np.float64]:
        if cell.anchor == "bayesian-asks-max-prob":
            return np.asarray(references.minimum().max(axis=-1))
        assert cell.n_demonstrations is not None
        assert cell.seed is not None
        counts = self.tree(cell.n_demonstrations, cell.seed).path_counts(world.contexts[world.agent_turn])
        return np.asarray(counts[:, -1].sum(axis=-1), dtype=np.float64)

    def _world(self, deployment: Any, horizon: int) -> FiniteWorld:
        return dialogue_acts_world(self.chats, deployment, horizon, self.config.world.depth)

    def _tree(self, n_demonstrations: int, seed: int) -> ContextTree | DirichletTree:
        rng = np.random.default_rng([seed, n_demonstrations])
        chats = sample_demonstrations(self.world("same", 64), n_demonstrations, rng)
        return new_hypotheses(self.config).fit(chats)

    def _minimax_ask_rate(self, cell: Cell) -> float:
        """How often the minimax anchor asks at the settings of ``cell``."""
        minimax = replace(cell, anchor="cautious-minimax")
        if minimax not in self._ask_rates:
            self._ask_rates[minimax] = self.solve(minimax)[1].ask_rate
        return self._ask_rates[minimax]


def new_hypotheses(config: CompareConfig) -> ContextTree | DirichletTree:
    """The class of a comparison, which has learned nothing."""
    settings = config.hypotheses.model_dump(exclude_none=True)
    kind = ContextTree if settings.pop("kind") == "trees" else DirichletTree
    return kind(N_ACTS, config.world.depth, n_context_symbols=N_SYMBOLS, start_symbol=STUDENT_ENDED, **settings)


def _mixed(below: tuple[Solution, Metrics], above: tuple[Solution, Metrics], ask_rate: float) -> Solution:
    """The policies of two solutions, one of the two drawn before each episode, so that the ask rate is ``ask_rate``."""
    short, over = (m.asks_per_episode - ask_rate * float(m.visits.sum()) for _, m in (below, above))
    share = short / (short - over) if short != over else 0.0
    parts = [(weight, solution) for weight, (solution, _) in ((1 - share, below), (share, above)) if weight > 0]

    def mean(name: str) -> float:
        return math.fsum(weight * getattr(solution, name) for weight, solution in parts)

    return replace(
        parts[0][1],
        policies=tuple(replace(p, weight=weight * p.weight) for weight, solution in parts for p in solution.policies),
        reward=mean("reward"),
        charge_nats=mean("charge_nats"),
        asks=mean("asks"),
        duality_gap=mean("duality_gap"),
        sweeps=sum(solution.sweeps for _, solution in parts),
    )


def _lowest(score: NDArray[np.float64], weight: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Ask probabilities that put ``share`` of the weight on the lowest scores; equal scores are treated alike."""
    levels, level = np.unique(score, return_inverse=True)
    mass = np.bincount(level, weights=weight / weight.sum(), minlength=len(levels))
    before = np.cumsum(mass) - mass
    with np.errstate(divide="ignore", invalid="ignore"):
        asked = np.where(mass > 0, (share - before) / mass, (share > before).astype(float))
    return np.asarray(np.clip(asked, 0.0, 1.0)[level])
