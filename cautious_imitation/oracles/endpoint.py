"""Models behind an OpenAI-compatible HTTP endpoint as oracles: vLLM, llama.cpp, Ollama, OpenAI and others."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import tenacity
from pydantic import SecretStr, ValidationError

from cautious_imitation.oracles.chat_completions import (
    Choice,
    Completion,
    clipped,
    complaint,
    completions_url,
    is_loopback,
    retry_after,
)
from cautious_imitation.oracles.choices import Choices, offered, situation
from cautious_imitation.oracles.protocol import Act, Answer, Decline, HelpNeeded, OracleError, Query

if TYPE_CHECKING:
    import httpx2

CONTINUE: Mapping[str, Any] = MappingProxyType({"continue_final_message": True, "add_generation_prompt": False})
"""What tells a server to go on with the last message. One that does not know how must not begin a new reply instead:
OpenAI's refuses it, older ones of llama.cpp and Ollama's ignore it and go on in any case."""

_AGENT = "assistant"
_TRY_AGAIN = {408, 409, 425, 429}
_MOST_BYTES = 1_000_000
_CONNECT_SECONDS = 10.0
_LEAST_SECRET = 6
_SERVER_ERROR = 500
_TOO_LATE = "nobody answered before the deadline"


class EndpointError(OSError):
    """The endpoint refuses a question, and would refuse it again; says what it said."""


class EndpointOracle:
    """Asks a model behind a chat completions endpoint.

    A question with a conversation is sent as it is, and the answer is the rest of the agent's reply in words:
    ``Act(text=...)``, empty if the model has nothing to say. Any other question is put as a numbered list of actions,
    and the answer must be one of the numbers or texts and nothing else. What is no such answer, a reply that was cut
    off, a refusal and a body of more than 1 MB are declined, with the reason.

    Too many requests, server errors and lost connections are tried again, with longer and longer pauses or after
    ``Retry-After``. If that does not help, ``HelpNeeded`` is raised with what has no answer; answers that did come are
    kept for when the same questions are asked again. Redirects are not followed.

    Args:
        url: where the API begins, such as ``http://127.0.0.1:8000/v1``.
        model: its name there.
        key_variable: environment variable with the key, read whenever something is asked; without the variable, or
            with None, no key is sent.
        system: what is said to the model before anything else.
        action_names: names of the symbols, those of the actions first. Default: the texts that a query brings.
        describe: tells the context of a query that has no conversation, in words. Default: the query's own text, or
            its symbols by name.
        max_tokens: longest answer; None leaves it to the server.
        temperature: 0 for the likeliest answer, 1 to draw one from the model; None leaves it to the server.
        continuing: what a request holds in addition if the agent's reply has begun already; None declines to go on
            with it.
        body: what each request holds in addition, such as ``{"seed": 0}``.
        headers: sent in addition, and kept out of errors as the key is.
        timeout_seconds: longest time that one question may take, all attempts together; it never takes longer than to
            the query's deadline, and is declined then.
        attempts: how often a question is sent at most.
        concurrency: how many questions are under way at the same time.
        allow_plain_http: send a key or headers unencrypted to another machine.
        is_demonstrator: whether this model is the demonstrator that is imitated. If not, its answers are help but no
            evidence. If it is, they must be drawn as it acts, at its own temperature.

    Raises:
        ValueError: if an argument cannot be used.
        ImportError: if the extra ``oracle`` is not installed.

    >>> EndpointOracle("http://127.0.0.1:8000/v1", "llama", key_variable=None)
    EndpointOracle('http://127.0.0.1:8000/v1/chat/completions', model='llama')
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str | None = "OPENAI_API_KEY",
        system: str | None = None,
        action_names: Sequence[str] | None = None,
        describe: Callable[[Query], str] | None = None,
        max_tokens: int | None = 512,
        temperature: float | None = 0.0,
        continuing: Mapping[str, Any] | None = CONTINUE,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 120.0,
        attempts: int = 4,
        concurrency: int = 4,
        allow_plain_http: bool = False,
        is_demonstrator: bool = False,
    ) -> None:
        if find_spec("httpx2") is None:
            raise ImportError("EndpointOracle takes the package httpx2: pip install 'cautious-imitation[oracle]'")
        for name, count in (("attempts", attempts), ("concurrency", concurrency), ("max_tokens", max_tokens)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")
        if not 0 < timeout_seconds < math.inf:
            raise ValueError(f"timeout_seconds must be positive and finite, got {timeout_seconds!r}")
        parts = completions_url(url)
        self.url, self.model = parts.geturl(), model
        self._on_this_machine = is_loopback(parts.hostname or "")
        self._guarded = self._on_this_machine or parts.scheme == "https" or allow_plain_http
        self._key_variable, self._headers = key_variable, _checked_headers(headers or {})
        self._system, self._action_names, self._describe = system, action_names, describe
        self._continuing, self._timeout_seconds = continuing, timeout_seconds
        self._attempts, self._concurrency, self._is_demonstrator = attempts, concurrency, is_demonstrator
        settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        self._body = {name: value for name, value in settings.items() if value is not None} | dict(body or {})
        for name, value in (("body and temperature", self._body), ("continuing", dict(continuing or {}))):
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} must be what JSON can say, got {value!r}: {error}") from error
        self._kept: dict[str, Answer] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, model={self.model!r})"

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers to all ``queries``, in their order.

        Raises:
            HelpNeeded: if the endpoint cannot be reached or is overloaded; carries the questions that have no answer.
            EndpointError: if it refuses one.
            OracleError: if a question has neither a conversation nor actions with texts.
            ValueError: if the key has characters that no key has, or would be sent unencrypted to another machine.
        """
        from anyio.from_thread import start_blocking_portal

        key = self._key()
        questions = [self._question(query) for query in queries]
        known = {query.id: self._kept[query.id] for query in queries if query.id in self._kept}
        asked = [question for question in questions if question.query.id not in known]
        outcomes: list[Answer | _Failure] = []
        if asked:
            # A loop of its own in a thread: in a notebook, one is running here.
            with start_blocking_portal() as portal:
                outcomes = portal.call(self._settle, asked, key)
        failures: list[_Failure] = []
        for question, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, _Failure):
                failures.append(outcome)
            else:
                known[question.query.id] = outcome
        # The questions that failed are asked again together with these, which need not be paid for twice.
        self._kept = known if failures else {}
        for failure in failures:
            if failure.is_final:
                raise EndpointError(f"{self.url}: {failure.reason}")
        if failures:
            reason = next((failure.reason for failure in failures if failure.reason), "")
            raise HelpNeeded(
                [query for query in queries if query.id not in known],
                f"{self.url}: {reason}; ask again when it answers, what it has answered is kept",
            )
        return [known[query.id] for query in queries]

    def _key(self) -> SecretStr | None:
        key = os.environ.get(self._key_variable, "").strip() if self._key_variable else ""
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"{self._key_variable} must hold one key in ASCII, without blanks or line breaks; set it anew"
            )
        if (key or self._headers) and not self._guarded:
            raise ValueError(
                f"url must begin with https:// where a key or headers are sent to another machine, got {self.url!r}; "
                "pass key_variable=None to send none, or allow_plain_http=True in a network that you trust"
            )
        return SecretStr(key) if key else None

    def _question(self, query: Query) -> _Question:
        if query.messages:
            messages = [{"role": message.role, "content": message.content} for message in query.messages]
            if messages[-1] == {"role": _AGENT, "content": ""}:
                messages.pop()  # A reply of no words yet is not one to go on with.
            begun = bool(messages) and messages[-1]["role"] == _AGENT
            return _Question(query, self._opened(messages), dict(self._continuing or {}) if begun else {}, begun)
        choices = offered(query, self._action_names)
        told = situation(query, self._action_names, self._describe)
        content = f"So far:\n{told}\n\nWhich of these comes next?\n{choices.listed()}\n\nAnswer with its number only."
        return _Question(query, self._opened([{"role": "user", "content": content}]), {}, False, choices)

    def _opened(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """With ``system`` in front; most chat templates allow for one such message."""
        if self._system is None:
            if not messages:
                raise OracleError("the agent opens the conversation, of which nothing is known; pass system=...")
            return messages
        if not messages or messages[0]["role"] != "system":
            return [{"role": "system", "content": self._system}, *messages]
        return [{"role": "system", "content": f"{self._system}\n\n{messages[0]['content']}"}, *messages[1:]]

    async def _settle(self, questions: Sequence[_Question], key: SecretStr | None) -> list[Answer | _Failure]:
        import anyio
        import httpx2

        outcomes: list[Answer | _Failure] = [_Failure("")] * len(questions)
        slots, given_up = anyio.Semaphore(self._concurrency), False

        def signed(request: httpx2.Request) -> httpx2.Request:
            if key is not None and "Authorization" not in request.headers:
                request.headers["Authorization"] = f"Bearer {key.get_secret_value()}"
            return request

        async with (
            httpx2.AsyncClient(
                auth=signed,
                # Compressed, a small body could be a huge one.
                headers={"Accept-Encoding": "identity", "Content-Type": "application/json", **self._headers},
                timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
                limits=httpx2.Limits(max_connections=self._concurrency),
                # What goes to this machine does not go through a proxy.
                trust_env=not self._on_this_machine,
                follow_redirects=False,
            ) as client,
            anyio.create_task_group() as group,
        ):

            async def settle(place: int) -> None:
                nonlocal given_up
                async with slots:
                    if given_up:
                        return
                    outcome = await self._outcome(client, questions[place], key)
                    outcomes[place] = outcome
                    given_up |= isinstance(outcome, _Failure)

            for place in range(len(questions)):
                group.start_soon(settle, place)
        return outcomes

    async def _outcome(
        self, client: httpx2.AsyncClient, question: _Question, key: SecretStr | None
    ) -> Answer | _Failure:
        """The answer after as many attempts as it takes, or what the last one came to."""
        import anyio

        if question.has_begun and self._continuing is None:
            return Decline("the reply has begun already, and this endpoint does not go on with one", independent=True)
        deadline = question.query.deadline
        patience = math.inf if deadline is None else deadline - time.time()
        seconds = min(self._timeout_seconds, patience)
        failures: list[_Failure] = []

        async def attempt() -> Answer | _Failure:
            outcome = await self._attempt(client, question, key)
            failures.extend([outcome] if isinstance(outcome, _Failure) else [])
            return outcome

        retrying = tenacity.AsyncRetrying(
            sleep=anyio.sleep,
            stop=tenacity.stop_after_attempt(self._attempts) | tenacity.stop_before_delay(seconds),
            wait=_pause,
            retry=tenacity.retry_if_result(lambda outcome: isinstance(outcome, _Failure) and not outcome.is_final),
            retry_error_callback=lambda state: None,
        )
        with anyio.move_on_after(seconds):
            outcome: Answer | _Failure | None = await retrying(attempt)
            if outcome is not None:
                return outcome
        if len(failures) < self._attempts and patience <= self._timeout_seconds:
            return Decline(_TOO_LATE)
        if not failures:
            return _Failure(f"no answer within {seconds:g} s; raise timeout_seconds if it is that slow")
        plural = "" if len(failures) == 1 else "s"
        return _Failure(f"{failures[-1].reason} (after {len(failures)} attempt{plural})")

    async def _attempt(
        self, client: httpx2.AsyncClient, question: _Question, key: SecretStr | None
    ) -> Answer | _Failure:
        import httpx2

        content = bytearray()
        request = json.dumps({**self._body, **question.extra, "messages": question.messages})
        try:
            async with client.stream("POST", self.url, content=request) as response:
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > _MOST_BYTES:
                        break
        except httpx2.TransportError as error:
            return _Failure(self._shown(f"{type(error).__name__}: {error}", key))
        if response.is_success:
            if len(content) > _MOST_BYTES:
                return Decline(f"the answer is longer than {_MOST_BYTES} bytes")
            try:
                completion = Completion.model_validate_json(bytes(content))
            except ValidationError:
                said = self._shown(complaint(bytes(content)), key)
                return _Failure(f"the body is no chat completion: {said!r}; is this an OpenAI-compatible endpoint?")
            return self._answer(completion.choices[0], question, key)
        return self._refusal(response, bytes(content), question, key)

    def _refusal(
        self, response: httpx2.Response, content: bytes, question: _Question, key: SecretStr | None
    ) -> _Failure:
        status = response.status_code
        if response.has_redirect_location:
            where = self._shown(response.headers["location"], key)
            return _Failure(f"HTTP {status} points to {where!r}, where no key is sent; pass that as url", is_final=True)
        reason = f"HTTP {status}: {self._shown(complaint(content), key)}"
        if status in _TRY_AGAIN or status >= _SERVER_ERROR:
            return _Failure(reason, retry_after=retry_after(response.headers.get("retry-after")))
        remedy = {
            401: f"set {self._key_variable or 'a variable, name it as key_variable'} to a key that is valid there",
            403: f"the key in {self._key_variable} may not do this",
            404: "see that url is where the API begins, mostly .../v1, and that it has this model",
        }.get(status, "change the settings or the question that it complains of")
        if question.extra and status in (400, 422):
            remedy = "if it does not know how to go on with a reply, pass continuing=None, or what it takes for that"
        return _Failure(f"{reason} (question {question.query.id!r}); {remedy}", is_final=True)

    def _answer(self, choice: Choice, question: _Question, key: SecretStr | None) -> Answer:
        said = choice.message.content
        if choice.message.refusal:
            return Decline(f"the model refused: {self._shown(choice.message.refusal, key)}")
        if choice.finish_reason == "length":
            return Decline(f"the answer was cut off after max_tokens={self._body.get('max_tokens')}")
        if choice.finish_reason not in ("stop", None) or said is None:
            return Decline(f"the model said nothing in words (finish_reason {choice.finish_reason!r})")
        if question.choices is None:
            return Act(text=said, evidence=self._is_demonstrator)
        action = question.choices.chosen(said)
        if action is not None:
            return Act((action,), evidence=self._is_demonstrator)
        if question.choices.refused(said):
            return Decline("the model chose none of the actions that were offered")
        return Decline(f"could not be read as one of the actions: {self._shown(said, key)!r}")

    def _shown(self, text: str, key: SecretStr | None) -> str:
        """What somebody else wrote, for people: one line, not too long, nothing secret, no control characters."""
        secrets = [*self._headers.values(), *([] if key is None else [key.get_secret_value()])]
        return clipped(text, (secret for secret in secrets if len(secret) >= _LEAST_SECRET))


@dataclass(frozen=True)
class _Question:
    """A query as it is sent."""

    query: Query
    messages: list[dict[str, str]]
    extra: dict[str, Any]
    has_begun: bool
    choices: Choices | None = None


@dataclass(frozen=True)
class _Failure:
    """Why there is no answer, and whether there will never be one."""

    reason: str
    retry_after: float | None = None
    is_final: bool = False


_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=30.0)


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: what the server asks for, else longer and longer."""
    failure = state.outcome.result() if state.outcome is not None else None
    asked_for = failure.retry_after if isinstance(failure, _Failure) else None
    return _BACKOFF(state) if asked_for is None else asked_for


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()):
            raise ValueError(f"headers must be one line of ASCII each, which that of {name!r} is not")
    return dict(headers)
