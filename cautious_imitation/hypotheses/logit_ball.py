"""Plausible sets whose members shift the logits of one prediction, each token independently of the others.

A member is softmax(z + delta) with ``delta = scale * u`` and |u| <= radius. Neither the least probability of an action
nor the largest divergence over such a ball has a closed form; what is offered are bounds that are proven, in a few
passes over the vocabulary, and the first-order values that they improve on. With p the centre and r the radius:

**Least probability.** The odds against action a are multiplied by at most exp(G_a),

    G_a = sqrt((s_a r)^2 + L_a^2),   L_a = log(1 + |q (exp(s r) - 1)|),   q = p / (1 - p_a) off a,

so that log nu(a) >= log p_a - log(p_a + (1 - p_a) exp(G_a)). Proof: let t be the share of u at a and v the rest, so
t^2 + |v|^2 <= r^2. By convexity exp(s_b v_b) - 1 <= (|v_b| / |v|) (exp(s_b |v|) - 1), hence by Cauchy-Schwarz
sum_b q_b exp(s_b v_b) <= 1 + |q (exp(s |v|) - 1)|. The log of the right side, divided by |v|, rises with |v| (since
x (1 + x) log(1 + x) is convex in x^2, and the q_b^2 sum to at most 1), so it is at most L_a |v| / r, and
s_a t + L_a |v| / r <= G_a. For small r this is the first-order value; without scales it is never weaker than
-log(1 + (1 / p_a - 1) exp(sqrt(2) r)), what two logits moving apart can do.

**Largest divergence.** KL(pi || nu) = KL(pi || p) + (p - pi) delta + R(delta), where R, the log-sum-exp beyond its
linear part, does not depend on pi. With e(x) = exp(x) - 1 - x, and the likeliest token t, R is at most

- r^2 / 8 times the sum of the two largest squared scales: a variance is at most a quarter of the squared range;
- max_b p_b e(s_b r), from log(1 + x) <= x and e(x y) <= y^2 e(x) for 0 <= y <= 1;
- the sum over b other than t of p_b e(r sqrt(s_b^2 + s_t^2)), likewise with all logits relative to that of t;
- log(1 + |p (exp(s r) - 1)|) + r |s p|, by Cauchy-Schwarz as above.

KL to the pointwise minimum is a bound as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import log, sqrt
from typing import Literal, TypeAlias, get_args

import torch

from cautious_imitation.divergences import kl

Tensor = torch.Tensor

Bound: TypeAlias = Literal["guaranteed", "first-order"]


@dataclass(frozen=True, eq=False)
class LogitBall:
    """Next-action distributions whose logits lie in a ball, or an ellipsoid, around those of one prediction.

    Answers what ``PlausibleSet`` answers; torch tensors of one precision, on one device.

    Attributes:
        log_centre: ``[..., V]`` log-probabilities in nats; ``-inf`` for actions that no member allows.
        radius: ``[...]``, in logits (so in nats), or in multiples of ``scale``.
        scale: ``[V]`` or ``[..., V]``, positive: how far each token's logit reaches per unit of radius; None for 1.
        bound: ``"guaranteed"``: ``minimum`` is at most, ``worst_kl`` at least the true value over the ball.
            ``"first-order"``: both by the gradient at the centre, which guarantees nothing: the minimum is too high and
            the charge too low.

    Raises:
        ValueError: if shapes disagree, a radius is negative or not finite, a scale is not positive, or ``bound`` is
            neither.

    >>> ball = LogitBall(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor(0.5))
    >>> ball.minimum().exp()
    tensor([0.3474, 0.1838, 0.1173])
    >>> ball.worst_kl(torch.tensor([0.5, 0.3, 0.2]).log())
    tensor(0.0625)
    """

    log_centre: Tensor
    radius: Tensor
    scale: Tensor | None = None
    bound: Bound = "guaranteed"

    def __post_init__(self) -> None:
        shape = tuple(self.log_centre.shape)
        if tuple(self.radius.shape) != shape[:-1]:
            raise ValueError(
                f"radius must have shape {shape[:-1]} to go with log_centre {shape}, got {tuple(self.radius.shape)}"
            )
        if not bool(((self.radius >= 0) & (self.radius < torch.inf)).all()):
            raise ValueError(f"radius must be at least 0 and finite, got {_first_outside(self.radius, 0.0)}")
        if self.scale is not None:
            if tuple(self.scale.shape) not in (shape, shape[-1:]):
                raise ValueError(
                    f"scale must have shape {shape[-1:]} or {shape} to go with log_centre, got "
                    f"{tuple(self.scale.shape)}"
                )
            if not bool(((self.scale > 0) & (self.scale < torch.inf)).all()):
                raise ValueError(f"scale must be positive and finite, got {_first_outside(self.scale, 1e-300)}")
        if self.bound not in get_args(Bound):
            raise ValueError(f"bound must be one of {', '.join(get_args(Bound))}, got {self.bound!r}")

    @torch.no_grad()
    def minimum(self) -> Tensor:
        """Pointwise minimum over the ball, or what the bound makes of it: ``[..., V]`` log-probabilities in nats."""
        return self.log_centre - self._dropped[0]

    @torch.no_grad()
    def maximum(self) -> Tensor:
        """Largest probability of each action over the ball, or more: ``[..., V]`` log-probabilities in nats.

        Each is the first-order value, which no member exceeds, since a log-softmax is concave; at most 1.
        """
        rise = _first_order_drop(self._centre, self.radius[..., None], self.scale)
        return (self.log_centre + rise).clamp_(max=0.0)

    def worst_kl(self, log_pi: Tensor) -> Tensor:
        """max KL(pi || nu) over the ball, or what the bound makes of it, in nats: ``[...]`` for ``log_pi [..., V]``.

        Infinite where the policy uses an action that no member allows. Gradients flow to ``log_pi``.

        Raises:
            ValueError: if ``log_pi`` does not have the shape of the set's predictions.
        """
        self._check(log_pi, "log_pi")
        guaranteed = self.bound == "guaranteed"
        with torch.no_grad():
            p = self._centre.probabilities()
            if guaranteed:
                drop, log_raised = self._dropped
                beyond_linear = self._beyond_linear(self._centre, log_raised)
        pi = log_pi.exp()
        difference = p.sub_(pi)
        if self.scale is not None:
            difference = difference * self.scale
        rise: Tensor = self.radius * torch.linalg.vector_norm(difference, dim=-1)
        if guaranteed:
            # Without the part beyond the first order the other bound would never be less.
            rise = torch.minimum(rise + beyond_linear, _dot(pi, drop))
        divergence = _dot(pi, log_pi - self.log_centre)
        if not bool(divergence.isfinite().all()):
            # Somewhere 0 log 0, or an action that no member allows; telling them apart takes several more passes.
            divergence = kl(log_pi, self.log_centre)
        return divergence + rise

    @torch.no_grad()
    def contains(self, log_probs: Tensor, tolerance_nats: float = 1e-9) -> Tensor:
        """Whether the distribution ``log_probs [..., V]`` is a member, its logits within a tolerance.

        Raises:
            ValueError: if ``log_probs`` does not have the shape of the set's predictions.
        """
        self._check(log_probs, "log_probs")
        excluded, impossible = self.log_centre == -torch.inf, log_probs == -torch.inf
        both = ~(excluded | impossible)
        shift = torch.where(both, log_probs, 0.0) - torch.where(both, self.log_centre, 0.0)
        weights = both.to(shift.dtype) if self.scale is None else both / self.scale.square()
        # Logits are known up to a constant: the one that brings them closest.
        constant = (weights * shift).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
        distance = (weights * (shift - constant).square()).sum(-1).sqrt()
        return (distance <= self.radius + tolerance_nats) & (excluded == impossible).all(-1)

    def covers(self, log_tau: Tensor, tolerance_nats: float = 1e-9) -> Tensor:
        """Whether ``worst_kl(pi)`` bounds KL(pi || tau) for every pi: booleans ``[...]``; ``log_tau`` is ``[..., V]``.

        True for members of the ball. With the first-order bound only for the centre: who does as the centre does is
        charged nothing then.

        Raises:
            ValueError: if ``log_tau`` does not have the shape of the set's predictions.
        """
        self._check(log_tau, "log_tau")
        if self.bound == "first-order":
            return replace(self, radius=torch.zeros_like(self.radius)).contains(log_tau, tolerance_nats)
        return self.contains(log_tau, tolerance_nats)

    @cached_property
    def _centre(self) -> _Centre:
        return _Centre(self.log_centre)

    @cached_property
    @torch.no_grad()
    def _dropped(self) -> tuple[Tensor, Tensor]:
        """How far the minimum lies below the centre: ``[..., V]`` nats, at least 0; finite for excluded actions too.

        Also ``[..., 1]``: log(1 + |p (exp(s r) - 1)|), by how much raising logits can raise the log-sum-exp; 0 if the
        bound is of first order.
        """
        centre, radius = self._centre, self.radius[..., None]
        if self.bound == "first-order":
            return _first_order_drop(centre, radius, self.scale), torch.zeros_like(radius)
        if self.scale is None:
            raised = centre.off_norms().mul_(radius.expm1()).log1p_().clamp_(max=radius)
            norm = (centre.square + centre.top.square()).sqrt()
            in_all = torch.minimum((norm * radius.expm1()).log1p(), radius)
            own = radius
        else:
            own = self.scale * radius
            raised, in_all = _log_raised(_log_expm1(own).add_(self.log_centre), centre)
        return _drop_by_odds(centre, raised.square_().add_(own.square()).sqrt_()), in_all

    def _beyond_linear(self, centre: _Centre, log_raised: Tensor) -> Tensor:
        """Bound on R over the ball, see the module: ``[...]`` nats."""
        radius, top = self.radius[..., None], centre.top
        if self.scale is None:
            widest = torch.ones_like(radius).expand(*radius.shape[:-1], 2)
            by_token = top * _second_order(radius)
            by_pair = centre.rest * _second_order(sqrt(2) * radius)
            linear = (centre.square + top.square()).sqrt() * radius
        else:
            own = self.scale * radius
            p = centre.probabilities()
            scale = torch.where(self.log_centre > -torch.inf, self.scale, 0.0)
            widest = scale.topk(min(2, scale.shape[-1])).values
            relative = own.square().add_(own.gather(-1, centre.index).square()).sqrt_()
            by_token = _second_order(own).mul_(p).amax(-1, keepdim=True)
            by_pair = _second_order(relative).mul_(centre.others).sum(-1, keepdim=True)
            linear = torch.linalg.vector_norm(p.mul_(own), dim=-1, keepdim=True)
        squared_range = radius.square() * widest.square().sum(-1, keepdim=True)
        # Where exp overflows, these two say nothing.
        limit = log(torch.finfo(radius.dtype).max) - 1
        by_exp = torch.where(squared_range > limit**2, torch.inf, torch.minimum(by_token, by_pair))
        bounds = (squared_range / 8, by_exp, log_raised + linear)
        return torch.cat(bounds, dim=-1).amin(-1)

    def _check(self, values: Tensor, name: str) -> None:
        if values.shape != self.log_centre.shape:
            raise ValueError(
                f"{name} must have shape {tuple(self.log_centre.shape)}, got {tuple(values.shape)}; one row a context"
            )


class _Centre:
    """The centre's probabilities, and sums over all but the likeliest token, where rounding would lose differences.

    Attributes:
        index: ``[..., 1]``, the likeliest token.
        log_top: ``[..., 1]``, its log-probability, and ``top``, its probability.
        others: ``[..., V]``, the probabilities of the others; 0 for the likeliest.
        log_rest: ``[..., 1]``, the log of their sum, even where that is too little for exp, and ``rest``, their sum.
        square: ``[..., 1]``, the sum of their squares.
        not_token: ``[..., V]``, one minus the probability of each token.
    """

    def __init__(self, log_centre: Tensor) -> None:
        self.log_top, self.index = log_centre.max(-1, keepdim=True)
        self.top = self.log_top.exp()
        self.others = log_centre.exp().scatter_(-1, self.index, 0.0)
        self.rest = self.others.sum(-1, keepdim=True)
        self.square = torch.linalg.vector_norm(self.others, dim=-1, keepdim=True).square()
        self.not_token = (1 - self.others).scatter_(-1, self.index, self.rest)
        number = torch.finfo(log_centre.dtype)
        self.log_rest = self.rest.log()
        if not bool((self.rest > number.tiny / number.eps).all()):
            self.log_rest = log_centre.scatter(-1, self.index, -torch.inf).logsumexp(-1, keepdim=True)

    def probabilities(self) -> Tensor:
        """p, ``[..., V]``, a new tensor."""
        return self.others.scatter(-1, self.index, self.top)

    def off_norms(self) -> Tensor:
        """|q|, q being p given that it is not the token: ``[..., V]``, a new tensor."""
        norms = torch.addcmul(self.square + self.top.square(), self.others, self.others, value=-1).sqrt_()
        # Of nearly impossible tokens the squares vanish before they do; no norm is above 1.
        number = torch.finfo(norms.dtype)
        of_top = torch.where(self.square > number.tiny / number.eps**2, self.square.sqrt() / self.rest, 1.0)
        return norms.div_(self.not_token).scatter_(-1, self.index, of_top)


def _drop_by_odds(centre: _Centre, log_odds: Tensor) -> Tensor:
    """log(1 + (1 - p) (exp(G) - 1)), what each token loses if its odds fall by ``log_odds`` G: ``[..., V]`` nats.

    In the place of ``log_odds``: memory as wide as a vocabulary is used again where it can be, since taking new takes
    longer than the arithmetic.
    """
    if float(log_odds.amax()) < log(torch.finfo(log_odds.dtype).max) - 1:
        return log_odds.expm1_().mul_(centre.not_token).log1p_()
    of_top = torch.logaddexp(centre.log_top, centre.log_rest + log_odds.gather(-1, centre.index))
    kept = log_odds.neg().exp_()
    drop = torch.lerp(kept, torch.ones_like(kept), centre.not_token).log_().add_(log_odds)
    return drop.scatter_(-1, centre.index, of_top).clamp_(min=0)


def _first_order_drop(centre: _Centre, radius: Tensor, scale: Tensor | None) -> Tensor:
    """radius |s (e_a - p)|."""
    if scale is None:
        squares = centre.others.mul(-2).add_(1 + centre.square + centre.top.square())
        squares.scatter_(-1, centre.index, centre.rest.square() + centre.square)
        return squares.sqrt_().mul_(radius)
    scaled = scale * centre.others
    own_scale = scale.expand_as(scaled).gather(-1, centre.index)
    without_top = torch.linalg.vecdot(scaled, scaled).unsqueeze(-1)
    squares = without_top + (own_scale * centre.top).square() - scaled.square() + (scale - scaled).square()
    squares.scatter_(-1, centre.index, (own_scale * centre.rest).square() + without_top)
    drop: Tensor = squares.sqrt_().mul_(radius)
    return drop


def _log_raised(tokens: Tensor, centre: _Centre) -> tuple[Tensor, Tensor]:
    """L = log(1 + |q (exp(s r) - 1)|) from ``tokens``, the logs of p (exp(s r) - 1), which may be too large for exp.

    Also, ``[..., 1]``, the same of p instead of q. ``tokens`` are used up.
    """
    lowest = torch.finfo(tokens.dtype).min
    largest, index = tokens.max(-1, keepdim=True)
    largest.clamp_(min=lowest)
    squares = tokens.sub_(largest).exp_().square_().scatter_(-1, index, 0.0)
    without_largest = squares.sum(-1, keepdim=True)
    log_off = squares.neg_().add_(1 + without_largest).scatter_(-1, index, without_largest)
    log_off.log_().mul_(0.5).add_(largest)
    log_not = centre.not_token.log().scatter_(-1, centre.index, centre.log_rest.clamp(min=lowest))
    return _softplus(log_off.sub_(log_not)), _softplus(largest + 0.5 * without_largest.log1p())


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum of products over the last axis, without the products' memory."""
    return (x.unsqueeze(-2) @ y.unsqueeze(-1)).squeeze(-1).squeeze(-1)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), in double precision too, where the default gives up at 20."""
    result: Tensor = torch.nn.functional.softplus(x, threshold=40)
    return result


def _log_expm1(x: Tensor) -> Tensor:
    """log(exp(x) - 1) for x >= 0, without overflow: a new tensor."""
    return x.neg().expm1_().neg_().log_().add_(x)


def _second_order(x: Tensor) -> Tensor:
    """exp(x) - 1 - x for x >= 0; the largest number instead of infinity, so that nothing times it is nothing."""
    return x.expm1().clamp_(max=torch.finfo(x.dtype).max).sub_(x)


def _first_outside(values: Tensor, low: float) -> float:
    return float(values[~((values >= low) & (values < torch.inf))][0])
