"""Many episodes of a finite world at once, moved forward together: what both Gymnasium environments stand on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cautious_imitation.environments.finite_world import BoolArray, FiniteWorld, FloatArray, IntArray
from cautious_imitation.types import Actor

_ACTORS = (Actor.DEMONSTRATOR, Actor.IMITATOR, Actor.ENVIRONMENT)
_DEMONSTRATOR, _IMITATOR, _ENVIRONMENT = range(3)


@dataclass(frozen=True)
class Step:
    """What one step did in each of ``n`` episodes.

    Attributes:
        reward: ``[n]`` reward paid, the environment's symbols included, before any ask price.
        acted: ``[n]`` whether there was an action: not where the environment had used up the whole horizon.
        asked: ``[n]`` whether the demonstrator acted.
        symbol: ``[n]`` the action that was done.
    """

    reward: FloatArray
    acted: BoolArray
    asked: BoolArray
    symbol: IntArray


class Episodes:
    """``n`` episodes of one world side by side: where each stands and what was said.

    Rewards that the environment's own opening pays are carried over to the first step.

    Args:
        world: the world.
        n: number of episodes.

    Attributes:
        state: ``[n]`` where each episode stands.
        left: ``[n]`` symbols left until the horizon.

    Raises:
        ValueError: if ``n`` is below 1.
    """

    def __init__(self, world: FiniteWorld, n: int) -> None:
        if n < 1:
            raise ValueError(f"num_envs must be at least 1, got {n}")
        self.world = world
        self.state = np.full(n, world.start)
        self.left = np.zeros(n, dtype=np.int64)
        self._carried = np.zeros(n)
        self._symbols = np.zeros((n, world.horizon), dtype=np.int64)
        self._actors = np.zeros((n, world.horizon), dtype=np.int8)
        self._environment = _cumulative(world.environment_policy, ~world.agent_turn)
        self._demonstrator = _cumulative(world.demonstrator, world.agent_turn)

    def begin(self, rows: IntArray, rng: np.random.Generator) -> None:
        """Start new episodes in ``rows`` and play them up to the agent's first turn."""
        self.state[rows] = self.world.start
        self.left[rows] = self.world.horizon
        self._carried[rows] = self._environment_moves(rows, rng)[rows]

    def step(self, rows: IntArray, actions: IntArray, rng: np.random.Generator) -> Step:
        """Act in the episodes ``rows``; ``actions`` is ``[n]``, and ``V`` asks the demonstrator."""
        n = self.state.size
        reward, acted, asked = np.zeros(n), np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        symbol = np.zeros(n, dtype=np.int64)
        reward[rows] = self._carried[rows]
        self._carried[rows] = 0
        rows = rows[self.left[rows] > 0]
        acted[rows] = True
        asked[rows] = actions[rows] == self.world.n_actions
        symbol[rows] = actions[rows]
        questions = rows[asked[rows]]
        symbol[questions] = _draw(self._demonstrator, self.state[questions], rng)
        reward[rows] += self._put(rows, symbol[rows], np.where(asked[rows], _DEMONSTRATOR, _IMITATOR))
        return Step(reward + self._environment_moves(rows, rng), acted, asked, symbol)

    def transcript(self, row: int) -> str:
        """What was said in one episode so far: a line for each stretch of symbols by the same actor."""
        names = self.world.symbol_names or tuple(str(a) for a in range(self.world.n_actions))
        lines: list[list[str]] = []
        previous = -1
        for position in range(self.world.horizon - int(self.left[row])):
            actor = int(self._actors[row, position])
            if actor != previous:
                lines.append([f"{_ACTORS[actor].value}:"])
            lines[-1].append(names[self._symbols[row, position]])
            previous = actor
        return "\n".join(" ".join(line) for line in lines)

    def _environment_moves(self, rows: IntArray, rng: np.random.Generator) -> FloatArray:
        """Play the environment's symbols in ``rows`` until the agent's turn or the end; ``[n]`` rewards."""
        reward = np.zeros(self.state.size)
        while (rows := rows[(self.left[rows] > 0) & ~self.world.agent_turn[self.state[rows]]]).size:
            symbols = _draw(self._environment, self.state[rows], rng)
            reward[rows] += self._put(rows, symbols, np.full(rows.size, _ENVIRONMENT))
        return reward

    def _put(self, rows: IntArray, symbols: IntArray, actors: IntArray) -> FloatArray:
        """Append one symbol to each of ``rows``; the rewards paid for it."""
        state, position = self.state[rows], self.world.horizon - self.left[rows]
        self._symbols[rows, position] = symbols
        self._actors[rows, position] = actors
        self.left[rows] -= 1
        self.state[rows] = self.world.next_state[state, symbols]
        paid: FloatArray = self.world.reward[state, symbols]
        return paid


def _cumulative(policy: FloatArray, used: BoolArray) -> FloatArray:
    """``[S, V]`` cumulative probabilities that end in exactly 1, in the rows that are used."""
    total = np.cumsum(np.where(used[:, None], policy, 1.0), axis=1)
    scaled: FloatArray = total / total[:, -1:]
    return scaled


def _draw(cumulative: FloatArray, states: IntArray, rng: np.random.Generator) -> IntArray:
    """One symbol for each of ``states`` by inversion; a symbol of probability 0 is never drawn."""
    drawn: IntArray = (cumulative[states] <= rng.random(states.size)[:, None]).sum(axis=1)
    return drawn
