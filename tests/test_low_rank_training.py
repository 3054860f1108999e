"""Training of low-rank heads: its gradient, what it learns, that weights come from predictions, that it resumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.hypotheses import low_rank_training
from cautious_imitation.hypotheses.low_rank_checkpoints import Checkpoints
from cautious_imitation.hypotheses.low_rank_heads import LowRankHeads
from cautious_imitation.hypotheses.low_rank_optimizer import LowRankOptimizer, TrainingSettings, loss_and_gradients
from cautious_imitation.hypotheses.low_rank_tokens import FrozenLogits, LearnedTokens
from cautious_imitation.language.demonstration_features import read_demonstrations
from tests.tiny_models import tiny_model

VOCABULARY = 10
SETTINGS = {"n_heads": 3, "rank": 2, "n_blocks": 3, "batch_tokens": 16, "epochs": 2.0}


@pytest.fixture(scope="module")
def model():
    return tiny_model(VOCABULARY, n_symbols=VOCABULARY, start_token=0, width=8, scale=4.0)


def chain(n_sequences: int, seed: int, length: int = 20) -> list[list[int]]:
    """Sequences of tokens 1..7 in which the next one is usually the last one's successor."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_sequences):
        sequence = [1]
        while len(sequence) < length:
            sequence.append(sequence[-1] % 7 + 1 if rng.random() < 0.8 else int(rng.integers(1, 8)))
        found.append(sequence)
    return found


def test_gradients_are_those_of_the_loss():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, base, down, up = normal(6, 5), normal(6, 4).log_softmax(-1), normal(3, 2, 5), normal(3, 4, 3)
    places, weights = torch.tensor([0, 3, 1, 1, 2, 3]), torch.poisson(torch.ones(3, 6, dtype=torch.float64))
    losses, *gradients = loss_and_gradients(x, base, places, weights, down, up)
    down.requires_grad_()
    up.requires_grad_()
    low = torch.cat([torch.einsum("nd,krd->knr", x, down), torch.ones(3, 6, 1, dtype=torch.float64)], dim=-1)
    logits = base + torch.einsum("knr,kwr->knw", low, up)
    wanted = torch.nn.functional.cross_entropy(logits.transpose(1, 2), places.expand(3, 6), reduction="none")
    torch.testing.assert_close(losses, wanted.detach(), rtol=1e-12, atol=1e-12)
    (weights * wanted).mean(-1).sum().backward()
    for found, parameter in zip(gradients, (down, up), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-10, atol=1e-12)


def losses(heads: LowRankHeads, sequences: list[list[int]]) -> np.ndarray:
    """Nats a token of each head."""
    read = read_demonstrations(heads.model, Demonstrations.from_symbols(sequences, VOCABULARY))
    return -heads.log_likelihoods_from(read.features, read.tokens).numpy().mean(0)


def test_training_lowers_the_loss_on_what_was_held_out(model):
    train, held = chain(40, 0), chain(10, 1)
    untrained = LowRankHeads.train(model, train, **{**SETTINGS, "epochs": 0.0})
    trained = LowRankHeads.train(model, train, **{**SETTINGS, "epochs": 8.0, "learning_rate": 0.05})
    read = read_demonstrations(model, Demonstrations.from_symbols(held, VOCABULARY))
    frozen = -float(model.log_probs(read.features).gather(1, read.tokens[:, None]).mean())
    assert (losses(trained, held) < losses(untrained, held) - 0.3).all()
    assert (losses(trained, held) < frozen - 0.3).all()


@pytest.mark.parametrize("support", [None, [1, 2, 3], list(range(VOCABULARY))])
def test_weights_are_those_of_predictions_before_training(model, support):
    """With no training at all, the posterior is Bayes' rule with the start heads, computed by another route."""
    train = chain(6, 0)
    settings = {**SETTINGS, "epochs": 0.0, "support": support, "switching_rate": 0.01}
    heads = LowRankHeads.train(model, train, **settings)
    again = LowRankHeads(model, heads.adapters, switching_rate=0.01).fit(train)
    np.testing.assert_allclose(heads.log_weights, again.log_weights, atol=1e-10)
    assert np.ptp(heads.log_weights) > 0.1


def test_predictions_before_training_are_those_of_the_heads(monkeypatch, model):
    """The route that training takes, from cached pieces, against that of the class."""
    train, found = chain(6, 0), []
    predict = LowRankOptimizer.log_likelihoods
    with monkeypatch.context() as patch:
        patch.setattr(LowRankOptimizer, "log_likelihoods", lambda *given: (found.append(predict(*given)), found[-1])[1])
        heads = LowRankHeads.train(model, train, **{**SETTINGS, "epochs": 0.0, "support": [1, 2, 3]})
    read = read_demonstrations(model, Demonstrations.from_symbols(train, VOCABULARY))
    assert len(found) == 3
    wanted = heads.log_likelihoods_from(read.features, read.tokens)
    np.testing.assert_allclose(np.concatenate(found), wanted, atol=1e-10)


