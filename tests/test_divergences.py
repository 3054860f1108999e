from __future__ import annotations

import subprocess
import sys
from math import inf, log

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import rel_entr

from cautious_imitation.divergences import (
    BOUNDS_DEMONSTRATOR,
    DIVERGENCES,
    hellinger,
    jensen_shannon,
    kl,
    kl_estimate,
    renyi,
    reverse_kl,
    total_variation,
)

Floats = NDArray[np.float64]

ORDERS = (0.3, 0.5, 1.0, 1.7, 2.0, 9.0, inf)


def logs(probabilities: object) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, dtype=np.float64))


@st.composite
def policy_reference_demonstrator(draw: st.DrawFn) -> tuple[Floats, Floats, Floats]:
    """(pi, nu, tau), zeros included, with nu <= tau for every action."""
    size = draw(st.integers(1, 6))
    masses = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=size, max_size=size).filter(any)
    pi, tau = (np.array(draw(masses)) for _ in range(2))
    shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(1e-6, 1.0))
    share = np.array(draw(st.lists(shares, min_size=size, max_size=size)))
    tau /= tau.sum()
    return pi / pi.sum(), tau * share, tau


@given(policy_reference_demonstrator())
def test_a_divergence_that_says_so_bounds_the_one_to_the_demonstrator(triple: tuple[Floats, Floats, Floats]) -> None:
    log_pi, log_nu, log_tau = map(logs, triple)
    for name in BOUNDS_DEMONSTRATOR:
        to_reference, to_demonstrator = (DIVERGENCES[name](log_pi, reference) for reference in (log_nu, log_tau))
        assert to_demonstrator <= to_reference * (1 + 1e-12) + 1e-12, name
    for order in ORDERS:
        assert renyi(log_pi, log_tau, order) <= renyi(log_pi, log_nu, order) * (1 + 1e-12) + 1e-12, order


@pytest.mark.parametrize("name", sorted(set(DIVERGENCES) - BOUNDS_DEMONSTRATOR))
def test_a_divergence_that_does_not_say_so_has_a_counterexample(name: str) -> None:
    generator = np.random.default_rng(1)
    pi, tau = generator.dirichlet([1, 1, 1], size=(2, 2000))
    nu = tau * generator.uniform(size=tau.shape)
    below = DIVERGENCES[name](logs(pi), logs(nu)) < DIVERGENCES[name](logs(pi), logs(tau)) - 1e-3
    assert below.any()


def test_the_table_has_every_divergence_once_with_its_unit() -> None:
    assert frozenset({"kl", "renyi", "chi_squared", "total_variation", "hellinger"}) == BOUNDS_DEMONSTRATOR
    assert len(DIVERGENCES) == 9
    in_nats = {name for name, divergence in DIVERGENCES.items() if divergence.unit == "nats"}
    assert in_nats == {"kl", "renyi", "reverse_kl", "jensen_shannon"}


@given(policy_reference_demonstrator())
def test_values_are_those_of_the_plain_formulas(triple: tuple[Floats, Floats, Floats]) -> None:
    pi, nu, _ = triple
    used = pi > 0
    with np.errstate(divide="ignore", over="ignore"):
        middle = (pi + nu) / 2
        expected = {
            "kl": rel_entr(pi, nu).sum(),
            "reverse_kl": rel_entr(nu, pi).sum(),
            "jensen_shannon": (rel_entr(pi, middle).sum() + rel_entr(nu, middle).sum()) / 2,
            "chi_squared": np.sum(pi[used] ** 2 / nu[used]) - 1,
            "renyi": np.log(np.sum(pi[used] ** 2 / nu[used])),
            "total_variation": np.maximum(0, pi - nu).sum(),
            "hellinger": 1 - np.sqrt(pi * nu).sum(),
            "total_variation_half_l1": np.abs(pi - nu).sum() / 2,
            "hellinger_half_squared": ((np.sqrt(pi) - np.sqrt(nu)) ** 2).sum() / 2,
        }
    assert set(expected) == set(DIVERGENCES)
    for name, value in expected.items():
        np.testing.assert_allclose(DIVERGENCES[name](logs(pi), logs(nu)), value, rtol=1e-9, atol=1e-12, err_msg=name)


@given(policy_reference_demonstrator(), st.sampled_from(ORDERS))
def test_renyi_is_the_plain_formula_and_grows_with_the_order(
    triple: tuple[Floats, Floats, Floats], order: float
) -> None:
    pi, nu, _ = triple
    both = (pi > 0) & (nu > 0)
    if order not in (1, inf) and (order < 1 or both.sum() == (pi > 0).sum()):
        with np.errstate(divide="ignore"):
            expected = np.log(np.sum(pi[both] ** order * nu[both] ** (1 - order))) / (order - 1)
        np.testing.assert_allclose(renyi(logs(pi), logs(nu), order), expected, rtol=1e-9, atol=1e-9)
    assert renyi(logs(pi), logs(nu), order) <= renyi(logs(pi), logs(nu), inf) + 1e-12


def test_the_orders_one_and_infinity_are_limits() -> None:
    pi, nu = logs([0.2, 0.5, 0.3]), logs([0.1, 0.1, 0.6])
    assert renyi(pi, nu, 1) == kl(pi, nu)
    np.testing.assert_allclose(renyi(pi, nu, 1 + 1e-7), kl(pi, nu), rtol=1e-6)
    np.testing.assert_allclose(renyi(pi, nu, inf), log(5))
    np.testing.assert_allclose(renyi(pi, nu, 1e5), log(5), rtol=1e-4)


