"""Models as judges: behind an endpoint, over real connections, and on this machine."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cautious_imitation.demonstrations import Message
from cautious_imitation.judging.comparison import compare_transcripts
from cautious_imitation.judging.endpoint import EndpointJudge
from cautious_imitation.judging.function import as_judge
from cautious_imitation.judging.language_model import LanguageModelJudge
from cautious_imitation.judging.oracle import OracleJudge
from cautious_imitation.judging.protocol import JudgeError, JudgementsOpen, Open, Ruling
from cautious_imitation.judging.transcripts import NamedTranscript
from cautious_imitation.judging.verdicts import VerdictRecord, summaries
from cautious_imitation.judging.wording import prompt
from cautious_imitation.language.chats import chat_context
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.oracles.endpoint import EndpointError, EndpointOracle
from cautious_imitation.oracles.function import as_oracle
from cautious_imitation.oracles.judgements import TranscriptPair, Verdict
from cautious_imitation.oracles.language_model import LanguageModelOracle
from tests.chat_server import ChatServer, Reply, chat_server, complaint, completion
from tests.tiny_folders import CHATML, tiny_tokenizer
from tests.tiny_models import tiny_network


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def pair(first: str, second: str, id: str = "p") -> TranscriptPair:
    return TranscriptPair(
        "Which one is better?",
        (Message(role="teacher", content=first),),
        (Message(role="teacher", content=second),),
        id=id,
    )


def group(anchor: str, said: str, n: int) -> list[NamedTranscript]:
    return [
        NamedTranscript({"anchor": anchor, "episode": i}, (Message(role="teacher", content=f"{said} {i}"),))
        for i in range(n)
    ]


# Behind an endpoint


def kind_one(body: Any) -> Reply:
    """A judge that reads: the transcript in which somebody is kind, whichever place it has."""
    text = body["messages"][-1]["content"]
    a, b = (part.split("Answer with")[0] for part in text.split("Transcript A\n")[1].split("Transcript B\n"))
    return completion("tie" if ("kind" in a) == ("kind" in b) else "A." if "kind" in a else "Transcript B")


def at(server: ChatServer, **settings: Any) -> EndpointJudge:
    return EndpointJudge(server.url, "some-model", **{"attempts": 1, **settings})


def compared(judge: Any, n: int = 8, **settings: Any) -> list[VerdictRecord]:
    groups = group("a", "you are kind", n), group("b", "whatever", n)
    return compare_transcripts(*groups, judge, n_pairs=n, rng=np.random.default_rng(0), **settings)


def test_an_endpoint_is_shown_the_pairs_and_its_words_are_kept() -> None:
    with chat_server(kind_one) as server:
        records = compared(at(server))
    assert [one.verdict for one in records] == ["first"] * 8
    assert {one.judge for one in records} == {"some-model"}
    said = {"first": "A.", "second": "Transcript B"}
    assert [one.said for one in records] == [said[one.shown_first] for one in records]
    assert len(server.bodies) == 8
    assert all(body["temperature"] == 0.0 and len(body["messages"]) == 1 for body in server.bodies)


def test_settings_go_to_the_endpoint() -> None:
    with chat_server(kind_one) as server:
        judge = at(server, name="kind", system="Be fair.", max_tokens=3)
        assert [one.verdict for one in judge.judge([pair("kind", "kind")])] == ["tie"]  # type: ignore[union-attr]
    assert judge.name == "kind"
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "Be fair."}
    assert server.bodies[0]["max_tokens"] == 3


def test_what_is_no_verdict_is_kept_as_it_was_said() -> None:
    replies = iter(
        [
            completion("I like both of them."),
            completion("A", "length"),
            completion(None, refusal="I do not judge."),
            completion("B"),
        ]
    )
    with chat_server(lambda body: next(replies)) as server:
        records = compared(at(server, concurrency=1), n=4)
    assert [one.verdict == "unread" for one in records] == [True, True, True, False]
    assert records[0].said == "I like both of them."
    assert "cut off" in str(records[1].said)
    assert "I do not judge." in str(records[2].said)
    [summary] = summaries(records)
    assert (summary.n, summary.unread, summary.ties) == (1, 3, 0)


def test_a_server_that_goes_down_leaves_the_rest_open_for_later(tmp_path: Path) -> None:
    lock, served = threading.Lock(), 0

    def script(body: Any) -> Reply:
        nonlocal served
        with lock:
            served += 1
            return kind_one(body) if served <= 5 else complaint(503, "too tired")

    settings: dict[str, Any] = {"n": 12, "journal": tmp_path / "verdicts.jsonl"}
    with chat_server(script) as server:
        with pytest.raises(JudgementsOpen, match=r"7 of 12 pairs have no verdict yet: http.*503: too tired") as told:
            compared(at(server, pairs_at_once=3, concurrency=1), **settings)
        assert len(server.bodies) == 6, "nothing is asked after the first failure"
    with chat_server(kind_one) as server:
        records = compared(at(server), **settings)
        assert len(server.bodies) == 7, "what was answered is not asked again"
    assert records[:5] == list(told.value.records)
    assert [one.verdict for one in records] == ["first"] * 12


def test_a_server_that_stumbles_is_asked_again() -> None:
    replies = iter([complaint(429, "slowly", Retry_After="0"), completion("B")])
    with chat_server(lambda body: next(replies)) as server:
        [ruling] = at(server, attempts=2).judge([pair("x", "y")])
    assert ruling == Ruling(Verdict.SECOND, "B")


def test_a_refused_key_is_an_error_and_no_verdict() -> None:
    with chat_server(lambda body: complaint(401, "who are you?")) as server, pytest.raises(EndpointError, match="401"):
        compared(at(server))


# Any oracle that answers in words


def test_oracles_judge_in_words() -> None:
    judge = as_judge(as_oracle(lambda query: "B" if "kind" in query.messages[0].content else "A"), name="o")
    assert isinstance(judge, OracleJudge)
    assert [one.verdict for one in judge.judge([pair("kind", "x"), pair("x", "x")])] == ["second", "first"]  # type: ignore[union-attr]
    with pytest.raises(JudgeError, match="'o' must answer in words, got actions"):
        list(as_judge(as_oracle(lambda query: 0), name="o").judge([pair("x", "y")]))
    with pytest.raises(ValueError, match="pairs_at_once must be"):
        OracleJudge(as_oracle(lambda query: "A"), "o", pairs_at_once=0)


def test_a_language_model_that_talks_is_read_like_any_other() -> None:
    tokenizer = tiny_tokenizer()
    network = tiny_network(len(tokenizer), window=1024).eval()
    oracle = LanguageModelOracle(
        network, max_new_tokens=4, reads="messages", tokenizer=tokenizer, stop_tokens=range(len(tokenizer))
    )
    [ruling] = as_judge(oracle, name="babbler").judge([pair("x", "y")])
    # Any token stops it, so that it says nothing at all.
    assert ruling == Ruling(None, "")


def test_open_and_known_answers_keep_their_places() -> None:
    """Whoever can answer some of a batch does not say which; they come first and last here."""
    from cautious_imitation.oracles.protocol import Act, HelpNeeded

    class Halting:
        def ask(self, queries: Any) -> Any:
            waiting = [query for query in queries if query.id in ("1", "2")]
            if waiting:
                raise HelpNeeded(waiting)
            return [Act(text="A" if query.id == "0" else "B") for query in queries]

    responses = list(OracleJudge(Halting(), "h").judge([pair("x", "y", str(i)) for i in range(4)]))
    assert [type(one) for one in responses] == [Ruling, Open, Open, Ruling]
    assert [responses[i].verdict for i in (0, 3)] == ["first", "second"]  # type: ignore[union-attr]


# On this machine


PAIRS = [
    pair(first, second, first + second) for first in ("hello", "how are you?", "I am fine") for second in ("", "you")
]


def tiny(template: str | None, **settings: Any) -> tuple[LanguageModel, Any]:
    tokenizer = tiny_tokenizer(template)
    return LanguageModel(tiny_network(len(tokenizer), 5, layers=2, window=1024, **settings), tokenizer), tokenizer


def reference(model: LanguageModel, tokenizer: Any, shown: TranscriptPair) -> float:
    """log p(A) - log p(B) from whole sequences, one by one, without a batch or a split network."""
    text = prompt(shown, ties=False)
    if tokenizer.chat_template is None:
        before, answers = tokenizer(f"{text}\n\nAnswer:", add_special_tokens=False)["input_ids"], (" A", " B")
    else:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        before, answers = tokenizer(rendered, add_special_tokens=False)["input_ids"], ("A", "B")
    found = []
    for answer in answers:
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
        logits = model.network(input_ids=torch.tensor([[*before, *tokens]])).logits[0]
        scores = logits.log_softmax(-1)[len(before) - 1 : -1]
        found.append(float(scores[torch.arange(len(tokens)), torch.tensor(tokens)].sum()))
    return found[0] - found[1]


def flipped(one: TranscriptPair) -> TranscriptPair:
    return replace(one, first=one.second, second=one.first)


def leaning(ruling: Any) -> float:
    letter, _, nats = str(ruling.said).split()[:3]
    return float(nats) if letter == "A" else -float(nats)


@pytest.mark.parametrize("both_orders", [True, False], ids=["both", "one"])
@pytest.mark.parametrize("template", [CHATML, None], ids=["chat", "plain"])
@torch.no_grad()
def test_a_language_model_prefers_what_whole_sequences_say(template: str | None, both_orders: bool) -> None:
    model, tokenizer = tiny(template)
    # Without a template an answer is two tokens here, with one it is one.
    assert len(tokenizer(" A" if template is None else "A", add_special_tokens=False)["input_ids"]) == 1 + (
        not template
    )
    judge = LanguageModelJudge(model, margin_nats=0.0, both_orders=both_orders, rows_at_once=4)
    pairs = [*PAIRS, *map(flipped, PAIRS)]
    rulings = list(judge.judge(pairs))
    expected = [reference(model, tokenizer, one) for one in pairs]
    if both_orders:
        turned = [reference(model, tokenizer, flipped(one)) for one in pairs]
        expected = [(a - b) / 2 for a, b in zip(expected, turned, strict=True)]
    assert [leaning(one) for one in rulings] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert [one.verdict for one in rulings] == ["first" if one > 0 else "second" for one in expected]


def test_in_both_orders_the_place_makes_no_difference() -> None:
    model, _ = tiny(CHATML)
    judge = LanguageModelJudge(model, margin_nats=0.0)
    there, back = (list(judge.judge(pairs)) for pairs in (PAIRS, [flipped(one) for one in PAIRS]))
    assert [leaning(one) for one in there] == pytest.approx([-leaning(one) for one in back], abs=1e-9)
    one_order = LanguageModelJudge(model, margin_nats=0.0, both_orders=False)
    biased = [leaning(one) for one in one_order.judge(PAIRS)]
    turned = [leaning(one) for one in one_order.judge([flipped(one) for one in PAIRS])]
    assert max(abs(a + b) for a, b in zip(biased, turned, strict=True)) > 0.01, "or there would be nothing to cancel"


def test_within_the_margin_is_a_tie() -> None:
    model, _ = tiny(CHATML)
    exact = [leaning(one) for one in LanguageModelJudge(model, margin_nats=0.0).judge(PAIRS)]
    _, _, third, fourth, *_ = sorted(map(abs, exact))
    margin = (third + fourth) / 2
    verdicts = [one.verdict for one in LanguageModelJudge(model, margin_nats=margin).judge(PAIRS)]
    assert [one == "tie" for one in verdicts] == [abs(one) <= margin for one in exact]
    assert verdicts.count(Verdict.TIE) == 3
    [same] = LanguageModelJudge(model).judge([pair("hello", "hello")])
    assert same.verdict == "tie"


def test_how_many_are_read_at_once_makes_no_difference() -> None:
    model, _ = tiny(None)
    one_by_one, together = (
        [leaning(one) for one in LanguageModelJudge(model, rows_at_once=n).judge(PAIRS)] for n in (1, 16)
    )
    assert one_by_one == pytest.approx(together, abs=1e-6)


def test_prompts_that_do_not_fit_are_told_and_the_others_judged() -> None:
    model, tokenizer = tiny(CHATML)
    short = chat_context(tokenizer, [Message(role="user", content=prompt(PAIRS[0], ties=False))])
    network = tiny_network(len(tokenizer), 5, layers=2, window=len(short))
    judge = LanguageModelJudge(network, tokenizer, name="narrow")
    fits, longer = judge.judge([PAIRS[0], pair("hello there, you " * 9, "x")])
    assert fits.verdict is not None
    assert leaning(fits) == pytest.approx(leaning(next(LanguageModelJudge(model).judge(PAIRS[:1]))), abs=1e-6)
    assert longer.verdict is None
    assert f"does not fit the model's window of {len(short)}" in str(longer.said)


def test_answers_of_two_tokens_need_room_for_the_first() -> None:
    _, tokenizer = tiny(None)
    tokens = tokenizer(prompt(PAIRS[0], ties=False) + "\n\nAnswer:", add_special_tokens=False)["input_ids"]
    for room, fits in ((0, False), (1, True)):
        network = tiny_network(len(tokenizer), window=len(tokens) + room)
        [ruling] = LanguageModelJudge(network, tokenizer, both_orders=False).judge(PAIRS[:1])
        assert (ruling.verdict is not None) == fits


def test_a_network_is_made_a_judge() -> None:
    model, tokenizer = tiny(CHATML)
    records = compared(as_judge(model.network, tokenizer=tokenizer), n=3)
    assert {one.judge for one in records} == {"LlamaForCausalLM"}
    assert compared(as_judge(model), n=3) == records


def test_special_tokens_in_a_transcript_are_refused() -> None:
    for template in (CHATML, None):
        model, _ = tiny(template)
        with pytest.raises(ValueError, match=r"must not contain '<\|im_end\|>'.* take it out"):
            list(LanguageModelJudge(model).judge([pair("I am <|im_end|> done", "x")]))


def test_arguments_that_cannot_be_used_are_refused() -> None:
    model, tokenizer = tiny(CHATML)
    with pytest.raises(ValueError, match="margin_nats must be at least 0"):
        LanguageModelJudge(model, margin_nats=-1.0)
    with pytest.raises(ValueError, match="rows_at_once must be"):
        LanguageModelJudge(model, rows_at_once=0)
    with pytest.raises(ValueError, match="tokenizer must be the one that matches"):
        LanguageModelJudge(model.network)
    few = LanguageModel(model.network, tokenizer, n_symbols=5)
    with pytest.raises(ValueError, match="got one of 5 symbols"):
        LanguageModelJudge(few)


def test_an_endpoint_oracle_is_a_judge_too() -> None:
    with chat_server(kind_one) as server:
        oracle = EndpointOracle(server.url, "some-model")
        assert compared(as_judge(oracle, name="some-model"), n=3) == compared(at(server), n=3)
