"""The environment of a finite world as somebody to talk to: what it says next, given what was said so far."""

from __future__ import annotations

import numpy as np

from cautious_imitation.environments.finite_world import FiniteWorld


class FiniteWorldPartner:
    """Says what the world's environment says, in the symbols of the world's contexts, until it is the agent's turn.

    Args:
        world: one whose contexts show what was put: the last symbol of a state's context differs between the symbols
            that lead there.

    >>> from cautious_imitation.environments.dialogue_acts import STUDENT_ENDED, dialogue_acts_world
    >>> student = FiniteWorldPartner(dialogue_acts_world())
    >>> said = student((0,), np.random.default_rng(0))  # the agent has ended its turn without a word
    >>> said[-1] == STUDENT_ENDED, student((0, *said), np.random.default_rng(0))
    (True, ())
    """

    def __init__(self, world: FiniteWorld) -> None:
        self.world = world
        self._cumulative = np.cumsum(world.environment_policy, axis=1)

    def __call__(self, symbols: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
        """What is said after ``symbols``, the context symbols of the whole episode; nothing if it is the agent's turn.

        Raises:
            ValueError: if ``symbols`` cannot have been said in this world.
        """
        state = self.world.start
        for place, symbol in enumerate(symbols):
            state = self._after(state, symbol, place)
        said: list[int] = []
        while not self.world.agent_turn[state] and len(symbols) + len(said) < self.world.horizon:
            cumulative = self._cumulative[state]
            drawn = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
            state = int(self.world.next_state[state, drawn])
            said.append(int(self.world.contexts[state, -1]))
        return tuple(said)

    def _after(self, state: int, symbol: int, place: int) -> int:
        """The state to which ``symbol`` leads."""
        following = self.world.next_state[state]
        if self.world.removed is not None:
            following = following[~self.world.removed[state]]
        found = following[self.world.contexts[following, -1] == symbol]
        if not len(found):
            raise ValueError(f"symbols[{place}] must be what can be said there, got {symbol}")
        return int(found[0])
