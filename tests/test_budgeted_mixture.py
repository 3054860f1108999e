"""A budget in nats, spent a share at a time: exactly, never more than is left, with the gradients that go with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_softmax, rel_entr
from scipy.stats import chisquare

from cautious_imitation.divergences import kl
from cautious_imitation.finetuning.budgeted_mixture import BudgetedMixtureHead, Decision, adjusted, log_complement
from cautious_imitation.finetuning.charged_mixture import ChargedBase, Spent, spend
from cautious_imitation.hypotheses.event_refined import EventRefined
from cautious_imitation.hypotheses.events import EmptyReplies
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.hypotheses.logit_adapters import AdaptedLogits
from cautious_imitation.hypotheses.logit_ball import LogitBall
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.plausible_sets import PlausibleSet
from tests.tiny_models import tiny_model

DOUBLE = torch.float64
N, V = 40, 6
ANCHORS = ("distribution", "minimum", "points", "adapted", "ball")


def normal(*shape: int, seed: int, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def random_base(kind: str, seed: int = 0, n: int = N, dtype: torch.dtype = DOUBLE) -> ChargedBase:
    centre = normal(n, 1, V, seed=seed, dtype=dtype)
    members = (1.5 * centre + 0.7 * normal(n, 3, V, seed=seed + 1, dtype=dtype)).log_softmax(-1)
    mixture = members.logsumexp(-2).log_softmax(-1)
    if kind == "distribution":
        return ChargedBase.of_distribution(mixture)
    if kind == "minimum":
        return ChargedBase.of_minimum(members.amin(-2))
    if kind == "points":
        return ChargedBase.of_set(PlausibleSet.points(members), mixture)
    if kind == "ball":
        radius = normal(n, seed=seed + 2, dtype=dtype).abs()
        return ChargedBase.of_set(LogitBall(mixture, radius), mixture)
    support, rest = torch.tensor([1, 3]), torch.tensor([0, 2, 4, 5])
    ratios = 0.7 * normal(n, 3, 3, seed=seed + 1, dtype=dtype)
    on = mixture[:, None, support] + ratios[..., :-1]
    log_rest = mixture[:, rest].logsumexp(-1)
    log_sum = torch.logaddexp(on.logsumexp(-1), log_rest[:, None] + ratios[..., -1])
    plausible = torch.ones(n, 3, dtype=torch.bool)
    adapted = AdaptedLogits(mixture, support, ratios - log_sum[..., None], log_rest, plausible)
    return ChargedBase.of_set(adapted, mixture)


def random_adjusted(base: ChargedBase, seed: int = 9, size: float = 1.5) -> torch.Tensor:
    return adjusted(base.log_probs, size * normal(*base.log_probs.shape, seed=seed).to(base.log_probs.dtype))


def cost(base: ChargedBase, log_pi: torch.Tensor) -> torch.Tensor:
    return base.base_nats + kl(log_pi, base.log_probs) if base.charge_of is None else base.charge_of(log_pi)


def spends(base: ChargedBase, log_adjusted: torch.Tensor, little: float = 1e-3) -> torch.Tensor:
    """In turn less than the base costs, a little more, half as much as the adjusted policy's extra, and enough."""
    first, last = base.base_nats, cost(base, log_adjusted)
    extra = (last - first).abs()
    which = torch.arange(first.numel()).reshape(first.shape) % 4
    asks = torch.where(first > 0, 0.6 * first, 0.01 * extra)
    return asks.where(which == 0, (first + little * extra).where(which == 1, first + extra * (0.7 * which - 0.9)))


def numpy_charge(kind: str, seed: int = 0):
    """What a policy of row i costs, from the definition, without the library where that is possible."""
    base = random_base(kind, seed)
    if kind == "distribution":
        reference = base.log_probs.exp().numpy()[:, None]
    elif kind == "minimum":
        reference = (base.log_probs.exp() * (-base.base_nats).exp()[:, None]).numpy()[:, None]
    elif kind in ("points", "adapted"):
        reference = base.charge_of.__self__.log_centres.exp().numpy()
    else:
        ball = base.charge_of.__self__

        def of_ball(i: int, pi: np.ndarray) -> float:
            return float(LogitBall(ball.log_centre[i], ball.radius[i]).worst_kl(torch.from_numpy(pi).log()))

        return of_ball
    return lambda i, pi: float(rel_entr(pi, reference[i]).sum(-1).max())


