"""Finite worlds as Gymnasium environments, one episode at a time or many side by side.

The agent moves only at its own states. After its action the environment puts its symbols until it is the agent's turn
again or the horizon is spent; the step's reward is the sum of all that was paid on the way. Action ``V`` asks: the
demonstrator acts in the agent's place and ``ask_price`` is taken off the reward.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from cautious_imitation.environments.episodes import Episodes
from cautious_imitation.environments.finite_world import BoolArray, FiniteWorld, FloatArray, IntArray
from cautious_imitation.environments.until_event import until_event_world
from cautious_imitation.types import Actor

Observation: TypeAlias = dict[str, Any]
"""``state``, for which ``world.contexts[state]`` is what an imitator sees, and ``symbols_left``."""


class FiniteWorldEnv(gymnasium.Env[Observation, int]):
    """One episode of a finite world.

    Observations are ``{"state": state, "symbols_left": symbols}``; actions are the world's ``V`` and ``V`` to ask.
    ``info`` of a step holds ``actor`` (whose action it was, a value of ``Actor``), ``symbol`` (the action that was
    done) and ``task_reward`` (the reward before the ask price). The end of the horizon is a termination, as the time
    left is observed. Where the environment spends the whole horizon before the agent's turn, the first step ends the
    episode, whatever the action, and ``info`` holds ``task_reward`` alone.

    Args:
        world: the world.
        ask_price: taken off the reward for each question.
        render_mode: ``"ansi"`` to have ``render`` return the episode so far as text.

    Raises:
        ValueError: if ``ask_price`` is negative or not finite, or ``render_mode`` is unknown.

    >>> world = until_event_world(horizon=4, event_probability=1.0).world
    >>> env = FiniteWorldEnv(world, ask_price=0.25)
    >>> _ = env.reset(seed=0)
    >>> _, reward, terminated, _, info = env.step(0)
    >>> reward, terminated, info["actor"]
    (1.0, False, 'imitator')
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012  Gymnasium declares a plain dictionary

    def __init__(self, world: FiniteWorld, ask_price: float = 0.0, render_mode: str | None = None) -> None:
        _check_arguments(ask_price, render_mode)
        self.world, self.ask_price, self.render_mode = world, ask_price, render_mode
        self.observation_space = _observation_space(world)
        self.action_space = spaces.Discrete(world.n_actions + 1)  # type: ignore[assignment]  # its samples are np.int64
        self._episodes = Episodes(world, 1)
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new episode; there are no ``options``."""
        super().reset(seed=seed)
        _check_options(options)
        self._episodes.begin(np.array([0]), self.np_random)
        self._over = False
        return self._observation(), {}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act once, or ask with action ``V``.

        Raises:
            ValueError: if the action is outside ``[0, V]``.
            gymnasium.error.ResetNeeded: if no episode is running.
        """
        if self._over:
            raise ResetNeeded("step needs a running episode, got one that is over or not begun; call reset() first")
        actions = _check_actions(np.asarray(action)[None], 1, self.world.n_actions)
        done = self._episodes.step(np.array([0]), actions, self.np_random)
        asked, task_reward = bool(done.asked[0]), float(done.reward[0])
        info: dict[str, Any] = {"task_reward": task_reward}
        if done.acted[0]:
            info |= {"actor": _actors(done.asked)[0].item(), "symbol": int(done.symbol[0])}
        self._over = bool(self._episodes.left[0] == 0)
        return self._observation(), task_reward - self.ask_price * asked, self._over, False, info

    def render(self) -> str | None:
        """The episode so far as text in mode ``"ansi"``, otherwise None."""
        return self._episodes.transcript(0) if self.render_mode == "ansi" else None

    def _observation(self) -> Observation:
        return {"state": self._episodes.state[0], "symbols_left": self._episodes.left[0]}


