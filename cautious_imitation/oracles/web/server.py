"""Serving the console from one process: a socket, what is printed about it, and the end of it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Collection, Iterator

import uvicorn
from rich.console import Console
from rich.text import Text

from cautious_imitation.oracles.judgements import JudgementLog
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.web.application import console_app
from cautious_imitation.oracles.web.credentials import Credentials

_MOST_CONNECTIONS = 512
_SHUTDOWN_SECONDS = 3


def serve(
    log: QueryLog,
    judgements: JudgementLog,
    *,
    host: str,
    port: int,
    host_names: Collection[str],
    token: str | None,
    console: Console,
) -> None:
    """Serve until Ctrl-C or SIGTERM. Requests that are under way are finished.

    Args:
        log: the questions.
        judgements: the pairs.
        host: address to listen at.
        port: 0 for a free one.
        host_names: names under which the server may be addressed, beside ``localhost`` and plain addresses.
        token: what lets in; None for a new one.
        console: where the address is printed.

    Raises:
        OSError: if the address cannot be listened at.
        ValueError: if the token is too short.
    """
    credentials = Credentials(token)
    with _listening(host, port) as listener:
        names = [*host_names, socket.gethostname(), f"{socket.gethostname()}.local"]
        config = uvicorn.Config(
            console_app(log, judgements, credentials, names),
            # The access log has addresses, and the first one has the token.
            access_log=False,
            log_level="warning",
            lifespan="off",
            ws="none",
            # Nobody stands before this server, so nobody may say whose request it passes on.
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=20,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        _announce(console, log, host, listener.getsockname()[1], credentials.token)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    console.print(f"Stopped; every answer that was acknowledged is in {log.path}", soft_wrap=True, markup=False)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(f"host {host!r} is no address of this machine: {error.strerror}; try 127.0.0.1") from None
    with socket.socket(family, kind, protocol) as listener:
        if os.name == "posix":
            # A server that was killed may be started again at once.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
        except OSError as error:
            raise OSError(_why(error, host, port)) from None
        listener.listen(_MOST_CONNECTIONS)
        yield listener


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use at {host}, maybe by another console; --port 0 takes a free one"
    if error.errno == errno.EACCES:
        return f"port {port} is kept for the system; take one above 1023, or --port 0 for a free one"
    return f"host {host!r} cannot be listened at: {error.strerror}; 127.0.0.1 is this machine alone"


def _announce(console: Console, log: QueryLog, host: str, port: int, token: str) -> None:
    everywhere = host in ("0.0.0.0", "::", "")
    shown = "127.0.0.1" if everywhere else f"[{host}]" if ":" in host else host
    lines = [("Log ", str(log.path.resolve())), ("Open", f"http://{shown}:{port}/?token={token}")]
    if everywhere:
        lines.append(("  or", f"http://{socket.gethostname()}:{port}/?token={token}  (from elsewhere)"))
    for name, value in lines:
        # One piece a line, so that the address can be clicked and copied.
        console.print(Text.assemble((f"{name}  ", "dim"), (value, "bold")), soft_wrap=True)
    if not is_loopback(host):
        console.print(
            Text(
                f"Warning: {host} can be reached from other machines, and what is sent there and back, the address "
                "with its token included, can be read on the way. In a network that you do not trust, leave --host out "
                "and come through an SSH tunnel.",
                "yellow",
            ),
            soft_wrap=True,
        )
    console.print(Text("Whoever has the address can answer. Ctrl-C stops; nothing is lost.", "dim"), soft_wrap=True)
