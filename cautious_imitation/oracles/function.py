"""Functions as oracles, and the one door through which everything else becomes one: `as_oracle`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any, TypeAlias

import numpy as np

from cautious_imitation.oracles.language_model import LanguageModelOracle, is_network
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.policy import EstimatorOracle, PolicyOracle, is_estimator, is_policy
from cautious_imitation.oracles.protocol import Act, Answer, Decline, Oracle, OracleError, Query
from cautious_imitation.oracles.queued import queued

Answerer: TypeAlias = Any
"""What ``as_oracle`` accepts; see there."""

Reply: TypeAlias = "int | Sequence[int] | str | Answer | None"
"""What a function may return: actions, a whole reply in words, an ``Answer``, or None to decline."""


class FunctionOracle:
    """Asks a function one question after another.

    Args:
        function: from a ``Query`` to a ``Reply``.

    >>> FunctionOracle(lambda query: query.context[-1]).ask([Query((2, 0), 3), Query((1,), 3)])
    [Act((0,)), Act((1,))]
    """

    def __init__(self, function: Callable[[Query], Reply]) -> None:
        self.function = function

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers, in order; what the function raises goes through."""
        return [as_answer(self.function(query), query) for query in queries]


class AsyncFunctionOracle:
    """Asks an asynchronous function all questions at the same time.

    Args:
        function: from a ``Query`` to an awaitable ``Reply``.
        limit: so many questions at the same time at most; None for all of them.

    Where an event loop is running already, as in a notebook, the questions run in a loop of their own in a thread.

    >>> async def colleague(query):
    ...     await asyncio.sleep(0)
    ...     return [1, 0]
    >>> AsyncFunctionOracle(colleague).ask([Query((2,), 3)])
    [Act((1, 0))]
    """

    def __init__(self, function: Callable[[Query], Awaitable[Reply]], limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit!r}; None sets no limit")
        self.function, self.limit = function, limit

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers, in order. What the function raises goes through, once the other questions are cancelled."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._all(queries))
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(lambda: asyncio.run(self._all(queries))).result()

    async def _all(self, queries: Sequence[Query]) -> list[Answer]:
        turns = asyncio.Semaphore(self.limit or max(len(queries), 1))

        async def one(query: Query) -> Answer:
            async with turns:
                return as_answer(await self.function(query), query)

        tasks = [asyncio.ensure_future(one(query)) for query in queries]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


def as_oracle(answerer: Answerer, **options: Any) -> Oracle:
    """Make an oracle of whatever can answer.

    Args:
        answerer: one of

            - an ``Oracle``, taken as it is;
            - a function from a ``Query`` to a ``Reply``, or an asynchronous one;
            - a policy of Gymnasium or Stable-Baselines3, see ``PolicyOracle``;
            - a scikit-learn estimator, see ``EstimatorOracle``;
            - a language model of Transformers, with ``max_new_tokens=`` as an option, see ``LanguageModelOracle``;
            - a ``QueryLog``, or the path of its file: people answer in a console, see ``queued``.
        **options: those of the class that is made.

    Raises:
        TypeError: if it is none of these, or takes no such options.

    >>> as_oracle(lambda query: 1).ask([Query((0,), n_actions=2)])
    [Act((1,))]
    """
    make = _maker(answerer)
    if make is None:
        if options:
            raise TypeError(
                f"options go with what is made into an oracle, got {', '.join(options)} with a "
                f"{type(answerer).__name__}, which is one"
            )
        return answerer  # type: ignore[no-any-return]
    return make(answerer, **options)


def as_answer(reply: Reply, query: Query) -> Answer:
    """What a function returned, as an answer to ``query``.

    Raises:
        OracleError: if it cannot be one. Whether actions are in the alphabet is left to whoever asked.
    """
    if isinstance(reply, (Act, Decline)):
        return reply
    if reply is None:
        return Decline("the oracle returned None")
    if isinstance(reply, str):
        return Act(text=reply)
    values: Any = reply.tolist() if hasattr(reply, "tolist") else reply
    values = [values] if isinstance(values, (int, np.integer)) else values
    whole = isinstance(values, Sequence) and all(
        isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values
    )
    if not whole or not values:
        raise OracleError(
            f"oracle must answer with an action in 0..{query.n_actions - 1}, or with one or more of them in a row, a "
            f"reply in words, or None to decline, got {reply!r}"
        )
    return Act(tuple(int(value) for value in values))


def _maker(answerer: Answerer) -> Callable[..., Oracle] | None:
    """What makes an oracle of ``answerer``; None if it is one."""
    if callable(getattr(answerer, "ask", None)):
        return None
    if isinstance(answerer, (str, PathLike, QueryLog)):
        return queued
    if is_network(answerer):
        return LanguageModelOracle
    if is_estimator(answerer):
        return EstimatorOracle
    if is_policy(answerer):
        return PolicyOracle
    if callable(answerer):
        asynchronous = inspect.iscoroutinefunction(answerer) or inspect.iscoroutinefunction(type(answerer).__call__)
        return AsyncFunctionOracle if asynchronous else FunctionOracle
    raise TypeError(
        f"oracle must be a function, an object with ask(queries), a policy with predict(observation), a scikit-learn "
        f"estimator, a language model or the path of a log of questions, got {answerer!r}"
    )
