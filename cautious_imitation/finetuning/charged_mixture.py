"""Mixtures of two policies that cost exactly what is to be spent, with gradients by the implicit function theorem.

On the segment pi_s = (1 - s) base + s adjusted the charge is convex in s, since KL(pi || nu) is convex in pi and so is
the largest of several. Given that the base can be paid for, there is one largest s that can.

With nu = m base (m = 1 for a Bayesian anchor, the plausible mass for a pointwise one), y = s (adjusted / base - 1) and
d = adjusted - base,

    KL(pi_s || nu) = -log m + sum base ((1 + y) log(1 + y) - y),   d/ds = sum d log(1 + y),

sums of terms that are never negative: the root is found in double precision with one logarithm of the vocabulary a
step. Any other set is asked for its charge once a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.autograd.function import once_differentiable

from cautious_imitation.divergences import kl
from cautious_imitation.finetuning.affordable_shares import mixture, relative, share_by_base, share_by_charge
from cautious_imitation.hypotheses.event_set import TorchSet
from cautious_imitation.imitators import BasePolicy, CautiousImitator
from cautious_imitation.types import mass_tolerance

Tensor = torch.Tensor

Charge: TypeAlias = Callable[[Tensor], Tensor]
"""From ``log_pi [..., V]`` to nats ``[...]``, with a gradient."""


@dataclass(frozen=True, eq=False)
class ChargedBase:
    """The policy that fine-tuning starts from at each context, and what leaving it is charged.

    Attributes:
        log_probs: ``[..., V]`` log-probabilities in nats of the base, a distribution.
        base_nats: ``[...]``, what acting as the base does costs: 0 for an anchor that never asks, ``inf`` where nothing
            can be paid for.
        charge_of: what other policies cost, at the same contexts and with ``charge_of(log_probs) = base_nats``. None
            for ``base_nats`` + KL(pi || base), which is KL to a sub-distribution exp(-base_nats) base.

    Raises:
        ValueError: if shapes disagree or ``base_nats`` is negative.

    >>> bernoulli = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    >>> ChargedBase.of_minimum(bernoulli.amin(0)).base_nats
    tensor(0.5108)
    """

    log_probs: Tensor
    base_nats: Tensor
    charge_of: Charge | None = None

    def __post_init__(self) -> None:
        if self.base_nats.shape != self.log_probs.shape[:-1]:
            raise ValueError(
                f"base_nats must have shape {tuple(self.log_probs.shape[:-1])} to go with log_probs "
                f"{tuple(self.log_probs.shape)}, got {tuple(self.base_nats.shape)}"
            )
        if not bool((self.base_nats >= 0).all()):
            raise ValueError(f"base_nats must be at least 0, got {float(self.base_nats.min())}; it is a divergence")

    @classmethod
    def of(cls, anchor: BasePolicy, context: Any) -> ChargedBase:
        """What ``anchor`` says at ``context``, in torch: its mixture, its plausible minimum, or its plausible set.

        Args:
            anchor: an imitator whose hypotheses answer in torch tensors.
            context: as its ``predict`` takes it: features, or what was read.
        """
        if not isinstance(anchor, CautiousImitator):
            return cls.of_distribution(anchor.predict(context).log_probs)
        if anchor.caution == "pointwise":
            return cls.of_minimum(anchor.hypotheses.plausible_min(context, anchor.alpha))
        plausible: Any = anchor.references(context)
        return cls.of_set(plausible, anchor.hypotheses.mixture(context))

    @classmethod
    def of_distribution(cls, log_probs: Tensor) -> ChargedBase:
        """A Bayesian anchor, ``[..., V]`` log-probabilities: acting as it does is free, so it never asks."""
        return cls(log_probs, torch.zeros_like(log_probs[..., 0]))

    @classmethod
    def of_minimum(cls, log_minimum: Tensor) -> ChargedBase:
        """A pointwise anchor, ``[..., V]`` logs of a sub-distribution of mass m: the base is it over m, at -log m nats.

        No policy costs less. Where m is 0 nothing can be paid for, and the base is uniform and never acts.

        Raises:
            ValueError: if the probabilities sum to more than one.
        """
        log_mass = log_minimum.logsumexp(-1)
        if not bool((log_mass <= mass_tolerance(log_minimum)).all()):
            raise ValueError(
                f"log_minimum must sum to at most 1, got {float(log_mass.exp().max())}; take the least probabilities "
                "over a plausible set"
            )
        empty = (log_mass == -torch.inf)[..., None]
        # Once more, since in single precision a sum over a vocabulary is only so good.
        normalised = torch.where(empty, 0.0, log_minimum).log_softmax(-1)
        return cls(normalised, log_mass.neg().clamp(min=0.0))

    @classmethod
    def of_set(cls, plausible: TorchSet, log_mixture: Tensor) -> ChargedBase:
        """A minimax anchor, charged the largest KL to any plausible member.

        The base is whichever is cheaper at a context, the mixture or the normalised plausible minimum. The mixture is
        what the imitator expects; the minimum pays where few agree, and where one member forbids what another does.

        Args:
            plausible: what may be charged against.
            log_mixture: ``[..., V]`` log-probabilities of the posterior mixture.
        """
        with torch.no_grad():
            agreed = cls.of_minimum(plausible.minimum())
            of_agreed = plausible.worst_kl(agreed.log_probs)
            of_mixture = plausible.worst_kl(log_mixture)
            # Rounding may put the divergence of a policy from itself below 0.
            base_nats = torch.minimum(of_agreed, of_mixture).clamp(min=0.0)
            log_probs = torch.where((of_agreed < of_mixture)[..., None], agreed.log_probs, log_mixture)
        return cls(log_probs, base_nats, plausible.worst_kl)


@dataclass(frozen=True, eq=False)
class Spent:
    """What is done with the nats that are to be spent.

    Attributes:
        log_probs: ``[..., V]`` log-probabilities in nats of the actions, given that it acts.
        log_act: ``[...]``, log of the probability q of acting rather than asking; 0 where the base can be paid for.
        charge_nats: ``[...]``, exact expected charge of the step, q times that of the actions; never above the spend.
        share: ``[...]``, how far from the base (0) to the adjusted policy (1); no gradient.
    """

    log_probs: Tensor
    log_act: Tensor
    charge_nats: Tensor
    share: Tensor


def spend(base: ChargedBase, log_adjusted: Tensor, spend_nats: Tensor) -> Spent:
    """Go as far from the base to the adjusted policy as can be paid for; where not even the base can, ask.

    Where the base costs more than is to be spent, it acts as the base does with probability q = spend / cost and asks
    otherwise, which costs the spend in expectation (accounting ``free``); where the cost is infinite it always asks.
    Gradients flow to all three tensors: through the root, the charge being held at the spend, and to q. They are those
    of the side that a context is on: at the spends where it starts to ask or reaches the adjusted policy there is none.

    A charge need not be convex (that of a ``LogitBall`` is the lesser of two bounds): then the share is one at which
    the charge is what is to be spent, and a larger one may exist. Where a charge falls along the segment before it
    rises, as it may for a set whose base is not its cheapest policy, the share jumps where the base becomes payable.

    Args:
        base: what is left, and what that costs.
        log_adjusted: ``[..., V]`` log-probabilities in nats, of the precision of the base's.
        spend_nats: ``[...]``, at least 0 and finite, in single or double precision; the charge has the same.

    Raises:
        ValueError: if shapes or precisions disagree, or a number is out of range or not a number.
        RuntimeError: in inference mode, if the base brings a ``charge_of``, whose gradient in s is needed.

    >>> base = ChargedBase.of_distribution(torch.tensor([0.5, 0.5]).log())
    >>> spent = spend(base, torch.tensor([0.9, 0.1]).log(), torch.tensor(0.02))
    >>> spent.log_probs.exp(), kl(spent.log_probs, base.log_probs)
    (tensor([0.5997, 0.4003]), tensor(0.0200))

    Source: Cohen, Hutter, Bengio, Russell 2024, for an anchor that never asks.
    """
    _check(base, log_adjusted, spend_nats)
    start, end, to_spend = base.log_probs.detach(), log_adjusted.detach(), spend_nats.detach().double()
    base_nats = base.base_nats.detach().double()
    with torch.no_grad():
        spare = to_spend - base_nats
        found = share_by_base(start, end, spare) if base.charge_of is None else None
        if found is None:
            charge_of = base.charge_of or (lambda log_pi: base_nats + kl(log_pi, start))
            found = share_by_charge(charge_of, start, end, spare, base_nats, to_spend)
        share, extra, slope = found
        # Half of a rounding more would be more than can be paid for.
        share, exact_share = share.to(start.dtype), share
        share = torch.where(share > exact_share, torch.nextafter(share, torch.zeros_like(share)), share)
        charge = torch.minimum(base_nats + extra, to_spend)
    inputs = (base.log_probs, log_adjusted, spend_nats)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    rise = _rise(base.charge_of, mixture(start, end, share)) if needs_grad and base.charge_of is not None else None
    log_probs, log_act, charge_nats = _Spending.apply(  # type: ignore[no-untyped-call]
        *inputs, share, slope, base_nats, charge, rise
    )
    return Spent(log_probs, log_act, charge_nats, share)


class _Spending(torch.autograd.Function):
    """What follows from the share that was found, and what a change of the inputs does to it.

    With C the charge, ``rise [..., V]`` its gradient in log pi (None for KL to the base, whose gradient is known).
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_base: Tensor,
        log_adjusted: Tensor,
        spend_nats: Tensor,
        share: Tensor,
        slope: Tensor,
        base_nats: Tensor,
        charge: Tensor,
        rise: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_pi = mixture(log_base, log_adjusted, share)
        to_spend = spend_nats.double()
        asks = base_nats > to_spend
        log_act = torch.where(asks, to_spend.log() - base_nats.log(), 0.0)
        # 0 times infinity is 0: what is never done costs nothing.
        charge_nats = torch.where(asks, torch.where(base_nats < torch.inf, to_spend, 0.0), charge)
        ctx.save_for_backward(log_base, log_adjusted, log_pi, to_spend, share, slope, base_nats, rise)
        ctx.spend_dtype = spend_nats.dtype
        return log_pi, log_act.to(log_pi.dtype), charge_nats.to(spend_nats.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_pi: Tensor, of_log_act: Tensor, of_charge: Tensor) -> Any:
        log_base, log_adjusted, log_pi, to_spend, share, slope, base_nats, rise = ctx.saved_tensors
        to_base, to_adjusted = relative(log_base, log_pi), relative(log_adjusted, log_pi)
        by_share = torch.linalg.vecdot(of_log_pi, to_adjusted - to_base).double()
        of_log_act, of_charge = of_log_act.double(), of_charge.double()
        asks, whole = base_nats > to_spend, share >= 1
        can_act = asks & (base_nats < torch.inf) & (to_spend > 0)
        # ds = (d spend - dC) / slope; at a root of slope 0 the share has no derivative and stays.
        between = ~asks & ~whole & (slope > 0)
        by_spend = torch.where(between, by_share / torch.where(between, slope, 1.0), 0.0)
        on_charge = torch.where(can_act, -of_log_act / torch.where(can_act, base_nats, 1.0), -by_spend)
        on_charge = torch.where(~asks & whole, of_charge, on_charge)[..., None].to(log_pi.dtype)
        of_spend = by_spend + torch.where(can_act, of_log_act / torch.where(can_act, to_spend, 1.0), 0.0)
        of_spend = of_spend + torch.where((asks & (base_nats < torch.inf)) | between, of_charge, 0.0)
        # What the base is changes KL to it too: by (base - pi) d log base, beyond what it does through pi.
        of_reference: Tensor | float = 0.0
        if rise is None:
            pi = log_pi.exp()
            rise = pi * torch.where(pi > 0, log_pi - log_base, 0.0)
            of_reference = on_charge * (log_base.exp() - pi)
        through = of_log_pi + on_charge * rise
        # With the weight inside the exponential, which is then at most 1.
        of_adjusted = relative(log_adjusted + share.log()[..., None], log_pi) * through
        of_base = relative(log_base + torch.log1p(-share)[..., None], log_pi) * through + of_reference
        return of_base, of_adjusted, of_spend.to(ctx.spend_dtype), None, None, None, None, None


