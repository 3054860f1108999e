"""Divergences of a policy pi from a reference nu, both given as log-probabilities.

A cautious reference is a sub-distribution: its probabilities sum to less than one, and the rest is the probability of
asking. When nu <= tau for every action, some divergences from nu are upper bounds of the same divergence from the
demonstrator tau, without knowing tau, and some are not: ``BOUNDS_DEMONSTRATOR`` says which. The bound is per step; over
a whole episode only KL adds up.

Every function takes arrays of shape ``[..., V]`` that broadcast, NumPy or torch, and returns ``[...]`` of the same
kind; gradients flow through torch. ``0 log 0`` is 0. NaN in, NaN out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isnan, log
from types import MappingProxyType
from typing import Literal

import numpy as np
from array_api_compat import array_namespace

from cautious_imitation.types import Array


def kl(log_pi: Array, log_nu: Array) -> Array:
    """KL(pi || nu) = sum pi log(pi / nu), in nats; bounds KL(pi || tau) when nu <= tau.

    Args:
        log_pi: ``[..., V]`` log-probabilities of the policy.
        log_nu: ``[..., V]`` log-probabilities of the reference, a distribution or a sub-distribution.

    Returns:
        ``[...]`` nats, infinite where the policy uses an action that the reference gives probability 0.

    >>> import numpy as np
    >>> round(float(kl(np.log([0.5, 0.5]), np.log([0.25, 0.25]))), 4)
    0.6931
    """
    xp = array_namespace(log_pi, log_nu)
    counted, forbidden = _support(log_pi, log_nu)
    # Selecting before subtracting keeps -inf - -inf out of the value and out of torch's gradient.
    log_ratio = xp.where(counted, log_pi, 0.0) - xp.where(counted, log_nu, 0.0)
    return _infinite_where(forbidden, xp.sum(xp.exp(log_pi) * log_ratio, axis=-1))


def renyi(log_pi: Array, log_nu: Array, order: float = 2.0) -> Array:
    """Renyi divergence log(sum pi^order nu^(1 - order)) / (order - 1), in nats; bounds the one to tau when nu <= tau.

    Args:
        log_pi: ``[..., V]`` log-probabilities of the policy.
        log_nu: ``[..., V]`` log-probabilities of the reference.
        order: above 0; 1 is KL and ``math.inf`` the largest log-ratio, both as limits.

    Raises:
        ValueError: if ``order`` is not above 0.

    >>> import numpy as np
    >>> round(float(renyi(np.log([0.5, 0.5]), np.log([0.25, 0.25]), order=3)), 4)
    0.6931
    """
    if isnan(order) or order <= 0:
        raise ValueError(f"order must be above 0, got {order!r}; 1 is KL and math.inf the largest log-ratio")
    if order == 1:
        return kl(log_pi, log_nu)
    xp = array_namespace(log_pi, log_nu)
    counted, forbidden = _support(log_pi, log_nu)
    if order < 1:
        # An action that only one of the two uses adds nothing here; none in common is an infinite divergence.
        forbidden = ~xp.any(counted, axis=-1, keepdims=True)
    finite_pi, finite_nu = xp.where(counted, log_pi, 0.0), xp.where(counted, log_nu, 0.0)
    if order == inf:
        return _infinite_where(forbidden, xp.max(xp.where(counted, finite_pi - finite_nu, -inf), axis=-1))
    # Log-space: pi^order nu^(1 - order) overflows long before the divergence does.
    log_terms = xp.where(counted, order * finite_pi + (1 - order) * finite_nu, -inf)
    largest = xp.max(log_terms, axis=-1)
    largest = xp.where(largest == -inf, 0.0, largest)
    total = xp.sum(xp.exp(log_terms - largest[..., None]), axis=-1)
    log_total = largest + xp.log(xp.where(total == 0, 1.0, total))
    return _infinite_where(forbidden, log_total / (order - 1))


def chi_squared(log_pi: Array, log_nu: Array) -> Array:
    """sum pi^2 / nu - 1, dimensionless; bounds the one to tau when nu <= tau.

    The other form, sum (pi - nu)^2 / nu, differs for a sub-distribution and is no bound.
    """
    xp = array_namespace(log_pi, log_nu)
    with np.errstate(over="ignore"):  # an overflow to infinity is still an upper bound
        return xp.expm1(renyi(log_pi, log_nu, order=2.0))


def total_variation(log_pi: Array, log_nu: Array) -> Array:
    """sum max(0, pi - nu), a probability in [0, 1]; bounds the one to tau when nu <= tau."""
    xp = array_namespace(log_pi, log_nu)
    above = xp.exp(log_pi) - xp.exp(log_nu)
    return xp.sum(xp.where(above < 0, 0.0, above), axis=-1)


def hellinger(log_pi: Array, log_nu: Array) -> Array:
    """1 - sum sqrt(pi nu), dimensionless in [0, 1]; bounds the one to tau when nu <= tau."""
    xp = array_namespace(log_pi, log_nu)
    return 1 - xp.sum(xp.exp(log_pi / 2) * xp.exp(log_nu / 2), axis=-1)


def reverse_kl(log_pi: Array, log_nu: Array) -> Array:
    """KL(nu || pi), in nats. Does NOT bound KL(tau || pi) when nu <= tau; negative for many sub-distributions."""
    return kl(log_nu, log_pi)


def jensen_shannon(log_pi: Array, log_nu: Array) -> Array:
    """(KL(pi || m) + KL(nu || m)) / 2 with m = (pi + nu) / 2, in nats. Does NOT bound the one to tau when nu <= tau."""
    xp = array_namespace(log_pi, log_nu)
    with np.errstate(invalid="ignore"):  # NaN is told by the value, not by a warning
        log_middle = xp.logaddexp(_finite(log_pi), _finite(log_nu)) - log(2)
    return (kl(log_pi, log_middle) + kl(log_nu, log_middle)) / 2


def total_variation_half_l1(log_pi: Array, log_nu: Array) -> Array:
    """sum |pi - nu| / 2, dimensionless. Does NOT bound the one to tau when nu <= tau: use ``total_variation``."""
    xp = array_namespace(log_pi, log_nu)
    return xp.sum(xp.abs(xp.exp(log_pi) - xp.exp(log_nu)), axis=-1) / 2


def hellinger_half_squared(log_pi: Array, log_nu: Array) -> Array:
    """sum (sqrt pi - sqrt nu)^2 / 2, dimensionless. Does NOT bound the one to tau when nu <= tau: use ``hellinger``."""
    xp = array_namespace(log_pi, log_nu)
    return xp.sum((xp.exp(log_pi / 2) - xp.exp(log_nu / 2)) ** 2, axis=-1) / 2


@dataclass(frozen=True)
class Divergence:
    """A divergence, its unit, and whether it carries over to the demonstrator.

    Attributes:
        name: its key in ``DIVERGENCES``.
        function: ``(log_pi [..., V], log_nu [..., V]) -> [...]``.
        unit: ``"nats"``, or ``"1"`` for a dimensionless number.
        bounds_demonstrator: whether nu <= tau makes its value an upper bound of the same divergence from tau.
    """

    name: str
    function: Callable[[Array, Array], Array]
    unit: Literal["nats", "1"]
    bounds_demonstrator: bool

    def __call__(self, log_pi: Array, log_nu: Array) -> Array:
        """The divergence of ``log_pi`` from ``log_nu`` (``[..., V]`` each), shape ``[...]``."""
        return self.function(log_pi, log_nu)


DIVERGENCES: Mapping[str, Divergence] = MappingProxyType(
    {
        divergence.name: divergence
        for divergence in (
            Divergence("kl", kl, "nats", True),
            Divergence("renyi", renyi, "nats", True),
            Divergence("chi_squared", chi_squared, "1", True),
            Divergence("total_variation", total_variation, "1", True),
            Divergence("hellinger", hellinger, "1", True),
            Divergence("reverse_kl", reverse_kl, "nats", False),
            Divergence("jensen_shannon", jensen_shannon, "nats", False),
            Divergence("total_variation_half_l1", total_variation_half_l1, "1", False),
            Divergence("hellinger_half_squared", hellinger_half_squared, "1", False),
        )
    }
)
"""Every divergence by name; ``"renyi"`` is of order 2."""

BOUNDS_DEMONSTRATOR: frozenset[str] = frozenset(name for name, d in DIVERGENCES.items() if d.bounds_demonstrator)
"""Names of the divergences that bound the same divergence from the demonstrator whenever nu <= tau."""


def kl_estimate(log_ratio: Array, kind: Literal["k1", "k2", "k3"] = "k1", *, asking: bool = False) -> Array:
    """Estimate KL(pi || nu) in nats from each action sampled from pi; average the result.

    A cross-check of an exact divergence, not a charge: a sample says too little as easily as too much.

    Args:
        log_ratio: ``[...]`` log pi(a) - log nu(a) in nats, for actions a drawn from pi.
        kind: ``"k1"`` log-ratio r, unbiased; ``"k2"`` r^2 / 2, biased, of low variance near pi = nu; ``"k3"``
            exp(-r) - 1 + r, unbiased for a nu that sums to one on the support of pi. Names after J. Schulman,
            "Approximating KL divergence" (2020).
        asking: whether nu is a sub-distribution, the rest being the probability theta of asking.

    Raises:
        ValueError: if ``kind`` is unknown, or not ``"k1"`` for an asking reference: the mean of k3 is then KL - theta,
            and k2 agrees with k3 to second order.

    >>> import numpy as np
    >>> kl_estimate(np.array([0.5, -0.5]), "k2").tolist()
    [0.125, 0.125]
    """
    if kind not in ("k1", "k2", "k3"):
        raise ValueError(f'kind must be "k1", "k2" or "k3", got {kind!r}; "k1" is right for every reference')
    if asking and kind != "k1":
        raise ValueError(
            f'kind must be "k1" for an asking reference, got {kind!r}; the mean of k3 (and of k2, to second order) '
            "falls short of KL by the probability of asking"
        )
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio**2 / 2
    return array_namespace(log_ratio).expm1(-log_ratio) + log_ratio


def _support(log_pi: Array, log_nu: Array) -> tuple[Array, Array]:
    """Where the action counts (both positive) and where it is forbidden (pi > 0 = nu), ``[..., V]`` each.

    By the logs, not the probabilities: a pi that underflows to 0 still is not allowed where nu is 0.
    """
    used = log_pi != -inf  # not "> -inf", so that NaN stays in and shows
    return used & (log_nu != -inf), used & (log_nu == -inf)


def _infinite_where(forbidden: Array, value: Array) -> Array:
    """``value`` ``[...]``, infinite where any action of ``forbidden`` ``[..., V]`` is."""
    xp = array_namespace(value)
    return xp.where(xp.any(forbidden, axis=-1), inf, value)


def _finite(log_probs: Array) -> Array:
    """``log_probs`` with the most negative float for ``-inf``, where logaddexp has a gradient."""
    xp = array_namespace(log_probs)
    return xp.where(log_probs == -inf, xp.finfo(log_probs.dtype).min / 4, log_probs)
