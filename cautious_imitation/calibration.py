"""Which alpha is small enough, found without the true demonstrator: a bootstrap along the optimised policy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, inf, log
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.environments.dialogue_acts import sample_demonstrations
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.exact import ExactSolver
from cautious_imitation.finetuning.metrics import evaluate
from cautious_imitation.hypotheses.base import Hypotheses, check_symbols
from cautious_imitation.imitators import Caution, CautiousImitator
from cautious_imitation.regularizers import ExpectedBudget, Regularizer
from cautious_imitation.types import Array

Floats = NDArray[np.float64]

LOG_INVERSE_ALPHAS = (*(0.25 * step for step in range(2, 48)), *range(12, 25))
"""The levels log(1/alpha) that are tried: 0.5 to 12 in steps of 0.25, and on to 24 in steps of 1."""

_PER_SYMBOL = 20
_FEWEST_REPLICATES = 19
_SHORTEST_CHAT, _LONGEST_CHAT = 16, 256
_TOLERANCE = 1e-3
"""Of the solver: the excess moves by a few percent, far less than between replicates, at half of the sweeps."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The alpha that was chosen, and what the choice rests on.

    Attributes:
        alpha: the largest level whose excess stays within the target; the smallest of all if none does.
        reached: whether one does.
        excess_nats: the target.
        excess_limit_nats: at ``alpha``, the largest excess of the n replicates. It is an upper prediction limit: a new
            draw of demonstrations has a smaller one with probability n / (n + 1), were the pilot the demonstrator and
            ``alpha`` fixed in advance.
        budget_nats: the budget that the policies were optimised within.
        log_inverse_alphas: ``[levels]`` the log(1/alpha) that were tried, increasing.
        replicate_excess_nats: ``[levels, replicates]`` excess of an episode in nats; nan where it did not matter.
        replicate_ask_rates: ``[levels, replicates]`` share of decisions that are questions; nan there, too.
        message: all this in words; also what ``str`` gives.
    """

    alpha: float
    reached: bool
    excess_nats: float
    excess_limit_nats: float
    budget_nats: float
    log_inverse_alphas: Floats
    replicate_excess_nats: Floats
    replicate_ask_rates: Floats
    message: str

    @property
    def n_replicates(self) -> int:
        """How many sets of demonstrations were simulated."""
        return int(self.replicate_excess_nats.shape[1])

    def __str__(self) -> str:
        return self.message


def calibrate_alpha(
    hypotheses: Hypotheses,
    demonstrations: Demonstrations | Iterable[Array],
    world: FiniteWorld,
    *,
    excess_nats: float,
    budget_nats: float,
    caution: Caution = "minimax",
    ask_price: float = 0.0,
    n_replicates: int = 99,
    seed: int = 0,
    log_inverse_alphas: Sequence[float] = LOG_INVERSE_ALPHAS,
    progress: bool = True,
) -> Calibration:
    """Choose the largest alpha whose charge misses at most ``excess_nats`` where the optimised policy goes.

    A pilot, ``pilot_world``, stands in for the demonstrator. Demonstrations are simulated from it, ``n_replicates``
    times and as many as there are; the hypotheses learn them, the policy is optimised exactly in ``world``, and its
    excess over the pilot is known. A level is accepted if every replicate keeps the target at it. It is looked for
    replicate by replicate, each raising it as far as it needs, as if the excess fell with alpha everywhere; whether all
    replicates keep the target at the level that is found is then checked without that assumption.

    The result is measured, not proven: it is as good as the pilot resembles the demonstrator.

    Args:
        hypotheses: the class, not fitted: each replicate fits a copy. It stays as it is.
        demonstrations: what the real imitator will learn from; plain sequences as in ``Hypotheses.fit``.
        world: where the policy will be optimised: its moves, rewards and environment. Contexts are the most recent
            symbols, the agent's ``0..V-1`` and the environment's ``V..2V-1``. ``world.demonstrator`` is not looked at.
        excess_nats: how much the charge of an episode may miss, see ``Metrics.excess_nats``.
        budget_nats: expected charge of an episode that the policy may spend.
        caution: what it is charged, see ``CautiousImitator``.
        ask_price: units of reward that a question costs.
        n_replicates: n, how many sets of demonstrations are simulated, at least 19. Were the pilot the demonstrator,
            new demonstrations would keep the target with probability n / (n + 1).
        seed: of the simulations; the same seed gives the same result.
        log_inverse_alphas: the levels to choose from, increasing.
        progress: show a progress bar on standard error.

    Raises:
        TypeError: if ``hypotheses`` are not ``Hypotheses``.
        ValueError: if there are fewer than ``20 V`` demonstrated actions, one side never speaks, ``hypotheses`` are
            fitted or of another alphabet, contexts of ``world`` are of another kind, or a setting is out of range.

    >>> from cautious_imitation import ContextTree
    >>> from cautious_imitation.environments.dialogue_acts import dialogue_acts_world
    >>> world = dialogue_acts_world(horizon=8)
    >>> records = sample_demonstrations(world, 2_000, np.random.default_rng(0))
    >>> trees = ContextTree(9, depth=3, n_context_symbols=18, start_symbol=9)
    >>> settings = dict(excess_nats=0.1, budget_nats=1.0, log_inverse_alphas=(2, 3, 4, 5, 6), progress=False)
    >>> found = calibrate_alpha(trees, records, world, **settings)
    >>> found.reached, round(found.alpha, 4), round(found.excess_limit_nats, 2)
    (True, 0.0067, 0.06)

    Source: parametric bootstrap (Efron, Tibshirani 1993, chapter 6) with an undersmoothed pilot.
    """
    levels = _checked_levels(log_inverse_alphas)
    regularizer = _checked_settings(hypotheses, world, excess_nats, budget_nats, caution, ask_price, n_replicates)
    if not isinstance(demonstrations, Demonstrations):
        demonstrations = Demonstrations.from_symbols(demonstrations, world.n_actions)
    simulated, partner = pilot_world(demonstrations, world)
    n_learned, mean_length = demonstrations.n_learned(), float(np.mean([len(s) for s in demonstrations.sequences]))
    # Beginnings are as frequent as in the records, unless these are so short that the agent may not get to speak.
    chat_length = round(min(max(mean_length, _SHORTEST_CHAT), _LONGEST_CHAT))
    fits = []
    for replicate in range(n_replicates):
        rng = np.random.default_rng([seed, replicate])
        chats = sample_demonstrations(simulated.with_environment_policy(partner), n_learned, rng, chat_length)
        fits.append(deepcopy(hypotheses).fit(chats))

    def measure(level: float, replicate: int) -> tuple[float, float]:
        anchor = CautiousImitator(fits[replicate], exp(-level), caution)
        references = anchor.references(simulated.contexts[simulated.agent_turn])
        solution = ExactSolver(_TOLERANCE).solve(simulated, references, regularizer)
        metrics = evaluate(simulated, solution, references)
        return metrics.excess_nats, metrics.ask_rate

    search = _Search(levels, n_replicates, excess_nats, measure)
    with _bar(progress, 2 * n_replicates) as advance:
        chosen = search.smallest_accepted(advance)
    return search.calibration(chosen, budget_nats)


def pilot_world(demonstrations: Demonstrations, world: FiniteWorld) -> tuple[FiniteWorld, Floats]:
    """``world`` with an undersmoothed estimate of the demonstrator in place of its own, and one of the partner.

    Counts in the whole context are backed off to shorter ones with weight 1: p_d = (n_d + p_{d-1}) / (N_d + 1), for the
    demonstrator from the uniform distribution, for the partner from ``world.environment_policy``. There is no penalty
    for depth, which would hide from a bootstrap what such a penalty in the hypotheses does.

    Args:
        demonstrations: both speakers; only the demonstrator's own actions and symbols from V on count.
        world: see ``calibrate_alpha``.

    Returns:
        The world, in which the environment is as before, and ``[S, V]`` the partner of the demonstrations, who never
        puts a symbol that the world has ``removed``.

    Raises:
        ValueError: if there are fewer than ``20 V`` of the demonstrator's actions, no symbol of the partner, symbols
            outside ``0..2V-1``, or the world's contexts do not show the symbols.
    """
    _check_contexts(world)
    n_actions, theirs = world.n_actions, ~world.agent_turn
    histories, symbols, learned = _positions(demonstrations, world.contexts[world.start])
    check_symbols(symbols, 2 * n_actions, "demonstrations")
    check_symbols(symbols[learned], n_actions, "the demonstrator's actions in demonstrations")
    if np.count_nonzero(learned) < _PER_SYMBOL * n_actions:
        raise ValueError(
            f"demonstrations must hold at least {_PER_SYMBOL * n_actions} of the demonstrator's actions to calibrate "
            f"alpha, {_PER_SYMBOL} for each of {n_actions}, got {np.count_nonzero(learned)}; record more"
        )
    of_partner = symbols >= n_actions
    if theirs.any() and not of_partner.any():
        raise ValueError(
            f"demonstrations must hold both speakers, got no symbol {n_actions} to {2 * n_actions - 1} of the partner; "
            "without it, its part in new demonstrations cannot be simulated"
        )
    uniform = np.full((world.n_states, n_actions), 1 / n_actions)
    demonstrator = _backed_off(uniform, world.contexts, histories[learned], symbols[learned])
    partner = world.environment_policy.copy()
    partner[theirs] = _backed_off(
        world.environment_policy[theirs],
        world.contexts[theirs],
        histories[of_partner],
        symbols[of_partner] - n_actions,
        None if world.removed is None else world.removed[theirs],
    )
    return replace(world, demonstrator=demonstrator), partner


class _Search:
    """The smallest level at which every replicate keeps the target; what does not matter to it is not computed."""

    def __init__(
        self,
        levels: tuple[float, ...],
        n_replicates: int,
        target: float,
        measure: Callable[[float, int], tuple[float, float]],
    ) -> None:
        self.levels, self.target, self.measure = levels, target, measure
        self.excess = np.full((len(levels), n_replicates), np.nan)
        self.ask_rates = self.excess.copy()

    def smallest_accepted(self, advance: Callable[[int], None]) -> int | None:
        level = 0
        for replicate in range(self.excess.shape[1]):
            level = self.raised(level, replicate)
            advance(replicate + 1)
        while level < len(self.levels):
            if self.accepts(level, advance):
                return level
            level += 1
        self.accepts(level - 1, advance)
        return None

    def raised(self, level: int, replicate: int) -> int:
        """The smallest level from ``level`` on that ``replicate`` keeps the target at; one past the last if none is."""
        n_levels = len(self.levels)
        if level == n_levels or self.keeps(level, replicate):
            return level
        return bisect_left(range(n_levels), True, lo=level + 1, key=lambda other: self.keeps(other, replicate))

    def accepts(self, level: int, advance: Callable[[int], None]) -> bool:
        """Whether every replicate keeps the target at ``level``; all are measured there."""
        accepted = True
        for replicate in range(self.excess.shape[1]):
            accepted &= self.keeps(level, replicate)
            advance(self.excess.shape[1] + replicate + 1)
        return accepted

    def keeps(self, level: int, replicate: int) -> bool:
        if np.isnan(self.excess[level, replicate]):
            found = self.measure(self.levels[level], replicate)
            self.excess[level, replicate], self.ask_rates[level, replicate] = found
        return bool(self.excess[level, replicate] <= self.target)

    def calibration(self, chosen: int | None, budget_nats: float) -> Calibration:
        level = len(self.levels) - 1 if chosen is None else chosen
        limit = float(self.excess[level].max())
        alpha, asks = exp(-self.levels[level]), np.median(self.ask_rates[level])
        n_replicates = self.excess.shape[1]
        at = f"log(1/alpha) = {self.levels[level]:g}"
        if chosen is None:
            message = (
                f"no alpha keeps the excess within {self.target:g} nats at a budget of {budget_nats:g}: at the most "
                f"cautious level tried, {at}, its limit over {n_replicates} replicates is {limit:.3g} nats; record "
                "more demonstrations, lower budget_nats, accept a larger excess_nats, or allow a smaller alpha"
            )
        else:
            message = (
                f"alpha = {alpha:.3g}, {at}: at a budget of {budget_nats:g} nats the excess has the limit {limit:.3g} "
                f"nats over {n_replicates} replicates, within {self.target:g}; the policy asks at {asks:.1%} of its "
                "decisions (median)"
            )
        tried = ~np.isnan(self.excess).all(axis=1)
        return Calibration(
            alpha,
            chosen is not None,
            self.target,
            limit,
            budget_nats,
            np.array(self.levels)[tried],
            self.excess[tried],
            self.ask_rates[tried],
            message,
        )


def _backed_off(
    policy: Floats,
    contexts: NDArray[np.int64],
    histories: NDArray[np.int64],
    symbols: NDArray[np.int64],
    removed: NDArray[np.bool_] | None = None,
) -> Floats:
    """``[S, V]`` counts of ``symbols [N]`` after ``histories [N, W]`` at ``contexts [S, W]``, all depths combined."""
    width, n_states = contexts.shape[1], len(contexts)
    for depth in range(width + 1):
        recent = np.concatenate([contexts, histories])[:, width - depth :]
        index = np.zeros(len(recent), dtype=np.int64)
        if depth:
            index = np.unique(recent, axis=0, return_inverse=True)[1].reshape(-1)
        counts = np.zeros((int(index.max()) + 1, policy.shape[1]))
        np.add.at(counts, (index[n_states:], symbols), 1.0)
        seen = counts[index[:n_states]]
        if removed is not None:
            seen[removed] = 0.0
        policy = (seen + policy) / (seen.sum(axis=1, keepdims=True) + 1)
    return policy


def _positions(
    demonstrations: Demonstrations, start: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """What came before each symbol, ``[N, W]`` with ``start [W]`` before the first; the symbols; which are learned."""
    histories = [
        np.lib.stride_tricks.sliding_window_view(np.concatenate([start, sequence]), len(start))[: len(sequence)]
        for sequence in demonstrations.sequences
    ]
    return (
        np.concatenate(histories),
        np.concatenate(demonstrations.sequences),
        np.concatenate(demonstrations.learned()),
    )


def _check_contexts(world: FiniteWorld) -> None:
    """Raise unless a context ends with the symbol that led there, the agent's below V and the environment's above."""
    possible = world.agent_turn[:, None] | (world.environment_policy > 0)
    shown = world.contexts[world.next_state, -1] if world.contexts.shape[1] else np.full(possible.shape, -1)
    expected = np.arange(world.n_actions) + np.where(world.agent_turn, 0, world.n_actions)[:, None]
    wrong = possible & (shown != expected)
    if wrong.any():
        state, symbol = np.argwhere(wrong)[0]
        raise ValueError(
            "world must have the most recent symbols as contexts, the agent's 0..V-1 and the environment's V..2V-1, "
            f"to be simulated; got a context that ends in {shown[state, symbol]} after symbol {symbol} of state "
            f"{state}, not in {expected[state, symbol]}"
        )


def _checked_levels(log_inverse_alphas: Sequence[float]) -> tuple[float, ...]:
    levels = tuple(float(level) for level in log_inverse_alphas)
    if (
        not levels
        or not all(a < b for a, b in pairwise(levels))
        or not (levels[0] >= 0 and levels[-1] < log(np.finfo(np.float64).max))
    ):
        raise ValueError(
            f"log_inverse_alphas must be increasing numbers from 0 on, got {log_inverse_alphas!r}; 0 is alpha = 1"
        )
    return levels


def _checked_settings(
    hypotheses: Hypotheses,
    world: FiniteWorld,
    excess_nats: float,
    budget_nats: float,
    caution: Caution,
    ask_price: float,
    n_replicates: int,
) -> Regularizer:
    if not isinstance(hypotheses, Hypotheses):
        raise TypeError(f"hypotheses must be Hypotheses that are not fitted, got {hypotheses!r}; not an imitator")
    n_nodes = getattr(hypotheses, "n_nodes", 0)
    if n_nodes:
        raise ValueError(
            f"hypotheses must not be fitted, got {n_nodes} nodes of what was learned; pass a new object of the class, "
            "which learns simulated demonstrations instead"
        )
    if hypotheses.n_symbols != world.n_actions:
        raise ValueError(
            f"hypotheses must predict the world's {world.n_actions} actions, got n_symbols={hypotheses.n_symbols}"
        )
    for name, value in (("excess_nats", excess_nats), ("budget_nats", budget_nats)):
        if not 0 <= value < inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value!r}; it is in nats an episode")
    if caution not in get_args(Caution):
        raise ValueError(f"caution must be one of {', '.join(get_args(Caution))}, got {caution!r}")
    if not n_replicates >= _FEWEST_REPLICATES:
        raise ValueError(
            f"n_replicates must be at least {_FEWEST_REPLICATES}, got {n_replicates!r}; the largest of n bounds a new "
            "draw with probability n / (n + 1)"
        )
    return Regularizer(ExpectedBudget(budget_nats), ask_price=ask_price)


@contextmanager
def _bar(show: bool, total: int) -> Any:
    """A function that says how much of a progress bar is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("calibrating alpha", total=total)
        yield lambda done: bar.update(task, completed=done)