class FiniteWorldVectorEnv(VectorEnv[Observation, IntArray, npt.NDArray[Any]]):
    """Many episodes of a finite world at once, without a loop over them.

    As ``FiniteWorldEnv``, with ``[num_envs]`` arrays everywhere. An episode that has ended starts anew at the next
    step, whose action is ignored there (``AutoresetMode.NEXT_STEP``). ``info`` has a mask ``_actor``, ``_symbol`` and
    ``_task_reward`` for each entry, false where there is nothing to report. ``reset`` takes
    ``options={"reset_mask": mask}`` to start only some episodes anew.

    Args:
        world: the world.
        num_envs: number of episodes side by side.
        ask_price: taken off the reward for each question.
        rng: source of all randomness until ``reset(seed=...)`` gives another.
        render_mode: ``"ansi"`` to have ``render`` return the episodes so far as text.

    Raises:
        ValueError: if ``num_envs`` is below 1, ``ask_price`` negative or not finite, or ``render_mode`` unknown.

    >>> world = until_event_world(horizon=4, event_probability=1.0).world
    >>> envs = FiniteWorldVectorEnv(world, num_envs=2, ask_price=0.25)
    >>> _ = envs.reset(seed=0)
    >>> _, rewards, _, _, info = envs.step(np.array([0, 1]))
    >>> rewards.tolist(), info["symbol"].tolist()
    ([1.0, 0.0], [0, 1])
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        world: FiniteWorld,
        num_envs: int,
        ask_price: float = 0.0,
        *,
        rng: np.random.Generator | None = None,
        render_mode: str | None = None,
    ) -> None:
        _check_arguments(ask_price, render_mode)
        self.world, self.num_envs, self.ask_price, self.render_mode = world, num_envs, ask_price, render_mode
        self._episodes = Episodes(world, num_envs)
        self._over: BoolArray | None = None
        self.single_observation_space = _observation_space(world)
        self.single_action_space = spaces.Discrete(world.n_actions + 1)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if rng is not None:
            self.np_random = rng

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new episodes, all of them or those of ``options["reset_mask"]``."""
        super().reset(seed=seed)
        everything = np.ones(self.num_envs, dtype=np.bool_)
        mask = np.asarray(_check_options(options, "reset_mask").get("reset_mask", everything))
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(
                f"reset_mask must hold {self.num_envs} booleans, one for each episode, "
                f"got {mask.dtype} of shape {list(mask.shape)}"
            )
        self._over = ~mask if self._over is None else self._over & ~mask
        self._episodes.begin(np.flatnonzero(mask), self.np_random)
        return self._observation(), {}

    def step(self, actions: IntArray) -> tuple[Observation, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Act once in every episode, or ask with action ``V``; ``actions`` is ``[num_envs]``.

        Raises:
            ValueError: if an action is outside ``[0, V]``.
            gymnasium.error.ResetNeeded: before the first ``reset``.
        """
        if self._over is None:
            raise ResetNeeded("step needs running episodes, got none; call reset() first")
        actions = _check_actions(actions, self.num_envs, self.world.n_actions)
        running = ~self._over
        done = self._episodes.step(np.flatnonzero(running), actions, self.np_random)
        self._episodes.begin(np.flatnonzero(self._over), self.np_random)
        self._over = running & (self._episodes.left == 0)
        info = {
            "task_reward": done.reward,
            "_task_reward": running,
            "actor": _actors(done.asked),
            "_actor": done.acted,
            "symbol": done.symbol,
            "_symbol": done.acted.copy(),
        }
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observation(), done.reward - self.ask_price * done.asked, self._over.copy(), truncated, info

    def render(self) -> tuple[str, ...] | None:
        """Each episode so far as text in mode ``"ansi"``, otherwise None."""
        if self.render_mode != "ansi":
            return None
        return tuple(self._episodes.transcript(row) for row in range(self.num_envs))

    def _observation(self) -> Observation:
        return {"state": self._episodes.state.copy(), "symbols_left": self._episodes.left.copy()}


def dialogue_acts_env(*, ask_price: float = 0.0, render_mode: str | None = None, **options: Any) -> FiniteWorldEnv:
    """Entry point of ``cautious_imitation/DialogueActs-v0``; ``options`` are those of ``dialogue_acts_world``."""
    return FiniteWorldEnv(_dialogue_acts(**options), ask_price, render_mode)


def dialogue_acts_vector_env(
    num_envs: int = 1, *, ask_price: float = 0.0, render_mode: str | None = None, **options: Any
) -> FiniteWorldVectorEnv:
    """Vector entry point of ``cautious_imitation/DialogueActs-v0``."""
    return FiniteWorldVectorEnv(_dialogue_acts(**options), num_envs, ask_price, render_mode=render_mode)


def until_event_env(*, ask_price: float = 0.0, render_mode: str | None = None, **options: Any) -> FiniteWorldEnv:
    """Entry point of ``cautious_imitation/UntilEvent-v0``; ``options`` are those of ``until_event_world``."""
    return FiniteWorldEnv(until_event_world(**options).world, ask_price, render_mode)


def until_event_vector_env(
    num_envs: int = 1, *, ask_price: float = 0.0, render_mode: str | None = None, **options: Any
) -> FiniteWorldVectorEnv:
    """Vector entry point of ``cautious_imitation/UntilEvent-v0``."""
    return FiniteWorldVectorEnv(until_event_world(**options).world, num_envs, ask_price, render_mode=render_mode)


def _dialogue_acts(**options: Any) -> FiniteWorld:
    # Imported only here: this world loads its demonstrations, which no other environment needs.
    from cautious_imitation.environments.dialogue_acts import dialogue_acts_world

    world: FiniteWorld = dialogue_acts_world(**options)
    return world


def _observation_space(world: FiniteWorld) -> spaces.Dict:
    return spaces.Dict({"state": spaces.Discrete(world.n_states), "symbols_left": spaces.Discrete(world.horizon + 1)})


def _actors(asked: BoolArray) -> npt.NDArray[np.str_]:
    return np.where(asked, Actor.DEMONSTRATOR.value, Actor.IMITATOR.value)


def _check_actions(actions: npt.ArrayLike, n: int, ask: int) -> IntArray:
    array = np.asarray(actions)
    if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"actions must be {n} integers, one for each episode, got {array.dtype} of shape {list(array.shape)}"
        )
    outside = (array < 0) | (array > ask)
    if outside.any():
        raise ValueError(f"actions must be in [0, {ask}], got {array[outside][0]}; {ask} asks the demonstrator")
    return array.astype(np.int64)


def _check_arguments(ask_price: float, render_mode: str | None) -> None:
    if not (np.isfinite(ask_price) and ask_price >= 0):
        raise ValueError(f"ask_price must be finite and at least 0, got {ask_price}; to rule asking out, never ask")
    if render_mode not in (None, "ansi"):
        raise ValueError(f"render_mode must be 'ansi' or None, got {render_mode!r}; episodes are text")


def _check_options(options: dict[str, Any] | None, *known: str) -> dict[str, Any]:
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise ValueError(f"options may hold {list(known)} and nothing else, got {unknown}; leave them out")
    return options or {}
