"""Low-rank changes of one network's logits: K distributions a context, for the price of one pass over the vocabulary.

Every member changes the logits of a few thousand supported tokens one by one and shifts those of all others together.
So off the support members differ by one number each, and whatever is asked of all K of them needs the network's logits
once, K numbers a supported token, and K numbers for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cautious_imitation.divergences import kl
from cautious_imitation.plausible_sets import PlausibleSet

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class LogitAdapters:
    """K low-rank changes of the logits of S supported tokens, and of all others together.

    At features h, member k adds ``up[k] @ (down[k] @ h) + bias[k]`` to the logits: the first S entries to those of the
    supported tokens, the last one to those of all other tokens.

    Attributes:
        support: ``[S]`` long, the supported tokens in rising order.
        down: ``[K, r, d]``.
        up: ``[K, S + 1, r]``.
        bias: ``[K, S + 1]``.

    Raises:
        ValueError: if shapes disagree, values are not finite, or ``support`` does not rise from 0 or above.
    """

    support: Tensor
    down: Tensor
    up: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        check_support(self.support)
        if self.down.ndim != 3 or 0 in self.down.shape:
            raise ValueError(f"down must have shape [K, r, d], got {tuple(self.down.shape)}")
        n_members, rank, _ = self.down.shape
        wanted = (n_members, len(self.support) + 1, rank)
        for name, shape in (("up", wanted), ("bias", wanted[:2])):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} must have shape {shape} to go with support and down, got "
                    f"{tuple(getattr(self, name).shape)}"
                )
        for name in ("down", "up", "bias"):
            if not bool(getattr(self, name).isfinite().all()):
                raise ValueError(f"{name} must be finite, got NaN or infinity")

    def __len__(self) -> int:
        """K, the number of members."""
        return len(self.down)

    def to(self, device: torch.device, dtype: torch.dtype) -> LogitAdapters:
        """The same adapters elsewhere, or in another precision."""
        changes = (values.to(device, dtype) for values in (self.down, self.up, self.bias))
        return LogitAdapters(self.support.to(device), *changes)

    @torch.no_grad()
    def at(self, features: Tensor, logits: Tensor, given: Tensor | None = None) -> AdaptedLogits:
        """What the members predict.

        Args:
            features: ``[..., d]``.
            logits: ``[..., V]`` of the network at these features.
            given: ``[..., V]`` or ``[V]`` booleans: members predict conditionally on the next token being among these.
                None for all tokens.

        Raises:
            ValueError: if ``given`` leaves no token in some context.
        """
        if given is not None:
            given = given.to(logits.device)
            if not bool(given.any(-1).all()):
                raise ValueError("given must leave at least one action in every context, got a context with none")
            logits = logits.masked_fill(~given, -torch.inf)
        shape, n_members = features.shape[:-1], len(self)
        flat = features.reshape(-1, features.shape[-1])
        low = (flat @ self.down.flatten(0, 1).T).reshape(len(flat), n_members, -1).transpose(0, 1)
        changes = torch.baddbmm(self.bias[:, None], low, self.up.transpose(1, 2))
        changes = changes.transpose(0, 1).reshape(*shape, n_members, -1)
        on_support = logits.index_select(-1, self.support)
        # Summed without the support rather than by subtracting it: what is left may be tiny.
        log_rest = _consumed_logsumexp(logits.index_fill(-1, self.support, -torch.inf))
        among = torch.cat([on_support, log_rest[..., None]], dim=-1)
        # Normalised, so that ratios are small and what rounding leaves of a mass times a ratio is no charge.
        log_total = among.logsumexp(-1, keepdim=True)
        logits, among, log_rest = logits - log_total, among.sub_(log_total), log_rest - log_total[..., 0]
        log_totals = _consumed_logsumexp(changes + among[..., None, :])
        log_ratios = changes.sub_(log_totals[..., None])
        everyone = torch.ones((*shape, n_members), dtype=torch.bool, device=logits.device)
        return AdaptedLogits(logits, self.support, log_ratios, log_rest, everyone)


@dataclass(frozen=True, eq=False)
class AdaptedLogits:
    """What K members predict at each context, in as few numbers as possible; those plausible are a plausible set.

    It answers the questions that are asked of a ``PlausibleSet`` of points without the points: log nu_k(a) is
    ``logits`` plus the member's log-ratio, that of the token on the support and the last one off it.

    Attributes:
        logits: ``[..., V]`` log-probabilities of the network in nats, ``-inf`` where a token is excluded.
        support: ``[S]`` long.
        log_ratios: ``[..., K, S + 1]`` in nats, finite.
        log_rest: ``[...]``, log of the network's probability of the tokens off the support, in nats.
        plausible: ``[..., K]`` booleans.
    """

    logits: Tensor
    support: Tensor
    log_ratios: Tensor
    log_rest: Tensor
    plausible: Tensor

    def among(self, members: Tensor) -> AdaptedLogits:
        """The same with the plausible ones marked, ``[K]`` or ``[..., K]`` booleans."""
        return replace(self, plausible=members.to(self.plausible.device).expand(self.plausible.shape).clone())

    @property
    def log_centres(self) -> Tensor:
        """All members' log-probabilities in nats, plausible or not: ``[..., K, V]``, K times the vocabulary."""
        return self._spread(self.log_ratios)

    @property
    def radii_nats(self) -> Tensor:
        """Zeros ``[..., K]``: members are single distributions."""
        return torch.zeros_like(self.log_ratios[..., 0])

    def mixture(self, log_weights: Tensor) -> Tensor:
        """Mixture of all members, plausible or not, with ``log_weights [K]``: ``[..., V]`` log-probabilities."""
        return self._spread((self.log_ratios + log_weights[:, None]).logsumexp(-2))

    def minimum(self) -> Tensor:
        """Least probability of each token over the plausible members: ``[..., V]`` log-probabilities in nats."""
        return self._spread(self._least_ratios())

    def maximum(self) -> Tensor:
        """Largest probability of each token over the plausible members: ``[..., V]`` log-probabilities in nats."""
        return self._spread(self.log_ratios.masked_fill(~self.plausible[..., None], -torch.inf).amax(-2))

    def minimum_and_ask(self) -> tuple[Tensor, Tensor]:
        """The minimum and the log-probability of asking that it leaves, ``[...]``; see ``wide_minimum``.

        A probability of asking below the rounding of the log-probabilities is rounding; where none is left, ``-inf``.
        """
        least = self._least_ratios()
        on_support = self.logits.index_select(-1, self.support)
        mass = (on_support + least[..., :-1]).exp().sum(-1) + (self.log_rest + least[..., -1]).exp()
        return self._spread(least), torch.log1p(-mass.clamp(max=1.0))

    def worst_kl(self, log_pi: Tensor) -> Tensor:
        """Largest KL(pi || nu) over the plausible members, in nats, shape ``[...]``; gradients flow to ``log_pi``.

        Raises:
            ValueError: if ``log_pi`` does not have the shape ``[..., V]`` of the predictions.
        """
        if log_pi.shape != self.logits.shape:
            raise ValueError(f"log_pi must have shape {tuple(self.logits.shape)}, got {tuple(log_pi.shape)}")
        pi = log_pi.exp()
        base: Tensor = torch.linalg.vecdot(pi, log_pi - self.logits)
        if not bool(base.isfinite().all()):
            # Somewhere 0 log 0, or a forbidden token; telling them apart takes several more passes.
            base = kl(log_pi, self.logits)
        on_support = pi.index_select(-1, self.support)
        off_support = pi.sum(-1) - on_support.sum(-1)
        gains = (self.log_ratios @ torch.cat([on_support, off_support[..., None]], dim=-1)[..., None]).squeeze(-1)
        charges = base[..., None] - gains
        worst: Tensor = charges.masked_fill(~self.plausible, -torch.inf).amax(-1)
        return worst

    def log_likelihoods(self, symbols: Tensor) -> Tensor:
        """Log-probability of ``symbols [...]`` under each member: ``[..., K]`` in nats."""
        symbols = symbols.to(self.logits.device)
        places = places_in(self.support, symbols)[..., None, None]
        ratios = self.log_ratios.gather(-1, places.expand(*self.plausible.shape, 1)).squeeze(-1)
        return self.logits.gather(-1, symbols[..., None]) + ratios

    def contains(self, log_probs: Tensor, tolerance_nats: float = 1e-9) -> Tensor:
        """Whether the distribution ``log_probs [..., V]`` is a plausible member; see ``PlausibleSet.contains``."""
        answer: Tensor = self._points().contains(log_probs, tolerance_nats)
        return answer

    def covers(self, log_tau: Tensor, tolerance_nats: float = 1e-9) -> Tensor:
        """Whether ``worst_kl(pi)`` bounds KL(pi || tau) for every pi; see ``PlausibleSet.covers``."""
        answer: Tensor = self._points().covers(log_tau, tolerance_nats)
        return answer

    def _points(self) -> PlausibleSet:
        return PlausibleSet.points(self.log_centres, self.plausible)

    def _least_ratios(self) -> Tensor:
        if bool(self.plausible.all()):
            return self.log_ratios.amin(-2)
        return self.log_ratios.masked_fill(~self.plausible[..., None], torch.inf).amin(-2)

    def _spread(self, ratios: Tensor) -> Tensor:
        """``logits`` plus ``ratios [..., S + 1]``, or ``[..., K, S + 1]``, each where it belongs."""
        logits = self.logits if ratios.ndim == self.logits.ndim else self.logits[..., None, :]
        on_support = logits.index_select(-1, self.support) + ratios[..., :-1]
        return (logits + ratios[..., -1:]).index_copy_(-1, self.support, on_support)


