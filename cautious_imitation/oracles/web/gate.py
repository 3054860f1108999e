"""The gate before every page: who may come in, how often, with how much, and what browsers are told about it."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, replace
from html import escape
from http.cookies import CookieError, SimpleCookie
from math import ceil
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cautious_imitation.oracles.web.credentials import Credentials
from cautious_imitation.oracles.web.rates import RateLimit

MAX_BODY_BYTES = 900_000
_MOST_DRAINED_BYTES = 32_000_000
_MOST_FIELDS = 32
_BODY_SECONDS = 30.0

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_KEY = "Open the address that the server printed when it was started; what was typed is kept in this browser."


@dataclass(frozen=True)
class Visit:
    """What the gate found out about a request.

    Attributes:
        form_mark: what the forms of the answer have to carry.
        cookie_suffix: cookies are shared by all ports of a machine, so their names end with the port.
        cookies: all of them.
        form: the fields that came with it, by name.
    """

    form_mark: str
    cookie_suffix: str
    cookies: dict[str, str]
    form: dict[str, str]


class _Refused(Exception):
    def __init__(self, status: int, sentence: str, wait_seconds: float = 0.0) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.wait_seconds = status, sentence, wait_seconds


class Gate:
    """Lets in requests with the token or a session of it; the rest get a plain sentence.

    Args:
        app: the pages. They find a ``Visit`` in ``request.state.visit``.
        credentials: the token.
        host_names: names under which the server may be addressed, beside ``localhost`` and plain addresses. Other
            names are refused: a page elsewhere could point its own name here.
        requests: how often a client may come.
        wrong_tokens: how often a client may show a wrong token.
    """

    def __init__(
        self,
        app: ASGIApp,
        credentials: Credentials,
        host_names: Collection[str] = (),
        requests: RateLimit | None = None,
        wrong_tokens: RateLimit | None = None,
    ) -> None:
        self._app, self._credentials = app, credentials
        self._host_names = {"localhost", *(name.lower() for name in host_names)}
        self._requests = requests or RateLimit(at_once=300, per_second=50)
        self._wrong_tokens = wrong_tokens or RateLimit(at_once=10, per_second=1 / 6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            sending = _with_headers(send)
            try:
                answer = await self._admit(scope, receive)
            except _Refused as refusal:
                answer = _plain(refusal)
            await (answer or self._app)(scope, receive, sending)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _admit(self, scope: Scope, receive: Receive) -> Response | None:
        headers = Headers(scope=scope)
        port = self._port(headers.get("host", ""))
        client = (scope.get("client") or ("unknown",))[0]
        if wait := self._requests.wait(client):
            raise _Refused(429, "Too many requests from this address.", wait)
        visit = self._visit(scope, headers, client, port)
        if isinstance(visit, Response):
            return visit
        if scope["method"] == "POST":
            visit = await self._with_form(visit, headers, receive)
        elif scope["method"] not in ("GET", "HEAD"):
            raise _Refused(405, "This server takes GET, HEAD and POST.")
        scope.setdefault("state", {})["visit"] = visit
        return None

    def _port(self, host: str) -> int:
        """The port of the request, if its host may be ours."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").rstrip("."), parts.port or 80
        except ValueError:
            name, port = "", 80
        if name not in self._host_names and not _is_address(name):
            raise _Refused(403, "The server does not go by this name; its option --allow-host NAME lets it.")
        return port

    def _visit(self, scope: Scope, headers: Headers, client: str, port: int) -> Visit | Response:
        suffix = str(port)
        cookies = _cookies(headers)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        shown = [value for name, value in query if name == "token"]
        if not shown:
            session = self._credentials.session(cookies.get(f"session-{suffix}", ""))
            if session is None:
                raise _Refused(403, f"This page is only for those who have its address. {_KEY}")
            return Visit(session.form_mark, suffix, cookies, {})
        if wait := self._wrong_tokens.wait(client, spend=False):
            raise _Refused(429, "Too many wrong tokens from this address.", wait)
        if not self._credentials.admits(shown[0]):
            self._wrong_tokens.wait(client)
            raise _Refused(403, f"The token in this address is not the server's. {_KEY}")
        if scope["method"] != "GET":
            raise _Refused(403, "The token opens pages and sends nothing.")
        # Without the token, so that it stays in no history, and with one slash, so that it leads nowhere else.
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        path = "/" + scope["path"].lstrip("/\\")
        answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
        answer.set_cookie(
            f"session-{suffix}", self._credentials.new_session().cookie, httponly=True, samesite="strict", path="/"
        )
        return answer

    async def _with_form(self, visit: Visit, headers: Headers, receive: Receive) -> Visit:
        origin = headers.get("origin", "null")
        # Pages that send no referrer post their forms with the origin "null"; browsers that can say more do.
        from_here = headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
        if not (from_here if origin == "null" else urlsplit(origin).netloc == headers.get("host")):
            raise _Refused(403, "This was sent from another site, so nothing was done.")
        fields = _fields(await _body(headers, receive))
        session = self._credentials.session(visit.cookies[f"session-{visit.cookie_suffix}"])
        if session is None or not self._credentials.owns(session, fields.pop("mark", "")):
            raise _Refused(
                403, "This form is from an earlier visit, so nothing was done. Reload the page and send again."
            )
        return replace(visit, form=fields)


async def _body(headers: Headers, receive: Receive) -> bytes:
    announced = headers.get("content-length", "0")
    size = int(announced) if announced.isdecimal() else 0
    if size > _MOST_DRAINED_BYTES:
        raise _Refused(413, _too_large())
    pieces, size = list[bytes](), 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Refused(400, "The connection was closed before everything was sent, so nothing was done.")
                more = message.get("more_body", False)
                size += len(message.get("body", b""))
                # Read to the end, since browsers show no answer to what they have not sent in full.
                if size <= MAX_BODY_BYTES:
                    pieces.append(message.get("body", b""))
                elif size > _MOST_DRAINED_BYTES:
                    break
    except TimeoutError:
        raise _Refused(408, f"Not everything was sent within {_BODY_SECONDS:.0f} s, so nothing was done.") from None
    if size > MAX_BODY_BYTES:
        raise _Refused(413, _too_large())
    return b"".join(pieces)


def _too_large() -> str:
    return (
        f"The answer is too long: a form may have {MAX_BODY_BYTES:,} bytes. Nothing was kept; the text is still where "
        "it was typed, so go back and shorten it."
    )


def _fields(body: bytes) -> dict[str, str]:
    try:
        fields = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError:
        raise _Refused(400, "The form cannot be read, so nothing was done.") from None
    return {name: value.replace("\r\n", "\n") for name, value in fields}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookies(headers: Headers) -> dict[str, str]:
    found: SimpleCookie = SimpleCookie()
    try:
        for header in headers.getlist("cookie"):
            found.load(header)
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in found.items()}


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return sending


def _plain(refusal: _Refused) -> Response:
    """A page without anything that would have to be fetched."""
    wait = f" Try again in {ceil(refusal.wait_seconds)} s." if refusal.wait_seconds else ""
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta name="color-scheme" content="light dark"><title>{refusal.status}</title>'
        f"<main><h1>{refusal.status}</h1><p data-problem>{escape(refusal.sentence)}{wait}</p></main>"
    )
    headers = {"Retry-After": str(ceil(refusal.wait_seconds))} if refusal.wait_seconds else None
    return HTMLResponse(page, refusal.status, headers)
