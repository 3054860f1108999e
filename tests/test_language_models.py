"""Language models as a finite class: the answers are those of a list of torch modules, by Bayes' rule over the list."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from cautious_imitation.hypotheses import weighted_rows
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.hypotheses.language_models import LanguageModels
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.model_stack import ModelStack
from tests.tiny_models import tiny_model, tiny_network

START = 3
SEQUENCES = [[0, 1, 3, 2, 2, 0, 1, 1], [2, 3, 3, 0], [1, 0, 2, 1, 0, 2]]
CONTEXTS = [[], [0], [2, 1, 3], [1, 1, 0, 3, 2]]
SETTINGS = [
    {},
    {"plausible": "cumulative", "prior": [0.2, 0.5, 0.3]},
    {"plausible": "anytime", "temperature": 0.5, "switching_rate": 0.0},
    {"switching_rate": 0.1, "prior": [0.6, 0.4, 0.0]},
]


class Module(torch.nn.Module):
    """The network alone, as a finite class takes it: logits of the three actions at every position."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.network(input_ids=tokens).logits[..., :3]


@pytest.fixture(scope="module")
def models() -> list[LanguageModel]:
    """Three of different widths."""
    return [tiny_model(seed=seed, width=width) for seed, width in ((0, 6), (1, 4), (2, 8))]


def reference(models, **settings) -> FiniteHypotheses:
    settings = {"switching_rate": weighted_rows.DEFAULT_SWITCHING_RATE, **settings}
    members = [Module(model.network) for model in models]
    return FiniteHypotheses(members, n_symbols=3, start_symbol=START, **settings)


def close(one, other, **tolerances) -> None:
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), **{"rtol": 1e-10, "atol": 1e-12, **tolerances})


def test_rows_are_each_models_own_predictions(models):
    features = ModelStack(models).read(CONTEXTS).features
    rows = LanguageModels(models).rows_from(features)
    assert (rows.shape, rows.dtype) == ((4, 3, 3), torch.float64)
    for i, context in enumerate(CONTEXTS):
        for k, model in enumerate(models):
            tokens = torch.tensor([context or [START]])
            with torch.no_grad():
                alone = model.network(input_ids=tokens).logits[0, -1, :3].log_softmax(-1)
            close(rows[i, k], alone)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_answers_are_those_of_the_list(models, settings):
    class_, listed = LanguageModels(models, **settings).fit(SEQUENCES), reference(models, **settings).fit(SEQUENCES)
    assert len(class_) == 3
    close(class_.log_weights, listed.log_weights)
    log_pi = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    for context in CONTEXTS[::3]:
        close(class_.mixture(context), listed.mixture(context))
        for alpha in (1.0, 1e-2, 1e-9):
            np.testing.assert_array_equal(class_.plausible_members(alpha), listed.plausible_members(alpha))
            close(class_.plausible_min(context, alpha), listed.plausible_min(context, alpha))
            close(class_.worst_kl(context, log_pi, alpha), listed.worst_kl(context, log_pi, alpha))
            one, other = class_.plausible(context, alpha), listed.plausible(context, alpha)
            close(one.log_centres, other.log_centres)
            assert torch.equal(one.plausible, other.plausible)


def test_updates_are_those_of_the_list(models):
    class_, listed = LanguageModels(models), reference(models)
    contexts, symbols = np.array([[0, 1], [3, 2], [1, 1]]), np.array([2, 0, 1])
    class_.update(contexts, symbols)
    class_.update([1], 2)
    listed.update(contexts, symbols)
    listed.update([1], 2)
    close(class_.log_weights, listed.log_weights)


@pytest.mark.parametrize("given", [[True, False, True], [[True, True, False], [False, False, True]]], ids=str)
def test_given_some_actions_members_predict_conditionally(models, given):
    class_ = LanguageModels(models, switching_rate=0.0).fit(SEQUENCES)
    features = class_.model.read([[0, 1], [2, 2]]).features
    mask = np.broadcast_to(given, (2, 3))
    probabilities = class_.rows_from(features).exp().numpy() * mask[:, None]
    conditional = probabilities / probabilities.sum(-1, keepdims=True)
    weights, members = np.exp(class_.log_weights), class_.plausible_members(0.01)
    assert 1 <= members.sum() <= 3
    given = torch.tensor(given)
    close(class_.mixture_from(features, given).exp(), np.einsum("k,bkv->bv", weights, conditional))
    close(class_.minimum_from(features, 0.01, given).exp(), conditional[:, members].min(1))
    close(class_.plausible_from(features, 0.01, given).minimum().exp(), conditional[:, members].min(1))
    log_pi = torch.tensor(conditional[:, 0]).log()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(conditional[:, :1] / conditional)
    charges = np.where(mask[:, None], conditional[:, :1] * ratios, 0.0).sum(-1)[:, members].max(-1)
    close(class_.worst_kl_from(features, log_pi, 0.01, given), charges)
    symbols = torch.tensor([0, 2]) if given.ndim == 1 else torch.tensor([1, 2])
    class_.learn_from(features, symbols, given)
    learned = weights * conditional[0, :, symbols[0]] * conditional[1, :, symbols[1]]
    close(np.exp(class_.log_weights), learned / learned.sum())


