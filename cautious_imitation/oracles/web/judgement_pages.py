"""The page on which two transcripts are compared, and how far that is."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.judgements import Judgement, Verdict
from cautious_imitation.oracles.protocol import AnswerConflict, Query, UnknownQuery
from cautious_imitation.oracles.web.claimed_pages import ClaimedPages
from cautious_imitation.oracles.web.desk import Desk, FormError, address, id_in, person, visit_of
from cautious_imitation.oracles.web.question_view import QuestionView, question_view

_CHOICES = ("a", "b", "tie")


def swapped(id: str) -> bool:
    """Whether the second transcript of a pair is shown first; by chance, but always the same for one pair.

    >>> 400 < sum(swapped(str(number)) for number in range(1000)) < 600
    True
    """
    return bool(sha256(id.encode()).digest()[0] & 1)


def verdict_of(id: str, choice: str) -> Verdict:
    """The verdict on a pair that was shown as A and B.

    Raises:
        FormError: if ``choice`` is none of "a", "b" and "tie".

    >>> swapped("0"), verdict_of("0", "a")
    (True, <Verdict.SECOND: 'second'>)
    """
    if choice not in _CHOICES:
        raise FormError("Choose A, B, or neither.")
    if choice == "tie":
        return Verdict.TIE
    return Verdict.FIRST if (choice == "a") != swapped(id) else Verdict.SECOND


def choice_of(id: str, verdict: Verdict) -> str:
    """How a verdict on a pair looks to those who see it as A and B."""
    return next(choice for choice in _CHOICES if verdict_of(id, choice) is verdict)


class JudgementPages(ClaimedPages[Judgement]):
    """Pairs, one at a time.

    Args:
        desk: the judgements and the templates.
    """

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, desk.judgements, "/judgements/", "pair")
        self._log = desk.judgements

    def routes(self) -> list[Route]:
        """The addresses of these pages."""
        return [
            Route("/judgements", self.overview),
            Route("/judgements/next", self.next),
            Route("/judgements/pair", self.pair),
            Route("/judgements/judge", self.judge, methods=["POST"]),
            *self.claimed_routes(),
        ]

    def overview(self, request: Request) -> Response:
        """How many pairs wait, and who judged the others."""
        who = person(request)
        return self._desk.page(
            request,
            "judgements.html.jinja",
            counts=self._log.counts(),
            latest=self._log.results(limit=20, newest_first=True),
            who=who,
            done=self._done(request, who),
            n_skipped=len(self.skipped.of(who)),
            choice_of=choice_of,
        )

    def next(self, request: Request) -> Response:
        """The oldest pair that is free and was not skipped."""
        who, done = person(request), request.query_params.get("done")
        pair = self._log.next(who, skip=self.skipped.of(who)) if request.method != "HEAD" else None
        if pair is None:
            return RedirectResponse(address("/judgements", done=done), 303)
        return RedirectResponse(address("/judgements/pair", id=pair.id, done=done), 303)

    def pair(self, request: Request) -> Response:
        """One pair, claimed by opening it."""
        who, id = person(request), request.query_params.get("id", "")
        if request.method != "HEAD" and self._log.entry(id).verdict is None:
            # Somebody may be at it, which the entry says then.
            with suppress(AnswerConflict):
                self._claim(id, who)
        return self._shown(request, self._log.entry(id), who)

    def judge(self, request: Request) -> Response:
        """Keep a verdict and go on to the next pair."""
        who, form = person(request), visit_of(request).form
        id = id_in(request)
        try:
            verdict = verdict_of(id, form.get("choice", ""))
        except FormError as error:
            return self._shown(request, self._log.entry(id), who, 422, str(error))
        self._log.judge(id, verdict, who)
        self.skipped.drop((who, id))
        return self._onward(request, done=id)

    def _claim(self, id: str, who: str) -> object:
        return self._log.claim(id, who)

    def _done(self, request: Request, who: str) -> Judgement | None:
        done = request.query_params.get("done")
        if done is None:
            return None
        try:
            entry = self._log.entry(done)
        except UnknownQuery:
            return None
        return entry if entry.judged_by == who else None

    def _shown(self, request: Request, entry: Judgement, who: str, status: int = 200, problem: str = "") -> Response:
        pair = entry.pair
        n_shared = _n_shared(pair.first, pair.second)
        transcripts = [one[n_shared:] for one in (pair.first, pair.second)]
        if swapped(pair.id):
            transcripts.reverse()
        everything = "all" in request.query_params
        return self._desk.page(
            request,
            "pair.html.jinja",
            status,
            entry=entry,
            pair=pair,
            shared=_transcript(pair.first[:n_shared], everything),
            sides=[(name, _transcript(one, everything)) for name, one in zip("AB", transcripts, strict=True)],
            given=None if entry.verdict is None else choice_of(pair.id, entry.verdict),
            standing="settled" if entry.verdict else "taken" if entry.claimed_by not in (None, who) else "yours",
            who=who,
            view_name=self._new_view(who, pair.id),
            problem=problem,
            done=self._done(request, who),
            choice_of=choice_of,
            renew_seconds=self._log.lease_seconds / 3,
        )


def _n_shared(first: tuple[Message, ...], second: tuple[Message, ...]) -> int:
    """With how many messages both begin, as long as something is left of both: read once, they are not compared."""
    n_most = max(0, min(len(first), len(second)) - 1)
    return next((n for n in range(n_most) if first[n] != second[n]), n_most)


def _transcript(messages: tuple[Message, ...], everything: bool) -> QuestionView:
    return question_view(Query((), n_actions=1, messages=messages), everything)
