"""Models behind an endpoint, asked over real connections: what is sent, how answers are read, what may go wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

import pytest

from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.chat_completions import clipped, completions_url, retry_after
from cautious_imitation.oracles.endpoint import EndpointError, EndpointOracle
from cautious_imitation.oracles.protocol import (
    Act,
    Decline,
    HelpNeeded,
    Oracle,
    OracleError,
    PlausibleAction,
    Query,
    check_answers,
)
from tests.chat_server import ChatServer, Reply, chat_server, complaint, completion

KEY = "sk-very-secret-0123456789"
NAMES = ("greeting", "question", "end of turn")


def chat(*contents: str, **settings: Any) -> Query:
    """A conversation whose first message is the user's."""
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=content) for i, content in enumerate(contents))
    return Query((1, 2), n_actions=100, messages=messages, **settings)


def symbols(*context: int, **settings: Any) -> Query:
    return Query(context, n_actions=len(NAMES), **settings)


def oracle_at(server: ChatServer, **settings: Any) -> EndpointOracle:
    return EndpointOracle(server.url, "model", **settings)


def scripted(*replies: Reply) -> Callable[[Any], Reply]:
    """One reply after another, the last one for good."""
    left, lock = list(replies), threading.Lock()

    def script(body: Any) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return script


def asked_once(query: Query, *replies: Reply, **settings: Any) -> tuple[Any, ChatServer]:
    with chat_server(scripted(*replies)) as server:
        [answer] = oracle_at(server, **settings).ask([query])
    return answer, server


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_conversation_is_sent_as_it_is_and_answered_in_words() -> None:
    answer, server = asked_once(chat("hi", "hello", "how are you?"), completion(" Fine."), max_tokens=7)
    assert answer == Act(text=" Fine.", evidence=False)
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "model",
            "max_tokens": 7,
            "temperature": 0.0,
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
                {"role": "user", "content": "how are you?"},
            ],
        }
    ]
    assert "authorization" not in server.headers[0]
    assert server.headers[0]["accept-encoding"] == "identity"


def test_it_is_an_oracle() -> None:
    with chat_server(scripted(completion("1"))) as server:
        oracle = oracle_at(server, action_names=NAMES)
        assert isinstance(oracle, Oracle)
        assert check_answers(oracle.ask([symbols(0)]), [symbols(0)]) == [Act((0,), evidence=False)]
        assert oracle.ask([]) == []


def test_the_answers_of_the_demonstrator_itself_are_evidence() -> None:
    assert asked_once(chat("hi"), completion("ho"), is_demonstrator=True)[0] == Act(text="ho", evidence=True)
    answer, _ = asked_once(symbols(0), completion("2"), action_names=NAMES, is_demonstrator=True)
    assert answer == Act((1,), evidence=True)


def test_an_empty_reply_is_an_answer_and_none_at_all_is_not() -> None:
    assert asked_once(chat("hi"), completion(""))[0] == Act(text="", evidence=False)
    assert isinstance(asked_once(chat("hi"), completion(None))[0], Decline)


def test_settings_are_sent_and_none_leaves_them_to_the_server() -> None:
    settings = {"max_tokens": None, "temperature": None, "body": {"seed": 3}, "headers": {"X-Team": "blue"}}
    _, server = asked_once(chat("hi"), completion("ho"), system="Be brief.", **settings)
    assert server.bodies[0] == {
        "model": "model",
        "seed": 3,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    }
    assert server.headers[0]["x-team"] == "blue"


def test_two_system_messages_become_one() -> None:
    query = Query((), n_actions=2, messages=(Message(role="system", content="You teach."), chat("hi").messages[0]))
    _, server = asked_once(query, completion("ho"), system="Be brief.")
    assert [m["content"] for m in server.bodies[0]["messages"]] == ["Be brief.\n\nYou teach.", "hi"]


def test_texts_that_no_encoding_can_write_are_sent() -> None:
    answer, server = asked_once(chat("\ud83d\x00 é"), completion("ho"))
    assert answer == Act(text="ho", evidence=False)
    assert server.bodies[0]["messages"][0]["content"] == "\ud83d\x00 é"


# An unfinished reply


def test_a_reply_that_has_begun_is_to_be_continued() -> None:
    answer, server = asked_once(chat("hi", "Hello th"), completion("ere"))
    assert answer == Act(text="ere", evidence=False)
    assert server.bodies[0]["messages"][-1] == {"role": "assistant", "content": "Hello th"}
    assert server.bodies[0]["continue_final_message"] is True
    assert server.bodies[0]["add_generation_prompt"] is False


