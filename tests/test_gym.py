"""The Gymnasium environments: rollouts against exact expectations, and Gymnasium's own rules."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_checker import data_equivalence as same
from gymnasium.vector import AutoresetMode

import cautious_imitation.environments  # noqa: F401  registers the environments
from cautious_imitation.environments.finite_world import FiniteWorld, FloatArray
from cautious_imitation.environments.gym import FiniteWorldEnv, FiniteWorldVectorEnv
from cautious_imitation.environments.until_event import until_event_world

IDS = ("cautious_imitation/UntilEvent-v0", "cautious_imitation/DialogueActs-v0")


def random_world(seed: int) -> FiniteWorld:
    rng = np.random.default_rng(seed)
    n_states, n_actions = 5, 3
    agent_turn = np.array([seed % 2 == 0, True, True, False, False])
    return FiniteWorld(
        next_state=rng.integers(n_states, size=(n_states, n_actions)),
        reward=rng.normal(size=(n_states, n_actions)),
        agent_turn=agent_turn,
        environment_policy=rng.dirichlet(np.full(n_actions, 0.5), n_states),
        demonstrator=rng.dirichlet(np.full(n_actions, 0.5), n_states),
        start=0,
        horizon=7,
        contexts=rng.integers(n_actions, size=(n_states, 2)),
        turn_start=agent_turn,
    )


class Exact:
    """Expectations under a policy ``[S, T + 1, V + 1]`` over state, symbols left and action, asking the last action."""

    def __init__(self, world: FiniteWorld, policy: FloatArray, ask_price: float) -> None:
        mass = np.zeros(world.n_states)
        mass[world.start] = 1
        self.task_reward = self.asks = 0.0
        self.visits = np.zeros(policy.shape[:2])
        self.asked, self.done = np.zeros(policy.shape[:2]), np.zeros((*policy.shape[:2], world.n_actions))
        for left in range(world.horizon, 0, -1):
            after = np.zeros(world.n_states)
            for s in range(world.n_states):
                if world.agent_turn[s]:
                    acting, asking = policy[s, left, :-1], policy[s, left, -1]
                    symbols = acting + asking * world.demonstrator[s]
                    self.visits[s, left] = mass[s]
                    self.asked[s, left] = mass[s] * asking
                    self.done[s, left] = mass[s] * symbols
                else:
                    symbols = world.environment_policy[s]
                self.task_reward += mass[s] * symbols @ world.reward[s]
                np.add.at(after, world.next_state[s], mass[s] * symbols)
            mass = after
        self.asks = self.asked.sum()
        self.reward = self.task_reward - ask_price * self.asks


def assert_frequencies(counts: FloatArray, expected: FloatArray, n: int) -> None:
    """Each cell is entered at most once an episode: binomial, within 4 standard errors and one count."""
    error = np.abs(counts / n - expected)
    np.testing.assert_array_less(error, 4 * np.sqrt(expected * (1 - np.minimum(expected, 1)) / n) + 1 / n)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("asking", [0.0, 0.4, 1.0])
def test_rollouts_agree_with_the_exact_forward_computation(seed: int, asking: float) -> None:
    world, ask_price, n = random_world(seed), 0.3, 20_000
    rng = np.random.default_rng(100 + seed)
    policy = rng.dirichlet(np.ones(world.n_actions), (world.n_states, world.horizon + 1))
    policy = np.concatenate([(1 - asking) * policy, np.full((*policy.shape[:2], 1), asking)], axis=2)
    exact = Exact(world, policy, ask_price)

    envs = FiniteWorldVectorEnv(world, n, ask_price)
    observation, _ = envs.reset(seed=seed)
    first = np.ones(n, dtype=np.bool_)
    reward, task_reward = np.zeros(n), np.zeros(n)
    visits, asked, done = np.zeros_like(exact.visits), np.zeros_like(exact.asked), np.zeros_like(exact.done)
    while first.any():
        state, left = observation["state"], observation["symbols_left"]
        cumulative = np.cumsum(policy[state, left], axis=1)
        actions = (cumulative[:, :-1] <= rng.random(n)[:, None]).sum(axis=1)
        observation, paid, terminated, truncated, info = envs.step(actions)
        counted = first & info["_symbol"]
        reward[first] += paid[first]
        task_reward[first] += info["task_reward"][first]
        np.add.at(visits, (state[counted], left[counted]), 1)
        np.add.at(done, (state[counted], left[counted], info["symbol"][counted]), 1)
        questions = counted & (info["actor"] == "demonstrator")
        np.testing.assert_array_equal(questions[counted], actions[counted] == world.n_actions)
        np.add.at(asked, (state[questions], left[questions]), 1)
        assert not truncated.any()
        first &= ~terminated
    assert abs(reward.mean() - exact.reward) < 4 * reward.std() / np.sqrt(n)
    assert abs(task_reward.mean() - exact.task_reward) < 4 * task_reward.std() / np.sqrt(n)
    assert_frequencies(visits, exact.visits, n)
    assert_frequencies(asked, exact.asked, n)
    assert_frequencies(done, exact.done, n)


@pytest.mark.parametrize("seed", range(4))
def test_one_environment_is_the_vector_of_one(seed: int) -> None:
    world = random_world(seed)
    one, many = FiniteWorldEnv(world, 0.1), FiniteWorldVectorEnv(world, 1, 0.1)
    rng = np.random.default_rng(seed)
    observation, batch = one.reset(seed=seed)[0], many.reset(seed=seed)[0]
    for _ in range(50):
        assert {k: int(v) for k, v in observation.items()} == {k: int(v[0]) for k, v in batch.items()}
        action = int(rng.integers(world.n_actions + 1))
        observation, reward, over, _, info = one.step(action)
        batch, rewards, overs, _, infos = many.step(np.array([action]))
        assert (reward, over) == (rewards[0], overs[0])
        for key in ("actor", "symbol", "task_reward"):
            assert (key in info) == infos[f"_{key}"][0]
            assert key not in info or info[key] == infos[key][0]
        if over:
            observation, batch = one.reset()[0], many.step(np.array([action]))[0]


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_accepts_the_registered_environments(name: str) -> None:
    env = gymnasium.make(name, horizon=12, ask_price=0.5)
    check_env(env.unwrapped)
    envs = gymnasium.make_vec(name, num_envs=3, horizon=12)
    assert isinstance(envs, FiniteWorldVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, _ = envs.reset(seed=1)
    for _ in range(30):
        assert envs.observation_space.contains(observation)
        assert envs.single_observation_space.contains({k: v[0] for k, v in observation.items()})
        observation, *_ = envs.step(envs.action_space.sample())
    assert envs.world.contexts[observation["state"]].shape == (3, envs.world.contexts.shape[1])


def rollout(envs: FiniteWorldVectorEnv, seed: int | None) -> list[object]:
    rng = np.random.default_rng(5)
    return [envs.reset(seed=seed), *(envs.step(rng.integers(4, size=envs.num_envs)) for _ in range(12))]


def test_the_same_seed_gives_the_same_episodes() -> None:
    world = random_world(1)
    first, second = (FiniteWorldVectorEnv(world, 8) for _ in range(2))
    assert same(rollout(first, 3), rollout(second, 3), exact=True)
    assert not same(rollout(first, 4), rollout(second, 3), exact=True)
    first, second = (FiniteWorldVectorEnv(world, 8, rng=np.random.default_rng(0)) for _ in range(2))
    assert same(rollout(first, None), rollout(second, None), exact=True)


def test_a_finished_episode_starts_anew_at_the_next_step() -> None:
    world = until_event_world(horizon=4, event_probability=1.0).world
    envs = FiniteWorldVectorEnv(world, 2)
    beginning, _ = envs.reset(seed=0)
    envs.step(np.array([0, 1]))
    observation, rewards, terminated, _, _ = envs.step(np.array([0, 1]))
    assert terminated.all()
    assert rewards.tolist() == [1, 0]
    assert observation["symbols_left"].tolist() == [0, 0]
    observation, rewards, terminated, _, info = envs.step(np.array([0, 0]))
    assert same(observation, beginning, exact=True)
    assert rewards.tolist() == [0, 0]
    assert not (terminated | info["_actor"] | info["_symbol"] | info["_task_reward"]).any()


def test_a_reset_mask_leaves_the_others_alone() -> None:
    world = until_event_world(horizon=8, event_probability=1.0).world
    envs = FiniteWorldVectorEnv(world, 3)
    envs.reset(seed=0)
    envs.step(np.array([0, 0, 0]))
    observation, _ = envs.reset(options={"reset_mask": np.array([False, True, False])})
    assert observation["symbols_left"].tolist() == [5, 7, 5]
    for _ in range(3):
        observation, _, terminated, _, _ = envs.step(np.array([0, 0, 0]))
    assert terminated.tolist() == [True, False, True]
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    observation, rewards, *_ = envs.step(np.array([0, 0, 0]))
    assert observation["symbols_left"].tolist() == [5, 0, 7]
    assert rewards.tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="reset_mask must hold 3 booleans"):
        envs.reset(options={"reset_mask": np.array([1, 0, 0])})


def test_no_reward_is_lost_where_the_environment_uses_up_the_horizon() -> None:
    world = replace(random_world(1), agent_turn=np.zeros(5, dtype=np.bool_), turn_start=np.zeros(5, dtype=np.bool_))
    world = world.with_environment_policy(np.eye(3)[np.zeros(5, dtype=np.int64)])
    state, total = world.start, 0.0
    for _ in range(world.horizon):
        total, state = total + world.reward[state, 0], int(world.next_state[state, 0])
    env = FiniteWorldEnv(world)
    observation, _ = env.reset(seed=0)
    assert observation["symbols_left"] == 0
    _, reward, terminated, _, info = env.step(2)
    assert reward == pytest.approx(total)
    assert terminated
    assert info == {"task_reward": reward}


def test_render_tells_who_said_what() -> None:
    world = until_event_world(demonstrators=((1e-12, 1.0 - 1e-12),), horizon=6, event_probability=1.0).world
    env = FiniteWorldEnv(replace(world, symbol_names=("hush", "hey")), render_mode="ansi")
    env.reset(seed=0)
    for action in (0, 2):
        env.step(action)
    assert env.render() == ("environment: hey\nimitator: hush\nenvironment: hush\ndemonstrator: hey\nenvironment: hush")
    envs = FiniteWorldVectorEnv(world, 2, render_mode="ansi")
    envs.reset(seed=0)
    assert envs.render() == ("environment: 1", "environment: 1")
    assert FiniteWorldEnv(world).render() is None


def test_bad_arguments_are_named() -> None:
    world = random_world(0)
    with pytest.raises(ValueError, match="ask_price must be finite and at least 0, got -1"):
        FiniteWorldEnv(world, ask_price=-1)
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        FiniteWorldVectorEnv(world, 0)
    with pytest.raises(ValueError, match="render_mode must be 'ansi' or None, got 'human'"):
        FiniteWorldEnv(world, render_mode="human")
    env, envs = FiniteWorldEnv(world), FiniteWorldVectorEnv(world, 2)
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        env.step(0)
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        envs.step(np.array([0, 0]))
    with pytest.raises(ValueError, match=r"options may hold \[\] and nothing else, got \['start'\]"):
        env.reset(options={"start": 1})
    env.reset(seed=0)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be in \[0, 3\], got 4; 3 asks the demonstrator"):
        env.step(4)
    with pytest.raises(ValueError, match=r"actions must be 2 integers, .* got float64"):
        envs.step(np.array([0.0, 1.0]))


def test_stepping_past_the_end_is_an_error() -> None:
    env = FiniteWorldEnv(until_event_world(horizon=2).world)
    env.reset(seed=0)
    assert env.step(0)[2]
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_importing_the_environments_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, cautious_imitation.environments.gym; print({'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