@pytest.mark.parametrize("kind", ANCHORS)
def test_what_is_spent_is_what_scipy_finds(kind):
    base = random_base(kind)
    log_adjusted, charge = random_adjusted(base), numpy_charge(kind)
    to_spend = spends(base, log_adjusted)
    spent = spend(base, log_adjusted, to_spend)
    first, last = base.log_probs.exp().numpy(), log_adjusted.exp().numpy()
    seen = {"asks": 0, "between": 0, "whole": 0}
    for i, nats in enumerate(to_spend.numpy()):
        at = lambda s, i=i: charge(i, (1 - s) * first[i] + s * last[i])  # noqa: E731
        assert at(0) == pytest.approx(float(base.base_nats[i]), abs=1e-12)
        act = float(spent.log_act[i].exp())
        if at(0) > nats:
            seen["asks"] += 1
            torch.testing.assert_close(spent.log_probs[i], base.log_probs[i], rtol=0, atol=0)
            assert act == pytest.approx(nats / at(0), rel=1e-10)
            assert float(spent.charge_nats[i]) == pytest.approx(act * at(0), rel=1e-10)
            continue
        affordable = [s for s in np.linspace(0, 1, 41) if at(s) <= nats]
        root = 1.0 if at(1) <= nats else brentq(lambda s: at(s) - nats, max(affordable), 1.0, xtol=1e-15, rtol=1e-14)  # noqa: B023
        seen["whole" if root == 1 else "between"] += 1
        assert float(spent.share[i]) == pytest.approx(root, rel=1e-8)
        np.testing.assert_allclose(
            spent.log_probs[i].exp(), (1 - root) * first[i] + root * last[i], rtol=1e-8, atol=1e-12
        )
        assert act == 1
        assert float(spent.charge_nats[i]) == pytest.approx(min(at(1), nats), rel=1e-10)
    assert seen["between"] >= 5
    assert seen["whole"] >= 5
    assert (seen["asks"] >= 5) == (kind != "distribution")


@pytest.mark.parametrize("kind", ANCHORS)
def test_gradients_are_those_of_finite_differences(kind):
    base = random_base(kind, n=8)
    log_base = base.log_probs.clone().requires_grad_()
    log_adjusted = random_adjusted(base).requires_grad_()
    to_spend = spends(base, log_adjusted.detach(), little=0.1)
    log_spend = to_spend.log().requires_grad_()

    def outputs(log_base, log_adjusted, log_spend):
        nats = base.base_nats if base.charge_of is None else base.charge_of(log_base).detach()
        spent = spend(ChargedBase(log_base, nats, base.charge_of), log_adjusted, log_spend.exp())
        return spent.log_probs, spent.log_act, spent.charge_nats

    spent = spend(base, log_adjusted, to_spend)
    kinds = torch.where(spent.log_act < 0, 0, torch.where(spent.share < 1, 1, 2))
    assert set(kinds.tolist()) >= ({1, 2} if kind == "distribution" else {0, 1, 2})
    assert torch.autograd.gradcheck(outputs, (log_base, log_adjusted, log_spend), eps=1e-5, atol=1e-5, rtol=1e-4)


@given(
    kind=st.sampled_from(ANCHORS),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([0.01, 1.0, 6.0]),
    scale=st.sampled_from([0.0, 1e-9, 1e-4, 0.1, 1.0, 30.0]),
    single=st.booleans(),
)
def test_never_above_what_is_to_be_spent_and_equal_to_it_where_that_is_possible(kind, seed, size, scale, single):
    base = random_base(kind, seed, 8, torch.float32 if single else DOUBLE)
    log_adjusted = random_adjusted(base, seed + 3, size)
    to_spend = scale * torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    to_spend = to_spend.to(base.log_probs.dtype)
    spent = spend(base, log_adjusted, to_spend)
    assert bool((spent.charge_nats <= to_spend).all())
    assert bool((spent.charge_nats >= 0).all())
    assert bool((spent.log_act <= 0).all())
    assert bool(((spent.share >= 0) & (spent.share <= 1)).all())
    tolerance = 1e-4 if single else 1e-9
    torch.testing.assert_close(spent.log_probs.logsumexp(-1), torch.zeros_like(to_spend), rtol=0, atol=tolerance)
    # What it says that it costs is what it costs.
    rounding = 2e-6 if single else 1e-12
    torch.testing.assert_close(
        spent.log_act.exp() * cost(base, spent.log_probs), spent.charge_nats, rtol=rounding, atol=rounding
    )
    exact = (spent.share < 1) & (to_spend > (1e-3 if single else 1e-12))
    near = 1e-5 if single else 2e-11
    torch.testing.assert_close(spent.charge_nats[exact], to_spend[exact], rtol=near, atol=0)
    more = spend(base, log_adjusted, 1.5 * to_spend)
    assert bool((more.share >= spent.share * (1 - tolerance)).all())
    assert bool((more.log_act >= spent.log_act).all())


