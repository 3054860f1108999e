"""Sampling from imitators: what they say, when they ask, and that it does not matter how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cautious_imitation.continuations import Generated, Question, as_demonstrations
from cautious_imitation.generation import ImitatorLogitsProcessor, generate
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.hypotheses.language_models import LanguageModels
from cautious_imitation.hypotheses.weighted_rows import WeightedRows, log_softmax_given
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.language.model import LanguageModel, Reading
from cautious_imitation.language.recent_context import RecentContext
from cautious_imitation.oracles.protocol import Act, Decline, HelpNeeded, Query
from cautious_imitation.types import Prediction
from tests.tiny_models import tiny_model

DEMONSTRATOR, IMITATOR = 0, 1
CONTEXTS: list[list[int]] = [[0, 1, 2], [3], [2, 2, 1, 3, 0, 1, 1], [0], [1, 3]]


class TwoHeads(WeightedRows):
    """Two heads, drawn at random, on one trunk."""

    def __init__(self, model: LanguageModel, scale: float = 1.0) -> None:
        super().__init__(model, 2, prior=[0.6, 0.4], switching_rate=0.0)
        seed = torch.Generator().manual_seed(5)
        shape = (2, model.n_symbols, model.n_features)
        self.heads = scale * torch.randn(shape, generator=seed, dtype=model.dtype)

    def rows_from(self, features: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        return log_softmax_given(torch.einsum("...d,kvd->...kv", features, self.heads), given)

    def save(self, folder: Any) -> None:
        Path(folder).mkdir()


def two_heads() -> TwoHeads:
    return TwoHeads(tiny_model(seed=1))


def recent_heads(window: int = 64) -> TwoHeads:
    """Heads that read what the last tokens had in common as well: more than the output head is given."""
    recent = RecentContext(horizon_tokens=3.0)
    return TwoHeads(tiny_model(seed=1, recent=recent, layers=2, window=window))


def stack() -> LanguageModels:
    """Two networks: none can bring the other's features along, so they are decoded by our own loop."""
    return LanguageModels([tiny_model(seed=1, scale=3.0), tiny_model(seed=2, scale=3.0)], prior=[0.6, 0.4])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def teacher(query: Query) -> Sequence[int]:
    """Replies of one to three tokens, which depend on the whole context."""
    total = sum((i + 1) * token for i, token in enumerate(query.context))
    return [(total + i) % 3 for i in range(1 + total % 3)]


def token_by_token(
    imitator: Any,
    contexts: Sequence[Sequence[int]],
    max_new_tokens: int,
    seed: int,
    *,
    oracle: Callable[[Query], Any] = teacher,
    stop_tokens: Sequence[int] = (),
    window: int = 64,
) -> list[tuple[list[int], list[int], list[float], list[float], list[Question], str]]:
    """The same, each text for itself, all of it read anew for every token."""
    root = torch.randint(2**63 - 1, (2,), generator=seeded(seed)).tolist()
    found = []
    for row, context in enumerate(contexts):
        stream = np.random.default_rng([*root, row])
        text, pending = list(context), list[int]()
        actors, logs, asks, questions, ended = list[int](), list[float](), list[float](), list[Question](), "length"
        while len(actors) < max_new_tokens and len(text) < window:
            uniform = stream.random()
            prediction = imitator.predict([text])
            p, ask = np.exp(prediction.log_probs[0].numpy()), float(prediction.ask_probability[0])
            if not pending and uniform * (p.sum() + ask) < ask:
                pending = list(np.atleast_1d(oracle(Query(tuple(text), imitator.n_symbols))))
                questions.append(Question(len(actors), tuple(pending)))
                actors.append(DEMONSTRATOR)
            else:
                actors.append(DEMONSTRATOR if pending else IMITATOR)
            token = pending.pop(0) if pending else int(np.argmax(np.cumsum(p) > uniform * (p.sum() + ask) - ask))
            logs.append(float(prediction.log_probs[0][token]))
            asks.append(float(prediction.log_ask[0]))
            text.append(token)
            if token in stop_tokens:
                ended = "stop"
                break
        if ended == "length" and len(text) == window:
            ended = "window"
        found.append((text[len(context) :], actors, logs, asks, questions, ended))
    return found


