"""The web console from the server's side: who may come in, and what each form does to the log."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import cautious_imitation
from cautious_imitation.cli import app as command_line
from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.judgements import JudgementLog, TranscriptPair, Verdict
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, Decline, PlausibleAction, Query
from cautious_imitation.oracles.web.application import console_app
from cautious_imitation.oracles.web.credentials import Credentials
from cautious_imitation.oracles.web.gate import MAX_BODY_BYTES
from cautious_imitation.oracles.web.rates import RateLimit
from cautious_imitation.oracles.web.visible_text import visible, visible_symbol

TOKEN = "correct-horse-battery"
HOST = "127.0.0.1:8642"
ODD = "<&>\"'/../\x00\r?#%2e ü"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> Iterator[QueryLog]:
    log = QueryLog(tmp_path / "questions.db", lease_seconds=60.0, busy_seconds=0.1, clock=clock)
    yield log
    log.close()


@pytest.fixture
def judgements(log: QueryLog) -> Iterator[JudgementLog]:
    judgements = JudgementLog(log.path, busy_seconds=0.1)
    yield judgements
    judgements.close()


@pytest.fixture
def site(log: QueryLog, judgements: JudgementLog) -> Site:
    return Site(log, judgements)


class Site:
    """One server, and browsers that visit it."""

    def __init__(self, log: QueryLog, judgements: JudgementLog) -> None:
        limits = {"requests": RateLimit(40, 0.001), "wrong_tokens": RateLimit(3, 0.001)}
        self.app = console_app(log, judgements, Credentials(TOKEN), ["questions.example"], **limits)
        self.unlimited = console_app(log, judgements, Credentials(TOKEN), ["questions.example"])

    def stranger(self, **options: object) -> TestClient:
        return TestClient(self.app, base_url=f"http://{HOST}", follow_redirects=False, **options)  # type: ignore[arg-type]

    def visitor(self, name: str | None = "Ada") -> Visitor:
        return Visitor(TestClient(self.unlimited, base_url=f"http://{HOST}"), name)


class Visitor:
    """A browser without scripts that has shown the token, and sends forms as they stand in the pages."""

    def __init__(self, client: TestClient, name: str | None) -> None:
        self.client = client
        self.page = client.get("/", params={"token": TOKEN})
        if name is not None:
            self.send("/name", name=name, then="/")

    @property
    def mark(self) -> str:
        found = re.search(r'data-mark="([^"]+)"', self.page.text)
        assert found is not None, self.page.text
        return found[1]

    @property
    def id(self) -> str:
        """The id of the question or pair that is shown."""
        return parse_qs(str(self.page.url.query, "ascii"), keep_blank_values=True)["id"][0]

    def open(self, path: str, **parameters: str) -> httpx2.Response:
        self.page = self.client.get(path, params=parameters)
        return self.page

    def send(self, path: str, **fields: str) -> httpx2.Response:
        fields = {
            "mark": self.mark,
            **{k: quote(v, safe="") if k in ("id", "leaving") else v for k, v in fields.items()},
        }
        self.page = self.client.post(path, data=fields, headers={"Origin": f"http://{HOST}"})
        return self.page

    def shown(self) -> str:
        return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", self.page.text)))


def question(id: str, **fields: object) -> Query:
    return Query((0, 1), n_actions=5, id=id, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/", "/question?id=a", "/static/console.css", "/nowhere", "/judgements", "/?token="])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_without_the_token_every_path_is_refused(site: Site, path: str, method: str) -> None:
    answer = site.stranger().request(method, path)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    if method != "HEAD":
        assert re.search(r"<p data-problem>[A-Z][^<]+\.</p>", answer.text)


def test_the_token_becomes_a_cookie_and_leaves_the_address(site: Site) -> None:
    answer = site.stranger().get("/question?id=a%2Fb&token=" + TOKEN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/question?id=a%2Fb")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert cookie.startswith("session-8642=")


def test_the_way_on_stays_on_the_site(site: Site) -> None:
    answer = site.stranger().get("http://" + HOST + "//elsewhere.example/?token=" + TOKEN)
    assert answer.headers["location"] == "/elsewhere.example/"


@pytest.mark.parametrize(
    "cookie",
    ["", "x", "x.y", "ü", "a" * 5000, Credentials("another-token-of-ours").new_session().cookie],
    ids=["empty", "no mark", "wrong", "not ASCII", "long", "of another token"],
)
def test_made_up_sessions_are_refused(site: Site, cookie: str) -> None:
    answer = site.stranger().get("/", headers={"Cookie": f"session-8642={cookie}".encode()})
    assert answer.status_code == 403


@pytest.mark.parametrize("token", ["guess", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "%ff%00"])
def test_wrong_tokens_are_refused(site: Site, token: str) -> None:
    assert site.stranger().get(f"/?token={token}").status_code == 403


def test_guessing_is_stopped(site: Site) -> None:
    stranger = site.stranger()
    assert [stranger.get("/?token=guess").status_code for _ in range(4)] == [403, 403, 403, 429]
    blocked = stranger.get("/?token=" + TOKEN)
    assert blocked.status_code == 429
    assert int(blocked.headers["retry-after"]) > 1
    other = site.stranger(client=("192.0.2.7", 1))
    assert other.get("/?token=" + TOKEN).status_code == 303, "others are not held up"


def test_too_many_requests_are_told_to_wait(site: Site) -> None:
    stranger = site.stranger()
    answers = [stranger.get("/").status_code for _ in range(41)]
    assert answers == [403] * 40 + [429]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8642", 303),
        ("localhost:9", 303),
        ("[::1]:8642", 303),
        ("192.168.1.7", 303),
        ("questions.example:1", 303),
        ("QUESTIONS.example", 303),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
        ("a:b:c", 403),
        ("[::1", 403),
    ],
)
def test_only_own_names_are_answered_to(site: Site, host: str, status: int) -> None:
    assert site.stranger().get("/?token=" + TOKEN, headers={"Host": host}).status_code == status


def test_every_answer_forbids_what_pages_do_not_need(site: Site, log: QueryLog) -> None:
    log.post([question("a")])
    visitor = site.visitor()
    for answer in (
        site.stranger().get("/"),
        site.stranger().get("/?token=" + TOKEN),
        visitor.open("/question", id="a"),
        visitor.open("/static/console.js"),
        visitor.open("/nowhere"),
    ):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script>|<style| style=| on\w+=", answer.text)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": f"http://{HOST}"}, 200),
        ({"Origin": "null"}, 200),
        ({}, 200),
        ({"Origin": "null", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "http://evil.example"}, 403),
    ],
)
def test_forms_of_other_sites_are_refused(site: Site, log: QueryLog, headers: dict[str, str], status: int) -> None:
    log.post([question("a")])
    visitor = site.visitor()
    form = {"id": "a", "act": "1", "mark": visitor.mark}
    assert visitor.client.post("/answer", data=form, headers=headers).status_code == status
    assert (log.entry("a").answer is not None) == (status == 200)


@pytest.mark.parametrize("mark", [None, "", "guess", "of another session"])
@pytest.mark.parametrize(
    "path", ["/answer", "/decline", "/skip", "/undo", "/again", "/renew", "/release", "/name", "/judgements/judge"]
)
def test_forms_without_the_mark_of_the_session_are_refused(
    site: Site, log: QueryLog, path: str, mark: str | None
) -> None:
    log.post([question("a")])
    visitor = site.visitor()
    if mark == "of another session":
        mark = site.visitor("Grace").mark
    form = {"id": "a", "act": "1", "reason": "x", "name": "Eve", **({} if mark is None else {"mark": mark})}
    assert visitor.client.post(path, data=form, headers={"Origin": f"http://{HOST}"}).status_code == 403
    assert log.entry("a").status is Status.OPEN


def test_other_methods_are_refused(site: Site) -> None:
    client = site.visitor().client
    assert client.put("/").status_code == 405
    assert client.post("/statistics", data={"mark": site.visitor().mark}).status_code in (403, 405)


def test_a_name_is_asked_for_once_and_leads_back(site: Site, log: QueryLog) -> None:
    log.post([question("a")])
    visitor = site.visitor(name=None)
    page = visitor.open("/question", id="a")
    assert page.url.path == "/name"
    assert log.entry("a").status is Status.OPEN
    then = re.search(r'name="then" value="([^"]+)"', page.text)
    assert then is not None
    page = visitor.send("/name", name="  Ada \t Lovelace", then=unescape(then[1]))
    assert (page.url.path, visitor.id) == ("/question", "a")
    assert log.entry("a").claimed_by == "Ada Lovelace"


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "Ada\x00", "Ada\u202e"])
def test_names_that_cannot_stand_in_a_log_are_refused(site: Site, name: str) -> None:
    visitor = site.visitor(name=None)
    assert visitor.send("/name", name=name, then="/").status_code == 422
    assert visitor.open("/").url.path == "/name"


@pytest.mark.parametrize("then", ["//evil.example", "/\\evil.example", "https://evil.example", "", "/\t/evil.example"])
def test_the_name_page_leads_nowhere_else(site: Site, then: str) -> None:
    assert str(site.visitor().send("/name", name="Ada", then=then).url) == f"http://{HOST}/"


def test_an_answer_by_button_and_then_the_next_question(site: Site, log: QueryLog) -> None:
    log.post([question("a", plausible=(PlausibleAction(3, 0.1, 0.2, 0.3, " no"),)), question("b")])
    visitor = site.visitor()
    visitor.open("/next")
    assert (visitor.id, log.entry("a").claimed_by) == ("a", "Ada")
    assert "10 % to 30 %, mixture 20 %" in visitor.shown()
    visitor.send("/answer", id="a", act="3")
    assert log.entry("a").answer == Act((3,))
    assert visitor.id == "b"
    assert "Sent." in visitor.shown()


def test_answers_in_words_and_by_number(site: Site, log: QueryLog) -> None:
    log.post([question("a", text="So?"), question("b")])
    visitor = site.visitor()
    assert 'name="actions"' not in visitor.open("/question", id="a").text
    visitor.send("/answer", id="a", text=" Two\r\nlines ü ")
    assert log.entry("a").answer == Act(text=" Two\nlines ü ")
    assert 'name="text"' not in visitor.page.text
    visitor.send("/answer", id="b", actions=" 3, 1 4 ")
    assert log.entry("b").answer == Act((3, 1, 4))


def test_saying_nothing_is_an_answer_in_a_conversation(site: Site, log: QueryLog) -> None:
    begun = (Message(role="user", content="Tea?"), Message(role="assistant", content="No"))
    log.post([question("a", messages=begun[:1]), question("b", messages=begun), question("c", text="So?")])
    visitor = site.visitor()
    visitor.open("/question", id="a")
    assert "Say nothing" in visitor.shown()
    visitor.send("/answer", id="a", nothing="yes")
    assert log.entry("a").answer == Act(text="")
    assert "Say nothing more" in visitor.shown()
    visitor.send("/answer", id="b", nothing="yes")
    assert log.entry("b").answer == Act(text="")
    visitor.open("/question", id="c")
    assert "Say nothing" not in visitor.shown()
    visitor.send("/answer", id="c", nothing="yes")
    assert log.entry("c").answer is None
    assert "nothing" in visitor.open("/question", id="a").text


def test_words_go_on_where_a_reply_has_begun(site: Site, log: QueryLog) -> None:
    begun = (Message(role="user", content="Tea?"), Message(role="assistant", content="I like choco"))
    log.post([question(id, messages=begun) for id in "abcd"])
    visitor = site.visitor()
    visitor.open("/question", id="a")
    assert "How does the reply go on?" in visitor.shown()
    for id, fields in {
        "a": {"text": "much"},
        "b": {"text": "late", "within": "yes"},
        "c": {"text": ", yes"},
        "d": {"text": "好"},
    }.items():
        visitor.send("/answer", id=id, **fields)
    answers = [log.entry(id).answer for id in "abcd"]
    assert answers == [Act(text=text) for text in (" much", "late", ", yes", "好")]


@pytest.mark.parametrize(
    "fields",
    [
        {"text": " \n"},
        {"actions": ""},
        {"actions": "5"},
        {"actions": "1 -1"},
        {"actions": "1_0"},
        {"act": "x"},
        {"act": "٣"},
        {},
    ],
)
def test_what_is_no_answer_is_told_and_given_back(site: Site, log: QueryLog, fields: dict[str, str]) -> None:
    log.post([question("a", text="So?" if "text" in fields else None)])
    visitor = site.visitor()
    page = visitor.send("/answer", id="a", **fields)
    assert page.status_code == 422
    assert "data-problem" in page.text
    for typed in fields.values():
        assert not typed.strip() or unescape(page.text).count(typed)
    assert log.entry("a").answer is None


@pytest.mark.parametrize("n_bytes", [150_000, 1_000_000, 2_000_000])
def test_too_long_answers_are_told_and_nothing_is_written(site: Site, log: QueryLog, n_bytes: int) -> None:
    log.post([question("a", text="So?")])
    visitor = site.visitor()
    page = visitor.send("/answer", id="a", text="x" * n_bytes)
    assert page.status_code == 413
    assert "ay have" in page.text
    assert "nothing was kept" in page.text.lower()
    assert log.entry("a").answer is None


def test_a_long_answer_that_is_allowed_arrives_whole(site: Site, log: QueryLog) -> None:
    log.post([question("a", text="So?")])
    text = "語" * (MAX_BODY_BYTES // 9 - 1000)
    assert site.visitor().send("/answer", id="a", text=text).status_code == 200
    assert log.entry("a").answer == Act(text=text)


@pytest.mark.parametrize("body", [b"id=%ff", b"\xff\xfe", b"&".join(b"a=%d" % n for n in range(100))])
def test_forms_that_cannot_be_read_are_refused(site: Site, body: bytes) -> None:
    client = site.visitor().client
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/answer", content=body, headers=headers).status_code == 400


@pytest.mark.parametrize(("chosen", "independent"), [("yes", True), ("no", False), (None, False)])
def test_declines_say_whether_they_depend_on_the_answer(
    site: Site, log: QueryLog, chosen: str | None, independent: bool
) -> None:
    log.post([question("a")])
    visitor = site.visitor()
    assert visitor.send("/decline", id="a", reason=" ").status_code == 422
    visitor.send("/decline", id="a", reason="No time", **({} if chosen is None else {"independent": chosen}))
    assert log.entry("a").answer == Decline("No time", independent)
    visitor.open("/statistics")
    assert ("No dependent answers" if independent else "1 dependent answer") in visitor.shown()


def test_skipped_questions_come_back_when_they_are_wanted(site: Site, log: QueryLog) -> None:
    log.post([question("a"), question("b")])
    visitor = site.visitor()
    visitor.open("/next")
    visitor.send("/skip", id="a")
    assert visitor.id == "b"
    assert log.entry("a").status is Status.OPEN
    visitor.send("/skip", id="b")
    assert "You skipped 2" in visitor.shown()
    assert site.visitor("Grace").open("/next").url.path == "/question"
    visitor.send("/again")
    assert visitor.id == "b", "Grace has the first one"


def test_undo_until_the_run_has_taken_it(site: Site, log: QueryLog) -> None:
    log.post([question("a", text="So?"), question("b")])
    visitor = site.visitor()
    visitor.send("/answer", id="a", text="Well")
    assert visitor.id == "b"
    visitor.send("/undo", id="a", leaving="b")
    assert visitor.id == "a"
    assert ">\nWell</textarea>" in visitor.page.text, "what was written is there to be changed"
    assert (log.entry("a").status, log.entry("b").status) == (Status.CLAIMED, Status.OPEN)
    visitor.send("/answer", id="a", text="Well, well")
    log.take(["a"])
    page = visitor.send("/undo", id="a")
    assert page.status_code == 409
    assert "the run has gone on with it" in visitor.shown()
    assert log.entry("a").answer == Act(text="Well, well")


def test_nobody_undoes_what_others_said(site: Site, log: QueryLog) -> None:
    log.post([question("a")])
    site.visitor("Ada").send("/answer", id="a", act="1")
    assert site.visitor("Grace").send("/undo", id="a").status_code == 409
    assert log.entry("a").answer == Act((1,))


def test_two_people_and_one_question(site: Site, log: QueryLog) -> None:
    log.post([question("a", text="So?")])
    ada, grace = site.visitor("Ada"), site.visitor("Grace")
    ada.open("/question", id="a")
    grace.open("/question", id="a")
    assert "Ada is at this one" in grace.shown()
    assert 'name="text"' not in grace.page.text
    page = grace.send("/answer", id="a", text="Mine <i>")
    assert page.status_code == 409
    ada.send("/answer", id="a", text="Ada's")
    page = grace.send("/answer", id="a", text="Mine <i>")
    assert page.status_code == 409
    assert "Ada's" in grace.shown()
    assert "Mine &lt;i&gt;</textarea>" in page.text
    assert log.entry("a").answer == Act(text="Ada's")


def test_many_who_answer_at_once_give_one_answer(site: Site, log: QueryLog) -> None:
    log.post([question("a")])
    visitors = [site.visitor(name) for name in ("Ada", "Grace", "Alan", "Emmy")]
    statuses = list[int]()

    def send(visitor: Visitor, act: int) -> None:
        statuses.append(visitor.send("/answer", id="a", act=str(act)).status_code)

    threads = [threading.Thread(target=send, args=(one, number)) for number, one in enumerate(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 409, 409, 409]


def test_sending_twice_is_harmless(site: Site, log: QueryLog, clock: Clock) -> None:
    log.post([question("a")])
    visitor = site.visitor()
    visitor.send("/answer", id="a", act="1")
    clock.now += 5
    assert visitor.send("/answer", id="a", act="1").status_code == 200
    assert log.entry("a").answered_at == 1000.0


def test_a_claim_lasts_while_the_page_is_open(site: Site, log: QueryLog, clock: Clock) -> None:
    log.post([question("a")])
    ada, grace = site.visitor("Ada"), site.visitor("Grace")
    ada.open("/question", id="a")
    for _ in range(4):
        clock.now += 40
        ada.client.post("/renew", data={"id": "a", "mark": ada.mark})
    grace.open("/question", id="a")
    assert "Ada is at this one" in grace.shown()
    clock.now += 61
    grace.open("/question", id="a")
    assert log.entry("a").claimed_by == "Grace"
    assert ada.client.post("/renew", data={"id": "a", "mark": ada.mark}).status_code == 409


def test_leaving_gives_back_unless_the_question_was_opened_again(site: Site, log: QueryLog) -> None:
    log.post([question("a")])
    visitor = site.visitor()
    views = []
    for _ in range(2):
        found = re.search(r'data-view="([^"]+)"', visitor.open("/question", id="a").text)
        assert found is not None
        views.append(found[1])
    visitor.client.post("/release", data={"id": "a", "view": views[0], "mark": visitor.mark})
    assert log.entry("a").status is Status.CLAIMED
    visitor.client.post("/release", data={"id": "a", "view": views[1], "mark": visitor.mark})
    assert log.entry("a").status is Status.OPEN


def test_looking_without_reading_claims_nothing(site: Site, log: QueryLog) -> None:
    log.post([question("a")])
    client = site.visitor().client
    client.head("/question?id=a")
    client.head("/next")
    assert log.entry("a").status is Status.OPEN


def test_a_deadline_that_has_passed(site: Site, log: QueryLog, clock: Clock) -> None:
    log.post([question("a", deadline=1100.0), question("b", deadline=1100.0)])
    visitor = site.visitor()
    assert 'data-deadline="1100.0"' in visitor.open("/question", id="a").text
    clock.now += 200
    visitor.open("/question", id="a")
    assert "an answer still counts" in visitor.shown()
    visitor.send("/answer", id="a", act="1")
    assert log.entry("a").answer == Act((1,))
    log.take(["b"])
    visitor.open("/question", id="b")
    assert "the run went on without" in visitor.shown()
    assert visitor.send("/answer", id="b", act="1").status_code == 409


def test_ids_and_texts_of_any_characters(site: Site, log: QueryLog) -> None:
    hostile = "<script>alert(1)</script>\x00\x1b[2J\u202eexe\u2066 {{ 7 * 7 }}"
    log.post([question(ODD, text=hostile, asker="<img src=x>", plausible=(PlausibleAction(0, 0, 0, 0, hostile),))])
    log.post([question("", messages=(Message(role=hostile, content=hostile),))])
    visitor = site.visitor()
    assert "&lt;img src=x&gt;" in visitor.open("/").text
    link = re.search(r'class="row" href="([^"]+)"', visitor.page.text)
    assert link is not None
    for page in (visitor.open(unescape(link[1])), visitor.open("/question", id="")):
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "49" not in visitor.shown()
        assert not set(page.text) & set("\x00\x1b\u202e\u2066")
        for sign in ("NUL", "ESC", "U+202E", "U+2066"):
            assert sign in visitor.shown()
    visitor.send("/answer", id=ODD, text="yes")
    assert log.entry(ODD).answer == Act(text="yes")


def test_a_huge_context_is_shown_from_its_end_and_whole_if_wanted(site: Site, log: QueryLog) -> None:
    log.post([question("a", text="beginning " + "x" * 500_000 + " end")])
    log.post([Query(tuple(range(5)) * 5000, n_actions=5, id="b")])
    log.post([question("c", messages=tuple(Message(role="user", content=f"<{n}>") for n in range(9000)))])
    visitor = site.visitor()
    short = visitor.open("/question", id="a").text
    assert len(short) < 100_000
    assert "the first 460,014 characters are not shown" in visitor.shown()
    assert " end" in short
    assert "beginning x" in visitor.open("/question", id="a", all="1").text
    assert len(visitor.open("/question", id="b").text) < 50_000
    assert len(visitor.open("/question", id="c").text) < 500_000
    assert "&lt;8999&gt;" in visitor.page.text


def test_the_queue_filters_searches_and_pages(site: Site, log: QueryLog) -> None:
    log.post([question(f"q{n}", text=f"Question {n}", asker="odd" if n % 2 else "even") for n in range(120)])
    log.answer("q7", Act((1,)), by="Grace")
    visitor = site.visitor()

    def ids(**filters: str) -> list[str]:
        visitor.open("/", **filters)
        return re.findall(r'data-row="([^"]+)"', visitor.page.text)

    assert ids() == [f"q{n}" for n in range(50)]
    assert ids(page="3") == [f"q{n}" for n in range(100, 120)]
    assert 'rel="next"' not in visitor.page.text
    assert ids(status="answered") == ["q7"]
    assert ids(asker="odd", page="2")[0] == "q101"
    assert ids(search="QUESTION 11", asker="even") == ["q110", "q112", "q114", "q116", "q118"]
    assert ids(search="no such text") == []
    assert ids(page="99999999999999", status="nonsense")[:1] == ["q0"]
    assert visitor.open("/", part="1").text.startswith('<div id="live"')
    assert re.search(r"<b>119</b> open", visitor.page.text)
    visitor.open("/next", asker="odd")
    visitor.send("/answer", id=visitor.id, act="0", asker="odd")
    assert visitor.id == "q3", "one goes on with the run that was chosen"


def test_unknown_ids_and_pages(site: Site) -> None:
    visitor = site.visitor()
    assert visitor.open("/question", id="nobody").status_code == 404
    assert visitor.open("/nowhere").status_code == 404
    assert visitor.open("/static/../desk.py").status_code == 404
    assert visitor.open("/static/none.css").status_code == 404
    visitor.open("/")
    assert visitor.send("/answer", id="nobody", act="1").status_code == 404
    assert visitor.send("/judgements/judge", id="nobody", choice="a").status_code == 404


def test_a_locked_log_gives_the_text_back_to_be_sent_again(site: Site, log: QueryLog) -> None:
    log.post([question("a", text="So?")])
    visitor = site.visitor()
    other = sqlite3.connect(log.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    page = visitor.send("/answer", id="a", text="Written <i>with care</i>")
    assert page.status_code == 503
    assert "locked" in visitor.shown()
    assert "\nWritten &lt;i&gt;with care&lt;/i&gt;</textarea>" in page.text
    assert 'action="/answer"' in page.text
    other.execute("ROLLBACK")
    other.close()
    assert visitor.send("/answer", id="a", text="Written with care").status_code == 200


def test_a_damaged_log_is_told_and_the_server_goes_on(site: Site, log: QueryLog) -> None:
    log.post([question("a")])
    visitor = site.visitor()
    log.close()
    log.path.with_name(log.path.name + "-wal").unlink(missing_ok=True)
    log.path.write_bytes(b"no database at all" * 1000)
    assert visitor.open("/").status_code == 503
    assert "questions.db" in visitor.shown()
    assert visitor.open("/name").status_code == 200


def test_pairs_are_judged_in_an_order_of_their_own_and_translated_back(site: Site, judgements: JudgementLog) -> None:
    reply = {name: (Message(role="user", content="Hi"), Message(role="agent", content=name)) for name in ("one", "two")}
    judgements.post([TranscriptPair("Better?", reply["one"], reply["two"], id=f"p{n}") for n in range(12)])
    visitor = site.visitor()
    visitor.open("/judgements/next")
    orders = set()
    for number in range(12):
        assert visitor.id == f"p{number}"
        shown = visitor.shown()
        assert shown.count("Hi") == 1, "what both begin with is shown once"
        first_shown = "one" if shown.index("one ") < shown.index("two ") else "two"
        orders.add(first_shown)
        visitor.send("/judgements/judge", id=f"p{number}", choice="a")
        assert judgements.entry(f"p{number}").verdict is (Verdict.FIRST if first_shown == "one" else Verdict.SECOND)
    assert orders == {"one", "two"}
    assert "0 wait, 12 are judged" in visitor.shown()
    visitor.send("/judgements/undo", id="p11")
    assert visitor.id == "p11"
    visitor.send("/judgements/judge", id="p11", choice="tie")
    assert judgements.entry("p11").verdict is Verdict.TIE


def test_only_what_both_begin_with_is_shown_once(site: Site, judgements: JudgementLog) -> None:
    one, other, end = (Message(role="user", content=content) for content in ("one", "other", "the end"))
    judgements.post(
        [
            TranscriptPair("Better?", (one, end), (other, end), id="differ"),
            TranscriptPair("Better?", (one, end), (one, end), id="equal"),
            TranscriptPair("Better?", (one,), (), id="empty"),
        ]
    )
    visitor = site.visitor()
    counts = {}
    for id in ("differ", "equal", "empty"):
        visitor.open("/judgements/pair", id=id)
        shown = visitor.shown()
        counts[id] = ("Both begin" in shown, shown.count(" one "), shown.count(" other "), shown.count("the end"))
    assert counts == {"differ": (False, 1, 1, 2), "equal": (True, 1, 0, 2), "empty": (False, 1, 0, 0)}


def test_a_pair_is_judged_by_one(site: Site, judgements: JudgementLog) -> None:
    judgements.post([TranscriptPair("Better?", (), (), id="p")])
    ada, grace = site.visitor("Ada"), site.visitor("Grace")
    ada.open("/judgements/next")
    assert "Ada is at this one" in (grace.open("/judgements/pair", id="p"), grace.shown())[1]
    assert grace.open("/judgements/next").url.path == "/judgements"
    assert ada.send("/judgements/judge", id="p", choice="c").status_code == 422
    ada.send("/judgements/judge", id="p", choice="a")
    page = grace.send("/judgements/judge", id="p", choice="b")
    assert page.status_code == 409
    assert "A was judged better by Ada" in grace.shown()
    assert judgements.entry("p").judged_by == "Ada"


@pytest.mark.parametrize("text", ["é漢字 \n\t", "👩\u200d👩\ufe0f", "می\u200cخواهم", "<"])
def test_text_that_is_seen_stays(text: str) -> None:
    assert visible(text).unescape() == text


@pytest.mark.parametrize(
    "hidden", ["\x00", "\r", "\x7f", "\x85", "\u200b", "\u2028", "\ufeff", "\U000e0041", "\U000e0100", "\ue000"]
)
def test_text_that_is_not_seen_gets_a_mark(hidden: str) -> None:
    assert 'class="control"' in visible(f"a{hidden}b")
    assert hidden not in visible(f"a{hidden}b")
    assert hidden not in visible_symbol(hidden)


def test_a_joiner_between_letters_hides_nothing() -> None:
    assert "U+200D" in visible("pass\u200dword")


def typed(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(command_line, ["oracle", "serve", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.output


def test_what_cannot_be_served_is_told(tmp_path: Path, log: QueryLog) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, told = typed(log.path, "--port", str(port))
    assert (code, f"port {port} is in use" in told, "--port 0" in told) == (2, True, True)
    code, told = typed(tmp_path / "missing.db")
    assert (code, "missing.db" in told) == (2, True)
    code, told = typed(log.path, "--token", "short")
    assert (code, "16" in told) == (2, True)
    code, told = typed(log.path, "--host", "no.such.host.invalid")
    assert (code, "no.such.host.invalid" in told) == (2, True)
    (tmp_path / "text").write_text("no log " * 1000)
    assert typed(tmp_path / "text")[0] == 2


@pytest.mark.skipif(os.name != "posix", reason="signals to one process are POSIX's")
def test_serving_and_stopping(log: QueryLog) -> None:
    log.post([question("a")])
    environment = {**os.environ, "PYTHONPATH": str(Path(cautious_imitation.__file__).parents[1])}
    command = [
        sys.executable,
        "-m",
        "cautious_imitation",
        "oracle",
        "serve",
        str(log.path),
        "--host",
        "0.0.0.0",
        "--port",
        "0",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            printed = [server.stdout.readline()]
            while printed[-1] and not printed[-1].startswith("Whoever"):
                printed.append(server.stdout.readline())
            assert str(log.path) in printed[0]
            address = printed[1].split()[-1]
            token = urlsplit(address).query.removeprefix("token=")
            assert len(token) >= 32
            assert "Warning: 0.0.0.0 can be reached from other machines" in "".join(printed)
            with httpx2.Client(follow_redirects=True, base_url=address.split("?")[0]) as client:
                assert client.get("/").status_code == 403
                assert client.get(address).status_code == 200
                assert client.get("/?token=wrong").status_code == 403
                # A connection that is left open does not keep the server from stopping.
                server.send_signal(signal.SIGINT)
                rest, errors = server.communicate(timeout=30)
        finally:
            server.kill()
    assert server.returncode == 0
    assert "Stopped" in rest
    assert errors == ""
    assert token not in rest
