"""What all pages of the console share: the log, who is there, and how a page is made."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from cautious_imitation.oracles.judgements import JudgementLog
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.web.gate import Visit
from cautious_imitation.oracles.web.visible_text import visible, visible_symbol

MAX_NAME_LENGTH = 60
MAX_TEXT_LENGTH = 100_000
_YEAR_SECONDS = 365 * 24 * 3600

T = TypeVar("T")


class FormError(ValueError):
    """What was typed cannot be an answer; says why."""


class TooLong(FormError):
    """What was typed is too long."""


class NameNeeded(Exception):
    """Nobody has said yet who answers in this browser."""


class Remembered(Generic[T]):
    """Values by key, in this process only, the oldest forgotten when there are too many.

    >>> remembered = Remembered[int](most=2)
    >>> for number in range(3):
    ...     remembered.put(("Ada", str(number)), number)
    >>> remembered.get(("Ada", "0")), remembered.get(("Ada", "2"))
    (None, 2)
    """

    def __init__(self, most: int = 10_000) -> None:
        self._values: OrderedDict[tuple[str, str], T] = OrderedDict()
        self._most, self._lock = most, threading.Lock()

    def put(self, key: tuple[str, str], value: T) -> None:
        """Keep a value."""
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)

    def get(self, key: tuple[str, str]) -> T | None:
        """The value of a key; None if there is none."""
        with self._lock:
            return self._values.get(key)

    def drop(self, key: tuple[str, str]) -> None:
        """Forget a key."""
        with self._lock:
            self._values.pop(key, None)

    def of(self, first: str) -> list[str]:
        """The second halves of the keys that begin with ``first``."""
        with self._lock:
            return [second for one, second in self._values if one == first]


class Desk:
    """The log and the judgements, and pages made of templates.

    Args:
        log: the questions.
        judgements: the pairs.
        clock: seconds since 1970.
    """

    def __init__(self, log: QueryLog, judgements: JudgementLog, clock: Callable[[], float] = time.time) -> None:
        self.log, self.judgements, self.clock = log, judgements, clock
        self._templates = Environment(
            loader=PackageLoader("cautious_imitation.oracles.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "visible": visible,
            "visible_symbol": visible_symbol,
            "percent": percent,
            "ago": lambda then: span(self.clock() - then) + " ago",
            "until": lambda then: span(then - self.clock()),
            "span": span,
            # An attribute cannot hold every character of an id.
            "quoted": lambda id: quote(id, safe=""),
            "utc": lambda then: datetime.fromtimestamp(then, UTC).isoformat(timespec="seconds"),
        }
        self._templates.globals["address"] = address

    def page(self, request: Request, template: str, status_code: int = 200, **values: Any) -> HTMLResponse:
        """A page for whoever sent the request."""
        visit = visit_of(request)
        text = self._templates.get_template(template).render(
            mark=visit.form_mark, person=name_in(visit), path=request.url.path, **values
        )
        return HTMLResponse(text, status_code)


def visit_of(request: Request) -> Visit:
    """What the gate found out about a request."""
    visit: Visit = request.state.visit
    return visit


def id_in(request: Request, field: str = "id") -> str:
    """The id in a form, where it is quoted, since attributes cannot hold every character."""
    return unquote(visit_of(request).form.get(field, ""))


def name_in(visit: Visit) -> str | None:
    """Who answers in this browser, if that has been said."""
    try:
        return clean_name(unquote(visit.cookies.get(f"name-{visit.cookie_suffix}", ""), errors="strict"))
    except ValueError:
        return None


def person(request: Request) -> str:
    """Who answers in this browser.

    Raises:
        NameNeeded: if nobody has said so.
    """
    name = name_in(visit_of(request))
    if name is None:
        raise NameNeeded
    return name


def remember_name(answer: Response, visit: Visit, name: str) -> None:
    """Keep the name in the browser for a year."""
    answer.set_cookie(
        f"name-{visit.cookie_suffix}", quote(name, safe=""), _YEAR_SECONDS, path="/", httponly=True, samesite="strict"
    )


def clean_name(typed: str) -> str:
    """A name as it is kept.

    Raises:
        FormError: if it is empty, too long, or has characters that are not seen.

    >>> clean_name("  Ada   Lovelace ")
    'Ada Lovelace'
    """
    name = " ".join(typed.split())
    if not name:
        raise FormError("Write a name; it stands beside your answers in the log.")
    if len(name) > MAX_NAME_LENGTH:
        raise FormError(f"A name may have {MAX_NAME_LENGTH} characters, this one has {len(name)}.")
    if not name.isprintable():
        raise FormError("A name is made of characters that can be seen.")
    return name


def sent_to(request: Request, location: str) -> Response:
    """The answer to a form that has been dealt with: where to go on, for scripts or for browsers."""
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"location": location})
    return RedirectResponse(location, 303)


def address(path: str, **parameters: str | int | None) -> str:
    """A path with parameters; those that are None or empty are left out, but for ``id``, which may be anything.

    >>> address("/question", id="a/b ?", asker=None)
    '/question?id=a%2Fb+%3F'
    """
    given = {name: value for name, value in parameters.items() if name == "id" or value not in (None, "")}
    return path + (f"?{urlencode(given)}" if given else "")


def percent(share: float) -> str:
    """A probability for people.

    >>> percent(0.3141), percent(0.00002), percent(0.0), percent(0.99999)
    ('31 %', '< 0.1 %', '0 %', '> 99.9 %')
    """
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    hundredths = 100 * share
    return f"{hundredths:.1f} %" if 0 < hundredths < 10 or 99 < hundredths < 100 else f"{hundredths:.0f} %"


def span(seconds: float) -> str:
    """A length of time for people.

    >>> span(-3), span(75), span(5400), span(260_000)
    ('0 s', '1 min', '1 h 30 min', '3 days')
    """
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        hours, minutes = divmod(whole // 60, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{whole // (24 * 3600)} days"