def check_equal(generated: Sequence[Generated], expected: Sequence[Any]) -> None:
    assert len(generated) == len(expected)
    for text, (tokens, actors, log_probs, log_ask, questions, ended) in zip(generated, expected, strict=True):
        assert text.tokens.tolist() == tokens
        assert text.actors.tolist() == actors
        assert (text.tokens.dtype, text.actors.dtype) == (np.int64, np.uint8)
        np.testing.assert_allclose(text.log_probs, log_probs, rtol=1e-7)
        np.testing.assert_allclose(text.log_ask, log_ask, rtol=1e-7)
        assert list(text.questions) == questions
        assert (text.ended, len(text)) == (ended, len(tokens))
        assert text.finished == (ended == "stop")
        assert text.open_question is None


@pytest.mark.parametrize("make", [two_heads, recent_heads, stack])
@pytest.mark.parametrize("contexts", [CONTEXTS, [[0], [], [1, 2], []]], ids=["", "with empty ones"])
def test_it_says_what_reading_anew_for_every_token_says(make: Any, contexts: list[list[int]]) -> None:
    imitator = CautiousImitator(make(), 0.1, oracle=teacher)
    generated = generate(imitator, contexts, max_new_tokens=6, generator=seeded(3), stop_tokens=[0])
    check_equal(generated, token_by_token(imitator, contexts, 6, 3, stop_tokens=[0]))
    longer = generate(imitator, contexts, max_new_tokens=15, generator=seeded(4))
    check_equal(longer, token_by_token(imitator, contexts, 15, 4))
    assert "stop" in {text.ended for text in generated}
    assert {text.ended for text in longer} == {"length"}
    assert {int(actor) for text in longer for actor in text.actors} == {DEMONSTRATOR, IMITATOR}
    assert max(len(question.answer) for text in longer for question in text.questions) == 3


class RereadingImitator(CautiousImitator):
    """Does not take it on trust that features go with the contexts beside them."""

    def predict(self, context: Any) -> Prediction:
        if isinstance(context, Reading):
            read = self.hypotheses.model.read([row.tolist() for row in context.rows])  # type: ignore[attr-defined]
            np.testing.assert_allclose(context.features, read.features, rtol=1e-7)
        return super().predict(context)


@pytest.mark.parametrize("make", [two_heads, recent_heads, stack])
def test_hypotheses_see_whole_contexts_without_padding(make: Any) -> None:
    imitator = RereadingImitator(make(), 0.1, oracle=teacher)
    generated = generate(imitator, [*CONTEXTS, []], max_new_tokens=5, generator=seeded(2), stop_tokens=[1])
    check_equal(generated, token_by_token(imitator, [*CONTEXTS, []], 5, 2, stop_tokens=[1]))


