"""Who may come in: the token in the address, the cookie that stands for it, and the mark that every form carries."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class Session:
    """A browser that has shown the token.

    Attributes:
        cookie: the cookie's value.
        form_mark: what its forms carry. Another site can make a browser send the cookie, but cannot know this.
    """

    cookie: str
    form_mark: str


class Credentials:
    """The token, and what follows from it. Nothing is stored, so a server that keeps its token keeps its sessions.

    Args:
        token: whoever has it may answer. None for a new one.

    Raises:
        ValueError: if the token is shorter than 16 characters, or has others than letters, digits, ``-`` and ``_``.

    >>> credentials = Credentials("correct-horse-battery")
    >>> credentials.admits("correct-horse-battery"), credentials.admits("guess")
    (True, False)
    >>> session = credentials.new_session()
    >>> credentials.session(session.cookie) == session, credentials.session("made.up")
    (True, None)
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = secrets.token_urlsafe(24) if token is None else token
        plain = self.token.replace("-", "").replace("_", "")
        if len(self.token) < MIN_TOKEN_LENGTH or not (plain.isascii() and plain.isalnum()):
            raise ValueError(
                f"token must have at least {MIN_TOKEN_LENGTH} letters, digits, - or _, got {len(self.token)} characters"
                "; leave it out for a random one"
            )
        self._key = hashlib.sha256(b"cautious-imitation console\0" + self.token.encode()).digest()

    def admits(self, token: str) -> bool:
        """Whether this is the token; takes as long for a near miss as for a far one."""
        return hmac.compare_digest(token.encode(errors="replace"), self.token.encode())

    def new_session(self) -> Session:
        """A session for a browser that has shown the token."""
        return self._session(secrets.token_urlsafe(18))

    def session(self, cookie: str) -> Session | None:
        """The session of a cookie, or None if no server with this token gave it."""
        session = self._session(cookie.partition(".")[0])
        return session if hmac.compare_digest(session.cookie.encode(), cookie.encode(errors="replace")) else None

    def owns(self, session: Session, form_mark: str) -> bool:
        """Whether a form with this mark came from a page of the session."""
        return hmac.compare_digest(form_mark.encode(errors="replace"), session.form_mark.encode())

    def _session(self, name: str) -> Session:
        return Session(f"{name}.{self._digest('cookie', name)}", self._digest("form", name))

    def _digest(self, purpose: str, name: str) -> str:
        return hmac.new(self._key, f"{purpose}:{name}".encode(errors="replace"), hashlib.sha256).hexdigest()