def test_how_to_continue_is_said_only_where_a_reply_has_begun() -> None:
    _, server = asked_once(chat("hi"), completion("ho"))
    assert "continue_final_message" not in server.bodies[0]
    _, server = asked_once(chat("hi", "Hel"), completion("lo"), continuing={"prefix": True})
    assert server.bodies[0]["prefix"] is True
    assert "continue_final_message" not in server.bodies[0]


def test_a_server_that_cannot_continue_is_an_error_or_not_asked() -> None:
    refusal = complaint(400, "Unrecognized request argument: continue_final_message")
    with pytest.raises(EndpointError, match=r"Unrecognized request argument.*pass continuing=None"):
        asked_once(chat("hi", "Hel"), refusal)
    answer, server = asked_once(chat("hi", "Hel"), completion("lo"), continuing=None)
    assert isinstance(answer, Decline)
    assert answer.independent
    assert server.bodies == []


def test_a_reply_of_no_words_yet_has_not_begun() -> None:
    answer, server = asked_once(chat("hi", ""), completion("ho"), continuing=None)
    assert answer == Act(text="ho", evidence=False)
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "hi"}]


def test_the_agent_may_open_the_conversation_if_it_is_told_which() -> None:
    opening = Query((), n_actions=100, messages=(Message(role="assistant", content=""),))
    answer, server = asked_once(opening, completion("Hello!"), system="You teach fractions.")
    assert answer == Act(text="Hello!", evidence=False)
    assert server.bodies[0]["messages"] == [{"role": "system", "content": "You teach fractions."}]
    with pytest.raises(OracleError, match="pass system="):
        asked_once(opening, completion("Hello!"))


# A choice of actions


def test_actions_are_offered_as_a_numbered_list() -> None:
    answer, server = asked_once(symbols(0, 4), completion("2"), action_names=(*NAMES, "yes", "no"))
    assert answer == Act((1,), evidence=False)
    [message] = server.bodies[0]["messages"]
    assert message == {
        "role": "user",
        "content": "So far:\ngreeting\nno\n\nWhich of these comes next?\n1. greeting\n2. question\n3. end of turn\n\n"
        "Answer with its number only.",
    }


@pytest.mark.parametrize(
    ("said", "action"), [("3", 2), (" 3.\n", 2), ("(1)", 0), ("3)", 2), ("question", 1), ("end of turn ", 2)]
)
def test_a_number_or_the_exact_text_is_an_answer(said: str, action: int) -> None:
    assert asked_once(symbols(0), completion(said), action_names=NAMES)[0] == Act((action,), evidence=False)


@pytest.mark.parametrize(
    "said",
    ["", "0", "4", "-1", "1 or 2", "1. greeting, I think", "Question", "the question", "¹", "1.0", "two", "99999"],
)
def test_anything_else_is_declined_with_what_was_said(said: str) -> None:
    answer, _ = asked_once(symbols(0), completion(said), action_names=NAMES)
    assert answer == Decline(f"could not be read as one of the actions: {said!r}")


def test_what_was_said_is_clipped() -> None:
    answer, _ = asked_once(symbols(0), completion("no\n\x1b[2J" + "x" * 5000), action_names=NAMES)
    assert len(answer.reason) < 400
    assert "\x1b" not in answer.reason
    assert "\n" not in answer.reason


def test_texts_that_are_numbers_are_chosen_by_their_place() -> None:
    answer, _ = asked_once(symbols(0), completion("2"), action_names=("2", "3", "1"))
    assert answer == Act((1,), evidence=False)


def test_texts_that_are_offered_twice_are_chosen_by_their_place() -> None:
    names = ("yes", "yes", "no")
    assert isinstance(asked_once(symbols(0), completion("yes"), action_names=names)[0], Decline)
    assert asked_once(symbols(0), completion("2"), action_names=names)[0] == Act((1,), evidence=False)


def test_without_names_the_plausible_actions_are_offered_in_the_order_of_the_alphabet() -> None:
    plausible = (
        PlausibleAction(2, 0.1, 0.5, 0.9, "leave"),
        PlausibleAction(0, 0.0, 0.3, 0.4, "stay"),
        PlausibleAction(1, 0.0, 0.2, 0.3),
    )
    query = symbols(0, plausible=plausible, text="a door")
    answer, server = asked_once(query, completion("2"))
    assert answer == Act((2,), evidence=False)
    content = server.bodies[0]["messages"][0]["content"]
    assert "So far:\na door\n\n" in content
    assert "1. stay\n2. leave\n0. none of these\n" in content
    assert asked_once(query, completion("0"))[0] == Decline("the model chose none of the actions that were offered")