@pytest.mark.parametrize("make", [two_heads, stack])
def test_a_bayesian_imitator_never_asks(make: Any) -> None:
    imitator = BayesianImitator(make(), oracle=lambda query: 1 // 0)
    generated = generate(imitator, CONTEXTS, max_new_tokens=15, generator=seeded())
    check_equal(generated, token_by_token(imitator, CONTEXTS, 15, 0))
    assert all(set(text.actors) == {IMITATOR} and not text.questions for text in generated)
    assert all((text.log_ask == -np.inf).all() for text in generated)


@pytest.mark.parametrize("make", [two_heads, recent_heads, stack])
def test_texts_end_with_the_context_window(make: Any) -> None:
    def make_in(window: int) -> Any:
        if make is recent_heads:
            return recent_heads(window)
        models = [tiny_model(seed=seed, window=window, scale=3.0) for seed in (1, 2)]
        return TwoHeads(models[0]) if make is two_heads else LanguageModels(models)

    imitator = CautiousImitator(make_in(9), 0.1, oracle=teacher)
    contexts = [*CONTEXTS, [0] * 9, [1] * 8]
    generated = generate(imitator, contexts, max_new_tokens=7, generator=seeded(1))
    check_equal(generated, token_by_token(imitator, contexts, 7, 1, window=9))
    assert [len(text) for text in generated] == [6, 7, 2, 7, 7, 0, 1]
    with pytest.raises(ValueError, match=r"contexts\[1\] must fit into the network's context window of 9, got 10"):
        generate(imitator, [[0], [0] * 10], max_new_tokens=7, generator=seeded(1))


def test_positions_that_are_learned_stay_in_the_window() -> None:
    """A network that looks positions up has none for rows that ended, if they are counted on."""
    config = GPT2Config(vocab_size=4, n_positions=9, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=None)
    torch.manual_seed(0)
    model = LanguageModel(GPT2LMHeadModel(config).double(), n_symbols=3)
    imitator = CautiousImitator(TwoHeads(model), 0.1, oracle=teacher)
    contexts = [*CONTEXTS, [1] * 8]
    generated = generate(imitator, contexts, max_new_tokens=8, generator=seeded(1))
    check_equal(generated, token_by_token(imitator, contexts, 8, 1, window=9))


def test_the_seed_decides_and_nothing_else() -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=teacher)

    def said(seed: int, contexts: Any = CONTEXTS, length: int = 15) -> list[list[int]]:
        texts = generate(imitator, contexts, max_new_tokens=length, generator=seeded(seed))
        return [text.tokens.tolist() for text in texts]

    first = said(0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert said(0) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert said(1) != first
    assert said(0, CONTEXTS[:2]) == first[:2]
    assert said(0, [CONTEXTS[0], CONTEXTS[2] * 6])[0] == first[0]
    assert said(0, length=6) == [text[:6] for text in first]
    assert said(0, [torch.tensor(context) for context in CONTEXTS]) == first
    generator = seeded(0)
    again = [generate(imitator, CONTEXTS, max_new_tokens=15, generator=generator) for _ in range(2)]
    assert [text.tokens.tolist() for text in again[0]] == first
    assert [text.tokens.tolist() for text in again[1]] != first


def test_random_numbers_do_not_repeat_in_a_long_text() -> None:
    imitator = CautiousImitator(TwoHeads(tiny_model(seed=1, window=200)), 0.1, oracle=teacher)
    generated = generate(imitator, [[0]], max_new_tokens=150, generator=seeded())
    check_equal(generated, token_by_token(imitator, [[0]], 150, 0, window=200))


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_frequencies_are_the_predicted_ones(alpha: float | None) -> None:
    hypotheses, n = two_heads(), 3_000
    imitator = BayesianImitator(hypotheses) if alpha is None else CautiousImitator(hypotheses, alpha)
    prefix = [1, 3]
    texts = generate(imitator, [prefix] * n, max_new_tokens=2, generator=seeded(), max_questions=0)

    def check(counts: Sequence[int], context: list[int]) -> None:
        prediction = imitator.predict([context])
        exact = [float(prediction.ask_probability[0]), *prediction.log_probs[0].exp().tolist()]
        total = sum(counts)
        for count, p in zip(counts, exact, strict=True):
            assert abs(count - total * p) <= 4.5 * np.sqrt(total * p * (1 - p)) + 1e-9

    def counts(place: int, among: Sequence[Generated]) -> list[int]:
        asked = sum(len(text) == place for text in among)
        return [asked, *(sum(len(text) > place and text.tokens[place] == a for text in among) for a in range(3))]

    check(counts(0, texts), prefix)
    for first in range(3):
        begun = [text for text in texts if len(text) and text.tokens[0] == first]
        if len(begun) > 100:
            check(counts(1, begun), [*prefix, first])
    assert (counts(0, texts)[0] > 150) == (alpha is not None)
    for text in texts[:50]:
        assert text.ended == ("question" if len(text) < 2 else "length")


def test_a_question_too_many_ends_the_text_and_can_be_answered_later() -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=teacher)
    whole = generate(imitator, CONTEXTS, max_new_tokens=15, generator=seeded(2))
    cut = generate(imitator, CONTEXTS, max_new_tokens=15, generator=seeded(2), max_questions=1)
    assert min(len(text.questions) for text in whole) > 1
    for context, one, two in zip(CONTEXTS, cut, whole, strict=True):
        end = two.questions[1].position
        assert one.questions == two.questions[:1]
        assert one.tokens.tolist() == two.tokens[:end].tolist()
        assert (one.ended, one.finished) == ("question", False)
        assert one.open_question is not None
        assert one.open_question.context == (*context, *one.tokens.tolist())
        assert teacher(one.open_question) == list(two.questions[1].answer)
        expected = imitator.predict([one.open_question.context])
        listed = sorted(one.open_question.plausible, key=lambda action: action.action)
        np.testing.assert_allclose([action.low for action in listed], expected.log_probs[0].exp(), rtol=1e-7)
        np.testing.assert_allclose(one.open_question.ask_probability, expected.ask_probability[0], rtol=1e-7)
    unasked = CautiousImitator(two_heads(), 0.1)
    first = generate(unasked, CONTEXTS, max_new_tokens=15, generator=seeded(2), max_questions=0)
    assert [len(text) for text in first] == [text.questions[0].position for text in whole]


