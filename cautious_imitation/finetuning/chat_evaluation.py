"""What a policy does in chats: transcripts with charges token by token, and how far a known demonstrator is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cautious_imitation.divergences import kl
from cautious_imitation.environments.transcripts import Transcript
from cautious_imitation.finetuning.budgeted_mixture import Decision
from cautious_imitation.finetuning.chat_rollouts import ChatRollouts
from cautious_imitation.finetuning.rollout import Played, Weighing, play
from cautious_imitation.language.model import LanguageModel

Tensor = torch.Tensor

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class PlayedChat:
    """One episode of a policy.

    Attributes:
        transcript: the chat, with what each token was charged.
        kl_demonstrator_nats: ``[L]``, at each token that the policy chose, or asked for, q KL(pi || tau): the
            probability that it acted times how far its actions were from the demonstrator's; 0 at all others. None
            where no demonstrator is known.
        decisions: how many tokens the policy decided about.
        questions: how many of those it asked.
    """

    transcript: Transcript
    kl_demonstrator_nats: NDArray[np.float64] | None
    decisions: int
    questions: int

    @property
    def reward(self) -> float:
        """What was paid, questions not taken off."""
        return float(self.transcript.rewards.sum())


def evaluate_chats(
    policy: torch.nn.Module,
    critic: torch.nn.Module,
    rollouts: ChatRollouts,
    n_episodes: int,
    *,
    demonstrator: LanguageModel | None = None,
    seed: int = 0,
) -> list[PlayedChat]:
    """Play chats with the whole budget and look at them.

    Every decision is looked at as the distribution that it was, so that distances are exact given what was visited.

    Args:
        policy: from observations to a ``Decision``.
        critic: is asked for values that nobody needs here.
        rollouts: the chats; ``least_share`` counts for nothing.
        n_episodes: how many, a multiple of those that all processes play together.
        demonstrator: what is imitated, where it is known; with the tokens of the environment's model.
        seed: of everything random.

    Returns:
        This process's chats.

    Raises:
        ValueError: if ``n_episodes`` is no such multiple, the demonstrator has other tokens, or as ``play``.
    """
    if n_episodes < 1 or n_episodes % rollouts.n_all:
        raise ValueError(f"n_episodes must be a multiple of {rollouts.n_all}, got {n_episodes}")
    if demonstrator is not None and demonstrator.n_symbols != rollouts.env.model.n_symbols:
        raise ValueError(
            f"demonstrator must have the {rollouts.env.model.n_symbols} tokens of the environment's model, got "
            f"{demonstrator.n_symbols}"
        )
    found: list[PlayedChat] = []
    least, rollouts.least_share = rollouts.least_share, 1.0
    try:
        for number in range(n_episodes // rollouts.n_all):
            generator = torch.Generator().manual_seed(1_000_003 * seed + number)
            played = play(policy, critic, rollouts, generator, Weighing(1.0, 0.95))
            found += _looked_at(policy, rollouts, played, demonstrator)
    finally:
        rollouts.least_share = least
    return found


def _looked_at(
    policy: torch.nn.Module, rollouts: ChatRollouts, played: Played, demonstrator: LanguageModel | None
) -> list[PlayedChat]:
    scripts = rollouts.transcripts()
    distances = None if demonstrator is None else _distances(policy, rollouts, played, demonstrator, scripts)
    episodes, places = played.episodes.numpy(), played.observations["n_tokens"].cpu().numpy()
    chats = []
    for number, script in enumerate(scripts):
        here = np.flatnonzero(episodes == number)
        along = None
        if distances is not None:
            along = np.zeros(len(script))
            # A question that was declined has no token.
            there = here[places[here] < len(script)]
            along[places[there]] = distances[there]
        chats.append(PlayedChat(script, along, len(here), int(played.questions[number])))
    return chats


@torch.no_grad()
def _distances(
    policy: torch.nn.Module,
    rollouts: ChatRollouts,
    played: Played,
    demonstrator: LanguageModel,
    scripts: tuple[Transcript, ...],
) -> NDArray[np.float64]:
    """q KL(pi || tau) of every decision, ``[N]`` nats."""
    if demonstrator is rollouts.env.model:
        features = played.observations["features"]
    else:
        features = _read(demonstrator, played, scripts)
    found = []
    for rows in torch.split(torch.arange(len(played.outcomes), device=features.device), _ROWS_AT_ONCE):
        decision: Decision = policy({name: values[rows] for name, values in played.observations.items()})
        # Normalised once more: single precision leaves sums over a vocabulary off by enough to make a KL negative.
        log_pi, log_tau = (
            values.double().log_softmax(-1) for values in (decision.log_probs, demonstrator.log_probs(features[rows]))
        )
        apart = kl(log_pi, log_tau).clamp(min=0.0)
        # What is never done is no distance away.
        acts = decision.log_act.double().exp()
        found.append(torch.where(acts > 0, acts * torch.where(acts > 0, apart, 0.0), 0.0))
    return torch.cat(found).cpu().numpy()


def _read(model: LanguageModel, played: Played, scripts: tuple[Transcript, ...]) -> Tensor:
    """What ``model`` makes of every context in which something was decided, each chat read once: ``[N, d]``."""
    places = played.observations["n_tokens"].cpu()
    found = []
    for number, script in enumerate(scripts):
        whole, _ = model.features(torch.from_numpy(script.tokens.copy())[None])
        found.append(whole[0, places[played.episodes == number] - 1])
    return torch.cat(found)
