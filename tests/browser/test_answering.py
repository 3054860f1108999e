"""People who answer in a browser: with the mouse, with keys, without scripts, at the same time as others."""

from __future__ import annotations

import re
import time
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from playwright.sync_api import Browser, Page, expect

from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.judgements import JudgementLog, TranscriptPair, Verdict
from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, Decline, PlausibleAction, Query
from cautious_imitation.oracles.web.judgement_pages import verdict_of
from tests.browser.conftest import Complaints, Server, Visit

REFUSED = "Failed to load resource: the server responded with a status of"
PLAUSIBLE = (
    PlausibleAction(3, 0.1, 0.4, 0.6, "Yes"),
    PlausibleAction(1, 0.05, 0.2, 0.3, "No"),
    PlausibleAction(0, 0, 0, 0.1, " "),
)


def question(id: str, **fields: object) -> Query:
    return Query((0, 1), n_actions=5, id=id, text="Shall we?", plausible=PLAUSIBLE, **fields)  # type: ignore[arg-type]


def at(page: Page, id: str) -> None:
    """Wait for the page of a question or pair."""
    page.wait_for_url(re.compile(rf"[?&]id={re.escape(quote_plus(id))}(&|$)"))


def test_with_the_mouse(log: QueryLog, visit: Visit) -> None:
    log.post([question("a"), question("b"), question("c")])
    page = visit()
    page.get_by_role("link", name="Answer the next one").click()
    at(page, "a")
    page.get_by_role("button", name="No").click()
    at(page, "b")
    page.get_by_label("Or in your own words").fill("Perhaps.\nAsk again")
    page.get_by_role("button", name="Send").click()
    at(page, "c")
    page.get_by_text("Decline", exact=True).first.click()
    page.get_by_label("Why is there no answer?").fill("Out of time")
    page.get_by_label("No, I decided this without considering").check()
    page.get_by_role("button", name="Decline").click()
    expect(page.get_by_text("That was all for now.")).to_be_visible()
    assert log.entry("a").answer == Act((1,))
    assert log.entry("b").answer == Act(text="Perhaps.\nAsk again")
    assert log.entry("c").answer == Decline("Out of time", independent=True)
    page.get_by_role("button", name="Undo").click()
    at(page, "c")
    expect(page.get_by_label("Why is there no answer?")).to_have_value("Out of time")
    assert log.entry("c").status is Status.CLAIMED


def test_saying_nothing(log: QueryLog, visit: Visit) -> None:
    asked = (Message(role="user", content="Tea?"),)
    log.post([question(id, messages=asked) for id in "ab"])
    page = visit()
    page.get_by_role("link", name="Answer the next one").click()
    at(page, "a")
    page.keyboard.press("x")
    expect(page.get_by_role("button", name="Say nothing")).to_be_focused()
    page.keyboard.press("Enter")
    at(page, "b")
    assert log.entry("a").answer == Act(text="")
    page.get_by_role("button", name="Say nothing").click()
    expect(page.get_by_text("That was all for now.")).to_be_visible()
    assert log.entry("b").answer == Act(text="")


def test_with_keys(log: QueryLog, visit: Visit) -> None:
    log.post([question(id) for id in "abcdef"])
    page = visit()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    at(page, "a")
    page.keyboard.press("2")
    expect(page.get_by_role("button", name="No")).to_be_focused()
    assert log.entry("a").answer is None, "choosing is not sending"
    page.keyboard.press("Enter")
    at(page, "b")
    page.keyboard.press("w")
    page.keyboard.type("1 s u d 2")
    page.keyboard.press("Control+Enter")
    at(page, "c")
    assert log.entry("b").answer == Act(text="1 s u d 2"), "what is written is no command"
    page.keyboard.press("u")
    at(page, "b")
    expect(page.get_by_label("Or in your own words")).to_have_value("1 s u d 2")
    page.keyboard.press("s")
    at(page, "c")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    at(page, "d")
    page.keyboard.press("d")
    page.keyboard.type("Not mine to say")
    page.keyboard.press("Enter")
    at(page, "e")
    page.get_by_text("Keys", exact=True).click()
    page.get_by_label("Use single keys").uncheck()
    page.keyboard.press("s")
    page.keyboard.press("1")
    expect(page.get_by_role("button", name="Yes")).not_to_be_focused()
    at(page, "e")
    assert [log.entry(id).answer for id in "abcd"] == [Act((1,)), None, Act((1,)), Decline("Not mine to say")]


def test_by_number_where_there_are_no_words(log: QueryLog, visit: Visit) -> None:
    log.post([Query((0, 1), n_actions=5, id="a", plausible=(PlausibleAction(3, 0.1, 0.4, 0.6),)), question("b")])
    page = visit(path="/question?id=a")
    page.get_by_label("Or several in a row").fill("3 9")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Actions go from 0 to 4")
    page.get_by_label("Or several in a row").fill("3 1, 4")
    page.keyboard.press("Enter")
    at(page, "b")
    assert log.entry("a").answer == Act((3, 1, 4))