@pytest.mark.parametrize("make", [two_heads, stack])
def test_without_an_oracle_the_questions_are_raised_and_nothing_is_lost(make: Any) -> None:
    imitator, generator = CautiousImitator(make(), 0.1), seeded(2)
    with pytest.raises(HelpNeeded) as caught:
        generate(imitator, CONTEXTS, max_new_tokens=15, generator=generator)
    asked: list[Query] = []

    def oracle(query: Query) -> Sequence[int]:
        asked.append(query)
        return teacher(query)

    again = generate(imitator, CONTEXTS, max_new_tokens=15, generator=generator, oracle=oracle)
    first_of_each = {query.episode: query for query in reversed(asked)}
    assert {query.episode: query.context for query in caught.value.queries} == {
        episode: query.context for episode, query in first_of_each.items()
    }
    assert {query.id for query in caught.value.queries} <= {query.id for query in asked}
    assert len({query.id for query in asked}) == len(asked)
    assert len(asked) == sum(len(text.questions) for text in again) >= 1
    check_equal(again, token_by_token(imitator, CONTEXTS, 15, 2))


@pytest.mark.parametrize("answer", [np.array([2, 1]), torch.tensor([2, 1]), (2, np.int64(1)), [2, 1]])
def test_whole_replies_in_any_sequence(answer: Any) -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=lambda query: answer)
    text = generate(imitator, [[0]], max_new_tokens=20, generator=seeded(1))[0]
    assert text.questions
    for question in text.questions:
        at = question.position
        assert question.answer == (2, 1)
        assert text.tokens[at : at + 2].tolist() == [2, 1][: 20 - at]
        assert (text.actors[at : at + 2] == DEMONSTRATOR).all()
    assert (text.actors == DEMONSTRATOR).sum() == sum(min(2, 20 - question.position) for question in text.questions)


@pytest.mark.parametrize("answer", [3, -1, 1.0, True, [], [1, 3], [1, 0.5], [True], [[1]], np.array([1.0]), Act((3,))])
def test_an_answer_that_is_no_reply_is_named(answer: Any) -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=lambda query: answer)
    with pytest.raises(ValueError, match=r"oracle must answer with an action in 0\.\.2, or with one or more of them"):
        generate(imitator, [[0]], max_new_tokens=20, generator=seeded(1))


def test_a_stop_token_within_a_reply_ends_the_text() -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=lambda query: [1, 2, 1])
    for text in generate(imitator, CONTEXTS, max_new_tokens=40, generator=seeded(1), stop_tokens=[2]):
        assert text.tokens[:-1].tolist().count(2) == 0
        if text.questions:
            assert text.tokens[-2:].tolist() == [1, 2]
            assert text.questions == (Question(len(text) - 2, (1, 2, 1)),)
        assert text.finished


@pytest.mark.parametrize("eos", [2, [2, 3]])
@pytest.mark.parametrize("make", [two_heads, stack])
def test_by_default_texts_end_where_the_networks_do(make: Any, eos: Any) -> None:
    hypotheses = make()
    for network in [model.network for model in getattr(hypotheses.model, "models", [hypotheses.model])]:
        network.generation_config.eos_token_id = eos
        network.generation_config.temperature = 0.5
        network.generation_config.repetition_penalty = 3.0
        network.generation_config.min_new_tokens = 5
        network.generation_config.max_length = 3
    imitator = CautiousImitator(hypotheses, 0.1, oracle=teacher)
    generated = generate(imitator, CONTEXTS, max_new_tokens=15, generator=seeded())
    check_equal(generated, token_by_token(imitator, CONTEXTS, 15, 0, stop_tokens=[2]))
    assert any(text.finished for text in generated)
    unending = generate(imitator, CONTEXTS, max_new_tokens=15, generator=seeded(), stop_tokens=())
    check_equal(unending, token_by_token(imitator, CONTEXTS, 15, 0))