def test_a_mask_that_leaves_nothing_is_refused(models):
    class_ = LanguageModels(models)
    with pytest.raises(ValueError, match="given must leave at least one action"):
        class_.mixture_from(class_.model.read([[0]]).features, torch.zeros(3, dtype=torch.bool))


def test_an_action_that_was_ruled_out_cannot_be_learned(models):
    class_ = LanguageModels(models)
    before = class_.log_weights
    with pytest.raises(ValueError, match="evidence must be possible"):
        class_.learn_from(class_.model.read([[0]]).features, torch.tensor([1]), torch.tensor([True, False, True]))
    np.testing.assert_array_equal(class_.log_weights, before)


def test_learning_in_parts_is_learning_at_once(models, monkeypatch):
    at_once = LanguageModels(models).fit(SEQUENCES)
    shapes = []

    class Watched(LanguageModels):
        def rows_from(self, features, given=None):
            rows = super().rows_from(features, given)
            shapes.append(tuple(rows.shape))
            return rows

    monkeypatch.setattr(weighted_rows, "_VALUES_AT_ONCE", 4 * 9)
    in_parts = Watched(models).fit(SEQUENCES)
    close(in_parts.log_weights, at_once.log_weights)
    assert (len(shapes), max(shapes)) == (4, (4, 3, 3))
    # Masks are cut along with the rows that they belong to.
    features, symbols = in_parts.model.read(np.zeros((6, 1), dtype=np.int64)).features, torch.tensor([0, 1, 2] * 2)
    masks = torch.nn.functional.one_hot(symbols, 3).bool()
    in_parts.learn_from(features, symbols, masks)
    assert np.isfinite(in_parts.log_weights).all()


def test_a_member_without_weight_has_no_say():
    models = [tiny_model(seed=seed) for seed in range(3)]
    class_ = LanguageModels(models, prior=[0.5, 0.5, 0.0])
    expected = LanguageModels(models[:2]).mixture([0, 1])
    models[2].head.weight.fill_(torch.nan)
    close(class_.mixture([0, 1]), expected)
    close(class_.plausible_min([0, 1], 1e-9), LanguageModels(models[:2]).plausible_min([0, 1], 1e-9))


def test_the_heads_of_members_that_are_not_plausible_are_not_run():
    models = [tiny_model(seed=seed) for seed in range(3)]
    class_ = LanguageModels(models, prior=[0.9, 0.05, 0.05])
    calls = []
    for model in models:
        model.head.register_forward_hook(lambda *_, model=model: calls.append(models.index(model)))
    class_.plausible_min([0, 1], 0.5)
    class_.worst_kl([0, 1], torch.full((3,), -np.log(3), dtype=torch.float64), 0.5)
    assert calls == [0, 0]


def test_switching_keeps_members_from_ruling_each_other_out(models):
    """Enough data leave a single member without it, and none below a thousandth of its prior with it."""
    sequences = [np.random.default_rng(0).integers(3, size=50) for _ in range(20)]
    bayes = LanguageModels(models, switching_rate=0.0).fit(sequences)
    default = LanguageModels(models).fit(sequences)
    assert bayes.plausible_members(1e-4).sum() == 1
    assert default.log_weights.min() >= np.log(1e-3 / 3) - 1e-9
    assert default.plausible_members(1e-3 / 3).all()


def test_two_dimensions_of_contexts(models):
    class_ = LanguageModels(models).fit(SEQUENCES)
    contexts = np.random.default_rng(0).integers(4, size=(2, 5, 3))
    together = class_.plausible_min(contexts, 0.1)
    assert together.shape == (2, 5, 3)
    close(together[1, 2], class_.plausible_min(contexts[1, 2], 0.1))


