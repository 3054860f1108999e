"""Gaussian heads: leverage and scale against explicit matrices, heads drawn from the Gaussian, `given`, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import cautious_imitation.hypotheses.gaussian_head as module
from cautious_imitation.divergences import kl
from cautious_imitation.hypotheses import load_hypotheses
from cautious_imitation.hypotheses.event_refined import EventRefined
from cautious_imitation.hypotheses.events import EmptyReplies
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.model_stack import ModelStack
from cautious_imitation.language.recent_context import RecentContext
from tests.tiny_models import tiny_model, tiny_network

SEQUENCES = [[0, 1, 2, 3, 0, 1, 2, 0, 1], [2, 2, 1, 0], [3, 1, 1, 0, 2]]
CONTEXTS = [[0, 1], [2, 2], [3, 3], [1, 0]]
ALPHA = 0.05


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model(7)


def learned_features(model: LanguageModel) -> np.ndarray:
    """Features before every action of ``SEQUENCES``, one context at a time."""
    pairs = [(s[:t], a) for s in SEQUENCES for t, a in enumerate(s) if a < model.n_symbols]
    return torch.stack([model.read(context).features for context, _ in pairs]).numpy()


def probabilities(model: LanguageModel, features: np.ndarray, given=None) -> np.ndarray:
    logits = features @ model.head.weight.numpy().T[:, : model.n_symbols]
    weights = np.exp(logits - logits.max(-1, keepdims=True)) * (1 if given is None else given)
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("ridge", [0.1, 1.0, 30.0])
def test_leverage_is_that_of_ridge_regression(model, ridge):
    head = GaussianHead(model, ridge=ridge).fit(SEQUENCES)
    H, h = learned_features(model), model.read(CONTEXTS).features.numpy()
    assert head.n_learned == len(H)
    inverse = np.linalg.inv(H.T @ H + ridge * np.eye(H.shape[1]))
    expected = np.einsum("bi,ij,bj->b", h, inverse, h)
    np.testing.assert_allclose(head.leverage(CONTEXTS).numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(head.radius(CONTEXTS, ALPHA), np.sqrt(2 * np.log(1 / ALPHA) * expected), rtol=1e-9)
    assert head.radius(CONTEXTS[0], 1.0) == 0


def test_before_learning_the_prior_speaks(model):
    h = model.read(CONTEXTS).features
    for covariance in ("isotropic", "fisher"):
        head = GaussianHead(model, ridge=4.0, covariance=covariance)
        torch.testing.assert_close(head.leverage(CONTEXTS), h.square().sum(-1) / 4)
    torch.testing.assert_close(head.plausible(CONTEXTS, ALPHA).scale, torch.ones(4, 3, dtype=torch.float64))


def test_learning_lowers_leverage_where_it_happened(model):
    head = GaussianHead(model)
    before = head.leverage(CONTEXTS)
    head.update([0, 1], 2)
    assert (head.leverage(CONTEXTS) <= before).all()
    # Sherman and Morrison: one look at h turns a leverage l into l / (1 + l).
    assert float(head.leverage([0, 1])) == pytest.approx(float(before[0] / (1 + before[0])), rel=1e-9)


def test_the_mixture_is_the_model_itself(model):
    head = GaussianHead(model).fit(SEQUENCES)
    expected = probabilities(model, model.read(CONTEXTS).features.numpy())
    np.testing.assert_allclose(head.mixture(CONTEXTS).exp().numpy(), expected, rtol=1e-9)
    members = head.plausible(CONTEXTS, ALPHA)
    torch.testing.assert_close(members.log_centre, head.mixture(CONTEXTS), rtol=0, atol=0)
    torch.testing.assert_close(members.radius, head.radius(CONTEXTS, ALPHA), rtol=0, atol=0)
    assert members.scale is None


def test_heads_drawn_from_the_gaussian_are_members(model):
    """Each head whose density is at least alpha times the largest predicts within the ball, and some at its border."""
    head = GaussianHead(model, ridge=0.5).fit(SEQUENCES)
    H, h = learned_features(model), model.read(CONTEXTS).features.numpy()
    precision = H.T @ H + 0.5 * np.eye(H.shape[1])
    weights = model.head.weight.numpy()[:3]
    members, minimum = head.plausible(CONTEXTS, ALPHA), head.plausible_min(CONTEXTS, ALPHA)
    rng = np.random.default_rng(0)
    closest = np.full(len(CONTEXTS), np.inf)
    for i in range(300):
        change = rng.normal(size=weights.shape)
        if i % 2:
            # Those that change this context as much as they can.
            change = np.outer(rng.normal(size=3), np.linalg.solve(precision, h[i // 2 % len(h)]))
            change -= change.mean(0)
        change *= np.sqrt(2 * np.log(1 / ALPHA) / np.trace(change @ precision @ change.T))
        log_nu = torch.tensor(h @ (weights + change).T).log_softmax(-1)
        assert members.contains(log_nu).all()
        assert (minimum <= log_nu + 1e-12).all()
        log_pi = torch.tensor(rng.dirichlet(np.ones(3), size=len(h))).log()
        assert (kl(log_pi, log_nu) <= head.worst_kl(CONTEXTS, log_pi, ALPHA) + 1e-12).all()
        smaller = module.LogitBall(members.log_centre, members.radius * 0.99)
        closest = np.where(smaller.contains(log_nu).numpy(), closest, 0)
    assert (closest == 0).all()


def test_the_fisher_scale_bounds_the_laplace_approximation(model):
    """Token by token, the variance of a logit under precision f_a H'H + ridge I is at most what the scale says."""
    ridge = 2.0
    head = GaussianHead(model, ridge=ridge, covariance="fisher").fit(SEQUENCES)
    H, h = learned_features(model), model.read(CONTEXTS).features.numpy()
    p = probabilities(model, H)
    mean = (p * (1 - p)).mean(0)
    members = head.plausible(CONTEXTS, ALPHA)
    found = members.scale.numpy() ** 2 * head.leverage(CONTEXTS).numpy()[:, None]
    identity = np.eye(H.shape[1])
    inverses = [np.linalg.inv(f * H.T @ H + ridge * identity) for f in mean]
    exact = np.stack([np.einsum("bi,ij,bj->b", h, inverse, h) for inverse in inverses], axis=-1)
    assert (found >= exact * (1 - 1e-9)).all()
    assert (found <= np.square(h).sum(-1)[:, None] / ridge * (1 + 1e-9)).all()
    assert (members.scale > 1).all()
    # Rarer tokens are less certain.
    assert (np.diff(members.scale.numpy()[:, np.argsort(mean)]) < 0).all()
    # In an eigenvector's direction it is exact.
    _, vectors = np.linalg.eigh(H.T @ H)
    along = torch.tensor(3 * vectors.T)
    exact = np.stack([np.einsum("bi,ij,bj->b", along, inverse, along) for inverse in inverses], axis=-1)
    at = head.plausible_from(along, ALPHA)
    variance = (at.scale * at.radius[:, None]).square().numpy() / (2 * np.log(1 / ALPHA))
    np.testing.assert_allclose(variance, exact, rtol=1e-7)


