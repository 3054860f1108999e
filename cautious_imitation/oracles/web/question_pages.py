"""The page on which one question is answered, and what its buttons do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cautious_imitation.oracles.log import Entry
from cautious_imitation.oracles.protocol import Act, Answer, AnswerConflict, Decline, OracleError, Query, UnknownQuery
from cautious_imitation.oracles.web.claimed_pages import ClaimedPages
from cautious_imitation.oracles.web.desk import Desk, FormError, Remembered, TooLong, address, id_in, person, visit_of
from cautious_imitation.oracles.web.forms import act_in, decline_in
from cautious_imitation.oracles.web.question_view import Standing, answer_in_words, question_view, standing


class QuestionPages(ClaimedPages[Entry]):
    """Questions, one at a time.

    Args:
        desk: the log and the templates.
    """

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, desk.log, "/", "question")
        self._log = desk.log
        self._taken_back = Remembered[Answer]()

    def routes(self) -> list[Route]:
        """The addresses of these pages."""
        return [
            Route("/next", self.next),
            Route("/question", self.question),
            Route("/answer", self.answer, methods=["POST"]),
            Route("/decline", self.decline, methods=["POST"]),
            *self.claimed_routes(),
        ]

    def next(self, request: Request) -> Response:
        """The oldest question that is free and was not skipped; the queue if there is none."""
        who, asked = person(request), request.query_params
        asker, done = asked.get("asker") or None, asked.get("done")
        query = None
        if request.method != "HEAD":
            query = self._log.claim(who, asker=asker, skip=self.skipped.of(who))
        if query is None:
            return RedirectResponse(address("/", done=done, asker=asker, end=1), 303)
        return RedirectResponse(address("/question", id=query.id, done=done, asker=asker), 303)

    def question(self, request: Request) -> Response:
        """One question, claimed by opening it."""
        who, id = person(request), request.query_params.get("id", "")
        if request.method != "HEAD" and standing(self._log.entry(id), who) is Standing.YOURS:
            # Somebody may be quicker, which the entry says then.
            with suppress(AnswerConflict):
                self._claim(id, who)
        return self._shown(request, self._log.entry(id), who)

    def answer(self, request: Request) -> Response:
        """Keep an answer and go on to the next question."""
        return self._settle(request, act_in)

    def decline(self, request: Request) -> Response:
        """Keep a decline and go on to the next question."""
        return self._settle(request, decline_in)

    def undo(self, request: Request) -> Response:
        """Take one's answer back and show the question again, with the answer in its fields."""
        who, id = person(request), id_in(request)
        given = self._log.entry(id).answer
        shown = super().undo(request)
        if given is not None:
            self._taken_back.put((who, id), given)
        return shown

    def _settle(self, request: Request, read: Callable[[Mapping[str, str], Query], Answer]) -> Response:
        who, form = person(request), visit_of(request).form
        id = id_in(request)
        entry = self._log.entry(id)
        try:
            self._log.answer(id, read(form, entry.query), who)
        except (FormError, OracleError) as error:
            return self._shown(request, entry, who, 413 if isinstance(error, TooLong) else 422, _sentence(error, entry))
        self._taken_back.drop((who, id))
        self.skipped.drop((who, id))
        return self._onward(request, done=id)

    def _claim(self, id: str, who: str) -> object:
        return self._log.claim(who, id=id)

    def _shown(self, request: Request, entry: Entry, who: str, status: int = 200, problem: str = "") -> Response:
        form, id = visit_of(request).form, entry.query.id
        before = self._taken_back.get((who, id))
        typed = {
            "text": before.text or "" if isinstance(before, Act) else "",
            "actions": " ".join(map(str, before.actions)) if isinstance(before, Act) else "",
            "reason": before.reason if isinstance(before, Decline) else "",
            "within": "no",
            "independent": "yes" if isinstance(before, Decline) and before.independent else "no",
        }
        return self._desk.page(
            request,
            "question.html.jinja",
            status,
            entry=entry,
            query=entry.query,
            view=question_view(entry.query, everything="all" in request.query_params),
            view_name=self._new_view(who, id),
            standing=standing(entry, who).value,
            given=answer_in_words(entry),
            declined=isinstance(entry.answer, Decline),
            can_undo=entry.answer is not None and entry.answered_by == who and entry.taken_at is None,
            typed=typed | {name: form[name] for name in typed if name in form},
            chosen=form.get("act", ""),
            problem=problem,
            done=done_entry(self._desk, request, who),
            asker=request.query_params.get("asker") or form.get("asker") or "",
            renew_seconds=self._log.lease_seconds / 3,
        )


def done_entry(desk: Desk, request: Request, who: str) -> Entry | None:
    """The question that was answered just before, if its answer can be undone."""
    done = request.query_params.get("done")
    if done is None:
        return None
    try:
        entry = desk.log.entry(done)
    except UnknownQuery:
        return None
    return entry if entry.answer is not None and entry.answered_by == who and entry.taken_at is None else None


def _sentence(error: ValueError, entry: Entry) -> str:
    if isinstance(error, OracleError):
        return f"Actions go from 0 to {entry.query.n_actions - 1}: {error}"
    return str(error)
