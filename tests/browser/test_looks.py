"""Every page for everybody: on phones, in the dark, with a screen reader, with keys alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.judgements import JudgementLog, TranscriptPair
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import Act, Decline, PlausibleAction, Query
from tests.browser.conftest import Complaints, Server, Visit

CHAT = (
    Message(role="user", content="My bread stays flat. " * 30),
    Message(role="assistant", content="How long does it rise?"),
    Message(role="user", content="Over\x00night. " + "x" * 400),
)
PAGES = {
    "queue": "/",
    "queue-filtered": "/?status=declined&search=nothing",
    "queue-end": "/?end=1&done=declined",
    "conversation": "/question?id=conversation&done=declined",
    "symbols": "/question?id=symbols",
    "taken": "/question?id=taken",
    "answered": "/question?id=answered",
    "declined": "/question?id=declined",
    "statistics": "/statistics",
    "name": "/name",
    "missing": "/question?id=missing",
    "judgements": "/judgements",
    "pair": "/judgements/pair?id=open",
    "judged": "/judgements/pair?id=judged",
    "refused": "/?token=wrong",
}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1280, "height": 860}}


@pytest.fixture
def filled(log: QueryLog, judgements: JudgementLog) -> None:
    plausible = tuple(PlausibleAction(n, 0.01 * n, 0.05, 0.1 + 0.05 * n, f"Option {n} " * (1 + n)) for n in range(12))
    log.post(
        [
            Query((1,), 20, 0.3, plausible, messages=CHAT, id="conversation", asker="tuesday", episode=1),
            Query(tuple(range(9)) * 200, 20, 0.9, plausible, id="symbols", deadline=time.time() + 900),
            Query((1,), 20, text="What now?", id="taken", asker="a-run-with-quite-a-long-name-" * 3),
            Query((1,), 20, text="What now?", id="answered"),
            Query((1,), 20, text="What now?", id="declined"),
        ]
    )
    log.claim("Grace", id="taken")
    log.answer("answered", Act(text="Word " * 300), by="Grace")
    log.answer("declined", Decline("Out of time"), by="Ada")
    pairs = [TranscriptPair("Which reply is better?", CHAT, (*CHAT[:2], CHAT[0]), id=id) for id in ("open", "judged")]
    judgements.post(pairs)
    judgements.judge("judged", "first", by="Ada")


def open_page(page: Page, server: Server, name: str) -> None:
    page.goto(server.url(PAGES[name]))
    if name in ("conversation", "symbols"):
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("size", ["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page(
    server: Server, visit: Visit, complaints: Complaints, tmp_path: Path, scheme: str, size: str
) -> None:
    complaints.expected = ("the server responded with a status of 40",)
    page = visit("Ada Lovelace", color_scheme=scheme, reduced_motion="reduce", **(PHONE if size == "phone" else DESK))
    for name in PAGES:
        open_page(page, server, name)
        page.screenshot(path=tmp_path / f"{name}-{size}-{scheme}.png", full_page=True)
        found = Axe().run(page)
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        # Not the window's inner width: an emulated phone widens that to whatever sticks out.
        assert page.viewport_size is not None
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= page.viewport_size["width"], f"{name} scrolls sideways: {width} pixels"
        small = page.evaluate(
            """[...document.querySelectorAll('main :is(a, button, input, select, textarea, summary), header a')]
            .filter((one) => one.type !== 'hidden' && one.checkVisibility())
            .map((one) => one.closest('.check') ?? one)
            .filter((one) => { const box = one.getBoundingClientRect(); return box.height < 43.9 || box.width < 43.9; })
            .map((one) => one.outerHTML.slice(0, 100))"""
        )
        assert small == [], f"{name} has targets that a finger misses"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        if name != "refused":
            assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")


@pytest.mark.usefixtures("filled")
def test_everything_is_reached_with_the_tabulator_and_seen(server: Server, visit: Visit) -> None:
    page = visit(path=PAGES["conversation"])
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """(() => { const one = document.activeElement, style = getComputedStyle(one);
            return [one.getAttribute('name') ?? one.tagName, one.textContent.trim().slice(0, 20),
            style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]; })()"""
        )
        if found[0] == "BODY":
            break
        seen.append(found)
        assert found[2], f"the focus is not seen on {found}"
    names = [name for name, _, _ in seen]
    assert names.count("act") >= 9
    assert "text" in names
    assert {"Skip", "Decline", "Keys", "Send"} <= {text for _, text, _ in seen}


@pytest.mark.usefixtures("filled")
def test_a_long_conversation_is_shown_from_its_end(server: Server, visit: Visit) -> None:
    page = visit(path=PAGES["conversation"], java_script_enabled=False, **PHONE)
    last = page.locator(".turn").last.bounding_box()
    frame = page.locator(".scroller").bounding_box()
    assert last is not None
    assert frame is not None
    assert last["y"] + last["height"] <= frame["y"] + frame["height"] + 1
