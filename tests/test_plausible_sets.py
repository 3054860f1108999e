"""Unions of KL balls against root finding, searches, convex and nonlinear solvers, and fifty-digit arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import softmax

from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.plausible_sets import PlausibleSet
from tests.reference_trees import least_probability, worst_kl_by_search

Floats = NDArray[np.float64]

radii = st.floats(-12, 3).map(lambda exponent: 10.0**exponent)


def simplex(n: int, least: float = 0.0) -> st.SearchStrategy[Floats]:
    """Distributions of ``n`` actions, some of them zero or tiny; above ``least`` where that is positive."""
    weights = st.sampled_from([0.0, 1e-9, 1e-3]) | st.floats(0.01, 1.0)
    drawn = st.lists(weights, min_size=n, max_size=n).map(lambda w: np.array(w) + least)
    return drawn.filter(lambda w: w.sum() > 0.01).map(lambda w: w / w.sum())


def logs(probabilities: Any) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, dtype=np.float64))


def union(*members: tuple[Floats, float]) -> PlausibleSet:
    """A set at one context from (centre, radius in nats)."""
    return PlausibleSet(
        logs([p for p, _ in members]), np.array([r for _, r in members]), np.ones(len(members), dtype=np.bool_)
    )


def random_union(rng: np.random.Generator, n_members: int, n_symbols: int) -> PlausibleSet:
    """Members with every action seen, of very different radii, points among them."""
    radius = [0.0 if rng.random() < 0.2 else 10 ** rng.uniform(-3, 0.5) for _ in range(n_members)]
    return union(*((rng.dirichlet(np.ones(n_symbols)), r) for r in radius))


def kl(pi: Floats, nu: Floats) -> float:
    return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(pi, nu, strict=True) if a > 0))


def on_the_boundary(p: Floats, radius: float, rng: np.random.Generator) -> Floats:
    """A point theta with KL(p || theta) = radius, by bisection towards a random corner."""
    corner, low, high = rng.dirichlet(np.full(len(p), 0.2)), 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        with np.errstate(divide="ignore"):
            inside = kl(p, (1 - middle) * p + middle * corner) <= radius
        low, high = (middle, high) if inside else (low, middle)
    return (1 - low) * p + low * corner


def worst_kl_in_fifty_digits(p: list[str], radius: str, pi: list[str]) -> float:
    """The stationary point theta = (mu p - pi)/(mu - 1) with KL(p || theta) = radius, all p positive and pi not p."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 50, MIN_EMIN, MAX_EMAX
        ps, pis, c = [Decimal(x) for x in p], [Decimal(x) for x in pi], Decimal(radius)
        ps, pis = [x / sum(ps) for x in ps], [x / sum(pis) for x in pis]
        ratios = [a / b for a, b in zip(pis, ps, strict=True)]
        top = max(ratios)

        def theta(log_t: Decimal) -> list[Decimal]:
            t = log_t.exp()
            return [a * (t + (top - r)) / (t + (top - 1)) for a, r in zip(ps, ratios, strict=True)]

        def divergence(first: list[Decimal], second: list[Decimal]) -> Decimal:
            return sum((a * (a / b).ln() for a, b in zip(first, second, strict=True) if a > 0), Decimal(0))

        low, high = Decimal(-1), Decimal(1)
        while divergence(ps, theta(low)) < c:
            low *= 2
        while divergence(ps, theta(high)) > c:
            high *= 2
        for _ in range(150):
            middle = (low + high) / 2
            low, high = (middle, high) if divergence(ps, theta(middle)) > c else (low, middle)
        return float(divergence(pis, theta(low)))


