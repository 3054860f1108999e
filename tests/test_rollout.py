"""Episodes in which some wait while others decide, against a loop over single episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cautious_imitation.finetuning.budgeted_mixture import Decision
from cautious_imitation.finetuning.rollout import Observations, Step, Weighing, play

N, T, V = 6, 7, 3
DICE = np.random.default_rng(0)
ACTS = DICE.random((T, N)) < 0.6
ACTS[0] = True
LENGTHS = DICE.integers(2, T + 1, N)
REWARDS = torch.tensor(DICE.random((T, N)), dtype=torch.float32)
LEFT = 2.0


class Waiting:
    """Six episodes of two to seven steps, in which who decides is written down; nonsense is paid after the end."""

    n_all, first = N, 0

    def begin(self, generator: torch.Generator) -> Observations:
        self.t, self.left = 0, torch.full((N,), LEFT, dtype=torch.float64)
        return self._seen()

    def step(self, outcomes: torch.Tensor, charges_nats: torch.Tensor) -> Step:
        assert not bool(charges_nats[~torch.from_numpy(ACTS[self.t])].any())
        rewards = torch.where(torch.from_numpy(self.t < LENGTHS), REWARDS[self.t], 1e6)
        self.left = self.left - charges_nats
        self.t += 1
        acts = torch.from_numpy(ACTS[min(self.t, T - 1)])
        return Step(self._seen(), rewards, torch.from_numpy(self.t >= LENGTHS), acts)

    def _seen(self) -> Observations:
        place = torch.full((N,), self.t)
        return {"place": place, "row": torch.arange(N), "left_nats": self.left.clone()}


class Policy(torch.nn.Module):
    """Spends a tenth of what is left, and likes actions the better the more is left."""

    def forward(self, observations: Observations) -> Decision:
        left = observations["left_nats"]
        logits = left[:, None] * torch.tensor([0.0, 0.5, 1.0]) + observations["place"][:, None] * 0.1
        nothing = torch.zeros(len(left), dtype=torch.float64)
        return Decision(logits.log_softmax(-1), nothing, nothing - torch.inf, left / 10, left / 10, nothing)


class Critic(torch.nn.Module):
    def forward(self, observations: Observations) -> torch.Tensor:
        return (observations["row"] - 0.3 * observations["place"]).float()


@pytest.mark.parametrize("multiplier", [None, 0.7], ids=["budget", "penalty"])
def test_what_is_learned_is_what_single_episodes_say(multiplier: float | None) -> None:
    episodes: Any = Waiting()
    discount, trace = 0.9, 0.8
    played = play(Policy(), Critic(), episodes, torch.Generator().manual_seed(1), Weighing(discount, trace, multiplier))
    row = 0
    for i in range(N):
        decides = [t for t in range(LENGTHS[i]) if ACTS[t, i]]
        rows = list(range(row, row + len(decides)))
        row += len(decides)
        assert played.episodes[rows].tolist() == [i] * len(decides)
        assert played.observations["place"][rows].tolist() == decides
        left, charges, slopes = LEFT, [], []
        for t, at in zip(decides, rows, strict=True):
            nats = torch.tensor([left], dtype=torch.float64, requires_grad=True)
            decision = Policy()({"left_nats": nats, "place": torch.tensor([t])})
            (slope,) = torch.autograd.grad(decision.log_prob(played.outcomes[[at]]).sum(), nats)
            charges.append(left / 10)
            slopes.append(float(slope))
            left -= charges[-1]
        np.testing.assert_allclose(played.charges[rows], charges)
        assert float(played.charged[i]) == pytest.approx(sum(charges))
        assert float(played.rewards[i]) == pytest.approx(float(REWARDS[: LENGTHS[i], i].sum()), rel=1e-5)
        value = advantage = price = 0.0
        for k in reversed(range(len(decides))):
            until = decides[k + 1] if k + 1 < len(decides) else LENGTHS[i]
            # What is paid while it waits is due to the decision before.
            paid = float(REWARDS[decides[k] : until, i].sum()) - (multiplier or 0.0) * charges[k]
            here = i - 0.3 * decides[k]
            later, advantage = discount * price, paid + discount * value - here + discount * trace * advantage
            value = here
            assert float(played.advantages[rows[k]]) == pytest.approx(advantage, abs=1e-4)
            assert float(played.returns[rows[k]]) == pytest.approx(advantage + here, abs=1e-4)
            expected = later if multiplier is None else multiplier
            assert float(played.prices[rows[k]]) == pytest.approx(expected, abs=1e-4)
            price = slopes[k] * advantage + (1 - 0.1) * later
    assert row == len(played.outcomes)


class Half(Waiting):
    """The last three of the episodes, as a second process plays them."""

    first = 3

    def begin(self, generator: torch.Generator) -> Observations:
        return {name: values[3:] for name, values in super().begin(generator).items()}

    def step(self, outcomes: torch.Tensor, charges_nats: torch.Tensor) -> Step:
        nothing = torch.zeros(3, dtype=torch.float64)
        step = super().step(torch.cat([torch.zeros(3, dtype=torch.long), outcomes]), torch.cat([nothing, charges_nats]))
        seen = {name: values[3:] for name, values in step.observations.items()}
        assert step.acts is not None
        return Step(seen, step.rewards[3:], step.ended[3:], step.acts[3:])


def test_an_episode_is_the_same_whichever_process_plays_it() -> None:
    whole, half = (
        play(Policy(), Critic(), episodes, torch.Generator().manual_seed(2), Weighing(1.0, 0.95))
        for episodes in (Waiting(), Half())
    )
    here = whole.episodes >= 3
    for name in ("outcomes", "log_probs", "advantages", "returns", "prices"):
        assert torch.equal(getattr(whole, name)[here], getattr(half, name))