def test_what_a_context_gets_does_not_depend_on_the_others():
    for kind in ("distribution", "ball"):
        base = random_base(kind)
        log_adjusted = random_adjusted(base)
        to_spend = spends(base, log_adjusted)
        together = spend(base, log_adjusted, to_spend)
        for i in (0, 7):
            charge_of = base.charge_of
            if charge_of is not None:
                ball = charge_of.__self__
                charge_of = LogitBall(ball.log_centre[i : i + 1], ball.radius[i : i + 1]).worst_kl
            one = ChargedBase(base.log_probs[i : i + 1], base.base_nats[i : i + 1], charge_of)
            alone = spend(one, log_adjusted[i : i + 1], to_spend[i : i + 1])
            torch.testing.assert_close(alone.log_probs[0], together.log_probs[i], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_any_shape_of_batch(shape):
    base = ChargedBase.of_minimum((normal(*shape, V, seed=1).log_softmax(-1)) - 0.1)
    spent = spend(base, random_adjusted(base), torch.full(shape, 0.2, dtype=DOUBLE))
    assert spent.log_probs.shape == (*shape, V)
    assert spent.share.shape == spent.log_act.shape == spent.charge_nats.shape == shape


def test_a_wide_vocabulary_in_single_precision_is_done_in_pieces():
    log_base = (3 * normal(9, 50_000, seed=0)).float().log_softmax(-1)
    base = ChargedBase.of_distribution(log_base)
    log_adjusted = adjusted(log_base, normal(9, 50_000, seed=1).float())
    to_spend = torch.logspace(-5, 1, 9)
    spent = spend(base, log_adjusted, to_spend)
    assert bool((spent.charge_nats <= to_spend).all())
    exact = kl(spent.log_probs.double(), log_base.double())
    between = spent.share < 1
    assert 5 <= int(between.sum()) < 9
    torch.testing.assert_close(exact[between].float(), to_spend[between], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(spent.charge_nats[between], to_spend[between], rtol=2e-6, atol=0)


def test_single_precision_rounds_towards_less():
    base = random_base("distribution", n=400, dtype=torch.float32)
    log_adjusted = random_adjusted(base)
    to_spend = spends(base, log_adjusted)
    share = spend(base, log_adjusted, to_spend).share.double()[:, None]
    first, last = base.log_probs.double(), log_adjusted.double()
    log_pi = torch.logaddexp(torch.log1p(-share) + first, share.log() + last)
    exact = kl(log_pi, first) - log_pi.exp().sum(-1) + first.exp().sum(-1)
    between = share[:, 0] < 1
    assert int(between.sum()) > 250
    assert bool((exact <= to_spend.double())[between].all())


def test_a_minimum_that_sums_to_a_rounding_more_than_one_is_a_distribution():
    log_minimum = torch.tensor([0.5, 0.3, 0.2 + 3e-7]).log()
    assert float(log_minimum.logsumexp(-1)) > 0
    assert float(ChargedBase.of_minimum(log_minimum).base_nats) == 0


def test_a_set_of_one_costs_nothing_however_it_is_rounded():
    member = (3 * normal(200, 1000, seed=0)).float().log_softmax(-1)
    base = ChargedBase.of_set(PlausibleSet.points(member[:, None]), member)
    torch.testing.assert_close(base.base_nats, torch.zeros(200), rtol=0, atol=1e-5)


def test_small_departures_in_single_precision_cost_what_they_do():
    log_base = (3 * normal(4, 50_000, seed=0)).float().log_softmax(-1)
    adjustment = torch.logspace(-3, -1, 4)[:, None] * normal(4, 50_000, seed=1).float()
    log_adjusted = adjusted(log_base, adjustment)
    spent = spend(ChargedBase.of_distribution(log_base), log_adjusted, torch.ones(4))
    exact = adjusted(log_base.double(), adjustment.double())
    torch.testing.assert_close(spent.charge_nats.double(), kl(exact, log_base.double()), rtol=1e-3, atol=0)


def test_a_charge_is_asked_for_policies_only_and_few_times():
    base, asked = random_base("points"), []

    def charge_of(log_pi: torch.Tensor) -> torch.Tensor:
        torch.testing.assert_close(log_pi.logsumexp(-1), torch.zeros(N, dtype=DOUBLE))
        asked.append(log_pi)
        return base.charge_of(log_pi)

    log_adjusted = random_adjusted(base)
    spend(ChargedBase(base.log_probs, base.base_nats, charge_of), log_adjusted, spends(base, log_adjusted))
    assert len(asked) <= 15


def test_actions_without_probability():
    zero = -torch.inf
    log_base = torch.tensor([[0.5, 0.5, 0.0]] * 3, dtype=DOUBLE).log()
    log_adjusted = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.8, 0.0], [0.2, 0.3, 0.5]], dtype=DOUBLE).log()
    log_adjusted.requires_grad_()
    to_spend = torch.tensor([9.0, 0.1, 0.1], dtype=DOUBLE)
    members = torch.stack([log_base, log_base], -2)
    for base in (
        ChargedBase.of_distribution(log_base),
        ChargedBase.of_set(PlausibleSet.points(members), log_base),
        ChargedBase.of_set(LogitBall(log_base, torch.zeros(3, dtype=DOUBLE)), log_base),
    ):
        spent = spend(base, log_adjusted, to_spend)
        np.testing.assert_allclose(spent.log_probs[0].exp().detach(), [1, 0, 0])
        np.testing.assert_allclose(spent.charge_nats.detach(), [np.log(2), 0.1, 0.0], rtol=1e-10)
        # What the base never does no mixture can pay for.
        assert torch.equal(spent.log_probs[2], log_base[2])
        assert spent.log_probs[1, 2] == zero
        (spent.log_probs[:2, 0].sum() + spent.charge_nats.sum()).backward()
        assert bool(log_adjusted.grad.isfinite().all())
        log_adjusted.grad = None