def test_a_sequence_that_a_head_did_not_draw_only_lets_it_return_to_its_start(model):
    read = read_demonstrations(model, Demonstrations.from_symbols(chain(4, 0), VOCABULARY))
    support, whole = torch.arange(1, 8), slice(0, len(read))
    base, settings = FrozenLogits(model, support), TrainingSettings(n_heads=2, rank=2, learning_rate=0.01)
    data = LearnedTokens.read(base, read, [whole], Checkpoints(None, {}), False)
    training = LowRankOptimizer(settings, base, data, whole, 4)
    assert training.resample.shape == (4, 2)
    assert len(training.resample.unique()) > 1
    training.resample[:, 0] = 0.0
    training.resample[:, 1] = 1.0
    everything = torch.arange(len(read))
    for _ in range(3):
        training.step(everything, len(read))
    for values, start in zip(training.parameters, training.start, strict=True):
        assert torch.equal(values[0], start[0])
        assert not torch.equal(values[1], start[1])
        values += 0.5
    for _ in range(60):
        training.step(everything, len(read))
    for values, start in zip(training.parameters, training.start, strict=True):
        assert float((values[0] - start[0]).abs().max()) < 0.2


def weights_after_each_block(monkeypatch, model, train, **settings) -> list[np.ndarray]:
    found = []
    write = low_rank_training.Checkpoints.write
    with monkeypatch.context() as patch:
        patch.setattr(
            low_rank_training.Checkpoints,
            "write",
            lambda self, number, state: (found.append(state["log_weights"].numpy()), write(self, number, state))[1],
        )
        heads = LowRankHeads.train(model, train, **{**SETTINGS, **settings})
    np.testing.assert_array_equal(found[-1], heads.log_weights)
    return found


def test_a_block_is_predicted_before_it_is_learned(monkeypatch, model):
    train = chain(9, 0)
    settings = {"support": list(range(1, 8)), "learning_rate": 0.05}
    weights = weights_after_each_block(monkeypatch, model, train, **settings)
    assert len(weights) == 3
    start = weights_after_each_block(monkeypatch, model, train, **settings, epochs=0.0)
    np.testing.assert_array_equal(weights[0], start[0])
    assert not np.allclose(weights[1], start[1])
    changed = weights_after_each_block(monkeypatch, model, [*train[:6], *chain(3, 7)], **settings)
    np.testing.assert_array_equal(weights[:2], changed[:2])
    assert not np.allclose(weights[2], changed[2])


def test_heads_start_with_changes_of_the_size_asked_for(model):
    train = chain(40, 0)
    read = read_demonstrations(model, Demonstrations.from_symbols(train, VOCABULARY))
    settings = {**SETTINGS, "n_heads": 100, "epochs": 0.0, "prior_scale": 1.5}
    adapters = LowRankHeads.train(model, train, **settings).adapters
    low = torch.einsum("nd,krd->knr", read.features, adapters.down)
    changes = low @ adapters.up.transpose(1, 2) + adapters.bias[:, None]
    assert float(changes.square().mean().sqrt()) == pytest.approx(1.5, rel=0.1)
    assert float(changes.mean().abs()) < 0.1


def test_heads_agree_on_what_they_learned_and_not_elsewhere(model):
    train = chain(60, 0)
    read = read_demonstrations(model, Demonstrations.from_symbols(train, VOCABULARY))
    others = np.random.default_rng(0).choice([0, 8, 9], size=(20, 20))
    elsewhere = read_demonstrations(model, Demonstrations.from_symbols(others, VOCABULARY)).features
    asked = []
    for epochs in (0.0, 8.0):
        heads = LowRankHeads.train(model, train, **{**SETTINGS, "epochs": epochs, "learning_rate": 0.05})
        for features in (read.features, elsewhere):
            mass = heads.plausible_from(features, 1e-6).minimum().exp().sum(-1)
            asked.append(float(1 - mass.mean()))
    near_before, far_before, near, away = asked
    assert near < 0.75 * near_before
    assert away > 1.25 * near
    assert away > 0.7 * far_before


def assert_same(one: LowRankHeads, other: LowRankHeads) -> None:
    for name, values in vars(one.adapters).items():
        assert torch.equal(values, getattr(other.adapters, name)), name
    np.testing.assert_array_equal(one.log_weights, other.log_weights)


def test_same_seed_same_bytes(model, tmp_path):
    heads = [LowRankHeads.train(model, chain(9, 0), seed=seed, **SETTINGS) for seed in (1, 1, 2)]
    for number, saved in enumerate(heads):
        saved.save(tmp_path / str(number))
    first, second, other = ((tmp_path / str(n) / "low_rank_heads.safetensors").read_bytes() for n in range(3))
    assert first == second != other