def test_a_question_may_be_described() -> None:
    _, server = asked_once(
        symbols(2, 1), completion("1"), action_names=NAMES, describe=lambda query: f"{len(query.context)} acts"
    )
    assert "So far:\n2 acts\n\n" in server.bodies[0]["messages"][0]["content"]


def test_a_question_that_words_cannot_put_is_an_error() -> None:
    oracle = EndpointOracle("http://127.0.0.1:9/v1", "model")
    with pytest.raises(OracleError, match=r"no actions with texts.*pass action_names"):
        oracle.ask([symbols(0)])
    with pytest.raises(OracleError, match="must name each of 3 actions, got 2"):
        EndpointOracle("http://127.0.0.1:9/v1", "model", action_names=NAMES[:2]).ask([symbols(0)])
    many = Query((), n_actions=101, plausible=(PlausibleAction(0, 0.1, 0.5, 0.9, "yes"),))
    for names in (None, [str(i) for i in range(101)]):
        with pytest.raises(OracleError, match=r"one of 101 actions.*messages"):
            EndpointOracle("http://127.0.0.1:9/v1", "model", action_names=names).ask([many])


# Answers that are none


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (completion("Well, it", "length"), "cut off after max_tokens=512"),
        (completion("Well", "content_filter"), "content_filter"),
        (completion(None, "tool_calls", tool_calls=[{}]), "tool_calls"),
        (completion(None, refusal="I will not"), "the model refused: I will not"),
        (completion("x" * 1_000_001), "longer than 1000000 bytes"),
    ],
)
def test_what_is_no_whole_answer_is_declined(reply: Reply, reason: str) -> None:
    answer, _ = asked_once(chat("hi"), reply)
    assert isinstance(answer, Decline)
    assert reason in answer.reason
    assert not answer.independent


def test_an_answer_may_be_long() -> None:
    assert asked_once(chat("hi"), completion("x" * 900_000))[0] == Act(text="x" * 900_000, evidence=False)


def test_a_body_without_end_is_given_up() -> None:
    # Less than what is announced, and the connection stays open: whoever reads on waits forever.
    def endless(body: Any) -> Reply:
        return Reply(b" " * 2_000_000, announced=10**12)

    with chat_server(endless) as server:
        [answer] = oracle_at(server, attempts=1).ask([chat("hi")])
    assert isinstance(answer, Decline)


# Trying again

AGAIN = {"Retry_After": "0"}


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 529])
def test_an_overloaded_server_is_asked_again(status: int) -> None:
    answer, server = asked_once(chat("hi"), complaint(status, "busy", **AGAIN), completion("ho"))
    assert answer == Act(text="ho", evidence=False)
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(hang_up=True),
        Reply(b'{"choices": [', announced=500),
        Reply(b'{"choices": ['),
        Reply(b"<html>"),
        Reply(b'{"choices": []}'),
        Reply(b"[" * 100_000),
        Reply(b'\xff\xfe{"choices"'),
        Reply(b'{"choices": [{"message": {"content": 5}}]}'),
    ],
    ids=["disconnect", "truncated", "bad JSON", "HTML", "no choice", "deep", "no UTF-8", "no text"],
)
def test_what_cannot_be_read_is_asked_for_again(reply: Reply) -> None:
    answer, server = asked_once(chat("hi"), reply, completion("ho"), attempts=2)
    assert answer == Act(text="ho", evidence=False)
    assert len(server.bodies) == 2


def test_after_so_many_attempts_help_is_needed() -> None:
    query = chat("hi")
    with chat_server(scripted(complaint(503, "no GPU is free", **AGAIN))) as server:
        oracle = oracle_at(server, attempts=3)
        with pytest.raises(HelpNeeded, match=r"HTTP 503: no GPU is free \(after 3 attempts\); ask again") as caught:
            oracle.ask([query])
        assert server.url in str(caught.value)
    assert caught.value.queries == (query,)
    assert len(server.bodies) == 3


