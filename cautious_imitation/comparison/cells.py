"""One cell of a comparison: an imitator learned, a policy optimised, its metrics written as a row."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.config import Anchor, CompareConfig
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
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.regularizers import ExpectedBudget, Penalty, Regularizer

Row = dict[str, Any]

_CONTROLS: frozenset[Anchor] = frozenset({"bayesian-asks-max-prob", "bayesian-asks-count", "bayesian-asks-random"})
_LEARNS = frozenset({"bayesian", "cautious-pointwise", "cautious-minimax", *_CONTROLS})
_NEVER_ASKS = frozenset({"none", "bayesian"})
_SETS_NEED_ALPHA = frozenset({"cautious-pointwise", "cautious-minimax", *_CONTROLS})

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
    """Settings of one policy; None where a setting has no meaning for the anchor."""

    anchor: Anchor
    log_inverse_alpha: float | None
    accounting: str
    budget_nats: float | None
    n_demonstrations: int | None
    deployment: str
    horizon: int
    ask_price: float
    seed: int | None


def cells(config: CompareConfig) -> Iterator[Cell]:
    """Every cell of the grids, each once, in a fixed order."""
    seen: set[Cell] = set()
    for grid in config.grids.values():
        for anchor in grid.anchors:
            learns, budgeted = anchor in _LEARNS, anchor not in ("none", "always-ask")
            accountings = grid.accountings if anchor.startswith("cautious") else grid.accountings[:1]
            for accounting in accountings:
                if anchor == "cautious-minimax" and accounting == "outcome":
                    continue
                for cell in (
                    Cell(anchor, level, accounting, budget, n, deployment, horizon, price, seed)
                    for level in (grid.log_inverse_alphas if anchor in _SETS_NEED_ALPHA else (None,))
                    for n in (grid.n_demonstrations if learns else (None,))
                    for seed in (grid.seeds if learns else (None,))
                    for deployment in grid.deployments
                    for horizon in grid.horizons
                    for price in grid.ask_prices
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
        self.tree = lru_cache(maxsize=64)(self._tree)
        self.minimax_ask_rate = lru_cache(maxsize=1024)(self._minimax_ask_rate)

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
            gate = np.full(int(world.agent_turn.sum()), self.minimax_ask_rate(_as_minimax(cell)))
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
            Regularizer(controller, accounting=accounting, ask_price=cell.ask_price),
            ask_probability=gate,
            may_ask=cell.anchor not in _NEVER_ASKS,
        )
        return solution, evaluate(world, solution, references, accounting)

    def _matched(self, cell: Cell, world: FiniteWorld, references: PlausibleSet) -> tuple[Solution, Metrics]:
        """A Bayesian anchor that has to ask where a score is low, as often as the minimax anchor asks."""
        target = self.minimax_ask_rate(_as_minimax(cell))
        score = self._score(cell, world, references)
        visits = np.ones(len(score))
        found: list[tuple[float, Solution, Metrics]] = []
        share = target
        for _ in range(_MATCH_ROUNDS):
            gate = _lowest(score, visits, share)
            solution, metrics = self._optimise(cell, world, references, gate)
            found.append((abs(metrics.ask_rate - target), solution, metrics))
            if found[-1][0] <= _MATCH_TOLERANCE:
                break
            # The policy avoids or seeks the contexts where it must ask: aim again from where it went.
            visits = 0.5 * (visits / visits.sum() + metrics.visits / metrics.visits.sum())
            share = min(max(share + 0.7 * (target - metrics.ask_rate), 0.0), 1.0)
        _, solution, metrics = min(found, key=lambda entry: entry[0])
        return solution, metrics

    def _score(self, cell: Cell, world: FiniteWorld, references: PlausibleSet) -> NDArray[np.float64]:
        if cell.anchor == "bayesian-asks-max-prob":
            return np.asarray(references.minimum().max(axis=-1))
        assert cell.n_demonstrations is not None and cell.seed is not None
        counts = self.tree(cell.n_demonstrations, cell.seed).path_counts(world.contexts[world.agent_turn])
        return counts[:, -1].sum(axis=-1).astype(np.float64)

    def _world(self, deployment: Any, horizon: int) -> FiniteWorld:
        return dialogue_acts_world(self.chats, deployment, horizon, self.config.world.depth)

    def _tree(self, n_demonstrations: int, seed: int) -> ContextTree:
        settings, depth = self.config.hypotheses, self.config.world.depth
        rng = np.random.default_rng([seed, n_demonstrations])
        chats = sample_demonstrations(self.world("same", 64), n_demonstrations, rng)
        return ContextTree(
            N_ACTS,
            depth,
            n_context_symbols=N_SYMBOLS,
            start_symbol=STUDENT_ENDED,
            stop_prob=settings.stop_prob,
            leaf=settings.leaf,
            complexity=settings.complexity,
        ).fit(chats)

    def _minimax_ask_rate(self, cell: Cell) -> float:
        return self.solve(cell)[1].ask_rate


def _as_minimax(cell: Cell) -> Cell:
    return Cell(**{**asdict(cell), "anchor": "cautious-minimax"})


def _lowest(score: NDArray[np.float64], weight: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Ask probabilities that put ``share`` of the weight on the lowest scores; equal scores are treated alike."""
    levels, level = np.unique(score, return_inverse=True)
    mass = np.bincount(level, weights=weight / weight.sum(), minlength=len(levels))
    before = np.cumsum(mass) - mass
    with np.errstate(divide="ignore", invalid="ignore"):
        asked = np.where(mass > 0, (share - before) / mass, (share > before).astype(float))
    return np.asarray(np.clip(asked, 0.0, 1.0)[level])
