"""Plausible sets of next-action distributions that are drawn in two steps: an event, then an action within it.

A set is a product: any plausible distribution over events, and for each event any plausible distribution within it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from cautious_imitation.borrowed_arrays import borrowed
from cautious_imitation.divergences import kl
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.union_kernels import union_worst_kl
from cautious_imitation.vector_math import padded

Tensor = torch.Tensor

Floats: TypeAlias = NDArray[np.float64]


class TorchSet(Protocol):
    """What is asked of a set of distributions over actions, in torch; ``PlausibleSet`` answers, too."""

    def minimum(self) -> Tensor:
        """Pointwise minimum ``[..., V]`` in nats."""

    def maximum(self) -> Tensor:
        """Largest probability of each action ``[..., V]`` in nats."""

    def worst_kl(self, log_pi: Tensor, /) -> Tensor:
        """Largest KL(pi || nu) ``[...]`` in nats."""

    def contains(self, log_probs: Tensor, tolerance_nats: float, /) -> Tensor:
        """Whether a distribution is in the set, ``[...]``."""

    def covers(self, log_tau: Tensor, tolerance_nats: float, /) -> Tensor:
        """Whether ``worst_kl`` bounds KL(pi || tau) for every pi, ``[...]``."""


@dataclass(frozen=True)
class SingleAction:
    """All there is within an event of one action: it is done with probability one."""

    def minimum(self) -> Tensor:
        """log 1, for any number of contexts."""
        return torch.zeros(())

    maximum = minimum

    def worst_kl(self, log_pi: Tensor) -> Tensor:
        """0 nats."""
        return torch.zeros_like(log_pi[..., 0])

    def contains(self, log_probs: Tensor, tolerance_nats: float = 1e-9) -> Tensor:
        """True."""
        return torch.ones_like(log_probs[..., 0], dtype=torch.bool)

    covers = contains


@dataclass(frozen=True, eq=False)
class EventPart:
    """The contexts of one kind: the same events are possible at all n of them.

    Attributes:
        rows: ``[n]``, which contexts they are.
        members: ``[E, V]`` booleans, the actions of each event; every action has one.
        tree: the plausible distributions over the E events, in NumPy; None if E is 1.
        within: for each event the plausible distributions over its actions, others having probability 0.
    """

    rows: Tensor
    members: Tensor
    tree: PlausibleSet | None
    within: tuple[TorchSet, ...]


@dataclass(frozen=True, eq=False)
class EventSet:
    """The plausible distributions at N contexts, as ``EventRefined`` has them.

    Attributes:
        parts: the contexts by their kind.
        shape: ``[...]``, the shape that the N contexts have together.
        dtype: precision of the language model's predictions.
    """

    parts: tuple[EventPart, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def minimum(self) -> Tensor:
        """Pointwise minimum: ``[..., V]`` log-probabilities in nats; exact, the least event times the least within."""
        return self._extreme("minimum")

    def maximum(self) -> Tensor:
        """Largest probabilities ``[..., V]`` in nats, the likeliest event times the most within; may sum to over 1."""
        return self._extreme("maximum")

    def _extreme(self, which: Literal["minimum", "maximum"]) -> Tensor:
        def of(part: EventPart) -> Tensor:
            within = [getattr(known, which)() for known in part.within]
            if part.tree is None:
                alone: Tensor = within[0]
                return alone
            of_events = as_torch(getattr(part.tree, which)(), part.rows.device, self.dtype)
            return joined(of_events, within, part.members)

        return self._gathered(of)

    def worst_kl(self, log_pi: Tensor) -> Tensor:
        """Largest KL(pi || nu) over the set, in nats, shape ``[...]``; ``log_pi`` is ``[..., V]`` log-probabilities.

        By the chain rule it is the largest KL of the events and, weighed by how often pi makes each event happen, the
        largest KL within it. Gradients flow to ``log_pi``, the worst member held fixed: those of a maximum.

        Raises:
            ValueError: if ``log_pi`` does not have the shape of the set's predictions.
        """

        def of(part: EventPart, log_pi: Tensor) -> Tensor:
            if part.tree is None:
                return part.within[0].worst_kl(log_pi)
            log_events, conditionals = split(log_pi, part.members)
            total = _worst_event_kl(part.tree, log_events)
            for known, log_event, conditional in zip(part.within, log_events.unbind(-1), conditionals, strict=True):
                charge = known.worst_kl(conditional)
                # 0 times infinity is 0 where the event never happens, and infinity where 0 is a rounded probability.
                weighed = torch.where(charge == torch.inf, torch.inf, log_event.exp() * charge)
                total = total + torch.where(log_event > -torch.inf, weighed, 0.0)
            return total

        return self._gathered(of, log_pi, "log_pi")

    def contains(self, log_probs: Tensor, tolerance_nats: float = 1e-9) -> Tensor:
        """Whether the distribution ``log_probs [..., V]`` is in the set: booleans ``[...]``."""
        return self._all(log_probs, "log_probs", "contains", tolerance_nats)

    def covers(self, log_tau: Tensor, tolerance_nats: float = 1e-9) -> Tensor:
        """Whether ``worst_kl(pi)`` bounds KL(pi || tau) for every pi: booleans ``[...]``; ``log_tau`` is ``[..., V]``.

        True where the sets of events and within each event cover what tau does there.
        """
        return self._all(log_tau, "log_tau", "covers", tolerance_nats)

    def _all(self, log_probs: Tensor, name: str, question: str, tolerance_nats: float) -> Tensor:
        """Whether every factor answers yes; one within an event that never happens need not."""

        def of(part: EventPart, log_probs: Tensor) -> Tensor:
            if part.tree is None:
                certain: Tensor = getattr(part.within[0], question)(log_probs, tolerance_nats)
                return certain
            log_events, conditionals = split(log_probs, part.members)
            asked = getattr(part.tree, question)(as_numpy(log_events), tolerance_nats)
            answer = torch.from_numpy(np.asarray(asked)).to(log_probs.device)
            for known, log_event, conditional in zip(part.within, log_events.unbind(-1), conditionals, strict=True):
                answer = answer & (getattr(known, question)(conditional, tolerance_nats) | (log_event == -torch.inf))
            return answer

        return self._gathered(of, log_probs, name)

    def _gathered(self, of: Callable[..., Tensor], values: Tensor | None = None, name: str = "") -> Tensor:
        """What ``of`` says about each part, and where given about its rows of ``values``, in the contexts' order."""
        if values is None:
            pieces = [of(part) for part in self.parts]
        else:
            wanted = (*self.shape, self.parts[0].members.shape[-1])
            if tuple(values.shape) != wanted:
                raise ValueError(f"{name} must have shape {wanted}, got {tuple(values.shape)}")
            flat = values.reshape(-1, wanted[-1])
            pieces = [of(part, flat[part.rows]) for part in self.parts]
        return in_order(pieces, [part.rows for part in self.parts], self.shape)