def test_nobody_at_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(HelpNeeded, match=r"ConnectError.*\(after 2 attempts\)"):
        EndpointOracle(f"http://127.0.0.1:{port}/v1", "model", attempts=2).ask([chat("hi")])


def test_pauses_are_those_that_the_server_asks_for() -> None:
    # Longer than there is time for: given up at once rather than waited for.
    with chat_server(scripted(complaint(429, "slow down", Retry_After="3600"))) as server:
        with pytest.raises(HelpNeeded, match=r"slow down \(after 1 attempt\)"):
            oracle_at(server, timeout_seconds=60).ask([chat("hi")])
        begin = time.monotonic()
        server.script = scripted(complaint(429, "slow down", Retry_After="0.4"), completion("ho"))
        assert oracle_at(server).ask([chat("hi")]) == [Act(text="ho", evidence=False)]
        assert time.monotonic() - begin >= 0.4


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("7", 7.0), ("-3", 0.0), ("inf", None), ("nan", None), ("", None), ("later", None)],
)
def test_when_to_come_again(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_when_to_come_again_as_a_date() -> None:
    assert retry_after(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=5)


_LONG_SECONDS = 5.0
"""Whoever is still waiting by then gets an answer, and the test fails."""


def silent(server_of: Callable[[], ChatServer]) -> Callable[[Any], Reply]:
    def script(body: Any) -> Reply:
        server_of().released.wait(_LONG_SECONDS)
        return completion("too late")

    return script


def test_a_silent_server_is_given_up_after_the_timeout() -> None:
    with chat_server(silent(lambda: server)) as server:
        with pytest.raises(HelpNeeded, match=r"no answer within 0\.2 s; raise timeout_seconds"):
            oracle_at(server, timeout_seconds=0.2).ask([chat("hi")])
        assert len(server.bodies) == 1


def test_a_server_that_trickles_is_given_up_after_the_timeout() -> None:
    given_up = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            end = time.monotonic() + _LONG_SECONDS
            try:
                while time.monotonic() < end and not given_up.wait(0.02):
                    connection.sendall(b" ")
            except OSError:
                given_up.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            with pytest.raises(HelpNeeded, match=r"no answer within 0\.3 s"):
                EndpointOracle(url, "model", timeout_seconds=0.3, attempts=1).ask([chat("hi")])
        finally:
            given_up.set()
            thread.join()


def test_nobody_waits_beyond_the_deadline() -> None:
    with chat_server(silent(lambda: server)) as server:
        past, soon = chat("hi", deadline=time.time() - 1), chat("ho", deadline=time.time() + 0.5)
        answers = oracle_at(server).ask([past, soon])
        assert answers == [Decline("nobody answered before the deadline")] * 2
        assert [body["messages"][0]["content"] for body in server.bodies] == ["ho"]
        server.script = scripted(complaint(429, "slow down", Retry_After="30"))
        assert oracle_at(server).ask([chat("hi", deadline=time.time() + 20)]) == [answers[0]]


# Many questions


def named(body: Any) -> Reply:
    return completion(body["messages"][-1]["content"].upper())


def test_answers_are_in_the_order_of_the_questions() -> None:
    # Four at a time, and of each four the last to come is the first to be answered.
    arrived: list[str] = []
    changed = threading.Condition()

    def backwards(body: Any) -> Reply:
        with changed:
            arrived.append(body["messages"][-1]["content"])
            turn = len(arrived)
            changed.notify_all()
            changed.wait_for(lambda: len(arrived) % 4 == 0 or len(arrived) > turn + 2, timeout=20)
        return named(body)

    texts = [f"question {i}" for i in range(12)]
    with chat_server(backwards) as server:
        answers = oracle_at(server, concurrency=4).ask([chat(text) for text in texts])
    assert [answer.text for answer in answers if isinstance(answer, Act)] == [text.upper() for text in texts]
    assert sorted(arrived) == sorted(texts)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_are_under_way_at_the_same_time_and_no_more(concurrency: int) -> None:
    under_way, most = 0, 0
    lock, full = threading.Lock(), threading.Barrier(concurrency)

    def counted(body: Any) -> Reply:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        full.wait(timeout=20)
        with lock:
            under_way -= 1
        return named(body)

    with chat_server(counted) as server:
        answers = oracle_at(server, concurrency=concurrency).ask([chat(f"{i}") for i in range(3 * concurrency)])
    assert len(answers) == 3 * concurrency
    assert most == concurrency


def test_what_was_answered_is_not_asked_again() -> None:
    broken = True

    def half(body: Any) -> Reply:
        if broken and body["messages"][-1]["content"] == "b":
            return complaint(503, "later", **AGAIN)
        return named(body)

    queries = [chat("a", id="1"), chat("b", id="2"), chat("c", id="3")]
    with chat_server(half) as server:
        oracle = oracle_at(server, concurrency=3, attempts=1)
        with pytest.raises(HelpNeeded) as caught:
            oracle.ask(queries)
        assert queries[1] in caught.value.queries
        n_unanswered = len(caught.value.queries)
        broken = False
        server.bodies.clear()
        assert [answer.text for answer in oracle.ask(queries) if isinstance(answer, Act)] == ["A", "B", "C"]
        assert len(server.bodies) == n_unanswered
        # Given out once; whoever asks once more wants a new answer.
        oracle.ask(queries)
        assert len(server.bodies) == n_unanswered + 3


def test_questions_that_have_not_been_sent_are_not_sent_to_a_broken_server() -> None:
    with chat_server(scripted(complaint(503, "later", **AGAIN))) as server, pytest.raises(HelpNeeded) as caught:
        oracle_at(server, concurrency=1, attempts=2).ask([chat("a"), chat("b"), chat("c")])
    assert len(caught.value.queries) == 3
    assert len(server.bodies) == 2


def test_inside_a_running_loop() -> None:
    async def notebook(server: ChatServer) -> Sequence[Any]:
        return oracle_at(server).ask([chat("hi")])

    with chat_server(named) as server:
        assert asyncio.run(notebook(server)) == [Act(text="HI", evidence=False)]


# Errors that stay


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, "settings"), (401, "OPENAI_API_KEY"), (403, "may not"), (404, "url"), (422, "settings")],
)
def test_an_error_names_the_endpoint_the_status_and_what_the_server_said(status: int, remedy: str) -> None:
    with chat_server(scripted(complaint(status, "this is why"))) as server:
        with pytest.raises(EndpointError, match=rf"HTTP {status}: this is why \(question 'q7'\); .*{remedy}") as caught:
            oracle_at(server).ask([chat("hi", id="q7")])
        assert str(caught.value).startswith(f"{server.url}/chat/completions: ")
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [(b'{"error": "no model"}', "no model"), (b'{"detail": "no"}', "no"), (b"Not\nFound", "Not Found"), (b"", "")],
)
def test_errors_of_other_shapes_are_read(body: bytes, said: str) -> None:
    with pytest.raises(EndpointError, match=rf"HTTP 404: {said} \(question"):
        asked_once(chat("hi"), Reply(body, 404))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat_server(named) as other, chat_server(named) as server:
        target = f"{other.url}/chat/completions"
        server.script = scripted(Reply(b"", status, {"Location": target}))
        with pytest.raises(EndpointError, match=rf"HTTP {status} points to '{target}', where no key is sent"):
            oracle_at(server).ask([chat("hi")])
        assert len(server.bodies) == 1
        assert other.bodies == []