def _consumed_logsumexp(values: Tensor) -> Tensor:
    """logsumexp over the last axis in place of ``values``; half the time of the one that needs room of its own."""
    largest = values.amax(-1, keepdim=True)
    largest = largest.masked_fill_(largest == -torch.inf, 0.0)
    return values.sub_(largest).exp_().sum(-1).log_().add_(largest.squeeze(-1))


def check_support(support: Tensor, n_symbols: int | None = None) -> Tensor:
    """Return ``support`` if it is a rising list of tokens, below ``n_symbols`` if that is given; raise otherwise."""
    if support.ndim != 1 or not len(support) or support.dtype != torch.long:
        raise ValueError(
            f"support must hold at least one token in one dimension, got shape {tuple(support.shape)} of "
            f"{support.dtype}"
        )
    if int(support[0]) < 0 or not bool((support.diff() > 0).all()):
        raise ValueError("support must hold tokens >= 0 in rising order, each once; sort it")
    if n_symbols is not None and int(support[-1]) >= n_symbols:
        raise ValueError(f"support must hold tokens in 0..{n_symbols - 1}, which the model can say, got {support[-1]}")
    return support


def places_in(support: Tensor, symbols: Tensor) -> Tensor:
    """Where each of ``symbols [...]`` stands in the rising ``support [S]``; S for those that do not."""
    places = torch.searchsorted(support, symbols).clamp(max=len(support) - 1)
    return torch.where(support[places] == symbols, places, len(support))