def test_where_a_member_forbids_what_the_mixture_does_the_normalised_minimum_is_the_base():
    members = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.2, 0.4]], dtype=DOUBLE).log()
    mixture = torch.tensor([0.45, 0.35, 0.2], dtype=DOUBLE).log()
    base = ChargedBase.of_set(PlausibleSet.points(members), mixture)
    np.testing.assert_allclose(base.log_probs.exp(), [2 / 3, 1 / 3, 0])
    assert float(base.base_nats) == pytest.approx(
        max(rel_entr([2 / 3, 1 / 3, 0], m).sum() for m in members.exp().numpy())
    )


@pytest.mark.parametrize("kind", ["points", "ball", "adapted"])
def test_the_base_of_a_set_is_the_cheaper_of_two(kind):
    base = random_base(kind)
    members = base.charge_of.__self__
    minimum = ChargedBase.of_minimum(members.minimum())
    mixture = random_base("distribution").log_probs
    expected = torch.minimum(members.worst_kl(minimum.log_probs), members.worst_kl(mixture))
    torch.testing.assert_close(base.base_nats, expected)
    torch.testing.assert_close(members.worst_kl(base.log_probs), expected)


def test_nothing_in_common_means_asking():
    disjoint = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=DOUBLE).log()
    half = torch.tensor([0.5, 0.5], dtype=DOUBLE).log()
    for base in (
        ChargedBase.of_minimum(disjoint.amin(0)),
        ChargedBase.of_set(PlausibleSet.points(disjoint), half),
    ):
        assert float(base.base_nats) == torch.inf
        adjustment = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
        to_spend = torch.tensor(3.0, dtype=DOUBLE, requires_grad=True)
        spent = spend(base, adjusted(base.log_probs, adjustment), to_spend)
        assert float(spent.log_act.detach().exp()) == 0
        assert float(spent.charge_nats.detach()) == 0
        np.testing.assert_allclose(spent.log_probs.detach(), half)
        (log_complement(spent.log_act) + spent.charge_nats + spent.log_probs[0]).backward()
        assert float(to_spend.grad) == 0
        assert bool(adjustment.grad.isfinite().all())