def test_a_familiar_direction_has_the_fisher_weights_of_its_tokens():
    """After much evidence in one place the scale is that of the softmax's own curvature, 1 / sqrt(p (1 - p))."""
    model = tiny_model(seed=2)
    head = GaussianHead(model, covariance="fisher", ridge=1e-3)
    features = model.read([0, 1]).features
    head.learn_from(features.expand(4_000, -1), torch.zeros(4_000, dtype=torch.long))
    p = model.log_probs(features).exp()
    torch.testing.assert_close(head.plausible([0, 1], ALPHA).scale, (p * (1 - p)).rsqrt(), rtol=2e-2, atol=0)


@pytest.mark.parametrize("covariance", ["isotropic", "fisher"])
def test_given_projects_the_ball(model, covariance):
    head = GaussianHead(model, covariance=covariance).fit(SEQUENCES)
    features = model.read(CONTEXTS).features
    given = torch.tensor([[True, True, False], [True, False, True], [False, True, True], [False, True, False]])
    whole, part = head.plausible_from(features, ALPHA), head.plausible_from(features, ALPHA, given)
    expected = probabilities(model, features.numpy(), given.numpy())
    np.testing.assert_allclose(head.mixture_from(features, given).exp().numpy(), expected, rtol=1e-9)
    assert (part.log_centre[~given] == -torch.inf).all()
    torch.testing.assert_close(part.radius, whole.radius, rtol=0, atol=0)
    assert (part.minimum()[~given] == -torch.inf).all()
    assert part.minimum()[3, 1] == 0
    # Members conditional on what is given are members of the projection.
    shift = torch.tensor(np.random.default_rng(1).normal(size=(50, 4, 3)))
    shift *= (whole.radius / shift.norm(dim=-1))[..., None]
    nu = whole.log_centre + shift * (1 if whole.scale is None else whole.scale)
    conditional = nu.masked_fill(~given, -torch.inf).log_softmax(-1)
    assert all(part.contains(row).all() for row in conditional)
    assert (part.minimum() <= conditional + 1e-12).all()
    torch.testing.assert_close(head.plausible_from(features, ALPHA, given[0]).log_centre[0], part.log_centre[0])
    with pytest.raises(ValueError, match="given must leave at least one action in every context"):
        head.plausible_from(features, ALPHA, torch.zeros(3, dtype=torch.bool))