class TestPoints:
    """Sets of single distributions, where every answer is a short expression."""

    log_members = np.log(np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 5)))
    mask = np.random.default_rng(1).random((3, 5)) < 0.6
    log_pi = np.log(np.random.default_rng(2).dirichlet(np.ones(4), size=3))

    def test_minimum_and_worst_kl(self):
        members = PlausibleSet.points(self.log_members, self.mask)
        for i in range(3):
            chosen = self.log_members[i][self.mask[i]]
            np.testing.assert_array_equal(members.minimum()[i], chosen.min(axis=0))
            expected = max(kl(np.exp(self.log_pi[i]), np.exp(nu)) for nu in chosen)
            assert members.worst_kl(self.log_pi)[i] == pytest.approx(expected, rel=1e-12)
            for j in range(5):
                assert members.contains(self.log_members[:, j])[i] == self.mask[i, j]

    def test_all_members_count_without_a_mask(self):
        np.testing.assert_array_equal(PlausibleSet.points(self.log_members).minimum(), self.log_members.min(axis=1))

    def test_compiled_and_array_paths_agree(self):
        """One ball far away in the batch sends the whole batch through the compiled code."""
        with_ball = PlausibleSet(self.log_members, np.zeros((3, 5)), self.mask)
        with_ball.radii_nats[0, 0] = 1e-300
        points = PlausibleSet.points(self.log_members, self.mask)
        np.testing.assert_allclose(with_ball.minimum()[1:], points.minimum()[1:], rtol=1e-13)
        np.testing.assert_allclose(with_ball.worst_kl(self.log_pi)[1:], points.worst_kl(self.log_pi)[1:], rtol=1e-12)

    def test_an_action_that_a_member_excludes(self):
        members = union((np.array([1.0, 0.0]), 0.0), (np.array([0.5, 0.5]), 0.0))
        np.testing.assert_array_equal(members.minimum(), logs([0.5, 0.0]))
        assert members.worst_kl(logs([0.5, 0.5])) == np.inf
        assert members.worst_kl(logs([1.0, 0.0])) == pytest.approx(np.log(2))

    def test_torch_in_torch_out(self):
        plain = PlausibleSet.points(self.log_members, self.mask)
        tensors = PlausibleSet.points(torch.tensor(self.log_members), torch.tensor(self.mask))
        log_pi = torch.tensor(self.log_pi, requires_grad=True)
        for answer, expected in (
            (tensors.minimum(), plain.minimum()),
            (tensors.worst_kl(log_pi), plain.worst_kl(self.log_pi)),
            (tensors.contains(log_pi), plain.contains(self.log_pi)),
        ):
            assert isinstance(answer, torch.Tensor)
            np.testing.assert_allclose(answer.detach().numpy(), expected, rtol=1e-12)
        (gradient,) = torch.autograd.grad(tensors.worst_kl(log_pi).sum(), log_pi)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0

    def test_compiled_answers_refuse_torch(self):
        tensors = PlausibleSet.points(torch.tensor(self.log_members))
        with pytest.raises(TypeError, match=r"NumPy arrays, got Tensor; .*numpy\(\)"):
            tensors.best_response(torch.zeros(3, 4), 1.0)