@pytest.fixture(autouse=True)
def _expected(request: pytest.FixtureRequest, complaints: Complaints) -> None:
    if "number" in request.node.name or "two_" in request.node.name or "locked" in request.node.name:
        complaints.expected = (REFUSED,)


def test_two_tabs_of_one_person(log: QueryLog, visit: Visit) -> None:
    log.post([question("a")])
    first = visit(path="/question?id=a")
    second = first.context.new_page()
    second.goto(first.url)
    first.get_by_role("button", name="Yes").click()
    first.wait_for_url("**/?done=a&end=1")
    second.get_by_label("Or in your own words").fill("Written in vain")
    second.get_by_role("button", name="Send").click()
    expect(second.get_by_role("heading", name="Answered by Ada")).to_be_visible()
    expect(second.get_by_role("alert")).to_contain_text("another answer already")
    expect(second.get_by_label("What you had written")).to_have_value("Written in vain")
    expect(second.locator("blockquote")).to_have_text("“Yes” (3)")
    assert log.entry("a").answer == Act((3,))
    second.reload()
    expect(second.get_by_label("What you had written")).to_have_value("Written in vain")
    second.get_by_role("button", name="Discard it").click()
    second.reload()
    expect(second.get_by_label("What you had written")).to_be_hidden()


def test_two_people(log: QueryLog, visit: Visit, server: Server) -> None:
    log.post([question("a"), question("b")])
    ada = visit("Ada", "/question?id=a")
    grace = visit("Grace", "/question?id=a")
    expect(grace.get_by_role("heading", name="Ada is at this one")).to_be_visible()
    expect(grace.get_by_role("button", name="Yes")).to_have_count(0)
    grace.get_by_role("link", name="Next question").click()
    at(grace, "b")
    ada.goto(server.url("/statistics"))
    while log.entry("a").status is not Status.OPEN:
        ada.wait_for_timeout(20)
    grace.goto(server.url("/question?id=a"))
    expect(grace.get_by_role("button", name="Yes")).to_be_visible()


def test_two_people_who_send_at_the_same_time(log: QueryLog, visit: Visit, server: Server) -> None:
    log.post([question("a")])
    ada = visit("Ada", "/question?id=a")
    # The lease is given back behind her back, as when it runs out while she thinks.
    log.release("a", "Ada")
    grace = visit("Grace", "/question?id=a")
    grace.get_by_label("Or in your own words").fill("Grace's")
    ada.get_by_label("Or in your own words").fill("Ada's")
    for page in (ada, grace):
        page.evaluate("document.querySelector('.words-form').requestSubmit()")
    grace.wait_for_url("**/?done=a&end=1")
    expect(ada.get_by_label("What you had written")).to_have_value("Ada's")
    entry = log.entry("a")
    if entry.answer is None or entry.answered_by != "Grace":
        pytest.fail(f"Grace had the question, and it was answered by {entry.answered_by}")


def test_a_locked_log_leaves_the_words_where_they_are(log: QueryLog, visit: Visit) -> None:
    log.post([question("a")])
    page = visit(path="/question?id=a")
    page.get_by_label("Or in your own words").fill("With care")
    with log.database.writing():
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("alert")).to_contain_text("locked", timeout=20_000)
        expect(page.get_by_label("Or in your own words")).to_have_value("With care")
    page.get_by_role("button", name="Send again").click()
    page.wait_for_url("**/?done=a&end=1")
    assert log.entry("a").answer == Act(text="With care")


def test_what_is_asked_acts_on_nothing(log: QueryLog, visit: Visit, server: Server) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>\x00\u202etxt"
    )
    id = "<svg onload=document.title='taken'>\"'&/../\x00"
    log.post([Query((), 3, text=hostile, plausible=(PlausibleAction(0, 0, 0, 1, hostile),), id=id, asker=hostile)])
    page = visit()
    page.locator(".row").click()
    at(page, id)
    transcript = page.locator(".transcript")
    assert transcript.inner_text().startswith(hostile.partition("\x00")[0])
    assert "NULU+202Etxt" in transcript.inner_text()
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "A question · Questions"
    page.get_by_role("button", name=hostile[:20]).click()
    page.wait_for_url("**end=1")
    assert log.entry(id).answer == Act((0,))


