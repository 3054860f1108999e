"""Chats for policies that learn by trial: a ``ChatEnv`` token by token, in tensors."""

from __future__ import annotations

import numpy as np
import torch

from cautious_imitation.environments.chat import ChatEnv
from cautious_imitation.environments.transcripts import Transcript
from cautious_imitation.finetuning.processes import n_processes, rank
from cautious_imitation.finetuning.rollout import Observations, Step

Tensor = torch.Tensor


class ChatRollouts:
    """Chats side by side, each with a budget that no trajectory exceeds; the environment keeps the ledger.

    Observations, one row a chat, on the model's device:

    - ``tokens [n, length]`` and ``n_tokens [n]``: the chat so far, with zeros after it;
    - ``features [n, d]``: what the model's output head reads after its last token, as hypotheses take it;
    - ``hidden [n, hidden_layers, width]``: the environment's observation;
    - ``share_left [n]``: of the episode's tokens; ``left_nats [n]``: of the budget;
    - ``episode [n]``: the number of the chat.

    Where several processes train together, each has an environment of its own, and plays its own chats.

    Args:
        env: the environment, which steps by tokens.
        budget_nats: the whole budget of an episode; infinite for none.
        least_share: budgets begin uniformly between this share of the whole and the whole.

    Attributes:
        budget_nats: of the episodes that begin next; it may be changed between two updates.
        length: tokens of the episodes that begin next, likewise.

    Raises:
        ValueError: if the environment steps otherwise, or a number is out of range.

    >>> from cautious_imitation.environments.chat_rewards import vader_reward
    >>> from cautious_imitation.language.small_gpt import small_gpt
    >>> opening = [{"role": "user", "content": "Hello! How are you?"}]
    >>> settings = {"num_envs": 2, "length": 20, "budget_nats": 1.0, "reward": vader_reward(), "steps": "token"}
    >>> chats = ChatRollouts(ChatEnv(small_gpt(), opening, **settings), budget_nats=4.0)
    >>> {name: tuple(values.shape) for name, values in chats.begin(torch.Generator()).items()}
    {'tokens': (2, 20), 'n_tokens': (2,), 'features': (2, 128), 'hidden': (2, 3, 128), 'share_left': (2,), ...}
    """

    def __init__(self, env: ChatEnv, budget_nats: float, *, least_share: float = 0.5) -> None:
        if not env.plays_by_token:
            raise ValueError('env must be made with steps="token", so that students write while teachers do')
        if not budget_nats >= 0:
            raise ValueError(f"budget_nats must be at least 0, got {budget_nats!r}; infinite sets no limit")
        if not 0 <= least_share <= 1:
            raise ValueError(f"least_share must be in [0, 1], got {least_share!r}; 1 begins with the whole budget")
        self.env, self.budget_nats, self.least_share = env, float(budget_nats), float(least_share)
        self.length = env.length
        self.n_all, self.first = env.num_envs * n_processes(), env.num_envs * rank()
        self._ended = np.zeros(env.num_envs, dtype=np.bool_)
        self._finished: dict[int, Transcript] = {}

    def begin(self, generator: torch.Generator) -> Observations:
        """Start all chats anew."""
        shares = self.least_share + (1 - self.least_share) * torch.rand(
            self.n_all, generator=generator, dtype=torch.float64
        )
        seed = int(torch.randint(2**62, (), generator=generator))
        own = slice(self.first, self.first + self.env.num_envs)
        budgets = self.budget_nats * shares[own].numpy() if self.budget_nats < float("inf") else self.budget_nats
        observation, _ = self.env.reset(seed=seed + self.first, options={"budget_nats": budgets, "length": self.length})
        self._ended = np.zeros(self.env.num_envs, dtype=np.bool_)
        self._finished = {}
        return self._seen(observation)

    def step(self, outcomes: Tensor, charges_nats: Tensor) -> Step:
        """Add a token to every chat: ``outcomes`` where the agent acts, those of students and of answers elsewhere."""
        observation, rewards, terminated, truncated, info = self.env.step(outcomes.numpy(), charges_nats.numpy())
        self._finished |= {
            int(row): info["transcript"][row] for row in np.flatnonzero(info["_transcript"] & ~self._ended)
        }
        self._ended |= terminated | truncated
        acts = torch.from_numpy(info["acts"] & ~self._ended)
        return Step(
            self._seen(observation), torch.from_numpy(rewards).float(), torch.from_numpy(self._ended.copy()), acts
        )

    def transcripts(self) -> tuple[Transcript, ...]:
        """The chats of this process, once all are over.

        Raises:
            ValueError: if some are not.
        """
        if len(self._finished) < self.env.num_envs:
            raise ValueError(
                f"transcripts() needs {self.env.num_envs} chats that are over, got {len(self._finished)}; play them to "
                "their end"
            )
        return tuple(self._finished[row] for row in range(self.env.num_envs))

    def _seen(self, observation: dict[str, np.ndarray]) -> Observations:
        reading = self.env.reading()
        device = reading.features.device
        n_tokens = torch.tensor([len(row) for row in reading.rows])
        tokens = torch.zeros((len(reading.rows), self.env.length), dtype=torch.long)
        for row, context in zip(tokens, reading.rows, strict=True):
            row[: len(context)] = context
        # The environment's hidden states would be a copy more.
        return {
            "tokens": tokens.to(device),
            "n_tokens": n_tokens.to(device),
            "features": reading.features,
            "hidden": torch.from_numpy(observation["hidden"]).to(device),
            "share_left": torch.from_numpy(observation["share_left"]).float().to(device),
            "left_nats": torch.from_numpy(observation["budget_left"]).to(device),
            "episode": torch.arange(len(reading.rows), device=device),
        }
