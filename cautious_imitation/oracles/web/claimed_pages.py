"""What pages of things that are claimed have in common: skip, take up again, undo, renew, release."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cautious_imitation.oracles.protocol import UnknownQuery
from cautious_imitation.oracles.web.desk import Desk, Remembered, address, id_in, person, sent_to, visit_of

Entry = TypeVar("Entry")
EntryRead = TypeVar("EntryRead", covariant=True)


class ClaimLog(Protocol[EntryRead]):
    """A log of which one thing at a time is claimed."""

    def entry(self, id: str, /) -> EntryRead:
        """What the log has of ``id``."""
        ...

    def release(self, id: str, by: str, /) -> None:
        """Give the claim of ``by`` back, if there is one."""
        ...

    def undo(self, id: str, by: str, /) -> object:
        """Take back what ``by`` said."""
        ...


class ClaimedPages(ABC, Generic[Entry]):
    """Things in a log, one at a time.

    Args:
        desk: the log and the templates.
        log: what is claimed, among what the desk has.
        folder: what the addresses begin with; they end there with ``next``, ``skip`` and so on.
        page: the name of the page of one thing.
    """

    def __init__(self, desk: Desk, log: ClaimLog[Entry], folder: str, page: str) -> None:
        self._desk, self._claims, self._folder, self._page = desk, log, folder, page
        self.skipped = Remembered[bool]()
        self._views = Remembered[str]()

    def claimed_routes(self) -> list[Route]:
        """The addresses of what is common."""
        names = ("skip", "again", "undo", "renew", "release")
        return [Route(self._folder + name, getattr(self, name), methods=["POST"]) for name in names]

    def skip(self, request: Request) -> Response:
        """Leave one to others and go on."""
        who, id = person(request), id_in(request)
        self._claims.release(id, who)
        self.skipped.put((who, id), True)
        return self._onward(request)

    def again(self, request: Request) -> Response:
        """Go through the skipped ones again."""
        who = person(request)
        for id in self.skipped.of(who):
            self.skipped.drop((who, id))
        return self._onward(request)

    def undo(self, request: Request) -> Response:
        """Take back what one said and show it again."""
        who, id = person(request), id_in(request)
        self._claims.undo(id, who)
        if (leaving := id_in(request, "leaving")) and leaving != id:
            self._claims.release(leaving, who)
        return sent_to(request, address(self._folder + self._page, id=id, asker=visit_of(request).form.get("asker")))

    def renew(self, request: Request) -> Response:
        """Keep a claim for as long as the page is open."""
        self._claim(id_in(request), person(request))
        return Response(status_code=204)

    def release(self, request: Request) -> Response:
        """Give a claim back when the page is left, unless the same person has opened it again since."""
        who, id = person(request), id_in(request)
        if self._views.get((who, id)) in (None, visit_of(request).form.get("view")):
            self._claims.release(id, who)
        return Response(status_code=204)

    def conflict(self, request: Request, problem: str) -> Response:
        """What became of one that somebody else has settled, or is at."""
        try:
            entry = self._claims.entry(id_in(request))
        except UnknownQuery:
            return self._desk.page(request, "problem.html.jinja", 409, title="Not kept", problem=problem, typed="")
        return self._shown(request, entry, person(request), 409, problem)

    def _onward(self, request: Request, done: str | None = None) -> Response:
        """On to the next one."""
        return sent_to(request, address(self._folder + "next", done=done, asker=visit_of(request).form.get("asker")))

    def _new_view(self, who: str, id: str) -> str:
        """A name for a page that ``who`` opens now; only the last one of each may release the claim."""
        view = secrets.token_urlsafe(9)
        self._views.put((who, id), view)
        return view

    @abstractmethod
    def _claim(self, id: str, who: str) -> object:
        """Claim one, or make one's claim longer."""

    @abstractmethod
    def _shown(self, request: Request, entry: Entry, who: str, status: int = 200, problem: str = "") -> Response:
        """The page of one."""