class TestOneBall:
    @given(p=simplex(3), radius=radii)
    def test_minimum_is_the_least_probability_of_each_action(self, p, radius):
        got = np.exp(union((p, radius)).minimum())
        np.testing.assert_allclose(got, [least_probability(a, radius) for a in p], rtol=1e-7, atol=1e-300)

    @given(p=simplex(3), radius=st.floats(-4, 1).map(lambda e: 10.0**e), pi=simplex(3))
    def test_worst_kl_is_what_a_search_of_the_boundary_finds(self, p, radius, pi):
        expected = worst_kl_by_search(p, radius, pi)
        got = float(union((p, radius)).worst_kl(logs(pi)))
        # The search is a lower bound, and close where the maximiser is not within e^-20 of the simplex's edge.
        assert got >= expected * (1 - 1e-9) - 1e-12
        if radius < 20 * p[p > 0].min():
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-9)

    @given(p=simplex(6), radius=radii, pi=simplex(6), seed=st.integers(0, 2**32 - 1))
    def test_no_point_of_the_ball_is_beyond_the_answers(self, p, radius, pi, seed):
        rng, ball = np.random.default_rng(seed), union((p, radius))
        pi = np.where(p > 0, pi, 0.0) + p
        pi /= pi.sum()
        minimum, worst = np.exp(ball.minimum()), float(ball.worst_kl(logs(pi)))
        for _ in range(5):
            theta = on_the_boundary(p, radius, rng)
            assert (minimum <= theta * (1 + 1e-9)).all()
            assert kl(pi, theta) <= worst * (1 + 1e-9) + 1e-12
            assert ball.contains(logs(theta))

    @pytest.mark.parametrize("radius", ["1e-9", "0.001", "0.7", "30", "2000"])
    @pytest.mark.parametrize(
        ("p", "pi"),
        [
            (["0.5", "0.3", "0.2"], ["0.1", "0.1", "0.8"]),
            (["1", "1e-12", "1e-12"], ["1", "0", "1"]),
            (["1", "1", "1e-12"], ["0", "0", "1"]),
            (["1", "1e-12", "1e-6"], ["1", "2e-12", "1e-6"]),
            (["0.25", "0.25", "0.5"], ["0.2500001", "0.25", "0.5"]),
            (["0.25", "0.25", "0.5"], ["0.2500000000001", "0.25", "0.5"]),
            (["1", "2", "3", "4", "5", "6", "7", "8"], ["8", "7", "6", "5", "4", "3", "2", "1"]),
        ],
    )
    def test_worst_kl_in_extreme_cases(self, p, pi, radius):
        centre, policy = np.array(p, dtype=float), np.array(pi, dtype=float)
        got = union((centre / centre.sum(), float(radius))).worst_kl(logs(policy / policy.sum()))
        # Doubles hold a centre with p = 1e-12 to 1e-16, which shows where the radius is as small as 1e-9.
        assert got == pytest.approx(worst_kl_in_fifty_digits(p, radius, pi), rel=1e-5, abs=1e-13)

    @given(p=simplex(5), radius=st.floats(-14, 4).map(lambda e: 10.0**e))
    def test_doing_what_was_seen_costs_exactly_the_radius(self, p, radius):
        assert union((p, radius)).worst_kl(logs(p)) == pytest.approx(radius, rel=1e-9)

    @given(p=simplex(4), pi=simplex(4), radius=radii, factor=st.floats(1.0, 100.0))
    def test_a_larger_ball_is_more_cautious(self, p, pi, radius, factor):
        small, large = union((p, radius)), union((p, radius * factor))
        assert (large.minimum() <= small.minimum() + 1e-12).all()
        assert large.worst_kl(logs(pi)) >= small.worst_kl(logs(pi)) * (1 - 1e-9) - 1e-12

    @given(p=simplex(4, least=1e-3), pi=simplex(4))
    def test_a_ball_shrinks_to_its_centre(self, p, pi):
        point, ball = union((p, 0.0)), union((p, 1e-13))
        np.testing.assert_allclose(np.exp(ball.minimum()), np.exp(point.minimum()), rtol=1e-4)
        assert ball.worst_kl(logs(pi)) == pytest.approx(float(point.worst_kl(logs(pi))), rel=1e-3, abs=1e-4)

    @pytest.mark.parametrize("radius", [1e-9, 0.1, 1e3, np.inf])
    def test_an_action_never_seen_may_be_impossible(self, radius):
        ball = union((np.array([0.5, 0.5, 0.0]), radius))
        assert ball.minimum()[2] == -np.inf
        assert ball.worst_kl(logs([0.5, 0.5 - 1e-9, 1e-9])) == np.inf

    def test_what_was_never_seen_at_all_may_be_anything(self):
        ball = union((np.full(3, 1 / 3), np.inf))
        assert (ball.minimum() == -np.inf).all()
        for pi in (np.full(3, 1 / 3), np.eye(3)[1]):
            assert ball.worst_kl(logs(pi)) == np.inf
            assert ball.contains(logs(pi))
        log_pi, charge = ball.best_response(np.array([1.0, 2.0, 3.0]), 1.0)
        assert charge == np.inf
        assert (log_pi == -np.inf).all()

    def test_membership_is_by_kl_from_the_centre(self):
        p = np.array([0.7, 0.3])
        inside, outside = np.array([0.6, 0.4]), np.array([0.8, 0.2])
        ball = union((p, 0.5 * (kl(p, inside) + kl(p, outside))))
        assert kl(p, inside) < kl(p, outside)
        assert ball.contains(logs(p))
        assert ball.contains(logs(inside))
        assert not ball.contains(logs(outside))
        assert ball.contains(logs(outside), tolerance_nats=1.0)
        assert not union((p, 1e6)).contains(logs([1.0, 0.0]))
        assert union((np.array([1.0, 0.0]), 1.0)).contains(logs([0.5, 0.5]))


