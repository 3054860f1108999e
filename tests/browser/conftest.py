"""A real Chromium before a real server with a real log; ``make test-browser`` runs these, ``make test`` does not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

import cautious_imitation
from cautious_imitation.oracles.judgements import JudgementLog
from cautious_imitation.oracles.log import QueryLog

TOKEN = "a-token-that-stays-the-same"
PATIENCE_MS = 20_000
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """Chromium as $CHROMIUM or as it is on the path."""
    named = os.environ.get("CHROMIUM")
    return next(filter(None, map(shutil.which, [named] if named else _NAMES)), None)


def pytest_configure(config: pytest.Config) -> None:
    if chromium() is None:
        pytest.exit(
            "these tests need Chromium, and there is none: install Debian's package chromium, or name the program in "
            "the variable CHROMIUM",
            returncode=1,
        )


class Server:
    """``cautious-imitation oracle serve`` as a process that can be killed and started again."""

    def __init__(self, log: QueryLog, token: str | None = TOKEN) -> None:
        self.log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[str] | None = None
        self.start(token)

    def start(self, token: str | None = TOKEN) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(cautious_imitation.__file__).parents[1])}
        environment.pop("CAUTIOUS_IMITATION_TOKEN", None)
        if token is not None:
            environment["CAUTIOUS_IMITATION_TOKEN"] = token
        command = [sys.executable, "-m", "cautious_imitation", "oracle", "serve", str(self.log.path)]
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in range(2)]
        assert "http://" in lines[1], (lines, self._process.communicate()[1])
        self.address = lines[1].split()[-1]

    def kill(self) -> None:
        """SIGKILL, as when the machine loses power."""
        assert self._process is not None
        self._process.kill()
        _, errors = self._process.communicate()
        assert errors == "", errors

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[QueryLog]:
    log = QueryLog(tmp_path / "questions.db")
    yield log
    log.close()


@pytest.fixture
def judgements(log: QueryLog) -> Iterator[JudgementLog]:
    judgements = JudgementLog(log.path)
    yield judgements
    judgements.close()


@pytest.fixture
def server(log: QueryLog) -> Iterator[Server]:
    server = Server(log)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    # Chromium's sandbox does not run as root, as in most containers.
    as_root = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=[*_ARGUMENTS, *as_root])
        yield browser
        browser.close()


class Complaints(list[str]):
    """What a page wrote to its console as a warning or an error; refusals that a test provokes are expected."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: tuple[str, ...] = ()

    def listen(self, page: Page) -> None:
        page.on("console", lambda message: self.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.append(str(error)))

    def unexpected(self) -> list[str]:
        return [one for one in self if not any(words in one for words in self.expected)]


@pytest.fixture
def complaints() -> Complaints:
    return Complaints()


Visit = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser, server: Server, complaints: Complaints) -> Iterator[Visit]:
    """Open the console in a browser of its own, as a person of that name."""
    contexts = []

    def visit(name: str = "Ada", path: str = "/", **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        # Nothing but the console may be asked for anything.
        context.route(lambda url: not url.startswith(server.url("/")), refuse)
        page = context.new_page()
        complaints.listen(page)
        page.goto(server.address)
        page.get_by_label("Who is answering?").fill(name)
        page.get_by_role("button", name="Begin").click()
        page.wait_for_url(server.url("/"))
        if path != "/":
            page.goto(server.url(path))
        return page

    def refuse(route: Route) -> None:
        complaints.append(f"asked for {route.request.url}")
        route.abort()

    yield visit
    for context in contexts:
        context.close()
    assert complaints.unexpected() == []
