"""The console as a web application: pages behind the gate, and what they say when something goes wrong."""

from __future__ import annotations

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cautious_imitation.oracles.database import LogError
from cautious_imitation.oracles.judgements import JudgementLog
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import AnswerConflict, UnknownQuery
from cautious_imitation.oracles.web.credentials import Credentials
from cautious_imitation.oracles.web.desk import Desk, NameNeeded, visit_of
from cautious_imitation.oracles.web.gate import Gate
from cautious_imitation.oracles.web.judgement_pages import JudgementPages
from cautious_imitation.oracles.web.question_pages import QuestionPages
from cautious_imitation.oracles.web.queue_pages import QueuePages, to_name
from cautious_imitation.oracles.web.rates import RateLimit

_TYPED = ("text", "actions", "reason")


def console_app(
    log: QueryLog,
    judgements: JudgementLog,
    credentials: Credentials,
    host_names: Collection[str] = (),
    requests: RateLimit | None = None,
    wrong_tokens: RateLimit | None = None,
) -> Gate:
    """The console of one log. Pages run in threads, so a slow disk holds up nobody but who waits for it.

    Args:
        log: the questions.
        judgements: the pairs, which may be in the same file.
        credentials: the token that lets in.
        host_names: names under which the server may be addressed, beside ``localhost`` and plain addresses.
        requests: how often a client may come; None for what suits people.
        wrong_tokens: how often a client may show a wrong token; None for what suits people.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from starlette.testclient import TestClient
    >>> folder = tempfile.TemporaryDirectory()
    >>> log, judgements = (kind(Path(folder.name, "questions.db")) for kind in (QueryLog, JudgementLog))
    >>> app = console_app(log, judgements, Credentials("correct-horse-battery"))
    >>> client = TestClient(app, base_url="http://127.0.0.1")
    >>> client.get("/").status_code, client.get("/?token=correct-horse-battery").status_code
    (403, 200)
    >>> log.close(); judgements.close(); folder.cleanup()
    """
    desk = Desk(log, judgements)
    questions, pairs = QuestionPages(desk), JudgementPages(desk)
    queue = QueuePages(desk, questions)

    def broken_log(request: Request, error: Exception) -> Response:
        problem = f"The log cannot be read or written, so nothing was done. {error}"
        return _problem(desk, request, 503, "The log does not answer", problem)

    def unknown(request: Request, error: Exception) -> Response:
        return _problem(desk, request, 404, "Not found", str(error.args[0]))

    def conflict(request: Request, error: Exception) -> Response:
        pages = pairs if request.url.path.startswith("/judgements") else questions
        return pages.conflict(request, str(error))

    def nameless(request: Request, error: Exception) -> Response:
        return to_name(request)

    def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return _problem(desk, request, status, "Not found", "There is no such page, or it takes no such request.")

    def unexpected(request: Request, error: Exception) -> Response:
        problem = "Something went wrong here, and nothing was kept; the server's output says what."
        return _problem(desk, request, 500, "An error of the server", problem)

    pages = Starlette(
        routes=[*queue.routes(), *questions.routes(), *pairs.routes()],
        exception_handlers={
            LogError: broken_log,
            UnknownQuery: unknown,
            AnswerConflict: conflict,
            NameNeeded: nameless,
            HTTPException: refused,
            Exception: unexpected,
        },
    )
    pages.router.redirect_slashes = False
    return Gate(pages, credentials, host_names, requests, wrong_tokens)


def _problem(desk: Desk, request: Request, status: int, title: str, problem: str) -> Response:
    """A page that says what is wrong, and gives back what was typed, to be sent once more."""
    form = visit_of(request).form
    typed = next((form[name] for name in _TYPED if name in form), "")
    return desk.page(
        request,
        "problem.html.jinja",
        status,
        title=title,
        problem=problem,
        typed=typed,
        again=form if status == 503 else {},
        typed_names=_TYPED,
    )