class TestUnion:
    @given(
        members=st.lists(st.tuples(simplex(4), st.just(0.0) | radii, st.booleans()), min_size=1, max_size=4),
        pi=simplex(4),
    )
    def test_a_union_answers_with_its_worst_plausible_member(self, members, pi):
        centres, sizes, mask = zip(*members, strict=True)
        mask = (True, *mask[1:])
        whole = PlausibleSet(logs(centres), np.array(sizes), np.array(mask))
        parts = [union((p, r)) for p, r, m in zip(centres, sizes, mask, strict=True) if m]
        expected = np.exp(np.min([part.minimum() for part in parts], axis=0))
        np.testing.assert_allclose(np.exp(whole.minimum()), expected, rtol=1e-9, atol=1e-300)
        worst = max(float(part.worst_kl(logs(pi))) for part in parts)
        assert whole.worst_kl(logs(pi)) == pytest.approx(worst, rel=1e-9, abs=1e-12)
        assert whole.contains(logs(pi)) == any(part.contains(logs(pi)) for part in parts)

    def test_batches_answer_one_by_one(self):
        rng = np.random.default_rng(4)
        parts = [random_union(rng, 3, 5) for _ in range(6)]
        mask = np.array([[True, bool(i % 2), bool(i % 3)] for i in range(6)]).reshape(2, 3, 3)
        log_centres = np.array([part.log_centres for part in parts]).reshape(2, 3, 3, 5)
        batch = PlausibleSet(log_centres, np.array([part.radii_nats for part in parts]).reshape(2, 3, 3), mask)
        log_pi, q_values = np.log(rng.dirichlet(np.ones(5), size=(2, 3))), rng.normal(size=(2, 3, 5))
        before = q_values.copy()
        policies, charges = batch.best_response(q_values, 0.3)
        np.testing.assert_array_equal(q_values, before)
        assert policies.shape == (2, 3, 5)
        for i in np.ndindex(2, 3):
            one = PlausibleSet(batch.log_centres[i], batch.radii_nats[i], mask[i])
            np.testing.assert_array_equal(batch.minimum()[i], one.minimum())
            assert batch.worst_kl(log_pi)[i] == one.worst_kl(log_pi[i])
            policy, charge = one.best_response(q_values[i], 0.3)
            np.testing.assert_array_equal(policies[i], policy)
            assert charges[i] == charge


def objective(members: PlausibleSet, pi: Floats, q_values: Floats, multiplier: float) -> float:
    return float(pi @ q_values - multiplier * members.worst_kl(logs(pi)))


def answered(members: PlausibleSet, q_values: Floats, multiplier: float) -> tuple[Floats, float]:
    """The best response and its value, after checking that it is a policy and that its charge is its worst KL."""
    log_pi, charge = members.best_response(q_values, multiplier)
    pi = np.exp(log_pi)
    assert pi.sum() == pytest.approx(1.0, abs=1e-12)
    assert charge == pytest.approx(float(members.worst_kl(log_pi)), rel=1e-9, abs=1e-12)
    return pi, float(pi @ q_values - multiplier * charge)


def solved(members: PlausibleSet, q_values: Floats, multiplier: float) -> float:
    """The best value that a derivative-free solver finds over all policies; the objective is concave."""
    starts = [np.zeros(len(q_values)), *np.maximum(members.log_centres[members.plausible], -20.0)]
    found = [
        minimize(lambda z: -objective(members, softmax(z), q_values, multiplier), start, method="Powell", tol=1e-11)
        for start in starts
    ]
    return max(-f.fun for f in found)