def test_the_tokenizers_end_of_sequence_counts_where_the_network_has_none() -> None:
    hypotheses = two_heads()
    hypotheses.model.tokenizer = type("Tokenizer", (), {"eos_token_id": 1})()
    imitator = BayesianImitator(hypotheses)
    generated = generate(imitator, CONTEXTS, max_new_tokens=15, generator=seeded())
    check_equal(generated, token_by_token(imitator, CONTEXTS, 15, 0, stop_tokens=[1]))


@pytest.mark.parametrize(
    "sampling", [{"do_sample": False}, {"do_sample": True, "temperature": 0.3, "top_k": 1}, {"logits_to_keep": 0}]
)
@pytest.mark.parametrize("make", [two_heads, recent_heads])
def test_by_hand_inside_the_networks_own_generate(make: Any, sampling: dict[str, Any]) -> None:
    imitator = CautiousImitator(make(), 0.1, oracle=teacher)
    network = imitator.hypotheses.model.network  # type: ignore[attr-defined]
    longest = max(len(context) for context in CONTEXTS)
    tokens = torch.tensor([[0] * (longest - len(context)) + context for context in CONTEXTS])
    mask = torch.tensor([[0] * (longest - len(context)) + [1] * len(context) for context in CONTEXTS])
    with ImitatorLogitsProcessor(imitator, seeded(3), stop_tokens=[0]) as processor:
        said = network.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=12,
            pad_token_id=0,
            logits_processor=[processor],
            stopping_criteria=[processor.stopping],
            **sampling,
        )
    expected = token_by_token(imitator, CONTEXTS, 12, 3, stop_tokens=[0])
    check_equal(processor.generated(), expected)
    for row, (own, *_) in zip(said[:, longest:].tolist(), expected, strict=True):
        assert row[: len(own)] == own
    with processor:
        network.generate(
            tokens[:1, -3:],
            attention_mask=mask[:1, -3:],
            max_new_tokens=5,
            logits_processor=[processor],
            pad_token_id=0,
            **sampling,
        )
    assert len(processor.generated()) == 1
    assert not network._forward_pre_hooks
    assert not network.get_output_embeddings()._forward_pre_hooks


def test_by_hand_with_the_end_token_of_the_network() -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=teacher)
    network = imitator.hypotheses.model.network  # type: ignore[attr-defined]
    prompts = torch.tensor([[0, 1], [2, 3], [1, 1], [1, 0]])
    settings = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 20, "do_sample": False}
    with (
        ImitatorLogitsProcessor(imitator, seeded(3)) as processor,
        pytest.raises(ValueError, match="generate must append the tokens that the imitator chose"),
    ):
        network.generate(prompts, logits_processor=[processor], eos_token_id=2, pad_token_id=3, **settings)
    assert not network.get_output_embeddings()._forward_pre_hooks
    network.generation_config.eos_token_id = 2
    with ImitatorLogitsProcessor(imitator, seeded(3)) as processor:
        network.generate(prompts, logits_processor=[processor], pad_token_id=3, **settings)
    check_equal(processor.generated(), token_by_token(imitator, prompts.tolist(), 20, 3, stop_tokens=[2]))
    assert any(text.finished for text in processor.generated())


