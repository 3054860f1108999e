"""Both reports for everybody: on phones and desks, in the dark, with a screen reader, and from the file alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from cautious_imitation.report.anchors import ANCHORS
from cautious_imitation.report.chat_page import write_chat_report
from cautious_imitation.report.page import write_report
from tests.browser.conftest import PATIENCE_MS, Complaints
from tests.browser.test_looks import DESK, PHONE
from tests.chat_results import results
from tests.test_chat_report import CASES
from tests.test_report import episode, story


def write_comparison(path: Path) -> Path:
    return write_report(path, story(), [episode(anchor) for anchor in ANCHORS], {"world": "a world", "seeds": [0, 1]})


def write_chats(case: str) -> Callable[[Path], Path]:
    return lambda path: write_chat_report(path, *results(1, **CASES[case]).arguments)


REPORTS: dict[str, Callable[[Path], Path]] = {
    "comparison": write_comparison,
    "chats": write_chats("full"),
    "chats-nothing-trained": write_chats("nothing-trained"),
}
SIZES: dict[str, dict[str, Any]] = {"phone": PHONE, "desk": DESK}


@pytest.fixture(scope="module", params=REPORTS)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return REPORTS[request.param](tmp_path_factory.mktemp("report") / f"{request.param}.html")


@pytest.fixture
def look(browser: Browser, report: Path, complaints: Complaints) -> Iterator[Callable[..., Page]]:
    """Open the report in a browser of its own, with all that can be unfolded; nothing but the file may be read."""
    contexts = []
    requested: list[str] = []

    def look(**options: Any) -> Page:
        context = browser.new_context(reduced_motion="reduce", **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        complaints.listen(page)
        page.on("request", lambda request: requested.append(request.url))
        page.goto(report.as_uri())
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        return page

    yield look
    for context in contexts:
        context.close()
    assert requested == [report.as_uri()] * len(contexts)
    assert complaints == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_report(look: Callable[..., Page], report: Path, tmp_path: Path, scheme: str, size: str) -> None:
    page = look(color_scheme=scheme, **SIZES[size])
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    page.screenshot(path=tmp_path / f"{report.stem}-{size}-{scheme}.png", full_page=True)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    # Not innerWidth: on a phone that grows with a page that is too wide.
    width = SIZES[size]["viewport"]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    # Transcripts can be coloured in two ways, and both have to be legible.
    for other in page.get_by_role("radio", checked=False).all():
        other.check()
        found = Axe().run(page, context="#transcripts")
        assert found.violations_count == 0, found.generate_report()