class TestBestResponse:
    @pytest.mark.parametrize("n_members", [1, 2, 4])
    def test_points_against_a_convex_solver(self, n_members):
        rng = np.random.default_rng(n_members)
        for _ in range(8):
            members = PlausibleSet.points(np.log(rng.dirichlet(np.ones(5), size=n_members)))
            q_values, multiplier = rng.normal(size=5), float(10 ** rng.uniform(-1, 1))
            pi = cvxpy.Variable(5)
            charges = [cvxpy.sum(cvxpy.rel_entr(pi, nu)) for nu in np.exp(members.log_centres)]
            goal = cvxpy.Maximize(pi @ q_values - multiplier * cvxpy.maximum(*charges, 0.0))
            problem = cvxpy.Problem(goal, [cvxpy.sum(pi) == 1])
            problem.solve(solver=cvxpy.CLARABEL)
            _, value = answered(members, q_values, multiplier)
            assert value == pytest.approx(problem.value, abs=1e-6)

    def test_one_point_is_the_tilted_point(self):
        nu, q_values = np.array([0.2, 0.3, 0.5]), np.array([1.0, -1.0, 0.5])
        pi, value = answered(union((nu, 0.0)), q_values, 0.7)
        np.testing.assert_allclose(pi, softmax(np.log(nu) + q_values / 0.7), rtol=1e-12)
        assert value == pytest.approx(0.7 * np.log((nu * np.exp(q_values / 0.7)).sum()))

    def test_two_actions_against_a_line_search(self):
        """Independent of the library's own charge: the ends of the interval by root finding."""
        rng = np.random.default_rng(20)
        for _ in range(25):
            centre, radius = rng.dirichlet([4.0, 4.0]), float(10 ** rng.uniform(-3, 0))
            q_values, multiplier = rng.normal(size=2), float(10 ** rng.uniform(-1.5, 0.5))
            low, high = least_probability(centre[0], radius), 1 - least_probability(centre[1], radius)
            ends = [np.array([x, 1 - x]) for x in (low, high)]

            def loss(x: float, ends: Any = ends, q_values: Any = q_values, multiplier: float = multiplier) -> float:
                pi = np.array([x, 1 - x])
                return float(multiplier * max(kl(pi, end) for end in ends) - pi @ q_values)

            best = -minimize_scalar(loss, bounds=(0, 1), options={"xatol": 1e-12}).fun
            _, value = answered(union((centre, radius)), q_values, multiplier)
            assert value == pytest.approx(best, abs=1e-7)

    def test_one_ball_against_a_nonlinear_solver(self):
        rng = np.random.default_rng(30)
        for _ in range(8):
            ball = union((rng.dirichlet(np.ones(5)), float(10 ** rng.uniform(-3, 0.5))))
            q_values, multiplier = rng.normal(size=5), float(10 ** rng.uniform(-1, 0.5))
            best = solved(ball, q_values, multiplier)
            assert answered(ball, q_values, multiplier)[1] >= best - 1e-6 * (1 + abs(best))

    def test_the_leaves_of_a_path_against_a_nonlinear_solver(self):
        """Unions of balls are answered approximately; on a tree's own sets the loss is a few thousandths of a nat."""
        rng, n_unions = np.random.default_rng(31), 0
        while n_unions < 6:
            n_symbols = int(rng.integers(2, 6))
            table = rng.dirichlet(np.full(n_symbols, 0.4), size=n_symbols)
            sequence = [0]
            for _ in range(int(10 ** rng.uniform(2, 3))):
                sequence.append(int(rng.choice(n_symbols, p=table[sequence[-1]])))
            tree = ContextTree(n_symbols, 3).fit([sequence])
            members = tree.plausible(rng.integers(n_symbols, size=3), float(10 ** rng.uniform(-6, -1)))
            q_values, multiplier = rng.normal(size=n_symbols), float(10 ** rng.uniform(-1.5, 1))
            if members.plausible.sum() == 1 or members.best_response(q_values, multiplier)[1] == np.inf:
                continue
            n_unions += 1
            _, value = answered(members, q_values, multiplier)
            assert value >= solved(members, q_values, multiplier) - 0.01 * multiplier

    @given(seed=st.integers(0, 2**32 - 1), n_members=st.integers(1, 5), scale=st.floats(-2, 2))
    def test_between_the_response_to_the_worst_member_and_the_value_against_it(self, seed, n_members, scale):
        """No policy does better than against one member alone; and the response to that member is always at hand."""
        rng = np.random.default_rng(seed)
        members, multiplier, q_values = random_union(rng, n_members, 6), float(10**scale), rng.normal(size=6)
        _, value = answered(members, q_values, multiplier)
        alone = [union((p, r)) for p, r in zip(np.exp(members.log_centres), members.radii_nats, strict=True)]
        responses = [answered(member, q_values, multiplier) for member in alone]
        pi, bound = min(responses, key=lambda response: response[1])
        tolerance = 1e-9 * (1 + multiplier)
        assert value <= bound + tolerance
        assert value >= objective(members, pi, q_values, multiplier) - tolerance

    @given(seed=st.integers(0, 2**32 - 1), n_members=st.integers(1, 5), scale=st.floats(-3, 3))
    def test_no_policy_nearby_or_far_is_better(self, seed, n_members, scale):
        """One ball, or several points: answered exactly."""
        rng = np.random.default_rng(seed)
        members, multiplier, q_values = random_union(rng, n_members, 6), float(10**scale), rng.normal(size=6)
        if n_members > 1:
            members = PlausibleSet.points(members.log_centres)
        pi, value = answered(members, q_values, multiplier)
        for other in self.others(pi, members, rng):
            got = objective(members, other, q_values, multiplier)
            assert got <= value + 1e-8 * (1 + abs(value) + multiplier)

    @staticmethod
    def others(pi: Floats, members: PlausibleSet, rng: np.random.Generator) -> Iterator[Floats]:
        yield from np.exp(members.log_centres)
        for reach in (1e-4, 1e-2, 1.0):
            for _ in range(4):
                yield (1 - reach) * pi + reach * rng.dirichlet(np.full(6, 0.5))

    def test_where_imitating_the_centre_is_best(self):
        p = np.array([0.5, 0.3, 0.2])
        pi, value = answered(union((p, 0.4)), np.array([0.1, 0.0, 0.05]), 1.0)
        np.testing.assert_allclose(pi, p, rtol=1e-12)
        assert value == pytest.approx(p @ [0.1, 0.0, 0.05] - 0.4)

    @pytest.mark.parametrize("multiplier", [1e-6, 1e-2, 1.0, 1e6])
    def test_extreme_prices(self, multiplier):
        ball, q_values = union((np.array([0.1, 0.2, 0.3, 0.4]), 0.05)), np.array([0.0, 1.0, 0.5, -3.0])
        pi, value = answered(ball, q_values, multiplier)
        for other in (np.eye(4)[1], np.array([0.1, 0.2, 0.3, 0.4]), np.full(4, 0.25)):
            assert value >= objective(ball, other, q_values, multiplier) - 1e-9 * (1 + multiplier)
        if multiplier == 1e-6:
            assert pi[1] > 1 - 1e-6

    def test_actions_some_member_never_saw_are_avoided(self):
        members = union((np.array([0.5, 0.5, 0.0]), 0.1), (np.array([0.2, 0.4, 0.4]), 0.3))
        pi, value = answered(members, np.array([0.0, 1.0, 100.0]), 0.5)
        assert pi[2] == 0
        assert np.isfinite(value)

    def test_no_finite_charge_is_said_not_hidden(self):
        members = union((np.array([1.0, 0.0]), 0.1), (np.array([0.0, 1.0]), 0.1))
        log_pi, charge = members.best_response(np.zeros(2), 1.0)
        assert charge == np.inf
        assert (log_pi == -np.inf).all()

    @pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan")])
    def test_the_multiplier_is_a_price(self, multiplier):
        with pytest.raises(ValueError, match=r"multiplier must be positive, got (0\.0|-1\.0|nan); .*price"):
            union((np.array([0.5, 0.5]), 0.1)).best_response(np.zeros(2), multiplier)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.worst_kl(np.zeros(3)), r"log_pi must have shape \(2,\), got \(3,\)"),
        (lambda s: s.contains(np.zeros((1, 2))), r"log_probs must have shape \(2,\), got \(1, 2\)"),
        (lambda s: s.best_response(np.zeros(3), 1.0), r"q_values must have shape \(2,\), got \(3,\)"),
        (lambda s: PlausibleSet(s.log_centres, np.zeros(3), s.plausible), r"radii_nats must have shape \(1,\)"),
        (lambda s: PlausibleSet(s.log_centres, s.radii_nats, np.ones(2, bool)), r"plausible must have shape \(1,\)"),
        (lambda s: PlausibleSet(s.log_centres, s.radii_nats, np.zeros(1, bool)), "plausible"),
    ],
)
def test_bad_input_names_the_argument_and_the_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call(union((np.array([0.5, 0.5]), 0.1)))


