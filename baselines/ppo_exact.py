"""PPO against the exact optimum in the world of real chats: what learning by trial finds of what there is to find.

Both maximise the same reward against the same anchor. The solver's budget holds in expectation, PPO's on every
trajectory, so the solver may spend more where it pays and PPO cannot reach all of it. Gains are over what the anchor
itself earns; the reward of PPO is a mean over episodes, so its gain has an error.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from cautious_imitation import BayesianImitator, CautiousImitator, ContextTree, ExpectedBudget, Regularizer, finetune
from cautious_imitation.environments import dialogue_acts as acts
from cautious_imitation.finetuning.ppo import PPO, PPOSettings
from cautious_imitation.finetuning.world_episodes import WorldCritic, WorldEpisodes, WorldPolicy

ASK_PRICE = 0.05
N_EPISODES, N_EVALUATED = 512, 16_384
FAST = PPOSettings(
    clip=0.2, epochs=6, minibatch=2048, actor_rate=1e-3, critic_rate=3e-3, max_gradient_norm=1.0, entropy=0.0
)
SLOW = PPOSettings(
    clip=0.1, epochs=6, minibatch=8192, actor_rate=2e-4, critic_rate=1e-3, max_gradient_norm=1.0, entropy=0.0
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=2.0)
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--updates", type=int, default=150, help="with large steps, then as many with small ones")
    parser.add_argument("--anchor", choices=("bayesian", "pointwise"), default="bayesian")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()

    world = acts.dialogue_acts_world(horizon=chosen.horizon)
    chats = acts.sample_demonstrations(acts.dialogue_acts_world(), 10_000, np.random.default_rng(chosen.seed))
    tree = ContextTree(9, depth=3, n_context_symbols=18, start_symbol=acts.STUDENT_ENDED).fit(chats)
    anchor = BayesianImitator(tree) if chosen.anchor == "bayesian" else CautiousImitator(tree, alpha=0.01)
    exact = finetune(world, anchor, Regularizer(ExpectedBudget(chosen.budget), ask_price=ASK_PRICE)).metrics
    largest = exact.largest_charge_nats
    print(f"exact: reward {exact.reward:.3f}, charge {exact.charge_nats:.2f} nats, at most {largest:.1f}")

    torch.manual_seed(chosen.seed)
    policy, critic = WorldPolicy(world, anchor, chosen.budget), WorldCritic(world, chosen.budget)
    whole = WorldEpisodes(world, N_EVALUATED, chosen.budget, ask_price=ASK_PRICE, least_share=1.0)
    judge = PPO(policy, critic, whole, FAST)

    def played() -> dict[str, float]:
        found: dict[str, float] = judge.play(torch.Generator().manual_seed(1))[1]
        return found

    start = played()
    print(f"anchor: reward {start['reward']:.3f}, questions {start['questions']:.2f}")
    episodes = WorldEpisodes(world, N_EPISODES, chosen.budget, ask_price=ASK_PRICE)
    began = time.monotonic()
    for phase, settings in (("large steps", FAST), ("small steps", SLOW)):
        trained = PPO(policy, critic, episodes, settings, seed=chosen.seed)
        largest = max(trained.update().largest_charge_nats for _ in range(chosen.updates))
        found = played()
        gain = (found["reward"] - start["reward"]) / (exact.reward - start["reward"])
        print(
            f"{phase}: reward {found['reward']:.3f}, {100 * gain:.0f} % of the gain; charge {found['charge_nats']:.2f} "
            f"nats, at most {max(largest, found['largest_charge_nats']):.3f}; questions {found['questions']:.2f}; "
            f"{time.monotonic() - began:.0f} s"
        )


if __name__ == "__main__":
    main()