def test_probabilities_too_small_for_doubles_are_charged():
    log_base = torch.tensor([0.0, -800.0], dtype=DOUBLE)
    log_adjusted = torch.tensor([0.1, 0.9], dtype=DOUBLE).log()
    spent = spend(ChargedBase.of_distribution(log_base), log_adjusted, torch.tensor(20.0, dtype=DOUBLE))
    assert float(kl(spent.log_probs, log_base)) == pytest.approx(20, rel=1e-9)


def test_a_head_of_zeros_is_the_base():
    for dtype in (torch.float32, DOUBLE):
        head = BudgetedMixtureHead(3, V).to(dtype)
        for kind in ANCHORS:
            base = random_base(kind, dtype=dtype)
            decision = head(normal(N, 3, seed=1, dtype=dtype), base, torch.full((N,), 4.0, dtype=dtype))
            assert torch.equal(decision.log_probs, base.log_probs)
            torch.testing.assert_close(decision.spend_nats, torch.full((N,), 4 / 17, dtype=dtype))
            act = (decision.spend_nats / base.base_nats).clamp(max=1)
            torch.testing.assert_close(decision.log_act.exp(), act)
            torch.testing.assert_close(decision.log_ask.exp(), 1 - act, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(decision.charge_nats, torch.minimum(decision.spend_nats, base.base_nats))


def trained_head(seed: int = 0, size: float = 1.0) -> BudgetedMixtureHead:
    head = BudgetedMixtureHead(3, V).double()
    with torch.no_grad():
        for i, parameter in enumerate(head.parameters()):
            parameter.copy_(size * normal(*parameter.shape, seed=seed + i))
    return head


@pytest.mark.parametrize("kind", ANCHORS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_no_trajectory_spends_more_than_the_budget(kind, dtype):
    head, n, budget = trained_head(size=3.0).to(dtype), 16, 2.0
    generator = torch.Generator().manual_seed(0)
    left = torch.full((n,), budget, dtype=dtype)
    total = np.zeros(n)
    for step in range(60):
        base = random_base(kind, 100 * step, n, dtype)
        with torch.no_grad():
            decision = head(normal(n, 3, seed=step, dtype=dtype), base, left)
        outcomes = decision.sample(torch.rand(n, generator=generator))
        assert bool((outcomes <= V).all())
        left = left - decision.charge_nats
        assert bool((left >= 0).all())
        total += decision.charge_nats.double().numpy()
    assert (total <= budget * (1 + (1e-5 if dtype == torch.float32 else 1e-12))).all()
    assert total.max() > 0.9 * budget
    with torch.no_grad():
        broke = head(normal(n, 3, seed=0, dtype=dtype), base, torch.zeros(n, dtype=dtype))
    assert torch.equal(broke.log_probs, base.log_probs)
    assert torch.equal(broke.charge_nats, torch.zeros(n, dtype=dtype))
    asks = torch.full((n,), 0.0 if kind == "distribution" else 1.0, dtype=dtype)
    assert torch.equal(broke.log_ask.exp(), asks)
    assert torch.equal(broke.sample(torch.rand(n, generator=generator)) == broke.ask, asks.bool())


def test_a_budget_may_be_kept_in_double_precision():
    for kind in ANCHORS:
        head, base = trained_head().float(), random_base(kind, dtype=torch.float32)
        decision = head(normal(N, 3, seed=1).float(), base, torch.full((N,), 2.0, dtype=DOUBLE))
        assert decision.log_probs.dtype == decision.log_ask.dtype == torch.float32
        assert decision.charge_nats.dtype == decision.spend_nats.dtype == DOUBLE
        assert bool((decision.charge_nats <= decision.spend_nats).all())
        (decision.log_probs[:, 0].sum() + decision.charge_nats.sum()).backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in head.parameters())


def test_gradients_are_finite_with_nothing_left():
    for kind in ANCHORS:
        head, base = trained_head(), random_base(kind)
        decision = head(normal(N, 3, seed=1), base, torch.zeros(N, dtype=DOUBLE))
        outcomes = decision.sample(torch.rand(N, generator=torch.Generator().manual_seed(0)))
        (decision.log_prob(outcomes) + decision.entropy() + decision.charge_nats).sum().backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in head.parameters())


