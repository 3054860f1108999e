"""The list of questions, what they add up to, and who is answering."""

from __future__ import annotations

import time
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cautious_imitation.oracles.log import LogStatistics, Status
from cautious_imitation.oracles.web.desk import (
    MAX_NAME_LENGTH,
    Desk,
    FormError,
    address,
    clean_name,
    name_in,
    person,
    remember_name,
    sent_to,
    visit_of,
)
from cautious_imitation.oracles.web.question_pages import QuestionPages, done_entry
from cautious_imitation.oracles.web.question_view import answer_in_words, snippet

PAGE_SIZE = 50
_MOST_SEARCHED = 200
_FRESH_SECONDS = 1.0
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class QueuePages:
    """The queue, the statistics, the name, and the files that pages are made with.

    Args:
        desk: the log and the templates.
        questions: knows what was skipped.
    """

    def __init__(self, desk: Desk, questions: QuestionPages) -> None:
        self._desk, self._questions = desk, questions
        self._counted: dict[str | None, tuple[float, LogStatistics]] = {}
        folder = files("cautious_imitation.oracles.web").joinpath("static")
        self._static = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    def routes(self) -> list[Route]:
        """The addresses of these pages."""
        return [
            Route("/", self.queue),
            Route("/statistics", self.statistics),
            Route("/name", self.name, methods=["GET", "POST"]),
            Route("/static/{file}", self.static),
        ]

    def queue(self, request: Request) -> Response:
        """Questions with filters, a page at a time; only the list if a script asks for it."""
        who, asked = person(request), request.query_params
        part = "part" in asked
        status = asked.get("status") if asked.get("status") in list(Status) else None
        askers = self._desk.log.askers()
        asker = asked.get("asker") or None
        search = asked.get("search", "")[:_MOST_SEARCHED]
        page = int(asked["page"]) if asked.get("page", "").isdecimal() and len(asked["page"]) < 9 else 1
        page = max(1, page)
        entries = self._desk.log.entries(
            status, asker=asker, search=search or None, limit=PAGE_SIZE + 1, offset=(page - 1) * PAGE_SIZE
        )
        statistics = self._statistics(asker, fresh=not part)
        return self._desk.page(
            request,
            "queue_list.html.jinja" if part else "queue.html.jinja",
            entries=entries[:PAGE_SIZE],
            more=len(entries) > PAGE_SIZE,
            page=page,
            status=status or "",
            statuses=[one.value for one in Status],
            asker=asker or "",
            askers=askers,
            search=search,
            counts={one.value: n for one, n in statistics.counts.items()},
            total=sum(statistics.counts.values()),
            who=who,
            snippet=snippet,
            answer_in_words=answer_in_words,
            done=None if part else done_entry(self._desk, request, who),
            n_skipped=len(self._questions.skipped.of(who)),
            at_end="end" in asked,
        )

    def statistics(self, request: Request) -> Response:
        """What the log adds up to."""
        person(request)
        asker = request.query_params.get("asker") or None
        statistics = self._statistics(asker, fresh=True)
        return self._desk.page(
            request,
            "statistics.html.jinja",
            statistics=statistics,
            counts={one.value: n for one, n in statistics.counts.items()},
            total=sum(statistics.counts.values()),
            n_expired=statistics.counts[Status.EXPIRED],
            asker=asker or "",
            askers=self._desk.log.askers(),
            log_path=str(self._desk.log.path),
        )

    def name(self, request: Request) -> Response:
        """Ask who answers in this browser, and keep it."""
        visit = visit_of(request)
        asked = visit.form if request.method == "POST" else dict(request.query_params)
        then = _own_path(asked.get("then", "/"))
        problem, typed = "", visit.form.get("name", name_in(visit) or "")
        if request.method == "POST":
            try:
                answer = sent_to(request, then)
                remember_name(answer, visit, clean_name(typed))
            except FormError as error:
                problem = str(error)
            else:
                return answer
        return self._desk.page(
            request,
            "name.html.jinja",
            422 if problem else 200,
            then=then,
            problem=problem,
            typed=typed[:1000],
            most=MAX_NAME_LENGTH,
        )

    def static(self, request: Request) -> Response:
        """A file that pages are made with."""
        name = request.path_params["file"]
        suffix = name[name.rfind(".") :]
        if name not in self._static or suffix not in _TYPES:
            raise HTTPException(404)
        return Response(self._static[name], media_type=_TYPES[suffix])

    def _statistics(self, asker: str | None, fresh: bool) -> LogStatistics:
        # Many browsers ask every few seconds, and counting reads the whole log.
        known = self._counted.get(asker)
        if not fresh and known is not None and time.monotonic() - known[0] < _FRESH_SECONDS:
            return known[1]
        statistics = self._desk.log.statistics(asker)
        if len(self._counted) > 100:
            self._counted.clear()
        self._counted[asker] = (time.monotonic(), statistics)
        return statistics


def to_name(request: Request) -> Response:
    """The page that asks for the name, and leads back."""
    then = str(request.url.path) + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(address("/name", then=then if request.method == "GET" else "/"), 303)


def _own_path(typed: str) -> str:
    # A second slash, or what browsers take for one, would lead to another site.
    return typed if typed.startswith("/") and typed[1:2] not in ("/", "\\") and typed.isprintable() else "/"
