"""The two imitators: what they predict, charge, do and learn, and that files keep them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.dirichlet_tree import DirichletTree
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import BasePolicy, BayesianImitator, CautiousImitator
from cautious_imitation.oracles.protocol import Act, Decline, HelpNeeded, Query
from cautious_imitation.types import Action, Actor
from tests.random_worlds import Floats, distributions

V, K = 3, 4
SEQUENCES = [[0, 1, 2, 2, 1, 0, 0, 2], [1, 1, 0, 2]]


def tables(seed: int = 0) -> list[Floats]:
    return [np.log(t) for t in distributions(np.random.default_rng(seed), (K, V, V))]


def finite(seed: int = 0) -> FiniteHypotheses:
    return FiniteHypotheses(tables(seed), start_symbol=0)


def tree() -> ContextTree:
    return ContextTree(V, depth=2)


def posterior(hypotheses: FiniteHypotheses) -> Floats:
    return np.exp(hypotheses.log_weights)


@pytest.mark.parametrize("alpha", [1.0, 0.3, 1e-4])
def test_predictions_are_the_mixture_and_the_plausible_minimum(alpha: float) -> None:
    hypotheses = finite().fit(SEQUENCES)
    weights, members = posterior(hypotheses), np.exp(tables())
    plausible = weights >= alpha * weights.max()
    for last in range(V):
        bayesian = BayesianImitator(hypotheses).predict([1, last])
        np.testing.assert_allclose(np.exp(bayesian.log_probs), weights @ members[:, last])
        assert bayesian.ask_probability == 0
        cautious = CautiousImitator(hypotheses, alpha).predict([1, last])
        minimum = members[plausible, last].min(axis=0)
        np.testing.assert_allclose(np.exp(cautious.log_probs), minimum)
        assert cautious.ask_probability == pytest.approx(1 - minimum.sum(), abs=1e-12)


def test_an_imitator_that_knows_one_hypothesis_never_asks() -> None:
    certain = CautiousImitator(FiniteHypotheses([np.log([0.1, 0.2, 0.7])]), 0.01).predict([])
    assert certain.ask_probability <= 1e-15


@pytest.mark.parametrize("make", [finite, tree])
def test_the_charge_is_the_largest_divergence_from_the_references(make: Any) -> None:
    hypotheses, context = make().fit([np.random.default_rng(0).integers(V, size=3 if make is finite else 400)]), [2, 1]
    log_pi = np.log([0.2, 0.5, 0.3])
    pi = np.exp(log_pi)
    pointwise = CautiousImitator(hypotheses, 0.05, "pointwise")
    minimax = CautiousImitator(hypotheses, 0.05, "minimax")
    bayesian = BayesianImitator(hypotheses)
    minimum = hypotheses.plausible_min(context, 0.05)
    np.testing.assert_allclose(pointwise.charge(context, log_pi), pi @ (log_pi - minimum))
    np.testing.assert_allclose(minimax.charge(context, log_pi), hypotheses.worst_kl(context, log_pi, 0.05), rtol=1e-12)
    np.testing.assert_allclose(bayesian.charge(context, log_pi), pi @ (log_pi - hypotheses.mixture(context)))
    assert minimax.charge(context, log_pi) < pointwise.charge(context, log_pi)
    for imitator in (pointwise, minimax, bayesian):
        assert isinstance(imitator, BasePolicy)
        assert imitator.n_symbols == V
        assert imitator.charge(context, log_pi) == imitator.references(context).worst_kl(log_pi)


@pytest.mark.parametrize("make", [finite, tree])
@pytest.mark.parametrize("kind", ["bayesian", "pointwise", "minimax"])
def test_a_batch_is_its_contexts_one_by_one(make: Any, kind: str) -> None:
    hypotheses = make().fit(SEQUENCES)
    imitator = BayesianImitator(hypotheses) if kind == "bayesian" else CautiousImitator(hypotheses, 0.05, kind)  # type: ignore[arg-type]
    contexts = np.random.default_rng(0).integers(V, size=(5, 3))
    log_pi = np.log(distributions(np.random.default_rng(1), (5, V)))
    together, charges = imitator.predict(contexts), imitator.charge(contexts, log_pi)
    assert together.log_probs.shape == (5, V)
    assert together.log_ask.shape == charges.shape == (5,)
    for i, context in enumerate(contexts):
        alone = imitator.predict(context)
        np.testing.assert_allclose(together.log_probs[i], alone.log_probs, rtol=1e-12)
        np.testing.assert_allclose(together.log_ask[i], alone.log_ask, rtol=1e-12)
        np.testing.assert_allclose(charges[i], imitator.charge(context, log_pi[i]), rtol=1e-12)


def test_what_is_done_has_the_predicted_frequencies() -> None:
    hypotheses, n = finite().fit([[0, 1, 2]]), 20_000
    questions: list[Query] = []

    def oracle(query: Query) -> int:
        questions.append(query)
        return 2

    imitator = CautiousImitator(hypotheses, 0.05, oracle=oracle)
    prediction = imitator.predict([0, 1])
    actions = imitator.act(np.tile([0, 1], (n, 1)), np.random.default_rng(0))
    assert isinstance(actions, list)
    own = np.bincount([a.symbol for a in actions if a.actor is Actor.IMITATOR], minlength=V)
    asked = [a for a in actions if a.actor is Actor.DEMONSTRATOR]
    for count, p in zip([*own, len(asked)], [*np.exp(prediction.log_probs), prediction.ask_probability], strict=True):
        assert abs(count / n - p) <= 4 * np.sqrt(p * (1 - p) / n)
    assert len(questions) == len(asked) > 0
    assert {a.symbol for a in asked} == {2}
    assert questions[0].context == (0, 1)
    assert questions[0].n_actions == V
    np.testing.assert_allclose(questions[0].ask_probability, prediction.ask_probability, rtol=1e-12)
    plausible = sorted(questions[0].plausible, key=lambda listed: listed.action)
    np.testing.assert_allclose([listed.low for listed in plausible], np.exp(prediction.log_probs), rtol=1e-12)
    np.testing.assert_allclose([listed.mixture for listed in plausible], np.exp(hypotheses.mixture([0, 1])), rtol=1e-12)
    highest = hypotheses.plausible([0, 1], 0.05).maximum()
    np.testing.assert_allclose([listed.high for listed in plausible], np.exp(highest), rtol=1e-12)
    mixtures = [listed.mixture for listed in questions[0].plausible]
    assert mixtures == sorted(mixtures, reverse=True)
    assert len({question.id for question in questions}) == len(questions)


def test_a_bayesian_imitator_acts_without_asking_and_learns_nothing_by_acting() -> None:
    imitator = BayesianImitator(finite().fit(SEQUENCES), oracle=lambda query: 1 // 0)
    before, n = posterior(imitator.hypotheses), 5_000  # type: ignore[arg-type]
    actions = imitator.act(np.zeros((n, 1), dtype=np.int64), np.random.default_rng(0))
    assert isinstance(actions, list)
    assert {a.actor for a in actions} == {Actor.IMITATOR}
    for a, p in enumerate(np.exp(imitator.predict([0]).log_probs)):
        assert abs(sum(x.symbol == a for x in actions) / n - p) <= 4 * np.sqrt(p * (1 - p) / n)
    np.testing.assert_array_equal(posterior(imitator.hypotheses), before)  # type: ignore[arg-type]


def test_an_action_of_probability_zero_is_never_done() -> None:
    certain = FiniteHypotheses([np.array([-np.inf, 0.0, -np.inf])])
    actions = BayesianImitator(certain).act(np.zeros((500, 1), dtype=np.int64), np.random.default_rng(0))
    assert isinstance(actions, list)
    assert {a.symbol for a in actions} == {1}


def test_one_context_gives_one_action_and_a_batch_a_list() -> None:
    imitator = BayesianImitator(finite())
    assert isinstance(imitator.act([0, 1], np.random.default_rng(0)), Action)
    assert isinstance(imitator.act(np.array([[0, 1]]), np.random.default_rng(0)), list)
    assert imitator.act(np.empty((0, 2), dtype=np.int64), np.random.default_rng(0)) == []


def test_without_an_oracle_the_question_is_raised() -> None:
    imitator = CautiousImitator(ContextTree(V, depth=1), 0.01)
    with pytest.raises(HelpNeeded, match=r"asks for help at context \(2, 1\) and has no oracle") as caught:
        imitator.act([2, 1], np.random.default_rng(0))
    assert caught.value.query.context == (2, 1)
    assert caught.value.query.ask_probability == 1
    imitator.observe(caught.value.query.context, 1, "demonstrator")
    assert imitator.predict([2, 1]).ask_probability < 1


@pytest.mark.parametrize("answer", [3, -1, 1.0, True, [], np.array([0.5]), Act((0, 5)), {"action": 1}])
def test_an_answer_that_is_no_action_is_named(answer: Any) -> None:
    imitator = CautiousImitator(ContextTree(V, depth=1), 0.01, oracle=lambda query: answer)
    with pytest.raises(ValueError, match=r"oracle must answer with an action in 0\.\.2, or with one or more"):
        imitator.act([0], np.random.default_rng(0))


def test_several_actions_are_too_many_for_one() -> None:
    imitator = CautiousImitator(ContextTree(V, depth=1), 0.01, oracle=lambda query: [1, 2])
    with pytest.raises(
        ValueError, match=r"must answer with a single action in 0\.\.2 where one is asked for, got \(1, 2\)"
    ):
        imitator.act([0], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(None, "the oracle returned None"), (Decline("busy"), "busy"), ("word", "the answer 'word' is in words")],
)
def test_a_decline_stops_and_says_why(answer: Any, reason: str) -> None:
    imitator = CautiousImitator(ContextTree(V, depth=1), 0.01, oracle=lambda query: answer)
    with pytest.raises(HelpNeeded, match=re.escape(f"the oracle declined ({reason}")):
        imitator.act([0], np.random.default_rng(0))


def test_after_a_decline_it_acts_as_if_it_had_not_asked() -> None:
    imitator, n = CautiousImitator(finite().fit([[0, 1, 2]]), 0.05, oracle=lambda query: None), 20_000
    contexts = np.tile([0, 1], (n, 1))
    alone = imitator.act(contexts, np.random.default_rng(0), after_decline="act")
    imitator.oracle = lambda query: 0
    asked = [a.actor is Actor.DEMONSTRATOR for a in imitator.act(contexts, np.random.default_rng(0))]  # type: ignore[union-attr]
    instead = np.bincount([a.symbol for a, asks in zip(alone, asked, strict=True) if asks], minlength=V)  # type: ignore[arg-type]
    expected = instead.sum() * np.exp(imitator.predict([0, 1]).log_probs)
    expected /= np.exp(imitator.predict([0, 1]).log_probs).sum()
    assert instead.sum() > 1_000
    assert (np.abs(instead - expected) <= 4 * np.sqrt(expected)).all()
    assert {a.actor for a in alone} == {Actor.IMITATOR}  # type: ignore[union-attr]


def test_where_nothing_is_plausible_enough_there_is_nothing_to_do_after_a_decline() -> None:
    imitator = CautiousImitator(ContextTree(V, depth=1), 0.01, oracle=lambda query: None)
    with pytest.raises(HelpNeeded, match="no action is plausible enough to go on"):
        imitator.act([0], np.random.default_rng(0), after_decline="act")
    with pytest.raises(ValueError, match='after_decline must be "stop" or "act", got \'sulk\''):
        imitator.act([0], np.random.default_rng(0), after_decline="sulk")  # type: ignore[arg-type]


def test_an_answer_that_is_no_evidence_is_the_oracles() -> None:
    imitator = CautiousImitator(ContextTree(V, depth=1), 0.01, oracle=lambda query: Act((2,), evidence=False))
    assert imitator.act([0], np.random.default_rng(0)) == Action(2, Actor.ORACLE)
    before = imitator.predict([0]).log_probs
    imitator.observe([0], 2, Actor.ORACLE)
    np.testing.assert_array_equal(imitator.predict([0]).log_probs, before)


def test_questions_of_a_batch_are_asked_together() -> None:
    batches = []

    class Together:
        def ask(self, queries: Any) -> list[Act]:
            batches.append([query.context for query in queries])
            return [Act((query.context[-1],)) for query in queries]

    imitator = CautiousImitator(ContextTree(V, depth=1), 0.01, oracle=Together())
    contexts = np.array([[0, 1], [0, 2], [1, 0]])
    actions = imitator.act(contexts, np.random.default_rng(0))
    assert batches == [[(0, 1), (0, 2), (1, 0)]]
    assert actions == [Action(symbol, Actor.DEMONSTRATOR) for symbol in (1, 2, 0)]


def test_names_are_shown_to_whoever_answers_and_read_from_the_answer() -> None:
    asked = []
    names = ["left", "right", "stay"]
    imitator = CautiousImitator(
        ContextTree(V, depth=1), 0.01, oracle=lambda query: asked.append(query) or "stay", vocabulary=names
    )
    assert imitator.act([0, 1], np.random.default_rng(0)) == Action(2, Actor.DEMONSTRATOR)
    assert asked[0].text == "left, right"
    assert {listed.text for listed in asked[0].plausible} == set(names)


def test_a_numpy_integer_is_an_answer() -> None:
    imitator = CautiousImitator(ContextTree(V, depth=1), 0.01, oracle=lambda query: np.int64(2))  # type: ignore[arg-type,return-value]
    assert imitator.act([0], np.random.default_rng(0)) == Action(2, Actor.DEMONSTRATOR)


@pytest.mark.parametrize("make", [finite, tree])
def test_the_same_seed_gives_the_same_actions(make: Any) -> None:
    imitator = CautiousImitator(make().fit(SEQUENCES), 0.05, oracle=lambda query: 0)
    contexts = np.random.default_rng(0).integers(V, size=(50, 3))
    first, second, other = (imitator.act(contexts, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == second
    assert first != other


@pytest.mark.parametrize("evidence", ["demonstrator", "all", None])
@pytest.mark.parametrize("kind", ["bayesian", "cautious"])
@pytest.mark.parametrize("actor", list(Actor))
def test_whose_actions_are_learned(kind: str, evidence: Any, actor: Actor) -> None:
    hypotheses = finite()
    imitator = (
        BayesianImitator(hypotheses, evidence=evidence)
        if kind == "bayesian"
        else CautiousImitator(hypotheses, 0.1, evidence=evidence)
    )
    rule = evidence or {"bayesian": "all", "cautious": "demonstrator"}[kind]
    assert imitator.evidence == rule
    learns = actor is Actor.DEMONSTRATOR or (actor is Actor.IMITATOR and rule == "all")
    imitator.observe([0, 1], 2, actor)
    joint = np.exp(tables())[:, 1, 2]
    expected = joint / joint.sum() if learns else np.full(K, 1 / K)
    np.testing.assert_allclose(posterior(hypotheses), expected)
    twice = finite()
    again = type(imitator)(twice, **({} if kind == "bayesian" else {"alpha": 0.1}), evidence=evidence)
    again.fit(Demonstrations([[1, 2]], [actor_codes(["environment", actor])]))
    np.testing.assert_allclose(posterior(twice), expected)


def test_a_batch_is_observed_and_actors_may_be_words() -> None:
    together, in_turn = finite(), finite()
    contexts, symbols = np.array([[0, 1], [2, 2]]), np.array([2, 0])
    CautiousImitator(together, 0.1).observe(contexts, symbols, "demonstrator")
    for context, symbol in zip(contexts, symbols, strict=True):
        in_turn.update(context, int(symbol))
    np.testing.assert_allclose(posterior(together), posterior(in_turn))
    with pytest.raises(ValueError, match="'teacher' is not a valid Actor"):
        CautiousImitator(together, 0.1).observe(contexts, symbols, "teacher")


def test_learning_from_answers_ends_the_asking() -> None:
    """Online: the imitator asks, learns from the answer, and asks less and less."""
    tau = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])
    rng = np.random.default_rng(0)
    imitator = CautiousImitator(
        ContextTree(V, depth=1), np.exp(-3), oracle=lambda query: int(rng.choice(V, p=tau[query.context[-1]]))
    )
    history, asked = [0], []
    for _ in range(1_500):
        action = imitator.act(history[-1:], rng)
        assert isinstance(action, Action)
        imitator.observe(history[-1:], action.symbol, action.actor)
        history.append(action.symbol)
        asked.append(action.actor is Actor.DEMONSTRATOR)
    assert np.mean(asked[:50]) > 0.6
    assert np.mean(asked[-300:]) < 0.5 * np.mean(asked[:50])


@pytest.mark.parametrize("make", [finite, tree])
@pytest.mark.parametrize("kind", ["bayesian", "minimax"])
def test_saving_and_loading_changes_nothing(make: Any, kind: str, tmp_path: Path) -> None:
    hypotheses = make().fit(SEQUENCES)
    original: Any = (
        BayesianImitator(hypotheses, evidence="demonstrator")
        if kind == "bayesian"
        else CautiousImitator(hypotheses, 0.037, "minimax", evidence="all")
    )
    original.save(tmp_path / "new" / "imitator")
    loaded = type(original).load(tmp_path / "new" / "imitator", oracle=lambda query: 1)
    assert type(loaded.hypotheses) is type(hypotheses)
    assert loaded.evidence == original.evidence
    assert loaded.oracle is not None
    if kind == "minimax":
        assert (loaded.alpha, loaded.caution) == (0.037, "minimax")
    for imitator in (original, loaded):
        imitator.observe([0, 1], 2, "demonstrator")
    np.testing.assert_array_equal(loaded.predict([0, 2]).log_probs, original.predict([0, 2]).log_probs)
    np.testing.assert_array_equal(loaded.predict([0, 2]).log_ask, original.predict([0, 2]).log_ask)
    log_pi = np.log([0.2, 0.5, 0.3])
    assert loaded.charge([1, 1], log_pi) == original.charge([1, 1], log_pi)


def test_bad_files_are_named(tmp_path: Path) -> None:
    BayesianImitator(finite()).save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"imitator\.json holds a BayesianImitator, not a CautiousImitator; use Bay"):
        CautiousImitator.load(tmp_path / "saved")
    with pytest.raises(FileNotFoundError):
        BayesianImitator.load(tmp_path / "nowhere")
    path = tmp_path / "saved" / "imitator.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "schema": 99}))
    with pytest.raises(ValueError, match="another schema than 1; fit and save the imitator again"):
        BayesianImitator.load(tmp_path / "saved")
    path.write_text(json.dumps({**settings, "hypotheses": "Path"}))
    with pytest.raises(ValueError, match="Path"):
        BayesianImitator.load(tmp_path / "saved")


class Recent(torch.nn.Module):
    """Logits by the last symbol."""

    def __init__(self, table: Floats) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.from_numpy(table))

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        return self.table[context[:, -1]]


def test_torch_hypotheses_stay_torch() -> None:
    modules = FiniteHypotheses([Recent(t) for t in tables()], n_symbols=V, start_symbol=0).fit(SEQUENCES)
    arrays = finite().fit(SEQUENCES)
    contexts = np.array([[0, 1], [2, 0]])
    for by_modules, by_arrays in (
        (BayesianImitator(modules), BayesianImitator(arrays)),
        (CautiousImitator(modules, 0.05), CautiousImitator(arrays, 0.05)),
        (CautiousImitator(modules, 0.05, "minimax"), CautiousImitator(arrays, 0.05, "minimax")),
    ):
        prediction, expected = by_modules.predict(torch.from_numpy(contexts)), by_arrays.predict(contexts)
        assert isinstance(prediction.log_probs, torch.Tensor)
        assert isinstance(prediction.log_ask, torch.Tensor)
        np.testing.assert_allclose(prediction.log_probs.numpy(), expected.log_probs, rtol=1e-9)
        np.testing.assert_allclose(prediction.log_ask.numpy(), expected.log_ask, rtol=1e-9)
        log_pi = np.log([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
        charge = by_modules.charge(torch.from_numpy(contexts), torch.from_numpy(log_pi))
        assert isinstance(charge, torch.Tensor)
        np.testing.assert_allclose(charge.numpy(), by_arrays.charge(contexts, log_pi), rtol=1e-9)
        for imitator in (by_modules, by_arrays):
            imitator.oracle = lambda query: 0
        many = np.tile(contexts, (20, 1))
        actions = by_modules.act(torch.from_numpy(many), np.random.default_rng(0))
        assert actions == by_arrays.act(many, np.random.default_rng(0))


def test_a_class_that_is_not_normalised_is_named() -> None:
    class Broken(FiniteHypotheses):
        def plausible_min(self, context: Any, alpha: float) -> Any:
            return np.log(np.full((V,), 0.5))

    with pytest.raises(ValueError, match=r"probabilities must sum to at most 1, got 1\.5; the class is not normalised"):
        CautiousImitator(Broken(tables(), start_symbol=0), 0.1).predict([0])


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, float("nan"), "0.1"])
def test_alpha_is_checked_at_once(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got"):
        CautiousImitator(finite(), alpha)


def test_without_a_level_it_takes_that_of_the_class() -> None:
    for hypotheses, alpha in ((finite(), 0.01), (ContextTree(2, 1), np.exp(-5)), (DirichletTree(2, 1), np.exp(-2.5))):
        assert CautiousImitator(hypotheses).alpha == pytest.approx(alpha)
    assert CautiousImitator(ContextTree(2, 1, plausible="anytime")).alpha == 0.05
    assert CautiousImitator(finite()).caution == "minimax"


def test_unknown_words_are_named() -> None:
    with pytest.raises(ValueError, match="caution must be one of pointwise, minimax, got 'max'"):
        CautiousImitator(finite(), 0.1, "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evidence must be one of demonstrator, all, got 'none'"):
        BayesianImitator(finite(), evidence="none")  # type: ignore[arg-type]
