"""How far along the segment between two policies a charge can be paid: safeguarded Newton, all contexts at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.autograd.function import once_differentiable

Tensor = torch.Tensor

_Point: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Share, extra charge and its derivative, ``[...]`` each."""

_MAX_STEPS = 40
_LARGEST_LOG_RATIO = 600.0
_JUST_ABOVE_IMPOSSIBLE = -1 + 2.0**-53


def mixture(log_base: Tensor, log_adjusted: Tensor, share: Tensor) -> Tensor:
    """log((1 - s) base + s adjusted), ``[..., V]``; at s = 0 and s = 1 exactly the one and the other."""
    share = share[..., None]
    return torch.logaddexp(log_base + torch.log1p(-share), log_adjusted + share.log())


def relative(log_probs: Tensor, log_pi: Tensor) -> Tensor:
    """exp(log_probs - log_pi), 0 where pi is 0: ``[..., V]``."""
    return torch.where(log_pi > -torch.inf, log_probs - log_pi, -torch.inf).exp()


def share_by_base(log_base: Tensor, log_adjusted: Tensor, spare: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Largest share whose KL to the base is at most ``spare``; None where doubles do not reach so far."""
    # Pieces that stay in a processor's cache take half the time; a GPU wants them large.
    n_elements = 2**18 if log_base.device.type == "cpu" else 2**24
    rows = (log_base.reshape(-1, log_base.shape[-1]), log_adjusted.reshape(-1, log_base.shape[-1]), spare.reshape(-1))
    at_once = max(1, n_elements // log_base.shape[-1])
    pieces = []
    for log_b, log_a, left in zip(*(torch.split(tensor, at_once) for tensor in rows), strict=True):
        departure = _Departure(log_b.double(), log_a.double())
        if departure.too_wide:
            return None
        # The base is the cheapest: who has nothing to spare stays there.
        pieces.append(_search(departure, left, left > 0, left * _relative_width(log_base.dtype)))
    share, extra, slope = (torch.cat(piece).reshape(spare.shape) for piece in zip(*pieces, strict=True))
    return share, extra, slope


class _Departure:
    """KL of the mixtures on a segment ``[n, V]`` to where it begins, and its derivative, at one share a row."""

    def __init__(self, log_base: Tensor, log_adjusted: Tensor) -> None:
        log_ratio = log_adjusted - log_base
        largest = log_ratio.amax(-1)
        if bool(largest.isnan().any()):
            # An action that neither takes is -inf - -inf; looked for only then, since that takes several passes.
            log_ratio = torch.where(log_adjusted == -torch.inf, log_adjusted, log_ratio)
            largest = log_ratio.amax(-1)
        self._forbidden = largest == torch.inf
        self.too_wide = bool(((largest > _LARGEST_LOG_RATIO) & ~self._forbidden).any())
        self._excess = log_ratio.expm1_()
        self._base = log_base.exp()
        self._difference = self._base * self._excess
        self._mass = self._difference.sum(-1)
        self._room = torch.empty_like(self._base)

    def __call__(self, share: Tensor) -> tuple[Tensor, Tensor]:
        log_rise = torch.mul(self._excess, share[:, None], out=self._room)
        log_rise.clamp_(min=_JUST_ABOVE_IMPOSSIBLE).log1p_()
        slope = torch.linalg.vecdot(self._difference, log_rise)
        divergence = torch.linalg.vecdot(self._base, log_rise) + share * (slope - self._mass)
        return torch.where(self._forbidden, torch.inf, divergence), slope


def share_by_charge(
    charge_of: Callable[[Tensor], Tensor],
    log_base: Tensor,
    log_adjusted: Tensor,
    spare: Tensor,
    base_nats: Tensor,
    to_spend: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest share whose charge is at most what is to be spent, asking for one charge a step."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "spend needs the gradient of charge_of, which inference mode does not give; use torch.no_grad() instead"
        )

    def evaluate(share: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = share.to(log_base.dtype).requires_grad_()
            charge = charge_of(_Segment.apply(log_base, log_adjusted, at))  # type: ignore[no-untyped-call]
            if not charge.requires_grad:
                return charge.double() - base_nats, torch.zeros_like(base_nats)
            (slope,) = torch.autograd.grad(charge.sum(), at)
        return charge.detach().double() - base_nats, slope.double()

    width = to_spend * _relative_width(log_base.dtype)
    if log_base.dtype != torch.float64:
        # A charge is then a sum of rounded terms, which are about 1 even where the sum is small.
        width = 10 * width + 4 * torch.finfo(log_base.dtype).eps
    return _search(evaluate, spare, (spare >= 0) & (to_spend > 0), width, log_base.dtype)


class _Segment(torch.autograd.Function):
    """The mixture with a gradient in the share alone."""

    @staticmethod
    def forward(ctx: Any, log_base: Tensor, log_adjusted: Tensor, share: Tensor) -> Tensor:
        log_pi = mixture(log_base, log_adjusted, share)
        ctx.save_for_backward(log_base, log_adjusted, log_pi)
        return log_pi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_pi: Tensor) -> Any:
        log_base, log_adjusted, log_pi = ctx.saved_tensors
        direction = relative(log_adjusted, log_pi) - relative(log_base, log_pi)
        return None, None, torch.linalg.vecdot(of_log_pi, direction)


def _relative_width(dtype: torch.dtype) -> float:
    """How much less than what is to be spent is near enough."""
    return 1e-11 if dtype == torch.float64 else 4e-7


def _search(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    spare: Tensor,
    payable: Tensor,
    width: Tensor,
    dtype: torch.dtype = torch.float64,
) -> _Point:
    """Largest share s in [0, 1] with extra(s) <= spare, from the left: what is returned was evaluated and is payable.

    Newton's method for log extra in log s, exact for any power, kept within a bracket whose lower end can be paid for
    and whose upper end cannot. If extra is not convex, it is a crossing. A context that has arrived takes no further
    steps, so what it gets does not depend on the others.

    Args:
        evaluate: from shares ``[...]`` to the extra charge and its derivative; extra(0) = 0.
        spare: ``[...]`` nats.
        payable: ``[...]``, where there is anything to look for; elsewhere the share is 0.
        width: ``[...]`` nats, near enough from below.
        dtype: precision of the shares.

    Returns:
        ``(share, extra, slope)``, ``[...]`` each.

    Raises:
        ValueError: if the charge of the adjusted policy is not a number.
    """
    share, nothing = torch.ones_like(spare), torch.zeros_like(spare)
    extra, slope = evaluate(share)
    if bool((payable & extra.isnan()).any()):
        raise ValueError("log_adjusted must hold log-probabilities with a charge, got one that is not a number")
    at = too_far = (share, extra, slope)
    whole = payable & (extra <= spare)
    enough = _where(whole, at, (nothing, nothing, nothing))
    # An infinite charge of the adjusted policy is one of every mixture with it.
    searching = payable & ~whole & extra.isfinite()
    aim = spare - torch.minimum(width, spare) / 2
    for step in range(_MAX_STEPS):
        if not bool(searching.any()):
            break
        share = (enough[0] + too_far[0]) / 2 if step % 8 == 7 else _next(at, aim, enough, too_far)
        share = share.to(dtype).double()
        extra, slope = evaluate(share)
        at, reached = (share, extra, slope), searching & (extra <= spare)
        enough = _where(reached, at, enough)
        too_far = _where(searching & ~reached, at, too_far)
        near = reached & (extra >= spare - width)
        searching = searching & ~near & (too_far[0] - enough[0] > 2 * torch.finfo(dtype).eps * too_far[0])
    return enough


def _where(chosen: Tensor, these: _Point, those: _Point) -> _Point:
    share, extra, slope = (torch.where(chosen, a, b) for a, b in zip(these, those, strict=True))
    return share, extra, slope


def _next(at: _Point, aim: Tensor, enough: _Point, too_far: _Point) -> Tensor:
    """The next share to try, strictly within the bracket."""
    (share, extra, slope), (low, low_extra, low_slope), (high, high_extra, high_slope) = at, enough, too_far
    rises = (extra > 0) & (aim > 0) & (slope > 0)
    power = share * (aim / extra).pow(extra / (share * slope))
    # A convex function is above its tangents and below its chords.
    tangent = share - (extra - aim) / slope
    chord = low + (high - low) * (aim - low_extra) / (high_extra - low_extra)
    tried = torch.maximum(torch.where(rises, torch.minimum(power, tangent), tangent), chord)
    # Where the charge falls before it rises it is no power of the share.
    ceiling = high - (high_extra - aim) / high_slope
    tried = torch.where(low_slope < 0, ceiling, torch.minimum(tried, ceiling))
    return torch.where((tried > low) & (tried < high), tried, (low + high) / 2)