class TestStack:
    def test_decoding_with_a_cache_is_reading_at_once(self, models):
        stack = ModelStack(models)
        tokens = torch.tensor([[3, 1, 0, 2, 2], [1, 1, 3, 0, 2]])
        at_once, _ = stack.features(tokens)
        assert at_once.shape == (2, 5, stack.n_features)
        cache, parts = None, []
        for t in range(5):
            step, cache = stack.features(tokens[:, t : t + 1], cache=cache)
            parts.append(step)
        close(torch.cat(parts, dim=1), at_once, rtol=1e-9)

    @pytest.mark.parametrize("left", [True, False])
    def test_padding_makes_no_difference(self, models, left):
        stack = ModelStack(models)
        rows = [[0, 1, 2, 3], [2, 1]]
        padded = torch.tensor([rows[0], [0, 0, *rows[1]] if left else [*rows[1], 0, 0]])
        present = torch.tensor([[True] * 4, [False, False, True, True] if left else [True, True, False, False]])
        features, _ = stack.features(padded, present)
        close(features[1][present[1]], stack.features(torch.tensor([rows[1]]))[0][0])

    def test_what_it_takes_from_its_models(self, models):
        short = tiny_model(seed=5, window=10)
        stack = ModelStack([*models, short])
        assert (len(stack), stack.max_length, stack.n_tokens, stack.start_token) == (4, 10, 4, START)
        single = LanguageModel(tiny_network(seed=7).float(), n_symbols=3, start_token=START)
        mixed = ModelStack([single, models[0]])
        assert (mixed.dtype, ModelStack([single]).dtype) == (torch.float64, torch.float32)
        assert mixed.logits(mixed.read([[0, 1]]).features).dtype == torch.float64
        with pytest.raises(ValueError, match="context window of 10"):
            stack.read([[0] * 11])

    def test_logits_of_some(self, models):
        stack = ModelStack(models)
        features = stack.read([[0, 1], [2, 3]]).features
        assert torch.equal(stack.logits(features, [2, 0]), stack.logits(features)[:, [2, 0]])

    def test_models_that_do_not_go_together_are_refused(self, models):
        with pytest.raises(ValueError, match="models must hold at least one"):
            ModelStack([])
        with pytest.raises(ValueError, match=r"n_symbols = 3 for models\[0\] and 4 for models\[1\]"):
            ModelStack([models[0], tiny_model(n_symbols=4)])
        with pytest.raises(ValueError, match=r"start with the same token, got 3 for models\[0\], 2 for models\[1\]"):
            ModelStack([models[0], tiny_model(start_token=2)])
        assert ModelStack([tiny_model(start_token=None), models[0]]).start_token == START

    def test_two_tokenizers_are_refused(self):
        models = [
            LanguageModel(tiny_network(seed=seed), tokenizer, start_token=START)
            for seed, tokenizer in enumerate([words("a b c d"), None, words("a b c d"), words("a x c d")])
        ]
        assert ModelStack(models[:3]).tokenizer is models[0].tokenizer
        with pytest.raises(ValueError, match=r"token 1 as 'b' for models\[2\] and 'x' for models\[3\]"):
            ModelStack(models)
        shorter = LanguageModel(tiny_network(), words("a b c"), start_token=START)
        with pytest.raises(ValueError, match=r"token 3 as 'd' for models\[0\] and None for models\[1\]"):
            LanguageModels([models[0], shorter])


def words(text: str) -> transformers.PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(text.split())}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="a")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model))


class TestFiles:
    def test_features_are_kept_between_fits(self, models, tmp_path):
        first = LanguageModels(models).fit(SEQUENCES, cache=tmp_path)
        calls = []
        handle = models[1].trunk.register_forward_hook(lambda *_: calls.append(1))
        again = LanguageModels(models).fit(SEQUENCES, cache=tmp_path)
        handle.remove()
        np.testing.assert_array_equal(first.log_weights, again.log_weights)
        assert not calls
        with pytest.raises(ValueError, match="another model"):
            LanguageModels(models[::-1]).fit(SEQUENCES, cache=tmp_path)

    def test_other_models_are_refused(self, models, tmp_path):
        LanguageModels(models, plausible="cumulative", temperature=0.5).fit(SEQUENCES).save(tmp_path)
        loaded = LanguageModels.load(tmp_path, ModelStack(models))
        assert (loaded.posterior.rule, loaded.posterior.temperature) == ("cumulative", 0.5)
        for others in (models[::-1], models[:2], [*models[:2], tiny_model(seed=9, width=8)]):
            with pytest.raises(ValueError, match="models must be those that were saved"):
                LanguageModels.load(tmp_path, others)

    def test_a_damaged_folder_is_refused(self, models, tmp_path):
        with pytest.raises(FileNotFoundError):
            LanguageModels.load(tmp_path, models)
        LanguageModels(models).save(tmp_path)
        document, weights = tmp_path / "language_models.json", tmp_path / "language_models.safetensors"
        text, data = document.read_text(), weights.read_bytes()
        document.write_text(json.dumps({**json.loads(text), "schema": 2}))
        with pytest.raises(ValueError, match="another schema than 1, got 2"):
            LanguageModels.load(tmp_path, models)
        document.write_text(text[:-10])
        with pytest.raises(ValueError, match=r"language_models\.json is damaged"):
            LanguageModels.load(tmp_path, models)
        document.write_text(text)
        weights.write_bytes(data[:-10])
        with pytest.raises(ValueError, match=r"language_models\.safetensors is damaged"):
            LanguageModels.load(tmp_path, models)