def test_without_scripts(log: QueryLog, visit: Visit) -> None:
    log.post([question(id) for id in "abc"])
    page = visit(java_script_enabled=False)
    page.get_by_role("link", name="Answer the next one").click()
    at(page, "a")
    page.get_by_label("Or in your own words").fill("Plain")
    page.get_by_role("button", name="Send").click()
    at(page, "b")
    page.get_by_role("button", name="Undo").click()
    at(page, "a")
    page.get_by_role("button", name="Yes").click()
    at(page, "b")
    page.get_by_role("button", name="Skip").click()
    at(page, "c")
    page.locator("#decline summary").click()
    page.get_by_label("Why is there no answer?").fill("No")
    page.get_by_role("button", name="Decline").click()
    page.get_by_role("button", name="Look at it again").click()
    at(page, "b")
    assert [log.entry(id).answer for id in "ac"] == [Act((3,)), Decline("No")]


def test_the_queue_keeps_itself_up_to_date(log: QueryLog, visit: Visit) -> None:
    log.post([question("a", asker="first run")])
    page = visit()
    page.keyboard.press("j")
    log.post([question("b", asker="second run")])
    log.claim("Grace", id="a")
    expect(page.get_by_text("second run").last).to_be_visible()
    expect(page.get_by_text("Grace is at it")).to_be_visible()
    expect(page.get_by_role("status").last).to_have_text("A new question")
    expect(page.locator("[data-row=a]")).to_be_focused()


def test_a_deadline_counts_down(log: QueryLog, visit: Visit) -> None:
    log.post([question("a", deadline=time.time() + 3)])
    page = visit(path="/question?id=a")
    expect(page.locator(".deadline")).to_have_text("the deadline has passed")
    page.get_by_role("button", name="Yes").click()
    page.wait_for_url("**end=1")
    assert log.entry("a").answer == Act((3,)), "late, but before the run went on"


def test_the_claim_is_renewed_while_the_page_is_open(log: QueryLog, visit: Visit) -> None:
    log.post([question("a")])
    page = visit()
    page.clock.install()
    page.goto(page.url + "question?id=a")
    before = log.entry("a").lease_until
    with page.expect_response("**/renew"):
        page.clock.fast_forward(101_000)
    after = log.entry("a").lease_until
    assert before is not None
    assert after is not None
    assert after > before


def test_nobody_comes_in_without_the_token(browser: Browser, server: Server, log: QueryLog) -> None:
    log.post([question("a")])
    context = browser.new_context()
    page = context.new_page()
    for path in ("/", "/question?id=a", "/static/console.css", "/?token=wrong-wrong-wrong"):
        answer = page.goto(server.url(path))
        assert answer is not None
        assert answer.status == 403
        assert "the address" in page.inner_text("p").lower() or "token" in page.inner_text("p")
    page.goto(server.address)
    assert "token" not in page.url
    page.go_back()
    assert "token=a-token" not in page.url
    assert log.entry("a").status is Status.OPEN
    context.close()


def test_another_site_cannot_send_forms(
    browser: Browser, server: Server, log: QueryLog, visit: Visit, tmp_path: Path
) -> None:
    log.post([question("a")])
    page = visit()
    evil = tmp_path / "evil.html"
    evil.write_text(
        f'<form method=post action="{server.url("/answer")}"><input name=id value=a><input name=act value=1></form>'
    )
    other = page.context.new_page()
    other.route("http://evil.example/", lambda route: route.fulfill(path=evil, content_type="text/html"))
    other.goto("http://evil.example/")
    with other.expect_navigation():
        other.evaluate("document.forms[0].submit()")
    assert "403" in other.title()
    assert log.entry("a").status is Status.OPEN


def test_pairs(judgements: JudgementLog, visit: Visit) -> None:
    said = [(Message(role="user", content="Hi"), Message(role="agent", content=one)) for one in ("Hello!", "Go away.")]
    judgements.post([TranscriptPair("Which is kinder?", *said, id=id) for id in "pqrst"])
    page = visit(path="/judgements")
    page.get_by_role("link", name="Judge the next pair").click()
    at(page, "p")
    page.get_by_role("button", name="A is better").click()
    at(page, "q")
    page.keyboard.press("2")
    at(page, "r")
    page.keyboard.press("0")
    at(page, "s")
    page.keyboard.press("u")
    at(page, "r")
    page.keyboard.press("1")
    at(page, "s")
    page.keyboard.press("s")
    at(page, "t")
    kinder = "1" if page.locator(".pair section").first.inner_text().count("Hello!") else "2"
    page.keyboard.press(kinder)
    page.wait_for_url("**/judgements?done=t")
    verdicts = {one.pair.id: one.verdict for one in judgements.results()}
    choices = (("p", "a"), ("q", "b"), ("r", "a"))
    assert verdicts == {id: verdict_of(id, choice) for id, choice in choices} | {"t": Verdict.FIRST}
    page.get_by_role("button", name="Look at it again").click()
    at(page, "s")