def test_renyi_does_not_overflow_before_its_value_does() -> None:
    np.testing.assert_allclose(renyi(logs([1.0]), np.array([-700.0]), 50.0), 700)


def test_nothing_is_lost_to_underflow_where_the_reference_forbids_an_action() -> None:
    log_pi = np.array([0.0, -800.0])
    assert kl(log_pi, np.array([0.0, -inf])) == inf
    assert renyi(log_pi, np.array([0.0, -inf]), 3.0) == inf
    assert kl(np.array([0.0, -inf]), np.array([0.0, -inf])) == 0


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_nan_comes_out_as_nan(name: str) -> None:
    assert np.isnan(DIVERGENCES[name](np.array([log(0.5), np.nan]), logs([0.5, 0.5])))
    assert np.isnan(DIVERGENCES[name](logs([0.5, 0.5]), np.array([log(0.5), np.nan])))


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_batches_broadcast_and_torch_agrees_with_numpy(name: str) -> None:
    generator = np.random.default_rng(2)
    pi = generator.dirichlet(np.ones(4), size=(5, 1))
    nu = generator.dirichlet(np.ones(4), size=3) * 0.9
    pi[0, 0] = [0.0, 0.5, 0.5, 0.0]
    nu[1] = [0.3, 0.5, 0.2, 0.0]
    log_pi, log_nu = logs(pi), logs(nu)
    found = DIVERGENCES[name](log_pi, log_nu)
    assert found.shape == (5, 3)
    for i in range(5):
        for j in range(3):
            np.testing.assert_allclose(found[i, j], DIVERGENCES[name](log_pi[i, 0], log_nu[j]), rtol=1e-12, atol=1e-14)
    tensor = DIVERGENCES[name](torch.from_numpy(log_pi), torch.from_numpy(log_nu))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor.numpy(), found, rtol=1e-12, atol=1e-14)
    single = DIVERGENCES[name](torch.from_numpy(log_pi).float(), torch.from_numpy(log_nu).float())
    assert single.dtype == torch.float32
    assert DIVERGENCES[name](log_pi.astype(np.float32), log_nu.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(single.numpy(), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [None, 0.5, 3.0, inf])
@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_torch_gradients_are_finite_differences(name: str, order: float | None) -> None:
    if order is not None and name != "renyi":
        return
    divergence = DIVERGENCES[name] if order is None else lambda a, b: renyi(a, b, order)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn((2, 5), dtype=torch.float64, generator=generator, requires_grad=True)

    def value(logits: torch.Tensor) -> torch.Tensor:
        return divergence(logits[0].log_softmax(-1), logits[1].log_softmax(-1) - 0.1)

    assert torch.autograd.gradcheck(value, logits)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_torch_gradients_are_finite_where_actions_have_probability_zero(name: str) -> None:
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    log_pi = torch.where(torch.tensor([True, True, False]), logits, -inf).log_softmax(-1)
    log_nu = torch.tensor([0.7, 0.2, 0.0], dtype=torch.float64).log()
    DIVERGENCES[name](log_pi, log_nu).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[2] == 0
    assert logits.grad[:2].abs().sum() > 0


def test_k1_and_k3_are_unbiased_for_a_reference_that_sums_to_one() -> None:
    generator = np.random.default_rng(4)
    log_pi, log_nu = logs(generator.dirichlet(np.ones(5), size=2))
    actions = generator.choice(5, size=200_000, p=np.exp(log_pi))
    log_ratio = (log_pi - log_nu)[actions]
    for kind in ("k1", "k3"):
        samples = kl_estimate(log_ratio, kind)
        assert abs(samples.mean() - kl(log_pi, log_nu)) < 4 * samples.std() / len(samples) ** 0.5
    assert (kl_estimate(log_ratio, "k3") >= 0).all()
    np.testing.assert_array_equal(kl_estimate(log_ratio, "k2"), log_ratio**2 / 2)


def test_the_mean_of_k3_misses_the_probability_of_asking_and_is_refused() -> None:
    pi, nu = np.array([0.6, 0.4]), np.array([0.5, 0.2])
    log_ratio = np.log(pi / nu)
    np.testing.assert_allclose(pi @ kl_estimate(log_ratio, "k3"), kl(np.log(pi), np.log(nu)) - 0.3)
    np.testing.assert_allclose(pi @ kl_estimate(log_ratio, "k1", asking=True), kl(np.log(pi), np.log(nu)))
    for kind in ("k2", "k3"):
        with pytest.raises(ValueError, match=f"asking reference, got '{kind}'.*probability of asking"):
            kl_estimate(log_ratio, kind, asking=True)


def test_bad_arguments_are_named() -> None:
    for order in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="order must be above 0, got"):
            renyi(logs([1.0]), logs([1.0]), order)
    with pytest.raises(ValueError, match=r"kind must be .* got 'k4'"):
        kl_estimate(np.zeros(1), "k4")  # type: ignore[arg-type]


def test_ranges() -> None:
    apart = logs([1.0, 0.0]), logs([0.0, 1.0])
    assert total_variation(*apart) == 1
    assert hellinger(*apart) == 1
    assert kl(*apart) == reverse_kl(*apart) == renyi(*apart, 0.5) == inf
    np.testing.assert_allclose(jensen_shannon(*apart), log(2))


def test_importing_divergences_does_not_import_torch() -> None:
    code = "import sys, cautious_imitation.divergences; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
