"""A server that dies while an answer is on its way: it is in the log if it was acknowledged, else in the browser."""

from __future__ import annotations

import random
import re
import sqlite3
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cautious_imitation.oracles.log import QueryLog, Status
from cautious_imitation.oracles.protocol import Act, PlausibleAction, Query
from tests.browser.conftest import Complaints, Server, Visit


@pytest.fixture(autouse=True)
def _expected(complaints: Complaints) -> None:
    complaints.expected = ("Failed to load resource",)


def question(id: str) -> Query:
    return Query((0,), 4, text="So?", id=id, plausible=(PlausibleAction(2, 0.1, 0.2, 0.3, "Two"),))


def statements(log: QueryLog) -> list[Any]:
    """Answers as they are in the file, whatever the library makes of it."""
    connection = sqlite3.connect(log.path)
    found = connection.execute("SELECT id, answer, answered_by FROM queries WHERE answer IS NOT NULL").fetchall()
    connection.close()
    return found


def write(page: Page, text: str) -> None:
    page.get_by_label("Or in your own words").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def test_killed_before_the_answer_is_kept(log: QueryLog, server: Server, visit: Visit) -> None:
    log.post([question("a")])
    page = visit(path="/question?id=a")
    with log.database.writing():
        with page.expect_request("**/answer"):
            write(page, "Written with care")
        server.kill()
        expect(page.get_by_role("alert")).to_contain_text("Not sent: the server cannot be reached")
    assert statements(log) == []
    # The browser is closed and opened again, and the server is started again.
    page.close()
    server.start()
    page = visit_again(page, server, "/")
    expect(page.get_by_role("alert")).to_contain_text("An answer was not sent.")
    page.get_by_role("button", name="Open the question").click()
    expect(page.get_by_role("alert")).to_contain_text("“Written with care” was not sent.")
    expect(page.get_by_label("Or in your own words")).to_have_value("Written with care")
    page.get_by_role("button", name="Send it now").click()
    page.wait_for_url("**end=1")
    assert log.entry("a").answer == Act(text="Written with care")
    page.goto(server.url("/question?id=a"))
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.get_by_label("What you had written")).to_be_hidden()


def visit_again(page: Page, server: Server, path: str) -> Page:
    """Another tab of the same browser."""
    again = page.context.new_page()
    again.goto(server.url(path))
    return again


@pytest.mark.parametrize("how", ["words", "button"])
def test_an_acknowledgement_that_is_lost(log: QueryLog, server: Server, visit: Visit, how: str) -> None:
    log.post([question("a")])
    page = visit(path="/question?id=a")

    def keep_and_lose(route: Any) -> None:
        route.fetch(max_redirects=0)
        route.abort()

    page.route("**/answer", keep_and_lose)
    if how == "words":
        write(page, "Kept")
    else:
        page.get_by_role("button", name="Two").click()
    expect(page.get_by_role("alert")).to_contain_text("Not sent")
    before = statements(log)
    assert len(before) == 1
    page.unroute("**/answer")
    if how == "words":
        page.get_by_role("button", name="Send again").click()
        page.wait_for_url("**end=1")
    else:
        page.reload()
        expect(page.get_by_role("heading", name="Answered by Ada")).to_be_visible()
        expect(page.locator("#banner")).to_be_hidden()
        page.goto(server.url("/"))
        expect(page.locator("#banner")).to_be_hidden()
    assert statements(log) == before


def test_a_server_that_has_a_new_address(log: QueryLog, server: Server, visit: Visit) -> None:
    log.post([question("a")])
    page = visit(path="/question?id=a")
    server.kill()
    write(page, "Still here")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    server.start(token=None)
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_role("alert")).to_contain_text("Open the address that the server printed")
    page.goto(server.address)
    page.get_by_role("button", name="Open the question").click()
    page.get_by_role("button", name="Send it now").click()
    page.wait_for_url("**end=1")
    assert log.entry("a").answer == Act(text="Still here")


def test_killed_at_any_moment(log: QueryLog, server: Server, visit: Visit) -> None:
    rounds, chance = 8, random.Random(0)
    log.post([question(str(number)) for number in range(rounds)])
    page = visit()
    acknowledged = 0
    for number in range(rounds):
        page.goto(server.url(f"/question?id={number}"))
        with page.expect_request("**/answer"):
            write(page, f"answer {number}")
        page.wait_for_timeout(chance.uniform(0, 30))
        server.kill()
        banner = page.get_by_role("alert")
        page.wait_for_function(
            f"location.protocol === 'chrome-error:' || !location.search.includes('id={number}') || !banner.hidden"
        )
        was_kept = log.entry(str(number)).answer is not None
        # What the browser forgot has been acknowledged, so it has to be in the log.
        forgotten = not page_has_unsent(page, server, number)
        assert was_kept or not forgotten
        acknowledged += forgotten
        server.start()
        page.goto(server.url(f"/question?id={number}"))
        if log.entry(str(number)).status is not Status.ANSWERED:
            expect(banner).to_contain_text("was not sent")
            page.get_by_role("button", name="Send it now").click()
            page.wait_for_url(re.compile(r"done="))
    assert [(id, '"answer ' + id + '"' in answer, by) for id, answer, by in statements(log)] == [
        (str(number), True, "Ada") for number in range(rounds)
    ]


def page_has_unsent(page: Page, server: Server, number: int) -> bool:
    """Whether the browser keeps an answer that it believes was not sent."""
    storage = page.context.storage_state()
    origin = next((one for one in storage["origins"] if one["origin"] == server.url("")), None)
    return origin is not None and any(item["name"] == f"unsent:{number}" for item in origin["localStorage"])


def test_a_page_says_that_its_claim_is_gone(log: QueryLog, server: Server, visit: Visit) -> None:
    log.post([question("a")])
    page = visit()
    page.clock.install()
    page.goto(server.url("/question?id=a"))
    page.get_by_label("Or in your own words").fill("Half of a tho")
    server.kill()
    page.clock.fast_forward(101_000)
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached. What you write is kept")
    server.start()
    log.release("a", "Ada")
    log.answer("a", Act((2,)), by="Grace")
    page.clock.fast_forward(101_000)
    expect(page.get_by_role("alert")).to_contain_text("Somebody else has taken or answered this one.")
    page.get_by_role("button", name="See what became of it").click()
    expect(page.get_by_role("heading", name="Answered by Grace")).to_be_visible()
    expect(page.get_by_label("What you had written")).to_have_value("Half of a tho")