# The key


def test_the_key_is_read_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(named) as server:
        oracle = oracle_at(server, key_variable="THEIR_KEY")
        for key in ("first-key", "second-key\n"):
            monkeypatch.setenv("THEIR_KEY", key)
            oracle.ask([chat("hi")])
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        oracle_at(server, key_variable=None).ask([chat("hi")])
    sent = [headers.get("authorization") for headers in server.headers]
    assert sent == ["Bearer first-key", "Bearer second-key", None]


def test_the_key_is_nowhere_to_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor in what is shown when a server says it back; tracebacks are taken with all local variables."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    team = "another-secret-header"
    shown = []
    replies = [
        complaint(401, f"wrong key {KEY} {team}"),
        complaint(503, f"wrong key {KEY}", **AGAIN),
        Reply(KEY.encode()),
        Reply(hang_up=True),
        Reply(b"{", announced=50),
    ]
    for reply in replies:
        with chat_server(scripted(reply)) as server:
            oracle = oracle_at(server, attempts=1, headers={"X-Team": team})
            with pytest.raises((EndpointError, HelpNeeded)) as caught:
                oracle.ask([chat("hi")])
            assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        error = caught.value
        assert error.__cause__ is None
        assert error.__context__ is None
        assert error.__traceback__ is not None
        # Without the frame of this test, which knows the key.
        below = traceback.TracebackException(
            type(error), error, error.__traceback__.tb_next, capture_locals=True, lookup_lines=False
        )
        shown += [repr(oracle), str(error), repr(error), "".join(below.format())]
    for reply in (completion(KEY), completion(None, refusal=KEY)):
        answer, _ = asked_once(symbols(0), reply, action_names=NAMES)
        assert isinstance(answer, Decline)
        shown.append(answer.reason)
    output = capsys.readouterr()
    everything = "\n".join([*shown, caplog.text, output.out, output.err])
    assert "httpcore2" in caplog.text
    assert "key = SecretStr" in everything
    assert "wrong key ***" in everything
    assert KEY not in everything
    assert team not in everything