def test_given_counts_in_what_is_learned(model):
    features = model.read(CONTEXTS).features
    symbols, given = torch.tensor([0, 0, 1, 1]), torch.tensor([[True, True, False]]).expand(4, -1)
    heads = [GaussianHead(model, covariance="fisher") for _ in range(3)]
    heads[0].learn_from(features, symbols, given)
    heads[1].learn_from(features, symbols, given[0])
    heads[2].learn_from(features, symbols)
    p = probabilities(model, features.numpy(), given.numpy())
    np.testing.assert_allclose(heads[0]._fisher.numpy(), (p * (1 - p)).sum(0), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(heads[1]._fisher, heads[0]._fisher)
    assert not torch.allclose(heads[2]._fisher, heads[0]._fisher)
    torch.testing.assert_close(heads[2].leverage(CONTEXTS), heads[0].leverage(CONTEXTS))


@pytest.mark.parametrize("covariance", ["isotropic", "fisher"])
def test_learning_in_blocks_is_learning_at_once(model, covariance, monkeypatch):
    at_once = GaussianHead(model, covariance=covariance).fit(SEQUENCES)
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 7)
    in_blocks = GaussianHead(model, covariance=covariance).fit(SEQUENCES)
    torch.testing.assert_close(
        in_blocks.plausible_min(CONTEXTS, ALPHA), at_once.plausible_min(CONTEXTS, ALPHA), rtol=1e-12, atol=0
    )


def test_noise_is_a_factor_of_the_radius(model, tmp_path):
    quiet, loud = (GaussianHead(model, noise=noise).fit([[0, 1, 2, 1, 0]]) for noise in (0.25, 1.0))
    assert float(quiet.radius([2, 1], 0.1)) == pytest.approx(0.25 * float(loud.radius([2, 1], 0.1)))
    assert float(quiet.plausible([2, 1], 0.1).radius) == pytest.approx(float(quiet.radius([2, 1], 0.1)))
    assert (quiet.plausible_min([2, 1], 0.1) > loud.plausible_min([2, 1], 0.1)).all()
    quiet.save(tmp_path)
    assert GaussianHead.load(tmp_path, model).noise == 0.25
    with pytest.raises(ValueError, match="noise must be positive"):
        GaussianHead(model, noise=0.0)


def test_what_was_done_does_not_matter(model):
    features = model.read(CONTEXTS).features
    one, other = GaussianHead(model), GaussianHead(model)
    one.learn_from(features, torch.tensor([0, 0, 0, 0]))
    other.learn_from(features, torch.tensor([2, 1, 0, 1]))
    torch.testing.assert_close(one.plausible_min(CONTEXTS, ALPHA), other.plausible_min(CONTEXTS, ALPHA))


def test_the_first_order_bound_asks_less(model):
    kinds = [GaussianHead(model, bound=bound).fit(SEQUENCES) for bound in ("guaranteed", "first-order")]
    guaranteed, first = (head.plausible_min(CONTEXTS, ALPHA) for head in kinds)
    assert (guaranteed < first).all()
    guaranteed, first = (head.worst_kl(CONTEXTS, head.mixture(CONTEXTS), ALPHA) for head in kinds)
    assert (guaranteed > first + 1e-3).all()
    torch.testing.assert_close(first, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("covariance", ["isotropic", "fisher"])
def test_single_precision(covariance):
    single = LanguageModel(tiny_network(seed=7).float(), n_symbols=3, start_token=3)
    double = LanguageModel(tiny_network(seed=7), n_symbols=3, start_token=3)
    answers = []
    for model in (single, double):
        head = GaussianHead(model, covariance=covariance).fit(SEQUENCES)
        members = head.plausible(CONTEXTS, ALPHA)
        found = (head.plausible_min(CONTEXTS, ALPHA), members.worst_kl(members.log_centre), head.leverage(CONTEXTS))
        assert {values.dtype for values in (*found, members.radius)} == {model.dtype}
        answers.append(found)
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4)


def test_reading_what_the_last_tokens_had_in_common():
    recent = LanguageModel(tiny_network(seed=7), n_symbols=3, start_token=3, recent=RecentContext(layer=1.0))
    width = recent.head_width
    h = recent.read(CONTEXTS).features
    torch.manual_seed(0)
    learned = torch.randn(30, recent.n_features, dtype=torch.float64)
    for reads, part in (("last", slice(0, width)), ("recent", slice(width, None)), ("both", slice(None))):
        head = GaussianHead(recent, reads=reads)
        head.learn_from(learned, torch.zeros(30, dtype=torch.long))
        H, x = learned[:, part].numpy(), h[:, part].numpy()
        inverse = np.linalg.inv(H.T @ H + np.eye(H.shape[1]))
        np.testing.assert_allclose(head.leverage(CONTEXTS), np.einsum("bi,ij,bj->b", x, inverse, x), rtol=1e-9)
        torch.testing.assert_close(head.mixture(CONTEXTS), recent.log_probs(h))