class Interrupted(RuntimeError):
    pass


@pytest.mark.parametrize("at", [0, 1, 2])
def test_training_resumes_where_it_was_interrupted(model, tmp_path, monkeypatch, at):
    train = chain(9, 0)
    whole = LowRankHeads.train(model, train, **SETTINGS)
    done = []

    def train_block(training, blocks, number, bar):
        if len(done) == at and number == at:
            raise Interrupted
        done.append(number)
        original(training, blocks, number, bar)

    original = low_rank_training.train_block
    with monkeypatch.context() as patch:
        patch.setattr(low_rank_training, "train_block", train_block)
        with pytest.raises(Interrupted):
            LowRankHeads.train(model, train, cache=tmp_path, **SETTINGS)
    assert done == list(range(at))
    monkeypatch.setattr(model, "logits", None)  # what takes the whole vocabulary is not computed again either
    with monkeypatch.context() as patch:
        patch.setattr(low_rank_training, "train_block", lambda *given: (done.append(given[2]), original(*given)))
        resumed = LowRankHeads.train(model, train, cache=tmp_path, **SETTINGS)
    assert done == [0, 1, 2]
    assert_same(whole, resumed)
    assert_same(whole, LowRankHeads.train(model, train, cache=tmp_path, **SETTINGS))
    assert len(list(tmp_path.glob("low-rank-block-*"))) == 1


def test_a_cache_of_other_settings_is_refused(model, tmp_path):
    train = chain(6, 0)
    LowRankHeads.train(model, train, cache=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"training with other learning_rate, seed; choose another folder"):
        LowRankHeads.train(model, train, cache=tmp_path, **SETTINGS, seed=1, learning_rate=0.1)
    with pytest.raises(ValueError, match="other demonstrations"):
        LowRankHeads.train(model, chain(6, 1), cache=tmp_path, **SETTINGS)
    [state] = tmp_path.glob("low-rank-block-*")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        LowRankHeads.train(model, train, cache=tmp_path, **SETTINGS)
    (tmp_path / "low-rank-training.json").write_text("{")
    with pytest.raises(ValueError, match="cache is damaged"):
        LowRankHeads.train(model, train, cache=tmp_path, **SETTINGS)


def test_only_the_demonstrators_tokens_are_learned(model):
    sequences = [np.array(sequence) for sequence in chain(6, 0)]
    actors = [np.arange(len(sequence)) % 3 for sequence in sequences]
    other = [np.where(codes == 0, sequence, 9) for sequence, codes in zip(sequences, actors, strict=True)]
    heads = LowRankHeads.train(model, Demonstrations(sequences, actors), **SETTINGS)
    assert heads.adapters.support.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    everything = LowRankHeads.train(model, Demonstrations(sequences, actors), evidence="all", **SETTINGS)
    assert not np.allclose(heads.log_weights, everything.log_weights)
    assert 9 in LowRankHeads.train(model, Demonstrations(other, actors), **SETTINGS).adapters.support


def test_progress_says_how_it_goes(model, capsys):
    LowRankHeads.train(model, chain(9, 0), progress=True, **SETTINGS)
    assert "block 3 of 3" in capsys.readouterr().out


def test_one_sequence_is_one_block(model):
    heads = LowRankHeads.train(model, chain(1, 0), **SETTINGS)
    assert torch.isfinite(heads.mixture([1, 2])).all()
    assert torch.isfinite(LowRankHeads.train(model, [[1]], **SETTINGS).mixture([1, 2])).all()


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"n_heads": 0}, "n_heads must be an integer of at least 1, got 0"),
        ({"rank": 1.5}, "rank must be an integer"),
        ({"n_blocks": True}, "n_blocks must be an integer"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"epochs": -1.0}, "epochs must be finite and at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and above 0"),
        ({"prior_scale": float("nan")}, "prior_scale must be finite"),
        ({"bias_scale": float("inf")}, "bias_scale must be finite"),
        ({"learning_rate": 1e6}, "learning_rate must let training converge"),
        ({"support": [VOCABULARY]}, "support must hold tokens in 0..9"),
        ({"support": [2, 1]}, "support must hold tokens >= 0 in rising order"),
        ({"support": []}, "support must hold at least one token"),
        ({"support": [1.5]}, "support must hold"),
        ({"switching_rate": 2.0}, "switching_rate must be in"),
    ],
)
def test_wrong_settings(model, setting, match):
    with pytest.raises(ValueError, match=match):
        LowRankHeads.train(model, chain(3, 0), **{**SETTINGS, **setting})


def test_nothing_to_learn(model):
    with pytest.raises(ValueError, match="something to learn"):
        LowRankHeads.train(model, Demonstrations([[1, 2]], [[2, 2]]), **SETTINGS)


def test_settings_are_a_record():
    assert TrainingSettings() == TrainingSettings(n_heads=8, rank=8, n_blocks=8)