@given(p=simplex(3), radius=radii)
def test_the_most_of_an_action_is_what_a_solver_finds(p: Floats, radius: float) -> None:
    """Largest q with kl(p_a, q) <= radius, by bisection on the binary divergence."""
    most = np.exp(union((p, radius)).maximum())
    for centre, found in zip(p, most, strict=True):
        low, high = centre, 1.0
        for _ in range(200):
            middle = 0.5 * (low + high)
            inside = (
                kl(np.array([centre, 1 - centre]), np.array([middle, 1 - middle])) <= radius if middle < 1 else False
            )
            low, high = (middle, high) if inside else (low, middle)
        assert found == pytest.approx(low, rel=1e-7, abs=1e-12)


def test_the_most_of_several_members_is_the_most_of_any() -> None:
    several = union(
        (np.array([0.5, 0.3, 0.2]), 0.1), (np.array([0.1, 0.1, 0.8]), 0.0), (np.array([0.2, 0.8, 0.0]), 0.02)
    )
    alone = [union((np.exp(c), r)).maximum() for c, r in zip(several.log_centres, several.radii_nats, strict=True)]
    np.testing.assert_allclose(several.maximum(), np.max(alone, axis=0))
    assert np.exp(union((np.array([0.5, 0.5]), np.inf)).maximum()).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("ratio", [1e-6, 1.0, 30.0, 740.0, 1e3, 1e9])
