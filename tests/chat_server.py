"""A chat completions server on this machine that says and does what a test tells it to, over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends: the body as it is, cut short or not at all, with ``Content-Length`` unless it is cut."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    hang_up: bool = False


def completion(content: str | None, finish_reason: str | None = "stop", **message: Any) -> Reply:
    """A chat completion, as servers send it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    whole = {"id": "c", "object": "chat.completion", "choices": [{**choice, "finish_reason": finish_reason}]}
    return Reply(json.dumps(whole).encode())


def complaint(status: int, message: str, **headers: str) -> Reply:
    """An error, as servers send it."""
    return Reply(json.dumps({"error": {"message": message}}).encode(), status, headers)


class ChatServer(ThreadingHTTPServer):
    """Answers each request with what ``script(body)`` makes of it, and counts."""

    daemon_threads = True

    def __init__(self, script: Callable[[Any], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.lock = threading.Lock()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some of the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.server.paths.append(self.path)
        reply = self.server.script(body)
        # A connection that stays open without saying so would be lost in the middle of the next request.
        self.close_connection = reply.hang_up or reply.announced is not None
        if reply.hang_up:
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name.replace("_", "-"), value)
        announced = len(reply.body) if reply.announced is None else reply.announced
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def chat_server(script: Callable[[Any], Reply]) -> Iterator[ChatServer]:
    """Serve in the background for as long as the block runs."""
    with ChatServer(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
