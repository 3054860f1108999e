"""The paper's policy and critic for chats: what the base model made of the chat, and what is left of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from cautious_imitation.environments.chat import ChatEnv
from cautious_imitation.finetuning.budgeted_mixture import BudgetedMixtureHead, Decision, log_complement
from cautious_imitation.finetuning.charged_mixture import ChargedBase
from cautious_imitation.finetuning.ppo import mlp
from cautious_imitation.finetuning.rollout import Observations
from cautious_imitation.imitators import BasePolicy
from cautious_imitation.language.model import LanguageModel, Reading

Tensor = torch.Tensor


class ChatFeatures(torch.nn.Module):
    """Hidden states, each layer's with mean 0 and variance 1, the share of the chat and the budget that are left.

    Args:
        env: the chats.
        budget_nats: the whole budget, for scale; infinite if there is none.

    Attributes:
        width: how many numbers there are.

    Raises:
        ValueError: if the chats have a budget and the features none, or the other way round.
    """

    def __init__(self, env: ChatEnv, budget_nats: float) -> None:
        super().__init__()
        spaces: Any = env.single_observation_space
        layers, width = spaces["hidden"].shape
        self.width = layers * width + 2
        self._budget_nats = float(budget_nats)

    def forward(self, observations: Observations) -> Tensor:
        """Features ``[n, width]`` in single precision."""
        # Layers differ in size by orders of magnitude, and some have a few channels that are larger than all others.
        hidden = torch.nn.functional.layer_norm(observations["hidden"], observations["hidden"].shape[-1:])
        share_of_budget = self._share_of_budget(observations["left_nats"]).float()
        return torch.cat([hidden.flatten(1), observations["share_left"][:, None], share_of_budget[:, None]], dim=1)

    def _share_of_budget(self, left_nats: Tensor) -> Tensor:
        unlimited = self._budget_nats == float("inf")
        wrong = left_nats[(left_nats == torch.inf) != unlimited]
        if len(wrong):
            raise ValueError(
                f"left_nats must be {'infinite' if unlimited else 'finite'} where budget_nats is {self._budget_nats}, "
                f"got {float(wrong[0])}; give the features and the chats the same budget"
            )
        # What is left where there is no budget is all of it.
        return torch.ones_like(left_nats) if unlimited else left_nats / max(self._budget_nats, 1e-9)


class ChatPolicy(torch.nn.Module):
    """A ``BudgetedMixtureHead`` over what a language model makes of a chat; begins as the anchor acts.

    Args:
        env: the chats.
        anchor: an imitator whose hypotheses read with the environment's model.
        budget_nats: the whole budget, for scale.

    Raises:
        ValueError: if the anchor reads with another model.
    """

    def __init__(self, env: ChatEnv, anchor: BasePolicy, budget_nats: float) -> None:
        super().__init__()
        check_anchor(env.model, anchor)
        self.anchor = anchor
        self.features = ChatFeatures(env, budget_nats)
        self.head = BudgetedMixtureHead(self.features.width, env.model.n_symbols).to(env.model.device)

    def forward(self, observations: Observations) -> Decision:
        """Decide at ``observations``."""
        base = ChargedBase.of(self.anchor, reading_of(observations))
        decision: Decision = self.head(self.features(observations), base, observations["left_nats"])
        return decision


class AsksAtRandom(torch.nn.Module):
    """A policy that asks on the toss of a coin besides: a control, as dear in questions as one that knows where to ask.

    Args:
        policy: from observations to a ``Decision``.
        probability: of asking instead of doing what the policy decides, in [0, 1).

    Raises:
        ValueError: if the probability is out of range.
    """

    def __init__(self, policy: torch.nn.Module, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability must be in [0, 1), got {probability!r}")
        self.policy, self.probability = policy, probability

    def forward(self, observations: Observations) -> Decision:
        """Decide at ``observations``; what is not done is not charged."""
        decision: Decision = self.policy(observations)
        log_act = decision.log_act + math.log1p(-self.probability)
        return replace(
            decision,
            log_act=log_act,
            log_ask=log_complement(log_act),
            charge_nats=(1 - self.probability) * decision.charge_nats,
        )


class ChatCritic(torch.nn.Module):
    """The value of what is still to come, from the same features by two layers of tanh; arguments as there."""

    def __init__(self, env: ChatEnv, budget_nats: float) -> None:
        super().__init__()
        self.features = ChatFeatures(env, budget_nats)
        self.value = mlp(self.features.width).to(env.model.device)

    def forward(self, observations: Observations) -> Tensor:
        """Values ``[n]``."""
        value: Tensor = self.value(self.features(observations)).squeeze(1)
        return value


def reading_of(observations: Observations) -> Reading:
    """The chats as the model has read them: what an imitator over the same model takes as contexts."""
    rows = observations["tokens"].cpu()
    lengths = observations["n_tokens"].tolist()
    return Reading([row[:length] for row, length in zip(rows, lengths, strict=True)], observations["features"])


def check_anchor(model: LanguageModel, anchor: BasePolicy) -> None:
    """Raise ``ValueError`` unless the anchor predicts from what ``model`` reads."""
    reader = getattr(getattr(anchor, "hypotheses", None), "model", None)
    if reader is not model:
        raise ValueError(
            f"anchor must have hypotheses that read with the environment's model, got ones that read with "
            f"{'another' if reader is not None else 'none'}; make both of one LanguageModel"
        )