@pytest.mark.parametrize("p", [1e-300, 1e-160, 1e-20])
def test_the_least_of_what_is_all_but_impossible(p: float, ratio: float) -> None:
    """Where p and radius are both tiny, kl(p, q) / p = -log x + x - 1 with q = x p, up to terms of order p."""
    got = float(union(([p, 1 - p], ratio * p)).minimum()[0])
    log_x = np.log(0.5)
    for _ in range(200):
        log_x -= (-log_x + np.expm1(log_x) - ratio) / (-1 + np.exp(log_x)) if log_x < 0 else 1e-3
        log_x = min(log_x, -1e-12)
    wanted = np.log(p) + log_x
    if wanted < -745:
        assert got == -np.inf
    else:
        assert got == pytest.approx(wanted, abs=1e-3 if wanted < -707 else 1e-6)


@pytest.mark.parametrize("radius", [1e-13, 1e-17, 1e-100, 5e-324])
def test_a_ball_that_rounding_cannot_tell_from_its_centre(radius: float) -> None:
    rng = np.random.default_rng(8)
    p, pi, q = rng.dirichlet(np.ones(5), 20), rng.dirichlet(np.ones(5), 20), rng.normal(size=(20, 5))
    point = PlausibleSet.points(np.log(p)[:, None])
    ball = PlausibleSet(np.log(p)[:, None], np.full((20, 1), radius), np.ones((20, 1), dtype=bool))
    excess = ball.worst_kl(np.log(pi)) - point.worst_kl(np.log(pi))
    assert (excess >= 0).all()
    assert (excess < 1e-3).all()
    for found, wanted in zip(ball.best_response(q, 0.3), point.best_response(q, 0.3), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3)