def test_misuse_by_hand_is_named() -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=teacher)
    network = imitator.hypotheses.model.network  # type: ignore[attr-defined]
    prompts, processor = torch.tensor([[0, 1], [2, 3]]), ImitatorLogitsProcessor(imitator, seeded())
    settings = {"max_new_tokens": 5, "logits_processor": [processor], "pad_token_id": 3}
    with pytest.raises(RuntimeError, match="there is nothing yet"):
        processor.generated()
    with pytest.raises(RuntimeError, match="must be used inside its with block"):
        network.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)
    with processor, pytest.raises(ValueError, match=r"attention_mask must be .* with padding on the left only"):
        network.generate(prompts, attention_mask=torch.tensor([[1, 0], [1, 1]]), **settings)
    with processor:
        network.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)
        with pytest.raises(ValueError, match="and a new with block for each call"):
            network.generate(prompts[:1], attention_mask=torch.ones_like(prompts[:1]), **settings)
    with pytest.raises(RuntimeError, match="must be used inside its with block"):
        network.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)
    with pytest.raises(ValueError, match=r"must read with one network to take part in its generate, got .* ModelStack"):
        ImitatorLogitsProcessor(BayesianImitator(stack()), seeded())


def test_nothing_stays_behind_in_the_network_even_after_an_error() -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=lambda query: 1 // 0)
    network = imitator.hypotheses.model.network  # type: ignore[attr-defined]
    settings, generator = network.generation_config, seeded(1)
    with pytest.raises(ZeroDivisionError):
        generate(imitator, CONTEXTS, max_new_tokens=20, generator=generator)
    assert network.generation_config is settings
    assert not network._forward_pre_hooks
    assert not network.get_output_embeddings()._forward_pre_hooks
    assert torch.equal(generator.get_state(), seeded(1).get_state())


def test_one_forward_pass_a_token_whatever_is_asked() -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=teacher)
    passes: list[int] = []
    trunk = imitator.hypotheses.model.trunk  # type: ignore[attr-defined]
    hook = trunk.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    generated = generate(imitator, CONTEXTS, max_new_tokens=12, generator=seeded())
    hook.remove()
    assert passes == [7] + [1] * 11
    assert sum(len(text.questions) for text in generated) > 3


@pytest.mark.parametrize("make", [two_heads, recent_heads])
def test_an_oracle_may_be_the_same_network(make: Any) -> None:
    """A demonstrator that reads with the network whose ``generate`` is waiting for its answer."""
    hypotheses = make()
    demonstrator = BayesianImitator(hypotheses)

    def oracle(query: Query) -> Sequence[int]:
        inner = generate(demonstrator, [query.context], max_new_tokens=2, generator=seeded(len(query.context)))
        return inner[0].tokens.tolist()

    imitator = CautiousImitator(hypotheses, 0.1, oracle=oracle)
    generated = generate(imitator, CONTEXTS, max_new_tokens=12, generator=seeded(3))
    check_equal(generated, token_by_token(imitator, CONTEXTS, 12, 3, oracle=oracle))


def test_answers_are_learned_from_what_was_generated() -> None:
    hypotheses = two_heads()
    imitator = CautiousImitator(hypotheses, 0.1, oracle=teacher)
    before = hypotheses.log_weights
    generated = generate(imitator, CONTEXTS, max_new_tokens=12, generator=seeded(3))
    np.testing.assert_array_equal(hypotheses.log_weights, before)
    demonstrations = as_demonstrations(CONTEXTS, generated)
    assert demonstrations.n_learned() == sum(int((text.actors == DEMONSTRATOR).sum()) for text in generated)
    assert demonstrations.n_learned("all") == sum(len(text) for text in generated)
    imitator.fit(demonstrations)
    expected = two_heads()
    for context, text in zip(CONTEXTS, generated, strict=True):
        for i in np.flatnonzero(text.actors == DEMONSTRATOR):
            expected.update([*context, *text.tokens[:i].tolist()], int(text.tokens[i]))
    np.testing.assert_allclose(hypotheses.log_weights, expected.log_weights, rtol=1e-7)
    assert np.abs(hypotheses.log_weights - before).max() > 0.1
    with pytest.raises(ValueError, match="generated must hold one text a context, got 5 for 1 contexts"):
        as_demonstrations([[0]], generated)
    from_nothing = generate(imitator, [[]], max_new_tokens=3, generator=seeded())
    assert as_demonstrations([[]], from_nothing).sequences[0].tolist() == from_nothing[0].tokens.tolist()


