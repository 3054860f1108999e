"""What OpenAI-compatible servers say over HTTP: completions, complaints, when to come again; and where they are."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, Field

_PATH = "/chat/completions"
_SHOWN_CHARACTERS = 300


class ReplyMessage(BaseModel):
    """What the model said, or that it would not."""

    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    """One answer, and why it ends where it does."""

    message: ReplyMessage
    finish_reason: str | None = None


class Completion(BaseModel):
    """The body of a chat completion, as far as it matters here."""

    choices: list[Choice] = Field(min_length=1)


def completions_url(url: str) -> SplitResult:
    """The address that questions are sent to, for an API that begins at ``url``.

    Raises:
        ValueError: if ``url`` is none of HTTP, or holds a password, which would end up in errors and logs.

    >>> completions_url("http://127.0.0.1:8000/v1/").geturl()
    'http://127.0.0.1:8000/v1/chat/completions'
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("url must not hold a user or password; pass headers={'Authorization': ...}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise ValueError(f"url must be where an API begins, like http://127.0.0.1:8000/v1, got {url!r}")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(_PATH) else path + _PATH)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("127.0.0.1.example.org")
    (True, True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def complaint(body: bytes) -> str:
    """What a server says in the body of an error: the message, where it is one of the usual shapes.

    >>> complaint(b'{"error": {"message": "no such model", "code": 404}}'), complaint(b"<h1>Bad gateway</h1>")
    ('no such model', '<h1>Bad gateway</h1>')
    """
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and name in said:
            said = said[name]
    return said if isinstance(said, str) else text


def retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, given in seconds or as a date; None if it says nothing.

    >>> retry_after("2.5"), retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after("soon")
    (2.5, 0.0, None)
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def clipped(text: str, secrets: Iterable[str] = ()) -> str:
    r"""What somebody else wrote, fit to be shown: one line, not too long, no control characters and nothing secret.

    >>> clipped("no\n\x1b[31m such key: 123456", ["123456"])
    'no [31m such key: ***'
    """
    for secret in secrets:
        text = text.replace(secret, "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"
