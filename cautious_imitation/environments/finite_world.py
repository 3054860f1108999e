"""A world small enough to be solved exactly: states, symbols, and two speakers who take turns.

An episode is a string of ``horizon`` symbols. In each state either the agent or the environment puts the next symbol;
the pair of state and symbol decides the reward and the next state. Everything that the solver and the Gymnasium
environments need is here as tables, so both see the same world.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

_MASS_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class FiniteWorld:
    """Transition, reward and policy tables over ``S`` states and ``V`` actions.

    Rows that are not used may hold anything: ``environment_policy`` is read where it is not the agent's turn,
    ``demonstrator`` where it is.

    Attributes:
        next_state: ``[S, V]`` the state after each symbol.
        reward: ``[S, V]`` reward paid for each symbol, the environment's symbols too.
        agent_turn: ``[S]`` whether the agent puts the next symbol.
        environment_policy: ``[S, V]`` probabilities of the environment's symbols.
        demonstrator: ``[S, V]`` probabilities of the true demonstrator's actions.
        start: the state in which every episode begins.
        horizon: number of symbols in an episode, both sides together.
        contexts: ``[S, L]`` what an imitator sees in each state: symbols, oldest first.
        turn_start: ``[S]`` whether a turn of the agent begins here.
        end_of_turn: the action that ends a turn, an empty reply where ``turn_start``; None if there is none.
        symbol_names: one name for each of the ``V`` symbols, for printing episodes.
        removed: ``[S, V]`` environment's symbols whose next state ``reachable`` has dropped; they lead back to the
            state itself and must have probability 0. None if there are none.
        longest_horizon: the horizon for which the states were laid out; None if they serve any horizon.

    Raises:
        ValueError: if shapes disagree, an index is out of range, or a row in use is not a distribution within 1e-9.

    >>> world = FiniteWorld(  # the environment echoes; the agent is paid for saying 1
    ...     next_state=np.array([[1, 1], [0, 0]]), reward=np.array([[0.0, 1.0], [0.0, 0.0]]),
    ...     agent_turn=np.array([True, False]), environment_policy=np.array([[0.0, 0.0], [0.5, 0.5]]),
    ...     demonstrator=np.array([[0.9, 0.1], [0.0, 0.0]]), start=0, horizon=10,
    ...     contexts=np.array([[1], [0]]), turn_start=np.array([True, False]))
    >>> world.n_states, world.n_actions, world.with_horizon(4).horizon
    (2, 2, 4)
    """

    next_state: IntArray
    reward: FloatArray
    agent_turn: BoolArray
    environment_policy: FloatArray
    demonstrator: FloatArray
    start: int
    horizon: int
    contexts: IntArray
    turn_start: BoolArray
    end_of_turn: int | None = None
    symbol_names: tuple[str, ...] | None = None
    removed: BoolArray | None = None
    longest_horizon: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "next_state", _table("next_state", self.next_state, np.int64, (None, None)))
        states, actions = self.next_state.shape
        if states == 0 or actions == 0:
            raise ValueError(f"next_state must have shape [S, V] with S, V >= 1, got {self.next_state.shape}")
        for name, dtype, shape in (
            ("reward", np.float64, (states, actions)),
            ("agent_turn", np.bool_, (states,)),
            ("environment_policy", np.float64, (states, actions)),
            ("demonstrator", np.float64, (states, actions)),
            ("contexts", np.int64, (states, None)),
            ("turn_start", np.bool_, (states,)),
            ("removed", np.bool_, (states, actions)),
        ):
            if name != "removed" or self.removed is not None:
                object.__setattr__(self, name, _table(name, getattr(self, name), dtype, shape))
        self._check_moves()
        _check_rows("environment_policy", self.environment_policy, ~self.agent_turn)
        _check_rows("demonstrator", self.demonstrator, self.agent_turn)
        self._check_horizon()

    def _check_moves(self) -> None:
        states, actions = self.next_state.shape
        outside = (self.next_state < 0) | (self.next_state >= states)
        if outside.any():
            s, a = np.argwhere(outside)[0]
            raise ValueError(
                f"next_state must hold states in [0, {states}), got {self.next_state[s, a]} at state {s}, action {a}"
            )
        if not np.isfinite(self.reward).all():
            s, a = np.argwhere(~np.isfinite(self.reward))[0]
            raise ValueError(f"reward must be finite, got {self.reward[s, a]} at state {s}, action {a}")
        if not 0 <= self.start < states:
            raise ValueError(f"start must be a state in [0, {states}), got {self.start}")
        if (self.turn_start & ~self.agent_turn).any():
            s = int(np.argmax(self.turn_start & ~self.agent_turn))
            raise ValueError(
                f"turn_start must hold only where agent_turn does, got state {s}; an agent's turn starts there"
            )
        if self.end_of_turn is not None and not 0 <= self.end_of_turn < actions:
            raise ValueError(f"end_of_turn must be an action in [0, {actions}) or None, got {self.end_of_turn}")
        if self.symbol_names is not None and len(self.symbol_names) != actions:
            raise ValueError(f"symbol_names must have one name for each of {actions} actions, got {self.symbol_names}")
        if self.removed is not None:
            wrong = self.removed & (self.agent_turn[:, None] | (self.environment_policy > 0))
            if wrong.any():
                s, a = np.argwhere(wrong)[0]
                raise ValueError(
                    f"symbol {a} in state {s} was removed by reachable() and cannot be used, got environment_policy "
                    f"{self.environment_policy[s, a]}; change the environment's policy first, then call reachable()"
                )

    def _check_horizon(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1 symbol, got {self.horizon}")
        if self.longest_horizon is not None and self.horizon > self.longest_horizon:
            raise ValueError(
                f"horizon must be at most {self.longest_horizon}, for which the states were laid out, "
                f"got {self.horizon}; build the world again with the longer horizon"
            )

    @property
    def n_states(self) -> int:
        """Number of states, ``S``."""
        return int(self.next_state.shape[0])

    @property
    def n_actions(self) -> int:
        """Number of symbols that either side can put, ``V``."""
        return int(self.next_state.shape[1])

    def reachable(self) -> tuple[FiniteWorld, IntArray]:
        """The same world with only the states that some agent can reach, whatever the horizon.

        Any action of the agent counts, and any symbol that the environment puts with positive probability.

        Returns:
            The smaller world, and the ``[S']`` states of this one that it keeps, in increasing order.
        """
        possible = self.agent_turn[:, None] | (self.environment_policy > 0)
        seen = np.zeros(self.n_states, dtype=np.bool_)
        frontier = np.array([self.start])
        while frontier.size:
            seen[frontier] = True
            after = np.unique(self.next_state[frontier][possible[frontier]])
            frontier = after[~seen[after]]
        kept = np.flatnonzero(seen)
        index = np.full(self.n_states, -1)
        index[kept] = np.arange(kept.size)
        next_state = index[self.next_state[kept]]
        removed = next_state < 0
        if self.removed is not None:
            removed |= self.removed[kept]
        world = replace(
            self,
            next_state=np.where(removed, np.arange(kept.size)[:, None], next_state),
            reward=self.reward[kept],
            agent_turn=self.agent_turn[kept],
            environment_policy=self.environment_policy[kept],
            demonstrator=self.demonstrator[kept],
            start=int(index[self.start]),
            contexts=self.contexts[kept],
            turn_start=self.turn_start[kept],
            removed=removed if removed.any() else None,
        )
        return world, kept

    def with_horizon(self, horizon: int) -> FiniteWorld:
        """The same world with episodes of ``horizon`` symbols."""
        return replace(self, horizon=horizon)

    def with_environment_policy(self, environment_policy: FloatArray) -> FiniteWorld:
        """The same world with another environment: ``[S, V]`` probabilities of its symbols."""
        return replace(self, environment_policy=environment_policy)


def _table(
    name: str, value: npt.ArrayLike, dtype: type[np.generic], shape: tuple[int | None, ...]
) -> npt.NDArray[np.generic]:
    """``value`` as a contiguous array of ``dtype``; None in ``shape`` stands for any length."""
    array = np.asarray(value)
    expected = ", ".join("any" if n is None else str(n) for n in shape)
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} must have shape [{expected}], got {list(array.shape)}")
    if not np.can_cast(array.dtype, dtype, casting="same_kind") or (array.dtype == np.bool_) != (dtype is np.bool_):
        raise ValueError(f"{name} must hold {np.dtype(dtype).name}, got {array.dtype.name}")
    return np.ascontiguousarray(array, dtype=dtype)


def _check_rows(name: str, table: FloatArray, used: BoolArray) -> None:
    """Raise unless every used row is a distribution."""
    wrong = ~((table >= 0).all(axis=1) & (np.abs(table.sum(axis=1) - 1) <= _MASS_TOLERANCE)) & used
    if wrong.any():
        s = int(np.argmax(wrong))
        raise ValueError(
            f"{name} must be a distribution in each state where it is used, got {table[s]} with sum {table[s].sum()} "
            f"in state {s}; divide the row by its sum"
        )