def one_decision(left: float = 3.0, kind: str = "points") -> Decision:
    base = random_base(kind)
    return trained_head()(normal(N, 3, seed=1), base, torch.full((N,), left, dtype=DOUBLE))


def test_outcomes_are_a_distribution_and_entropy_is_its():
    decision = one_decision()
    asks = decision.log_ask.exp()
    assert 0.05 < float((asks > 0).double().mean()) < 0.95
    log_all = torch.stack([decision.log_prob(torch.full((N,), outcome)) for outcome in range(V + 1)], -1)
    p = log_all.exp().detach().numpy()
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(p[:, -1], asks.detach())
    np.testing.assert_allclose(decision.entropy().detach(), -np.where(p > 0, p * np.log(p + (p == 0)), 0).sum(-1))


def test_samples_have_the_probabilities_that_are_said():
    row = int((one_decision().log_ask.exp() - 0.4).abs().argmin())
    whole = one_decision()
    repeated = Decision(
        *(
            getattr(whole, name)[row].detach().expand(20_000, *getattr(whole, name).shape[1:])
            for name in ("log_probs", "log_act", "log_ask", "charge_nats", "spend_nats", "share")
        )
    )
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    outcomes = repeated.sample(uniforms)
    counts = np.bincount(outcomes, minlength=V + 1)
    p = np.exp([whole.log_prob(torch.full((N,), outcome))[row].item() for outcome in range(V + 1)])
    assert p[V] > 0.1
    assert chisquare(counts, 20_000 * p / p.sum()).pvalue > 1e-3
    # An outcome is drawn by its own number, whatever else is drawn with it.
    assert torch.equal(outcomes.flip(0), repeated.sample(uniforms.flip(0)))


def test_impossible_outcomes_are_never_drawn():
    log_probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log().expand(3, -1)
    certain = torch.zeros(3)
    decision = Decision(log_probs, certain, certain - torch.inf, certain, certain, certain)
    numbers = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=DOUBLE)
    assert decision.sample(numbers).tolist() == [1, 3, 3]


def test_training_finds_the_best_policy_that_the_spend_allows():
    reward = torch.tensor([0.0, 0.2, 1.0, 0.4, 0.1, 0.6], dtype=DOUBLE)
    log_base = torch.from_numpy(log_softmax([1.0, 2.0, -1.0, 0.5, 1.0, 0.0])).unsqueeze(0)
    base, features = ChargedBase.of_distribution(log_base), torch.ones(1, 1, dtype=DOUBLE)
    head = BudgetedMixtureHead(1, V).double()
    head.budget_share.requires_grad_(False)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    left = torch.tensor([1.7], dtype=DOUBLE)
    for _ in range(400):
        optimizer.zero_grad()
        decision = head(features, base, left)
        (-(decision.log_probs.exp() @ reward)).sum().backward()
        optimizer.step()
    tilted = lambda b: torch.log_softmax(log_base[0] + b * reward, -1)  # noqa: E731
    best = tilted(brentq(lambda b: float(kl(tilted(b), log_base[0])) - 0.1, 0, 50)).exp()
    assert decision.charge_nats.item() == pytest.approx(0.1, rel=1e-9)
    assert (decision.log_probs[0].exp() @ reward).item() == pytest.approx(float(best @ reward), abs=1e-4)
    # Then spending more is worth more.
    head.budget_share.requires_grad_(True)
    (-(head(features, base, left).log_probs.exp() @ reward)).sum().backward()
    assert float(head.budget_share.bias.grad) < 0


def test_asking_less_is_learned_by_spending_more():
    head, base = BudgetedMixtureHead(3, V).double(), random_base("minimum")
    decision = head(normal(N, 3, seed=1), base, torch.full((N,), 0.5, dtype=DOUBLE))
    assert decision.log_ask.exp().mean().item() > 0.3
    decision.log_ask[decision.log_ask > -torch.inf].sum().backward()
    assert float(head.budget_share.bias.grad) < 0


