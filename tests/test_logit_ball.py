"""Bounds over balls of logits: below what any member does, never weaker than the textbook's, and how close they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from cautious_imitation.divergences import kl
from cautious_imitation.hypotheses.logit_ball import LogitBall

RADII = (0.01, 0.1, 0.4, 1.0, 2.5, 5.0)


def ball(log_centre, radius, scale=None, bound="guaranteed", dtype=torch.float64) -> LogitBall:
    as_tensor = lambda values: torch.as_tensor(np.array(values), dtype=dtype)  # noqa: E731
    return LogitBall(as_tensor(log_centre), as_tensor(radius), None if scale is None else as_tensor(scale), bound)


def random_cases(n_cases: int, seed: int, scaled: bool):
    """Centres of 3 to 6 actions, flat and very peaked, with radius and scale; half the policies are the centre."""
    rng = np.random.default_rng(seed)
    for case in range(n_cases):
        n_symbols = int(rng.integers(3, 7))
        log_centre = log_softmax(np.log(rng.dirichlet(np.full(n_symbols, rng.choice([0.05, 0.3, 1, 5]))) + 1e-12))
        scale = np.exp(rng.normal(size=n_symbols)) if scaled else np.ones(n_symbols)
        pi = np.exp(log_centre) if case % 2 else rng.dirichlet(np.ones(n_symbols))
        yield log_centre, RADII[case % len(RADII)], scale, pi, rng


def largest_rise(log_centre, radius, scale, pi, rng) -> float:
    """max KL(pi || nu) - KL(pi || p) over the ball, by following gradients along its boundary from several starts."""
    n_symbols = len(log_centre)

    def fall(direction):
        length = np.linalg.norm(direction)
        shift = scale * direction * radius / length
        log_sum = np.logaddexp.reduce(log_centre + shift)
        outward = scale * (np.exp(log_centre + shift - log_sum) - pi) * radius / length
        tangent = outward - direction * (direction @ outward) / length**2
        return (pi @ shift - log_sum) / radius, -tangent / radius

    starts = [*(scale * (np.exp(log_centre) - np.eye(n_symbols))), *rng.normal(size=(2, n_symbols))]
    return radius * max(-minimize(fall, start, jac=True, method="BFGS").fun for start in starts)


@pytest.mark.parametrize("scaled", [False, True])
def test_bounds_hold_and_are_close(scaled):
    for log_centre, radius, scale, pi, rng in random_cases(18, 5, scaled):
        members = ball(log_centre, radius, scale if scaled else None)
        minimum = members.minimum().numpy()
        reach = radius * scale.max()
        loosest = 1.02 if reach < 0.1 else 1.12 if reach < 1 else 1.5
        for a, certain in enumerate(np.eye(len(pi))):
            rise = largest_rise(log_centre, radius, scale, certain, rng)
            assert rise * (1 - 1e-9) - 1e-10 <= log_centre[a] - minimum[a] <= loosest * rise + 1e-6
        rise = largest_rise(log_centre, radius, scale, pi, rng)
        log_pi = np.log(pi)
        charge = float(members.worst_kl(torch.tensor(log_pi))) - pi @ (log_pi - log_centre)
        assert rise * (1 - 1e-9) - 1e-10 <= charge <= (2 if reach < 1 else 4) * rise + 1e-6


@pytest.mark.parametrize("scaled", [False, True])
def test_no_sampled_member_crosses_the_bounds(scaled):
    for log_centre, radius, scale, pi, rng in random_cases(60, 6, scaled):
        members = ball(log_centre, radius, scale if scaled else None)
        directions = rng.normal(size=(400, len(pi)))
        directions *= radius / np.linalg.norm(directions, axis=1, keepdims=True)
        sampled = torch.tensor(log_softmax(log_centre + scale * directions, axis=1))
        assert (members.minimum() <= sampled + 1e-12).all()
        log_pi = torch.tensor(np.log(pi))
        assert (kl(log_pi, sampled) <= members.worst_kl(log_pi) + 1e-12).all()
        inside = replace(members, log_centre=members.log_centre.expand(400, -1), radius=members.radius.expand(400))
        assert inside.contains(sampled).all()
        assert inside.covers(sampled).all()


def textbook(log_centre, radius):
    """Smoothness of the log-sum-exp, and two logits that move apart: the larger of both."""
    p = np.exp(log_centre)
    others = p.sum() - p
    step = np.sqrt(others**2 + (p**2).sum() - p**2)
    apart = -np.logaddexp(0, np.sqrt(2) * radius + np.log(others) - log_centre)
    return np.maximum(log_centre - radius * step - radius**2 / 4, apart)


def test_the_minimum_is_never_weaker_than_the_textbooks():
    gains = []
    for log_centre, radius, _, _, _ in random_cases(120, 7, False):
        gain = ball(log_centre, radius).minimum().numpy() - textbook(log_centre, radius)
        assert (gain >= -1e-9).all()
        gains.append(gain.max())
    assert max(gains) > 0.5


def test_the_scaled_minimum_is_never_weaker_than_the_triangle_inequality():
    for log_centre, radius, scale, _, _ in random_cases(120, 8, True):
        raised = np.exp(log_centre + radius * scale)
        others = np.array([np.delete(raised, a).sum() for a in range(len(raised))])
        triangle = -np.log1p(np.exp(radius * scale - log_centre) * others)
        assert (ball(log_centre, radius, scale).minimum().numpy() >= triangle - 1e-9).all()


def test_scales_of_one_are_no_scale():
    for log_centre, radius, _, pi, _ in random_cases(30, 9, False):
        for bound in ("guaranteed", "first-order"):
            one, none = ball(log_centre, radius, np.ones(len(pi)), bound), ball(log_centre, radius, None, bound)
            torch.testing.assert_close(one.minimum(), none.minimum(), rtol=1e-9, atol=1e-12)
            log_pi = torch.tensor(np.log(pi))
            torch.testing.assert_close(one.worst_kl(log_pi), none.worst_kl(log_pi), rtol=1e-9, atol=1e-12)


def test_first_order_overestimates():
    log_centre, radius = np.log([0.9, 0.05, 0.05]), 3.0
    guaranteed, first = ball(log_centre, radius), ball(log_centre, radius, bound="first-order")
    member = torch.tensor(log_softmax(log_centre + radius * np.array([-1.0, 1.0, 0.0]) / np.sqrt(2)))
    assert member[0] < first.minimum()[0] - 0.8
    assert guaranteed.minimum()[0] <= member[0]
    log_pi = torch.tensor(log_centre)
    assert first.worst_kl(log_pi) == pytest.approx(0.0, abs=1e-15)
    assert kl(log_pi, member) > 0.1
    assert not first.covers(member)
    assert first.covers(log_pi)
    assert guaranteed.covers(member)


@pytest.mark.parametrize("scaled", [False, True])
def test_first_order_is_the_gradient(scaled):
    for log_centre, _, scale, pi, rng in random_cases(12, 10, scaled):
        radius, p, scale_or_none = 1e-4, np.exp(log_centre), scale if scaled else None
        first = ball(log_centre, radius, scale_or_none, "first-order")
        expected = [log_centre[a] - radius * np.linalg.norm(scale * (e - p)) for a, e in enumerate(np.eye(len(p)))]
        np.testing.assert_allclose(first.minimum().numpy(), expected, rtol=1e-12, atol=1e-15)
        slope = radius * np.linalg.norm(scale * (pi - p))
        charge = float(first.worst_kl(torch.tensor(np.log(pi)))) - pi @ (np.log(pi) - log_centre)
        assert charge == pytest.approx(slope, rel=1e-9, abs=1e-15)
        assert largest_rise(log_centre, radius, scale, pi, rng) == pytest.approx(slope, rel=1e-2, abs=1e-7)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_larger_ball_is_more_cautious(scaled):
    for log_centre, _, scale, pi, _ in random_cases(12, 11, scaled):
        balls = [ball(log_centre, radius, scale if scaled else None) for radius in np.geomspace(1e-3, 60, 25)]
        minima = torch.stack([members.minimum() for members in balls])
        assert (minima.diff(dim=0) <= 1e-12).all()
        charges = torch.stack([members.worst_kl(torch.tensor(np.log(pi))) for members in balls])
        assert (charges.diff() >= -1e-12).all()
        assert (charges <= kl(torch.tensor(np.log(pi)), minima) + 1e-9).all()


def test_radius_zero_is_the_centre():
    log_centre = np.log([[0.7, 0.2, 0.1], [1.0, 1e-300, 1e-300]])
    for scale in (None, [0.5, 1.0, 20.0]):
        point = ball(log_centre, [0.0, 0.0], scale)
        torch.testing.assert_close(point.minimum(), point.log_centre, rtol=0, atol=1e-15)
        assert point.worst_kl(point.log_centre) == pytest.approx(0, abs=1e-15)
        assert point.contains(point.log_centre).all()


@pytest.mark.parametrize("scaled", [False, True])
def test_single_precision_on_a_wide_vocabulary(scaled):
    rng = np.random.default_rng(12)
    logits = rng.normal(size=(6, 5_000)) * np.array([0.1, 1, 3, 3, 3, 3])[:, None]
    logits[3, 7] += 25
    logits[4, 9] += 60
    logits[5] = np.where(np.arange(5_000) < 2, 0, -200)
    log_centre, radii = log_softmax(logits, axis=1), [0.3, 1.0, 0.05, 0.8, 0.8, 2.0]
    scale = np.exp(rng.normal(size=5_000)) if scaled else None
    log_pi = log_softmax(log_centre + rng.normal(size=log_centre.shape), axis=1)
    wide, exact = (ball(log_centre, radii, scale, dtype=kind) for kind in (torch.float32, torch.float64))
    torch.testing.assert_close(wide.minimum().double(), exact.minimum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        wide.worst_kl(torch.tensor(log_pi, dtype=torch.float32)).double(),
        exact.worst_kl(torch.tensor(log_pi)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_radii_overflow_nowhere(dtype):
    """What is left of an action is worth about exp(-sqrt(2) radius), which no precision holds; its log is fine."""
    log_centre = [[*np.log([0.6, 0.3, 0.1])], [0, -69, -80], [0, -85, -85.5], [0, -200, -210]]
    for radius in (70.0, 500.0, 5e3):
        for scale in (None, [1.0, 2.0, 0.5], [1.0, 40.0, 40.0]):
            members = ball(log_centre, [radius] * 4, scale, dtype=dtype)
            minimum, centre = members.minimum(), members.log_centre
            assert minimum.isfinite().all()
            reach = radius * np.sqrt(2) * np.max(scale or 1.0)
            assert (minimum <= centre).all()
            assert (minimum >= centre - reach * (1 + 1e-5)).all()
            raised = centre + radius * torch.tensor([-1.0, 1.0, 0.0], dtype=dtype) / np.sqrt(2) * torch.tensor(
                scale or [1.0, 1.0, 1.0], dtype=dtype
            )
            assert (minimum[:, 0] <= raised.log_softmax(-1)[:, 0] + 1e-3).all()
            charge = members.worst_kl(centre)
            assert charge.isfinite().all()
            assert (charge >= kl(centre, raised.log_softmax(-1)) * (1 - 1e-5)).all()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bound", ["guaranteed", "first-order"])
def test_excluded_actions_are_as_if_they_were_not_there(scaled, bound):
    rng = np.random.default_rng(13)
    allowed = np.array([1, 2, 4])
    log_centre, log_pi = np.full((2, 2, 6), -np.inf)
    log_centre[:, allowed] = np.log(rng.dirichlet(np.ones(3), size=2))
    log_pi[:, allowed] = np.log(rng.dirichlet(np.ones(3), size=2))
    scale = np.array([50.0, 1.0, 2.0, 70.0, 0.5, 90.0])
    radii = np.array([0.3, 3.0])
    whole = ball(log_centre, radii, scale if scaled else None, bound)
    part = ball(log_centre[:, allowed], radii, scale[allowed] if scaled else None, bound)
    minimum = whole.minimum()
    torch.testing.assert_close(minimum[:, allowed], part.minimum(), rtol=1e-12, atol=1e-14)
    assert (minimum[:, [0, 3, 5]] == -torch.inf).all()
    found = whole.worst_kl(torch.tensor(log_pi))
    torch.testing.assert_close(found, part.worst_kl(torch.tensor(log_pi[:, allowed])), rtol=1e-12, atol=1e-14)
    log_pi[1, 0] = -800.0
    assert whole.worst_kl(torch.tensor(log_pi)).isinf().tolist() == [False, True]
    assert not whole.contains(torch.tensor(log_pi))[1]
    assert whole.contains(whole.log_centre).all()


def test_a_single_action_is_certain():
    only = ball([-np.inf, 0.0, -np.inf], 2.0)
    for members in (only, replace(only, scale=torch.ones(3, dtype=torch.float64)), ball([0.0], 2.0)):
        assert members.minimum().max() == 0
        assert members.worst_kl(members.log_centre) == 0


@pytest.mark.parametrize("scaled", [False, True])
def test_a_batch_is_each_alone(scaled):
    rng = np.random.default_rng(14)
    log_centre, log_pi = np.log(rng.dirichlet(np.ones(5), size=(2, 2, 3)))
    radii, scale = rng.uniform(0, 2, size=(2, 3)), np.exp(rng.normal(size=(2, 3, 5)))
    together = ball(log_centre, radii, scale if scaled else None)
    minimum, charges = together.minimum(), together.worst_kl(torch.tensor(log_pi))
    assert (minimum.shape, charges.shape) == ((2, 3, 5), (2, 3))
    for i in np.ndindex(2, 3):
        alone = ball(log_centre[i], radii[i], scale[i] if scaled else None)
        torch.testing.assert_close(minimum[i], alone.minimum(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(charges[i], alone.worst_kl(torch.tensor(log_pi[i])), rtol=1e-12, atol=1e-14)
    if scaled:
        shared, each = (
            ball(log_centre, radii, scale[0, 0]),
            ball(log_centre, radii, np.broadcast_to(scale[0, 0], scale.shape)),
        )
        torch.testing.assert_close(shared.minimum(), each.minimum())


def test_asking_changes_nothing():
    members = ball(np.log([0.5, 0.3, 0.2]), 0.7, [1.0, 2.0, 3.0])
    before = {name: value.clone() for name, value in vars(members).items() if isinstance(value, torch.Tensor)}
    log_pi = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()
    kept = log_pi.clone()
    first = members.minimum(), members.worst_kl(log_pi), members.contains(log_pi)
    again = members.minimum(), members.worst_kl(log_pi), members.contains(log_pi)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert torch.equal(log_pi, kept)
    assert all(torch.equal(value, getattr(members, name)) for name, value in before.items())


@pytest.mark.parametrize("bound", ["guaranteed", "first-order"])
def test_gradients_flow_to_the_policy(bound):
    for radius, scale in ((0.4, None), (3.0, None), (0.4, [1.0, 3.0, 0.5])):
        members = ball(np.log([0.6, 0.3, 0.1]), radius, scale, bound)
        logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda z, b=members: b.worst_kl(z.log_softmax(-1)), logits)
        at_centre = members.log_centre.clone().requires_grad_()
        members.worst_kl(at_centre.log_softmax(-1)).backward()
        assert at_centre.grad.isfinite().all()


def test_membership_ends_at_the_radius():
    log_centre, scale = np.log([0.6, 0.3, 0.1]), np.array([1.0, 2.0, 0.5])
    direction = np.array([0.3, -0.4, 1.2])
    # What a constant added to all logits takes up does not count.
    weights = 1 / scale**2
    direction -= (weights * scale * direction).sum() / weights.sum() / scale
    direction /= np.linalg.norm(direction)
    for share, expected in ((0.999, True), (1.001, False)):
        log_nu = torch.tensor(np.log(softmax(log_centre + scale * direction * share * 0.8)))
        assert bool(ball(log_centre, 0.8, scale).contains(log_nu)) is expected
        assert bool(ball(log_centre, 0.8, scale).covers(log_nu)) is expected
    assert not ball(log_centre, 5.0).contains(torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": [0.1, 0.2]}, r"radius must have shape \(\) to go with log_centre \(3,\), got \(2,\)"),
        ({"radius": -0.1}, "radius must be at least 0 and finite, got -0.1"),
        ({"radius": np.inf}, "radius must be at least 0 and finite, got inf"),
        ({"radius": np.nan}, "radius must be at least 0 and finite, got nan"),
        ({"scale": [1.0, 2.0]}, r"scale must have shape \(3,\) or \(3,\) to go with log_centre, got \(2,\)"),
        ({"scale": [1.0, 0.0, 2.0]}, "scale must be positive and finite, got 0.0"),
        ({"bound": "exact"}, "bound must be one of guaranteed, first-order, got 'exact'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ball(**{"log_centre": np.log([0.5, 0.3, 0.2]), "radius": 0.1, **settings})


def test_other_shapes_are_refused():
    members = ball(np.log([0.5, 0.3, 0.2]), 0.1)
    for question, name in ((members.worst_kl, "log_pi"), (members.contains, "log_probs"), (members.covers, "log_tau")):
        with pytest.raises(ValueError, match=rf"{name} must have shape \(3,\), got \(1, 3\)"):
            question(torch.zeros(1, 3))
