"""Low-rank heads answer from a few numbers a context; the reference is K dense rows, written out with NumPy."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.hypotheses.logit_adapters import AdaptedLogits, LogitAdapters, places_in
from cautious_imitation.hypotheses.low_rank_heads import LowRankHeads
from cautious_imitation.hypotheses.low_rank_training import default_support
from cautious_imitation.hypotheses.wide_minimum import wide_minimum
from cautious_imitation.language.model import Reading
from cautious_imitation.plausible_sets import PlausibleSet
from tests.tiny_models import tiny_model

VOCABULARY, WIDTH, HEADS, RANK = 11, 6, 4, 2
SUPPORTS = {"some": [1, 4, 5, 9], "one": [3], "all": list(range(VOCABULARY))}
GIVEN = {
    "nothing": None,
    "the same for all": torch.arange(VOCABULARY) % 2 == 1,
    "the support only": torch.isin(torch.arange(VOCABULARY), torch.tensor([3, 4])),
    "each its own": torch.rand((2, 5, VOCABULARY), generator=torch.Generator().manual_seed(3)) < 0.5,
}


def adapters(support: list[int], seed: int = 0) -> LogitAdapters:
    generator = torch.Generator().manual_seed(seed)
    shapes = (HEADS, RANK, WIDTH), (HEADS, len(support) + 1, RANK), (HEADS, len(support) + 1)
    return LogitAdapters(
        torch.tensor(support), *(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    )


def heads(support: str = "some", **settings) -> LowRankHeads:
    model = tiny_model(VOCABULARY, n_symbols=VOCABULARY, start_token=0, width=WIDTH)
    return LowRankHeads(model, adapters(SUPPORTS[support]), **settings)


def dense(of: LowRankHeads, features: torch.Tensor, given: torch.Tensor | None) -> np.ndarray:
    """Log-probabilities ``[..., K, V]``, head by head from its definition."""
    logits = of.model.logits(features).numpy()
    allowed = np.ones(VOCABULARY, dtype=bool) if given is None else given.numpy()
    rows = []
    for k in range(HEADS):
        changes = features.numpy() @ of.adapters.down[k].numpy().T @ of.adapters.up[k].numpy().T
        changes = changes + of.adapters.bias[k].numpy()
        changed = logits + changes[..., -1:]
        for place, token in enumerate(of.adapters.support.tolist()):
            changed[..., token] = logits[..., token] + changes[..., place]
        changed = np.where(allowed, changed, -np.inf)
        rows.append(changed - logsumexp(changed, axis=-1, keepdims=True))
    return np.stack(rows, axis=-2)


@pytest.fixture(params=SUPPORTS)
def trained(request) -> LowRankHeads:
    weighed = heads(request.param, switching_rate=0.0)
    weighed.posterior = weighed.posterior.learned(np.array([[-1.0, -2.0, -9.0, -0.5]]), np.array([0]))
    return weighed


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn((2, 5, WIDTH), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(params=GIVEN)
def given(request, trained) -> torch.Tensor | None:
    return GIVEN[request.param]


ALPHA = 0.1  # three of the four heads are plausible


def test_rows_are_the_definition(trained, features, given):
    np.testing.assert_allclose(trained.rows_from(features, given), dense(trained, features, given), atol=1e-12)


def test_mixture(trained, features, given):
    wanted = logsumexp(dense(trained, features, given) + trained.log_weights[:, None], axis=-2)
    np.testing.assert_allclose(trained.mixture_from(features, given), wanted, atol=1e-12)


def test_a_head_without_weight_has_no_say_in_the_mixture(features):
    of = heads(prior=[0.5, 0.0, 0.5, 0.0])
    wanted = logsumexp(dense(of, features, None)[..., ::2, :], axis=-2) - np.log(2)
    np.testing.assert_allclose(of.mixture_from(features), wanted, atol=1e-12)


def test_minimum_and_what_is_left_to_ask(trained, features, given):
    members = trained.plausible_members(ALPHA)
    assert members.tolist() == [True, True, False, True]
    log_min, log_ask = wide_minimum(torch.from_numpy(dense(trained, features, given)), torch.from_numpy(members))
    np.testing.assert_allclose(trained.minimum_from(features, ALPHA, given), log_min, atol=1e-12)
    found, asked = trained.plausible_from(features, ALPHA, given).minimum_and_ask()
    np.testing.assert_allclose(found, log_min, atol=1e-12)
    np.testing.assert_allclose(asked.exp(), log_ask.exp(), atol=1e-12)


@pytest.mark.parametrize("policy", ["everywhere", "few", "forbidden", "underflow"])
def test_worst_kl(trained, features, given, policy):
    rows = dense(trained, features, given)
    logits = torch.randn((2, 5, VOCABULARY), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    allowed = torch.from_numpy(rows[..., 0, :] > -np.inf)
    if policy != "forbidden":
        logits = logits.masked_fill(~allowed, -torch.inf)
    if policy == "few":
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True), -torch.inf)
    if policy == "underflow":
        logits[..., :2] = torch.where(
            allowed[..., :2] & allowed[..., 2:].any(-1, keepdim=True), -5000.0, logits[..., :2]
        )
    log_pi = logits.log_softmax(-1)
    mask = torch.from_numpy(trained.plausible_members(ALPHA)).expand(2, 5, HEADS)
    wanted = PlausibleSet.points(torch.from_numpy(rows), mask).worst_kl(log_pi)
    assert bool(wanted.isinf().any()) == (policy == "forbidden" and given is not None)
    np.testing.assert_allclose(trained.worst_kl_from(features, log_pi, ALPHA, given), wanted, rtol=1e-12, atol=1e-12)


def test_worst_kl_has_the_gradient_of_the_worst_head(trained, features):
    logits = torch.randn((2, 5, VOCABULARY), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits[0, 0, 3:] = -torch.inf
    gradients = []
    for ask in (trained.plausible_from(features, ALPHA), super(LowRankHeads, trained).plausible_from(features, ALPHA)):
        theta = logits.clone().requires_grad_()
        ask.worst_kl(theta.log_softmax(-1)).sum().backward()
        gradients.append(theta.grad)
    np.testing.assert_allclose(*gradients, atol=1e-10)


def test_log_likelihoods(trained, features, given):
    symbols = torch.arange(10).reshape(2, 5)
    wanted = np.take_along_axis(dense(trained, features, given), symbols.numpy()[..., None, None], axis=-1)[..., 0]
    mask = None if given is None else given.expand(2, 5, VOCABULARY).flatten(0, 1)
    found = trained.log_likelihoods_from(features.flatten(0, 1), symbols.flatten(), mask)
    np.testing.assert_allclose(found, wanted.reshape(10, HEADS), atol=1e-12)


def test_learning_is_bayes_rule_with_fixed_heads(trained, features):
    flat, symbols = features.flatten(0, 1), torch.arange(10)
    rows = dense(trained, flat, None)[np.arange(10), :, symbols.numpy()]
    wanted = trained.log_weights + rows.sum(0)
    before = trained.adapters
    trained.learn_from(flat, symbols)
    np.testing.assert_allclose(trained.log_weights, wanted - logsumexp(wanted), atol=1e-10)
    assert trained.adapters is before


def test_the_set_answers_as_its_points(trained, features):
    of = trained.plausible_from(features, ALPHA)
    assert isinstance(of, AdaptedLogits)
    assert of.radii_nats.shape == of.plausible.shape == (2, 5, HEADS)
    centres = torch.from_numpy(dense(trained, features, None))
    assert of.contains(centres[..., 0, :]).all()
    assert not of.contains(centres[..., 2, :]).any(), "that one is not plausible"
    assert of.covers(centres[..., 3, :]).all()
    assert not of.covers(centres[..., 2, :]).any()


def test_questions_about_one_reading_share_the_head(monkeypatch, features):
    of, calls = heads(), []
    computed = of.model.logits
    monkeypatch.setattr(of.model, "logits", lambda h: calls.append(1) or computed(h))
    reading = Reading([torch.tensor([0])] * 10, features)
    log_pi = of.plausible_min(reading, ALPHA).log_softmax(-1)
    of.worst_kl(reading, log_pi, ALPHA)
    assert len(calls) == 1
    before = of.mixture(reading)
    features.mul_(2.0)
    assert not torch.allclose(of.mixture(reading), before), "features that were changed in place are others"
    with torch.inference_mode():
        assert torch.equal(of.mixture(Reading(reading.rows, features.clone())), of.mixture(reading))


def test_single_precision_stays_single():
    of, h = adapters(SUPPORTS["some"]).to(torch.device("cpu"), torch.float32), torch.randn(3, WIDTH)
    at = of.at(h, torch.randn(3, VOCABULARY))
    for values in (at.minimum(), at.mixture(torch.zeros(HEADS)), at.log_centres, at.log_likelihoods(torch.arange(3))):
        assert values.dtype == torch.float32


def test_a_tiny_rest_is_not_lost():
    """Subtracting the support from everything would leave rounding."""
    of = adapters([0, 1])
    logits = torch.tensor([0.0, 1.0, -60.0] + [-torch.inf] * (VOCABULARY - 3), dtype=torch.float64)
    at = of.at(torch.zeros(WIDTH, dtype=torch.float64), logits)
    assert float(at.log_rest) == pytest.approx(-60.0 - np.log(1 + np.e))
    masked = of.at(torch.zeros(WIDTH, dtype=torch.float64), logits, torch.arange(VOCABULARY) < 2)
    assert float(masked.log_rest) == -torch.inf
    assert float(masked.minimum_and_ask()[0][2]) == -torch.inf


def test_single_precision_and_large_logits_charge_a_member_nothing_for_itself():
    """What rounding leaves of a mass, times a log-ratio as large as the logits, would be a charge."""
    generator = torch.Generator().manual_seed(0)
    wide = 20_000
    shapes = (1, RANK, WIDTH), (1, 401, RANK), (1, 401)
    of = LogitAdapters(torch.arange(0, wide, 50), *(torch.randn(s, generator=generator) for s in shapes))
    logits = 2 * torch.randn((16, wide), generator=generator) + 200
    at = of.at(torch.randn((16, WIDTH), generator=generator), logits)
    assert float(at.worst_kl(at.minimum().log_softmax(-1)).abs().max()) < 2e-4


def test_save_and_load(trained, features, tmp_path):
    trained.save(tmp_path)
    again = LowRankHeads.load(tmp_path, trained.model)
    assert torch.equal(again.mixture_from(features), trained.mixture_from(features))
    assert json.loads((tmp_path / "low_rank_heads.json").read_text())["schema"] == 1
    other = tiny_model(VOCABULARY, seed=5, n_symbols=VOCABULARY, start_token=0, width=WIDTH)
    with pytest.raises(ValueError, match="model must be the one that was saved"):
        LowRankHeads.load(tmp_path, other)


def test_places():
    assert places_in(torch.tensor([2, 5, 7]), torch.tensor([0, 2, 3, 7, 9])).tolist() == [3, 0, 3, 2, 3]


def test_default_support_is_what_occurs_and_what_is_special():
    model = SimpleNamespace(
        n_symbols=8,
        start_token=6,
        tokenizer=SimpleNamespace(all_special_ids=[4, 9]),
        network=SimpleNamespace(config=SimpleNamespace(bos_token_id=None, eos_token_id=[5])),
    )
    said = Demonstrations([[1, 9], [2, 1]], [[0, 2], [2, 0]])
    assert default_support(model, said).tolist() == [1, 2, 4, 5, 6]


def test_wrong_adapters_and_wrong_questions(features):
    good = adapters([1, 4])
    parts = dict(vars(good))
    for change, match in (
        ({"support": torch.tensor([4, 1])}, "rising"),
        ({"support": torch.tensor([-1, 1])}, "rising"),
        ({"support": torch.tensor([], dtype=torch.long)}, "at least one token"),
        ({"down": good.down[0]}, "down must have shape"),
        ({"up": good.up[:, 1:]}, "up must have shape"),
        ({"bias": good.bias[1:]}, "bias must have shape"),
        ({"bias": good.bias * torch.nan}, "bias must be finite"),
    ):
        with pytest.raises(ValueError, match=match):
            LogitAdapters(**{**parts, **change})
    model = tiny_model(VOCABULARY, n_symbols=4, start_token=0, width=WIDTH)
    with pytest.raises(ValueError, match="another model's"):
        LowRankHeads(model, good)
    of = heads()
    with pytest.raises(ValueError, match="at least one action"):
        of.minimum_from(features, ALPHA, torch.zeros(VOCABULARY, dtype=torch.bool))
    with pytest.raises(ValueError, match="log_pi must have shape"):
        of.worst_kl_from(features, torch.zeros(VOCABULARY), ALPHA)
    with pytest.raises(ValueError, match="alpha must be in"):
        of.plausible_from(features, 0.0)