def test_state_is_saved_and_loaded():
    head, other = trained_head(), BudgetedMixtureHead(3, V).double()
    other.load_state_dict(head.state_dict())
    args = normal(N, 3, seed=1), random_base("minimum"), torch.full((N,), 2.0, dtype=DOUBLE)
    assert torch.equal(head(*args).log_probs, other(*args).log_probs)


@pytest.mark.parametrize("refined", [False, True])
def test_anchors_say_what_they_charge(refined):
    hypotheses = GaussianHead(tiny_model())
    if refined:
        hypotheses = EventRefined(hypotheses, EmptyReplies(n_symbols=3, end_tokens=[0], start_suffix=[2]))
    hypotheses.fit([[0, 1, 2, 1, 0, 2, 1, 1], [1, 0, 2, 2, 0, 1]])
    context, log_pi = [[0, 1], [2, 2]], torch.tensor([[0.2, 0.5, 0.3]] * 2, dtype=DOUBLE).log()
    for caution in ("none", "pointwise", "minimax"):
        asks = caution != "none"
        anchor = CautiousImitator(hypotheses, 0.1, caution) if asks else BayesianImitator(hypotheses)
        base = ChargedBase.of(anchor, context)
        torch.testing.assert_close(anchor.charge(context, base.log_probs), base.base_nats)
        torch.testing.assert_close(anchor.charge(context, log_pi), cost(base, log_pi))
        assert bool((base.base_nats > 0.01).all()) == asks
        halfway = base.base_nats + 0.5 * (cost(base, log_pi) - base.base_nats).clamp(min=0)
        spent = spend(base, log_pi, halfway)
        assert bool((spent.log_act == 0).all())
        torch.testing.assert_close(anchor.charge(context, spent.log_probs), spent.charge_nats)
        between = spent.share < 1
        assert bool(between.any())
        torch.testing.assert_close(spent.charge_nats[between], halfway[between])


def test_rollouts_in_inference_mode():
    base = random_base("minimum")
    with torch.inference_mode():
        spent = spend(base, random_adjusted(base), spends(base, random_adjusted(base)))
    torch.testing.assert_close(
        spent.share, spend(base, random_adjusted(base), spends(base, random_adjusted(base))).share
    )
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        spend(random_base("points"), random_adjusted(base), spends(base, random_adjusted(base)))


def a_spend(**changes) -> Spent:
    base = random_base("minimum")
    arguments = {"base": base, "log_adjusted": random_adjusted(base), "spend_nats": spends(base, random_adjusted(base))}
    return spend(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: a_spend(spend_nats=torch.full((N,), -1.0)), "spend_nats must be at least 0 and finite, got -1.0"),
        (lambda: a_spend(spend_nats=torch.full((N,), torch.nan)), "spend_nats must be at least 0"),
        (lambda: a_spend(spend_nats=torch.full((N,), torch.inf)), "spend_nats must be at least 0"),
        (lambda: a_spend(spend_nats=torch.ones(3)), "spend_nats must have shape"),
        (lambda: a_spend(log_adjusted=torch.zeros(N, V)), "log_adjusted must have shape .*float64"),
        (lambda: a_spend(log_adjusted=torch.full((N, V), torch.nan, dtype=DOUBLE)), "not a number"),
        (lambda: ChargedBase(torch.zeros(2, 1), torch.zeros(3)), "base_nats must have shape"),
        (lambda: ChargedBase(torch.zeros(2, 1), torch.tensor([0.0, -1.0])), "base_nats must be at least 0, got -1"),
        (lambda: ChargedBase.of_minimum(torch.zeros(2)), "sum to at most 1, got 2"),
        (lambda: BudgetedMixtureHead(0, 3), "n_features and n_symbols"),
        (lambda: BudgetedMixtureHead(3, 3, share_offset=float("nan")), "share_offset"),
        (lambda: one_decision(left=-1.0), "left_nats must be at least 0 and finite, got -1"),
        (lambda: one_decision(left=float("nan")), "left_nats must be at least 0 and finite"),
        (lambda: trained_head()(torch.ones(2, 3), random_base("minimum"), torch.ones(N)), "one row a context"),
        (lambda: one_decision().log_prob(torch.full((N,), V + 1)), "outcomes must be actions in 0..5 or 6"),
        (lambda: one_decision().log_prob(torch.full((N,), -1)), "outcomes must be actions"),
        (lambda: one_decision().log_prob(torch.tensor(1)), "outcomes must have shape"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