def joined(log_events: Tensor, within: Sequence[Tensor], members: Tensor) -> Tensor:
    """Put (sub-)distributions over events and within each event together: ``[n, V]`` log-probabilities in nats.

    Args:
        log_events: ``[n, E]``.
        within: ``[n, V]`` for each event; only its own actions count.
        members: ``[E, V]`` booleans, the actions of each event.
    """
    together = log_events.new_full((), -torch.inf)
    for member, log_event, inside in zip(members, log_events.unbind(-1), within, strict=True):
        together = torch.where(member, log_event[:, None] + inside, together)
    return together


def in_order(pieces: Sequence[Tensor], rows: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Answers ``[n, ...]`` about contexts ``rows [n]``, put in the contexts' order and their ``shape``."""
    together = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))[torch.cat(list(rows)).argsort()]
    return together.reshape((*shape, *together.shape[1:]))


def split(log_probs: Tensor, members: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Take distributions apart: probabilities of the events, and of the actions given each event.

    Args:
        log_probs: ``[n, V]`` in nats.
        members: ``[E, V]`` booleans, the actions of each event.

    Returns:
        ``(log_events [n, E], E conditionals [n, V])``. Given an event that never happens the conditional is uniform.
    """
    log_events, conditionals = [], []
    for member in members:
        happens = (member & (log_probs > -torch.inf)).any(-1)
        # A sum over nothing has no gradient, hence numbers of no consequence where the event never happens.
        within = torch.where(member, torch.where(happens[:, None], log_probs, 0.0), -torch.inf)
        log_mass = within.logsumexp(-1)
        log_events.append(torch.where(happens, log_mass, -torch.inf))
        conditionals.append(within - log_mass[:, None])
    return torch.stack(log_events, dim=-1), conditionals


# Context trees live in NumPy. What crosses over is a few numbers a context, one for each event, never a whole
# prediction; these functions are where it does.


def as_numpy(values: Tensor) -> Floats:
    """A copy on the host, in double precision, without gradient."""
    copied: Floats = values.detach().cpu().double().numpy()
    return copied


def as_torch(values: Floats, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor where the language model's predictions are, and as precise."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)


def _worst_event_kl(tree: PlausibleSet, log_pi: Tensor) -> Tensor:
    """max KL(pi || theta) over the tree's distributions of events, ``[n]`` nats; ``log_pi`` is ``[n, E]``.

    ``PlausibleSet.worst_kl`` has the same value and no gradient: hence by the maximiser, which is held fixed.
    """
    log_worst = _worst_members(*tree.flat(), np.exp(as_numpy(log_pi)))
    charge: Tensor = kl(log_pi, as_torch(log_worst, log_pi.device, log_pi.dtype))
    return charge


@njit(cache=True, nogil=True, error_model="numpy")
def _worst_members(log_p: Floats, p: Floats, radii: Floats, plausible: NDArray[np.bool_], pi: Floats) -> Floats:
    """The log of the member that is worst for each of ``pi [n, E]``, ``-inf`` throughout where KL is infinite."""
    scratch = np.empty((3, padded(p.shape[2])))
    out = np.empty((p.shape[0], p.shape[2]))
    log_p, p, radii = borrowed(log_p), borrowed(p), borrowed(radii)
    plausible, pi = borrowed(plausible), borrowed(pi)
    for i in range(p.shape[0]):
        worst = union_worst_kl(log_p[i], p[i], radii[i], plausible[i], pi[i], scratch[0], scratch[1], scratch[2])
        for a in range(p.shape[2]):
            out[i, a] = scratch[2, a] if worst < np.inf else -np.inf
    return out