def _rise(charge_of: Charge, log_pi: Tensor) -> Tensor:
    """Gradient of the charge in log pi, ``[..., V]``; 0 where the charge is infinite."""
    charge = charge_of(log_pi.requires_grad_())
    if not charge.requires_grad:
        return torch.zeros_like(log_pi)
    (rise,) = torch.autograd.grad(torch.where(charge < torch.inf, charge, 0.0).sum(), log_pi)
    return rise


def _check(base: ChargedBase, log_adjusted: Tensor, spend_nats: Tensor) -> None:
    """Raise unless everything has the shape, the precision and the range that it needs."""
    if log_adjusted.shape != base.log_probs.shape or log_adjusted.dtype != base.log_probs.dtype:
        raise ValueError(
            f"log_adjusted must have shape {tuple(base.log_probs.shape)} and {base.log_probs.dtype} like the base, got "
            f"{tuple(log_adjusted.shape)} and {log_adjusted.dtype}"
        )
    if spend_nats.shape != log_adjusted.shape[:-1]:
        raise ValueError(
            f"spend_nats must have shape {tuple(log_adjusted.shape[:-1])}, one number a context, got "
            f"{tuple(spend_nats.shape)}"
        )
    in_range = (spend_nats >= 0) & (spend_nats < torch.inf)
    if not bool(in_range.all()):
        got = float(spend_nats[~in_range].flatten()[0])
        raise ValueError(f"spend_nats must be at least 0 and finite, got {got}; nothing can be spent twice")
