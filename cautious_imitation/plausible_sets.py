"""Sets of plausible next-action distributions, and the questions asked of them.

Every set is, at each context, a union of members; a member is a KL ball {theta: KL(centre || theta) <= radius}. Radius
0 is a single distribution (a hypothesis of a finite class), a positive radius a leaf whose parameters are not known
exactly, an infinite one a leaf that was never seen. Theory: docs/theory.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from cautious_imitation.divergences import kl
from cautious_imitation.types import Array

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PlausibleSet:
    """A union of KL balls around next-action distributions, one union a context.

    Attributes:
        log_centres: ``[..., M, V]`` log-probabilities in nats of the members' centres. A member of radius 0 may be a
            sub-distribution.
        radii_nats: ``[..., M]``; 0 is a single distribution, ``inf`` the whole simplex.
        plausible: ``[..., M]`` booleans: which members belong to the set at each context.

    NumPy arrays or torch tensors; positive radii need NumPy.

    >>> coin = PlausibleSet.points(np.log([[[0.5, 0.5], [0.9, 0.1]]]))
    >>> np.exp(coin.minimum()).round(3)
    array([[0.5, 0.1]])
    >>> coin.worst_kl(np.log([[0.5, 0.5]])).round(3)
    array([0.511])
    """

    log_centres: Array
    radii_nats: Array
    plausible: Array

    def __post_init__(self) -> None:
        shape = tuple(self.log_centres.shape[:-1])
        for name in ("radii_nats", "plausible"):
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"{name} must have shape {shape} to go with log_centres, got {got}")
        xp = array_namespace(self.log_centres, self.radii_nats, self.plausible)
        if not bool(xp.all(self.radii_nats >= 0)):
            raise ValueError(f"radii_nats must be at least 0, got {float(xp.min(self.radii_nats))}; inf is allowed")
        if not bool(xp.all(xp.any(self.plausible, axis=-1))):
            raise ValueError("plausible must mark at least one member in every context, got a context without any")

    @classmethod
    def points(cls, log_probs: Array, plausible: Array | None = None) -> PlausibleSet:
        """Members that are single distributions, ``log_probs [..., M, V]``; all of them plausible without a mask."""
        xp = array_namespace(log_probs)
        radii = xp.zeros_like(log_probs[..., 0])
        return cls(log_probs, radii, xp.isfinite(radii) if plausible is None else plausible)

    def minimum(self) -> Array:
        """Pointwise minimum over the set: ``[..., V]`` log-probabilities in nats (a sub-distribution)."""
        if not self._has_balls():
            xp = array_namespace(self.log_centres)
            mask = self.plausible[..., None]
            return xp.min(xp.where(mask, self.log_centres, xp.zeros_like(self.log_centres)), axis=-2)
        from cautious_imitation.batch_kernels import batch_minimum

        _, p, radii, mask = self.flat()
        with np.errstate(divide="ignore"):
            return np.log(batch_minimum(p, radii, mask)).reshape((*self._shape(), p.shape[-1]))

    def maximum(self) -> Array:
        """Largest probability of each action over the set: ``[..., V]`` logs in nats; together they may exceed 1."""
        if not self._has_balls():
            xp = array_namespace(self.log_centres)
            return xp.max(xp.where(self.plausible[..., None], self.log_centres, -xp.inf), axis=-2)
        from cautious_imitation.batch_kernels import batch_minimum

        _, p, radii, mask = self.flat()
        # Seen as "this action or another" a ball is as large, so the most of one is what the least of the other leaves.
        least_of_others = batch_minimum(np.maximum(1.0 - p, 0.0), radii, mask)
        with np.errstate(divide="ignore"):
            return np.log1p(-least_of_others).reshape((*self._shape(), p.shape[-1]))

    def worst_kl(self, log_pi: Array) -> Array:
        """max KL(pi || nu) over the set, in nats, shape ``[...]``; ``log_pi`` is ``[..., V]`` log-probabilities.

        Raises:
            ValueError: if ``log_pi`` does not have the shape of the set's predictions.
        """
        self._check(log_pi, "log_pi")
        if not self._has_balls():
            xp = array_namespace(log_pi, self.log_centres)
            charges = kl(log_pi[..., None, :], self.log_centres)
            return xp.max(xp.where(self.plausible, charges, xp.zeros_like(charges)), axis=-1)
        from cautious_imitation.batch_kernels import batch_worst_kl

        flat_pi = np.exp(np.asarray(log_pi, dtype=np.float64)).reshape(-1, log_pi.shape[-1])
        return batch_worst_kl(*self.flat(), flat_pi).reshape(self._shape())

    def contains(self, log_probs: Array, tolerance_nats: float = 1e-9) -> Array:
        """Whether the distribution ``log_probs [..., V]`` lies in the set (one of its balls): booleans ``[...]``."""
        self._check(log_probs, "log_probs")
        xp = array_namespace(log_probs, self.log_centres)
        distance = kl(self.log_centres, log_probs[..., None, :])
        # A sub-distribution is no ball: its KL to a distribution may be negative however far apart they are.
        whole = xp.sum(xp.exp(self.log_centres), axis=-1) >= 1 - tolerance_nats
        return xp.any(self.plausible & whole & (distance <= self.radii_nats + tolerance_nats), axis=-1)

    def covers(self, log_tau: Array, tolerance_nats: float = 1e-9) -> Array:
        """Whether ``worst_kl(pi)`` bounds KL(pi || tau) for every pi: booleans ``[...]``; ``log_tau`` is ``[..., V]``.

        True where tau lies in one of the set's balls, or where a member is at most tau action by action.
        """
        self._check(log_tau, "log_tau")
        xp = array_namespace(log_tau, self.log_centres)
        below = xp.all(self.log_centres <= log_tau[..., None, :] + tolerance_nats, axis=-1)
        return self.contains(log_tau, tolerance_nats) | xp.any(self.plausible & below, axis=-1)

    def best_response(self, q_values: Array, multiplier: float) -> tuple[Array, Array]:
        """The policy that maximises pi.Q - multiplier * worst_kl(pi).

        Exact for one ball, and for any number of single distributions. For several balls it is close to the best, and
        its charge is still the exact worst case over all.

        Args:
            q_values: ``[..., V]`` action values, NumPy.
            multiplier: price of a nat, positive.

        Returns:
            ``(log_pi [..., V], charge_nats [...])``; the charge is infinite, and the row of the policy ``-inf``, where
            no policy has a finite charge.

        Raises:
            ValueError: if the multiplier is not positive or shapes disagree.
        """
        self._check(q_values, "q_values")
        if not multiplier > 0:
            raise ValueError(f"multiplier must be positive, got {multiplier!r}; it is the price of one nat")
        from cautious_imitation.batch_kernels import batch_best_response

        log_p, p, radii, mask = self.flat()
        gain = np.ascontiguousarray(q_values, dtype=np.float64).reshape(-1, p.shape[-1]) / multiplier
        pi, charge = batch_best_response(log_p, p, radii, mask, gain)
        with np.errstate(divide="ignore"):
            return np.log(pi).reshape(q_values.shape), charge.reshape(self._shape())

    def flat(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Contiguous NumPy ``(log_centres [N, M, V], centres, radii [N, M], plausible [N, M])`` for compiled code.

        Raises:
            TypeError: if the set holds torch tensors; nothing is converted silently.
        """
        if not is_numpy_array(self.log_centres):
            raise TypeError(
                f"this needs NumPy arrays, got {type(self.log_centres).__name__}; build the set from "
                "tensor.detach().cpu().numpy()"
            )
        n_members, n_symbols = self.log_centres.shape[-2:]
        log_p = np.ascontiguousarray(self.log_centres, dtype=np.float64).reshape(-1, n_members, n_symbols)
        radii = np.ascontiguousarray(self.radii_nats, dtype=np.float64).reshape(-1, n_members)
        mask = np.ascontiguousarray(self.plausible, dtype=np.bool_).reshape(-1, n_members)
        return log_p, np.exp(log_p), radii, mask

    def _shape(self) -> tuple[int, ...]:
        return tuple(self.log_centres.shape[:-2])

    def _has_balls(self) -> bool:
        xp = array_namespace(self.radii_nats)
        return bool(xp.any(self.radii_nats > 0))

    def _check(self, values: Array, name: str) -> None:
        wanted = (*self._shape(), self.log_centres.shape[-1])
        if tuple(values.shape) != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {tuple(values.shape)}")