def test_the_key_in_a_redirect_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(EndpointError, match=r"https://example.org/\?key=\*\*\*'"):
        asked_once(chat("hi"), Reply(b"", 308, {"Location": f"https://example.org/?key={KEY}"}))


@pytest.mark.parametrize("key", ["schlüssel-geheim", "two keys-secret", "a\nb-secret", "a\x7fb-secret"])
def test_what_cannot_be_a_key_is_not_sent_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with chat_server(named) as server, pytest.raises(ValueError, match="OPENAI_API_KEY must hold one key") as caught:
        oracle_at(server).ask([chat("hi")])
    assert "geheim" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert server.bodies == []


def test_a_key_is_not_sent_in_the_clear_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"attempts": 1, "timeout_seconds": 0.2}
    query, url = chat("hi"), "http://model.invalid/v1"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ValueError, match="https"):
        EndpointOracle(url, "model", **settings).ask([query])
    for allowed in ({"allow_plain_http": True}, {"key_variable": None}):
        with pytest.raises(HelpNeeded):
            EndpointOracle(url, "model", **settings, **allowed).ask([query])
    with pytest.raises(ValueError, match="https"):
        EndpointOracle(url, "model", key_variable=None, headers={"api-key": "x"}, **settings).ask([query])
    with pytest.raises(HelpNeeded):
        EndpointOracle(url.replace("http", "https"), "model", **settings).ask([query])


def test_a_proxy_gets_nothing_of_what_goes_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat_server(named) as server, chat_server(named) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("ALL_PROXY", proxy.url.removesuffix("/v1"))
        assert oracle_at(server).ask([chat("hi")]) == [Act(text="HI", evidence=False)]
        assert (len(server.bodies), len(proxy.bodies)) == (1, 0)


def test_a_header_of_ones_own_takes_the_place_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    _, server = asked_once(chat("hi"), completion("ho"), headers={"authorization": "Basic abc"})
    assert server.headers[0]["authorization"] == "Basic abc"


# Arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attempts": 0}, "attempts must be an integer of at least 1, got 0"),
        ({"concurrency": True}, "concurrency must be"),
        ({"max_tokens": 1.5}, "max_tokens must be"),
        ({"timeout_seconds": 0}, "timeout_seconds must be positive"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds must be positive and finite"),
        ({"temperature": float("nan")}, "temperature must be what JSON can say"),
        ({"body": {"x": {1}}}, "body and temperature must be"),
        ({"continuing": {"x": b""}}, "continuing must be"),
        ({"headers": {"X-Key": "a\nb"}}, "headers must be one line of ASCII each, which that of 'X-Key' is not"),
        ({"headers": {"X-Key": "é"}}, "headers must be one line of ASCII"),
    ],
)
def test_arguments_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EndpointOracle("http://127.0.0.1/v1", "model", **settings)


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://host/v1", "http://", "", "http://host/v1#part"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="url must be where an API begins"):
        EndpointOracle(url, "model")


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="must not hold a user or password") as caught:
        EndpointOracle("https://me:hunter2@host/v1", "model")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://h/v1", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions/", "http://h/v1/chat/completions"),
        ("https://h/v1?api-version=2", "https://h/v1/chat/completions?api-version=2"),
        ("http://[::1]:80", "http://[::1]:80/chat/completions"),
    ],
)
def test_where_questions_are_sent(url: str, whole: str) -> None:
    assert completions_url(url).geturl() == whole


def test_what_is_shown_is_short() -> None:
    assert len(clipped("x" * 10_000)) == 300
    assert clipped(json.dumps({"key": KEY}), [KEY]) == '{"key": "***"}'


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cautious_imitation.oracles.endpoint.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'cautious-imitation\[oracle\]'"):
        EndpointOracle("http://127.0.0.1/v1", "model")
