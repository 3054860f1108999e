"""A small training in chats as a process of its own, to be killed, or to be started several times for one training.

``python -m tests.chat_training_run FOLDER EPISODES`` trains in the folder, going on where it was, and then writes
``points.json`` and ``weights.safetensors`` there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cautious_imitation.atomic_files import write_safetensors, write_text
from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.finetuning.chat_policy import ChatCritic, ChatPolicy
from cautious_imitation.finetuning.chat_rollouts import ChatRollouts
from cautious_imitation.finetuning.chat_training import ChatTraining, Schedule
from cautious_imitation.finetuning.ppo import PPO, PPOSettings
from cautious_imitation.finetuning.processes import begin_processes, end_processes, n_processes, rank
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.oracles.language_model import LanguageModelOracle
from tests.test_chat_env import KINDS, letters, tiny

BUDGET_NATS, LENGTH, PARALLEL = 3.0, 44, 4
SCHEDULE = Schedule(BUDGET_NATS, ramp=2, full=2, longer=1, length=LENGTH, longer_length=50)


def chat_training(folder: Path | None, model: LanguageModel | None = None, **settings: Any) -> ChatTraining:
    """Four chats, those of all processes together, with a minimax anchor that has learned from a chat or so."""
    template, _ = KINDS["template"]
    model = tiny(template) if model is None else model
    chats = np.random.default_rng(0).integers(len(model.tokenizer), size=(3, 60))
    # The first token of each is the environment's: there is nothing before it to learn from.
    actors = np.tile(actor_codes(["environment"] + 59 * ["demonstrator"]), (3, 1))
    learned = Demonstrations(tuple(chats), tuple(actors))
    anchor = CautiousImitator(GaussianHead(model, noise=1.0).fit(learned), 0.05, "minimax")
    env: Any = settings.pop("env", None) or chat_env(model)
    torch.manual_seed(0)
    ppo = PPO(
        ChatPolicy(env, anchor, BUDGET_NATS),
        ChatCritic(env, BUDGET_NATS),
        ChatRollouts(env, BUDGET_NATS),
        PPOSettings(actor_rate=0.02, critic_rate=0.01, epochs=2, minibatch=16, max_gradient_norm=1.0),
        rows_at_once=7,
    )
    return ChatTraining(ppo, SCHEDULE, folder, **settings)


def chat_env(model: LanguageModel, **settings: Any) -> Any:
    from cautious_imitation.environments.chat import ChatEnv

    _, opening = KINDS["template"]
    given: dict[str, Any] = {
        "num_envs": PARALLEL // n_processes(),
        "length": LENGTH,
        "budget_nats": BUDGET_NATS,
        "reward": letters,
        "temperature": 12.0,
        "steps": "token",
        "oracle": LanguageModelOracle(model, max_new_tokens=3, seed=0, stop_tokens=[], is_demonstrator=True),
        "ask_price": 0.01,
    }
    return ChatEnv(model, opening, **{**given, **settings})


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    begin_processes()
    training = chat_training(folder)
    training.resume()
    points = training.run()
    if rank() == 0:
        state = {name: values.numpy() for name, values in training.ppo.policy.state_dict().items()}
        write_safetensors(folder / "weights.safetensors", state)
        write_text(folder / "points.json", json.dumps(points))
    end_processes()


if __name__ == "__main__":
    main()