def test_in_a_cautious_imitator(model):
    head = GaussianHead(model).fit(SEQUENCES)
    log_pi = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    pointwise, minimax = (CautiousImitator(head, ALPHA, caution) for caution in ("pointwise", "minimax"))
    prediction = pointwise.predict([0, 1])
    assert 0 < float(prediction.ask_probability) < 1
    assert float(minimax.charge([0, 1], log_pi)) <= float(pointwise.charge([0, 1], log_pi)) + 1e-12
    # Who does as the model does pays its radius in nats, far less than the pointwise minimum asks for.
    assert float(minimax.charge([0, 1], head.mixture([0, 1]))) < 0.5 * float(
        pointwise.charge([0, 1], head.mixture([0, 1]))
    )


@pytest.mark.parametrize("covariance", ["isotropic", "fisher"])
def test_within_events(model, covariance):
    events = EmptyReplies(3, end_tokens=[0], start_suffix=[3])
    refined = EventRefined(GaussianHead(model, covariance=covariance), events).fit([[3, 1, 2, 0], [3, 2, 0, 3, 1, 0]])
    contexts = [[3, 1], [1, 3], [2, 3], [3, 2]]
    minimum, mixture = refined.plausible_min(contexts, ALPHA), refined.mixture(contexts)
    assert (minimum <= mixture + 1e-12).all()
    assert minimum.exp().sum(-1).max() < 1
    charge = refined.worst_kl(contexts, mixture, ALPHA)
    assert (charge >= 0).all()
    assert (charge <= kl(mixture, minimum) + 1e-12).all()


@pytest.mark.parametrize("covariance", ["isotropic", "fisher"])
def test_files(model, covariance, tmp_path):
    head = GaussianHead(model, ridge=0.7, covariance=covariance, bound="first-order").fit(SEQUENCES)
    head.save(tmp_path)
    loaded = load_hypotheses("GaussianHead", tmp_path, model)
    assert (loaded.ridge, loaded.covariance, loaded.bound, loaded.reads, loaded.n_learned) == (
        0.7,
        covariance,
        "first-order",
        "last",
        head.n_learned,
    )
    torch.testing.assert_close(
        loaded.plausible_min(CONTEXTS, ALPHA), head.plausible_min(CONTEXTS, ALPHA), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="model must be the one that was saved in"):
        GaussianHead.load(tmp_path, tiny_model(seed=8))
    document = json.loads((tmp_path / "gaussian_head.json").read_text())
    (tmp_path / "gaussian_head.json").write_text(json.dumps({**document, "reads": "recent"}))
    with pytest.raises(ValueError, match="reads must be one of"):
        GaussianHead.load(tmp_path, model)
    (tmp_path / "gaussian_head.json").write_text(json.dumps({**document, "schema": 0}))
    with pytest.raises(ValueError, match="has another schema than 1"):
        GaussianHead.load(tmp_path, model)
    with pytest.raises(FileNotFoundError):
        GaussianHead.load(tmp_path / "nowhere", model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ridge": 0.0}, "ridge must be positive and finite, got 0.0"),
        ({"ridge": -1.0}, "ridge must be positive and finite, got -1.0"),
        ({"ridge": float("nan")}, "ridge must be positive and finite, got nan"),
        ({"covariance": "full"}, "covariance must be one of isotropic, fisher, got 'full'"),
        ({"bound": "exact"}, "bound must be one of guaranteed, first-order, got 'exact'"),
        ({"reads": "all"}, "reads must be one of last, recent, both, got 'all'"),
        ({"reads": "recent"}, r"got 'recent'; all but last need a LanguageModel with recent=RecentContext\(\)"),
    ],
)
def test_bad_settings_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        GaussianHead(model, **settings)


def test_several_models_are_refused(model):
    with pytest.raises(ValueError, match="model must be a single LanguageModel, got ModelStack"):
        GaussianHead(ModelStack([model, model]))


def test_broken_features_are_refused(model):
    head = GaussianHead(model).fit(SEQUENCES)
    before = head.leverage(CONTEXTS)
    features = model.read(CONTEXTS).features.clone()
    features[3, 2] = float("nan")
    with pytest.raises(ValueError, match="features must be finite"):
        head.learn_from(features, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(head.leverage(CONTEXTS), before, rtol=0, atol=0)


def test_a_ridge_that_rounding_swallows_is_refused(model):
    head = GaussianHead(model, ridge=1e-300)
    head.update([0, 1], 2)
    with pytest.raises(ValueError, match="ridge must be large enough beside the features learned, got 1e-300"):
        head.leverage(CONTEXTS)