def test_a_token_of_probability_zero_is_never_said() -> None:
    imitator = BayesianImitator(TwoHeads(tiny_model(seed=1), scale=300.0))
    texts = generate(imitator, [[1, 3]] * 500, max_new_tokens=3, generator=seeded())
    log_probs = np.concatenate([text.log_probs for text in texts])
    assert float(imitator.predict([[1, 3]]).log_probs.min()) < -100
    assert (log_probs > -20).all()


@pytest.mark.parametrize(("uniform", "said"), [(0.0, 0), (1 - 2**-53, 2)])
def test_the_ends_of_the_unit_interval_are_tokens_too(
    uniform: float, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        def random(self, n: int) -> Any:
            return np.full(n, uniform)

    monkeypatch.setattr("cautious_imitation.continuations.np.random.default_rng", lambda seed: Stream())
    text = generate(BayesianImitator(two_heads()), [[0]], max_new_tokens=3, generator=seeded())[0]
    assert text.tokens.tolist() == [said] * 3


def test_single_precision_stays_single(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(seed=1)
    hypotheses = TwoHeads(LanguageModel(model.network.float(), n_symbols=3))
    imitator = CautiousImitator(hypotheses, 0.1, oracle=lambda query: 1)
    precisions, predict = set(), imitator.predict

    def watched(context: Any) -> Prediction:
        precisions.add(predict(context).log_probs.dtype)
        return predict(context)

    monkeypatch.setattr(imitator, "predict", watched)
    texts = generate(imitator, CONTEXTS, max_new_tokens=12, generator=seeded())
    assert any(text.questions for text in texts)
    assert precisions == {torch.float32}
    assert [len(text) for text in texts] == [12] * 5


def test_no_contexts_no_texts() -> None:
    assert generate(BayesianImitator(two_heads()), [], max_new_tokens=3, generator=seeded()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0"),
        ({"max_new_tokens": 2.0}, r"max_new_tokens must be an integer of at least 1, got 2\.0"),
        ({"max_questions": -1}, "max_questions must be an integer of at least 0, got -1"),
        ({"stop_tokens": [3]}, r"stop_tokens must hold symbols in 0\.\.2, got 3"),
        ({"contexts": [[0], [4]]}, r"contexts\[1\] must hold symbols in 0\.\.3, got 4"),
        ({"contexts": [0, 1]}, r"contexts\[0\] must be a sequence of tokens \[L\], got shape \(\)"),
        ({"contexts": [[0.5]]}, r"contexts\[0\] must hold integer symbols, got float64"),
    ],
)
def test_settings_out_of_range_are_named(changed: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"contexts": CONTEXTS, "max_new_tokens": 3, "generator": seeded(), **changed}
    with pytest.raises(ValueError, match=message):
        generate(BayesianImitator(two_heads()), **settings)


def test_hypotheses_without_a_language_model_are_named() -> None:
    tables = FiniteHypotheses([np.log([0.1, 0.2, 0.7])])
    with pytest.raises(ValueError, match="hypotheses that read with a language model, got FiniteHypotheses; act"):
        generate(BayesianImitator(tables), [[0]], max_new_tokens=3, generator=seeded())


def test_an_empty_context_needs_a_start_token() -> None:
    hypotheses = TwoHeads(tiny_model(seed=1, start_token=None))
    with pytest.raises(ValueError, match="context must hold at least one token"):
        generate(BayesianImitator(hypotheses), [[0], []], max_new_tokens=3, generator=seeded())


class Slow:
    """Answers only those contexts whose answers are there, in the order in which it is told."""

    def __init__(self) -> None:
        self.known: dict[str, Sequence[int]] = {}
        self.batches: list[int] = []

    def ask(self, queries: Sequence[Query]) -> list[Act]:
        waiting = [query for query in queries if query.id not in self.known]
        if waiting:
            raise HelpNeeded(waiting)
        self.batches.append(len(queries))
        return [Act(tuple(self.known[query.id])) for query in queries]


@pytest.mark.parametrize("make", [two_heads, stack])
def test_a_call_that_waits_is_repeated_until_all_is_answered(make: Any) -> None:
    imitator, slow = CautiousImitator(make(), 0.1), Slow()
    rounds, texts = 0, None
    while texts is None:
        generator = seeded(2)
        try:
            texts = generate(imitator, CONTEXTS, max_new_tokens=15, generator=generator, oracle=slow)
        except HelpNeeded as help_needed:
            rounds += 1
            assert torch.equal(generator.get_state(), seeded(2).get_state())
            # Not all of them are answered at a time.
            for query in help_needed.queries[: 1 + rounds % 3]:
                slow.known[query.id] = teacher(query)
    assert rounds >= 3
    check_equal(texts, token_by_token(imitator, CONTEXTS, 15, 2))


def test_questions_of_one_step_are_asked_together() -> None:
    batches = []

    class Together:
        def ask(self, queries: Sequence[Query]) -> list[Act]:
            batches.append(len(queries))
            return [Act(tuple(teacher(query))) for query in queries]

    imitator = CautiousImitator(two_heads(), 0.1, oracle=Together())
    texts = generate(imitator, [[0]] * 40, max_new_tokens=6, generator=seeded())
    assert sum(batches) == sum(len(text.questions) for text in texts)
    assert max(batches) > 5


@pytest.mark.parametrize("make", [two_heads, stack])
def test_a_decline_ends_the_text_or_the_imitator_goes_on(make: Any) -> None:
    imitator = CautiousImitator(make(), 0.1, oracle=lambda query: Decline("busy", independent=True))
    stopped = generate(imitator, [[0]] * 30, max_new_tokens=10, generator=seeded())
    declined = [text for text in stopped if text.ended == "declined"]
    assert declined
    for text in declined:
        assert text.questions == (Question(len(text), (), Decline("busy", independent=True)),)
        assert text.open_question is not None
        assert text.open_question.context == (0, *text.tokens.tolist())
    alone = generate(imitator, [[0]] * 30, max_new_tokens=10, generator=seeded(), after_decline="act")
    assert {text.ended for text in alone} == {"length"}
    assert all((text.actors == IMITATOR).all() for text in alone)
    for one, two in zip(stopped, alone, strict=True):
        assert two.tokens[: len(one)].tolist() == one.tokens.tolist()


def test_tokens_after_a_decline_have_the_frequencies_of_acting() -> None:
    imitator, n = CautiousImitator(two_heads(), 0.1, oracle=lambda query: None), 4000
    alone = generate(imitator, [[0]] * n, max_new_tokens=1, generator=seeded(), after_decline="act")
    tokens = [int(text.tokens[0]) for text in alone if text.questions]
    p = imitator.predict([[0]]).log_probs[0].exp().numpy()
    expected = len(tokens) * p / p.sum()
    assert len(tokens) > 400
    assert (np.abs(np.bincount(tokens, minlength=3) - expected) <= 4 * np.sqrt(expected)).all()


def test_an_answer_that_is_no_evidence_is_not_the_demonstrators() -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=lambda query: Act((1, 2), evidence=False))
    texts = generate(imitator, CONTEXTS, max_new_tokens=12, generator=seeded(2))
    assert any(text.questions for text in texts)
    assert as_demonstrations(CONTEXTS, texts).n_learned() == 0


def test_a_run_may_be_named() -> None:
    asked: list[Query] = []
    imitator = CautiousImitator(two_heads(), 0.1, oracle=lambda query: asked.append(query) or teacher(query))
    texts = generate(imitator, CONTEXTS, max_new_tokens=12, generator=seeded(2), run="tuesday")
    positions = [(query.episode, len(query.context) - len(CONTEXTS[query.episode or 0])) for query in asked]
    assert [query.id for query in asked] == [f"tuesday/{episode}/{position}" for episode, position in positions]
    assert {query.asker for query in asked} == {"tuesday"}
    assert len(asked) == sum(len(text.questions) for text in texts)


def test_where_nothing_is_plausible_enough_a_decline_ends_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    imitator = CautiousImitator(two_heads(), 0.1, oracle=lambda query: None)
    nothing = Prediction(torch.full((2, 3), -torch.inf, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    monkeypatch.setattr(imitator, "predict", lambda context: nothing)
    texts = generate(imitator, [[0], [1]], max_new_tokens=5, generator=seeded(), after_decline="act")
    assert [(len(text), text.ended) for text in texts] == [(0, "declined")] * 2
