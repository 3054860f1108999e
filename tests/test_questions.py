"""What a question tells: the conversation, the actions and their ranges, for symbols, trees and language models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cautious_imitation.hypotheses.language_models import LanguageModels
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.language.chats import chat_context
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.small_gpt import shipped_tokenizer
from cautious_imitation.oracles.protocol import (
    Act,
    Decline,
    HelpNeeded,
    OracleError,
    Query,
    answers_at_hand,
    check_answers,
)
from cautious_imitation.oracles.vocabulary import Vocabulary
from cautious_imitation.questions import build_queries, in_actions, some_contexts
from tests.laws.table import IMPLEMENTATIONS, N_SYMBOLS, sampled_members, sequences
from tests.tiny_folders import tiny_llama

ALPHA = 0.05
CONTEXTS = [[0, 1, 3], [2, 2, 0], [3, 0, 1]]


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda made: made.name)
def trained(request: Any) -> Any:
    return request.param.make().fit(sequences())


def test_ranges_are_those_of_the_plausible_members(trained: Any) -> None:
    queries = build_queries(trained, ALPHA, np.array(CONTEXTS), np.array([0.1, 0.2, 1.0]))
    for context, query, ask in zip(CONTEXTS, queries, (0.1, 0.2, 1.0), strict=True):
        assert query.context == tuple(context)
        assert (query.n_actions, query.ask_probability) == (N_SYMBOLS, ask)
        listed = {action.action: action for action in query.plausible}
        assert set(listed) == set(range(N_SYMBOLS))
        mixture = np.exp(np.asarray(trained.mixture(context)))
        assert [listed[a].mixture for a in range(N_SYMBOLS)] == pytest.approx(mixture, rel=1e-9)
        minimum = np.exp(np.asarray(trained.plausible_min(context, ALPHA)))
        assert [listed[a].low for a in range(N_SYMBOLS)] == pytest.approx(minimum, rel=1e-6, abs=1e-12)
        for log_nu in sampled_members(trained.plausible(context, ALPHA), np.random.default_rng(0)):
            for action, p in enumerate(np.exp(log_nu)):
                assert listed[action].low - 1e-9 <= p <= listed[action].high + 1e-9


def test_some_contexts_of_a_reading_bring_their_features() -> None:
    model = LanguageModel(tiny_llama(30, seed=1))
    reading = model.read(CONTEXTS)
    some = some_contexts(reading, [2, 0])
    assert [row.tolist() for row in some.rows] == [CONTEXTS[2], CONTEXTS[0]]
    assert torch.equal(some.features, reading.features[[2, 0]])


def test_of_a_vocabulary_the_likeliest_are_listed_with_their_words() -> None:
    tokenizer = shipped_tokenizer()
    n = len(tokenizer)
    models = [LanguageModel(tiny_llama(n, seed=seed), tokenizer=tokenizer) for seed in (1, 2)]
    asked: list[Query] = []
    imitator = CautiousImitator(
        LanguageModels(models), alpha=0.1, oracle=lambda query: asked.append(query) or Act(text="fine, thanks")
    )
    messages = [{"role": "user", "content": "how are you"}]
    context = chat_context(tokenizer, messages)
    mixture = imitator.hypotheses.mixture(context).exp()
    query = imitator.questions([context], np.array([0.5]))[0]
    assert query.text is not None
    assert "how are you" in query.text
    assert [(m.role, m.content) for m in query.messages] == [("user", "how are you")]
    assert len(query.plausible) == 20
    largest = mixture.topk(20).indices.tolist()
    assert [action.action for action in query.plausible] == largest
    assert query.plausible[0].text == Vocabulary.tokenizer(tokenizer).label(largest[0])
    answer = in_actions(Act(text="fine, thanks"), query, imitator.vocabulary)
    assert isinstance(answer, Act)
    assert tokenizer.decode(answer.actions).strip() == "fine, thanks<|end|>", "a reply in words ends the turn"


def test_of_an_empty_context_there_is_no_text() -> None:
    tree = IMPLEMENTATIONS[0].make().fit(sequences())
    names = Vocabulary.names(["left", "right", "stay", "red"])
    nothing, something = (
        build_queries(tree, ALPHA, np.array([context], dtype=np.int64), np.array([1.0]), names)[0]
        for context in ([], [0, 3])
    )
    assert (nothing.text, something.text) == (None, "left, red")


def test_words_are_declined_where_they_cannot_be_read() -> None:
    query, names = Query((0,), 3), Vocabulary.names(["left", "right", "stay", "red"])
    assert in_actions(Act(text="stay, left"), query, names) == Act((2, 0))
    assert in_actions(Act(text="left", evidence=False, independent=False), query, names) == Act(
        (0,), evidence=False, independent=False
    )
    for text, why in (("jump", "'jump'"), ("", "does not name"), ("red", r"action 3, outside of 0..2")):
        declined = in_actions(Act(text=text), query, names)
        assert isinstance(declined, Decline)
        assert why in declined.reason
        assert not declined.independent
    declined = in_actions(Act(text="x" * 10_000), query, None)
    assert isinstance(declined, Decline)
    assert len(declined.reason) < 400
    assert in_actions(Act((1,)), query, None) == Act((1,))
    assert in_actions(Decline("busy"), query, None) == Decline("busy")


@pytest.mark.parametrize("wrong", [{"actions": ()}, {"actions": (1,), "text": "x"}])
def test_an_act_is_actions_or_words(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="an Act must hold actions, or text"):
        Act(**wrong)


def test_an_act_of_numpy_integers_is_plain() -> None:
    act = Act(tuple(np.array([1, 2])))
    assert act == Act((1, 2))
    assert [type(action) for action in act.actions] == [int, int]
    assert repr(Act((1,), evidence=False)) == "Act((1,), evidence=False)"


@pytest.mark.parametrize("answers", [[], [Act((0,))] * 3, "ab", None, 5, [Act((0,)), "x"], [Act((0,)), 1]])
def test_answers_that_are_none_are_named(answers: Any) -> None:
    with pytest.raises(OracleError, match=r"oracle must (give a list of one answer a question|answer with Act)"):
        check_answers(answers, [Query((0,), 2), Query((1,), 2)])


def test_those_that_can_be_answered_now_are() -> None:
    class Some:
        calls = 0

        def ask(self, queries: Any) -> list[Act]:
            self.calls += 1
            waiting = [query for query in queries if query.context[0] == self.calls]
            if waiting:
                raise HelpNeeded(waiting)
            return [Act((0,)) for _ in queries]

    queries, some = [Query((i,), 2) for i in range(6)], Some()
    found = answers_at_hand(some, queries)
    # 1 waits when all are asked, 2 when the others are, and so on, until everybody who waits has said so.
    assert found == {queries[0].id: Act((0,))}
    assert some.calls == 6


def test_an_oracle_that_waits_for_what_it_was_not_asked_is_told() -> None:
    class Confused:
        def ask(self, queries: Any) -> list[Act]:
            raise HelpNeeded(Query((9,), 2))

    with pytest.raises(HelpNeeded, match=r"context \(9,\)"):
        answers_at_hand(Confused(), [Query((0,), 2)])


def test_a_long_context_is_shown_from_its_end() -> None:
    error = HelpNeeded([Query(tuple(range(100)), 200), Query((1,), 2), Query((2,), 2)])
    assert "context (... 88, 89, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99), and 2 more questions" in str(error)
    assert error.query is error.queries[0]


def test_ids_are_never_shared() -> None:
    assert len({Query((0,), 2).id for _ in range(1000)}) == 1000
