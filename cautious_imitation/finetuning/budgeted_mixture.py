"""The policy of the paper's experiment, for anchors that ask as well: a budget in nats, spent a share at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch

from cautious_imitation.finetuning.charged_mixture import ChargedBase, spend

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Decision:
    """What a policy does next at each context: acts, or asks. All logs in nats, with gradients.

    Attributes:
        log_probs: ``[..., V]`` log-probabilities of the actions, given that it acts.
        log_act: ``[...]``, log of the probability q that it acts.
        log_ask: ``[...]``, log of 1 - q.
        charge_nats: ``[...]``, exact expected charge of the step, q times that of the actions; take it off the budget.
        spend_nats: ``[...]``, what was to be spent, at least the charge.
        share: ``[...]``, how far the actions are from the base (0) to the adjusted policy (1); no gradient.
    """

    log_probs: Tensor
    log_act: Tensor
    log_ask: Tensor
    charge_nats: Tensor
    spend_nats: Tensor
    share: Tensor

    @property
    def ask(self) -> int:
        """The outcome that stands for asking: V, the first number that is no action."""
        return self.log_probs.shape[-1]

    def log_prob(self, outcomes: Tensor) -> Tensor:
        """Log-probability of ``outcomes [...]``, an action in 0..V-1 or V for asking: ``[...]`` nats.

        Raises:
            ValueError: if an outcome is out of range or they are not one a context.
        """
        if outcomes.shape != self.log_ask.shape:
            raise ValueError(
                f"outcomes must have shape {tuple(self.log_ask.shape)}, one a context, got {tuple(outcomes.shape)}"
            )
        if not bool(((outcomes >= 0) & (outcomes <= self.ask)).all()):
            raise ValueError(
                f"outcomes must be actions in 0..{self.ask - 1} or {self.ask} for asking, got "
                f"{int(outcomes.min())} to {int(outcomes.max())}"
            )
        asks = outcomes == self.ask
        actions = outcomes.clamp(max=self.ask - 1)[..., None]
        acting = self.log_act + self.log_probs.gather(-1, actions).squeeze(-1)
        return torch.where(asks, self.log_ask, acting)

    def entropy(self) -> Tensor:
        """Entropy of the whole decision, asking being one outcome of V + 1: ``[...]`` nats."""
        act = self.log_act.exp()
        of_actions = -_probability_times_log(self.log_probs).sum(-1)
        return act * of_actions - _probability_times_log(self.log_act) - _probability_times_log(self.log_ask)

    @torch.no_grad()
    def sample(self, uniforms: Tensor) -> Tensor:
        """Invert the distribution function at one number in [0, 1) a context, ``[...]``: an action, or V for asking.

        The same number gives the same outcome, whatever else is decided at the same time.
        """
        # In double precision: over a vocabulary, rounding in single precision adds up.
        probabilities = (self.log_act[..., None] + self.log_probs).double().exp_()
        cumulative = torch.cat([probabilities, self.log_ask.double().exp()[..., None]], dim=-1).cumsum_(-1)
        # Relative to the total, so that rounding adds no outcome that is impossible.
        sought = uniforms.double()[..., None] * cumulative[..., -1:]
        return torch.searchsorted(cumulative, sought, right=True).squeeze(-1)


class BudgetedMixtureHead(torch.nn.Module):
    """Spends a share of the nats left on leaving the base policy, towards wherever it has learned to.

    One linear layer adjusts the base's logits, another says x; sigmoid(x - ``share_offset``) of the budget left is
    spent on this step. The actions are the mixture of the base and the adjusted policy whose charge is exactly that, or
    the adjusted policy if it costs less. Where the base itself costs more, as it may under a cautious anchor, it acts
    with probability spend / cost and asks otherwise; see ``spend``. Both layers start at zero, so training starts at
    the base.

    The charge is the exact expectation over the step's distribution, and never more than what is left, so a budget that
    each charge is taken off is kept on every trajectory. (The public code of the paper charges the sampled log-ratio,
    clamped at zero: the budget is then kept neither on every trajectory nor exactly in expectation.)

    Args:
        n_features: d, the width of the features; what the policy is to know, the budget left among it, belongs there.
        n_symbols: V, the number of actions.
        share_offset: sigmoid(-share_offset) of the budget left is spent at first: 1/17.

    Raises:
        ValueError: if a size is not positive or the offset is not finite.

    >>> head = BudgetedMixtureHead(n_features=3, n_symbols=2)
    >>> base = ChargedBase.of_minimum(torch.tensor([[0.6, 0.2]]).log())
    >>> with torch.no_grad():
    ...     decision = head(torch.ones(1, 3), base, torch.tensor([2.0]))
    >>> decision.log_probs.exp(), decision.log_ask.exp(), decision.charge_nats
    (tensor([[0.7500, 0.2500]]), tensor([0.4728]), tensor([0.1176]))

    Source: Cohen, Hutter, Bengio, Russell 2024; asking: accounting ``free`` of ``Regularizer``.
    """

    def __init__(self, n_features: int, n_symbols: int, *, share_offset: float = log(16)) -> None:
        super().__init__()
        if n_features < 1 or n_symbols < 1:
            raise ValueError(
                f"n_features and n_symbols must be at least 1, got {n_features} and {n_symbols}; one feature that is "
                "always 1 will do"
            )
        if not abs(share_offset) < float("inf"):
            raise ValueError(f"share_offset must be finite, got {share_offset!r}; the paper has log 16")
        self.share_offset = float(share_offset)
        self.adjustment = torch.nn.Linear(n_features, n_symbols)
        self.budget_share = torch.nn.Linear(n_features, 1)
        for layer in (self.adjustment, self.budget_share):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, base: ChargedBase, left_nats: Tensor) -> Decision:
        """Decide at each context.

        Args:
            features: ``[..., d]``.
            base: the base policy at the same contexts, ``[..., V]``, and what leaving it is charged.
            left_nats: ``[...]``, what is left of the budget; the charge has the same precision.

        Raises:
            ValueError: if shapes disagree, or the budget left is negative or not finite.
        """
        if features.shape[:-1] != base.log_probs.shape[:-1] or left_nats.shape != base.base_nats.shape:
            raise ValueError(
                f"features {tuple(features.shape)} and left_nats {tuple(left_nats.shape)} must have one row a context, "
                f"as the base has with log_probs {tuple(base.log_probs.shape)}"
            )
        if not bool(((left_nats >= 0) & (left_nats < torch.inf)).all()):
            raise ValueError(
                f"left_nats must be at least 0 and finite, got {float(left_nats.min())} to {float(left_nats.max())}; "
                "take charge_nats off it, nothing more"
            )
        log_adjusted = adjusted(base.log_probs, self.adjustment(features).to(base.log_probs.dtype))
        share = torch.sigmoid(self.budget_share(features).squeeze(-1) - self.share_offset)
        spend_nats = share.to(left_nats.dtype) * left_nats
        spent = spend(base, log_adjusted, spend_nats)
        return Decision(
            spent.log_probs, spent.log_act, log_complement(spent.log_act), spent.charge_nats, spend_nats, spent.share
        )


def adjusted(log_base: Tensor, adjustment: Tensor) -> Tensor:
    """log-softmax of ``log_base + adjustment``, ``[..., V]``; exactly ``log_base`` where the adjustment is 0."""
    logits = log_base + adjustment
    # A base in single precision sums to one only nearly; what it lacks is no adjustment.
    return logits - (logits.logsumexp(-1, keepdim=True) - log_base.logsumexp(-1, keepdim=True))


def log_complement(log_probability: Tensor) -> Tensor:
    """log(1 - p) of log p, in nats; ``-inf``, without a gradient, where p is 1."""
    certain = log_probability >= 0
    below = torch.where(certain, -1.0, log_probability)
    return torch.where(certain, -torch.inf, torch.log(-torch.expm1(below)))


def _probability_times_log(log_probs: Tensor) -> Tensor:
    """p log p, 0 where p is 0."""
    possible = torch.where(log_probs > -torch.inf, log_probs, 0.0)
    return torch.where(log_probs > -torch.inf, possible.exp() * possible, 0.0)
