"""Answers that are kept, and answers that are given again: `recorded` and `replay`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from cautious_imitation.oracles.function import Answerer, as_oracle
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import (
    Act,
    Answer,
    AnswerConflict,
    HelpNeeded,
    Oracle,
    Query,
    UnknownQuery,
    check_answers,
)
from cautious_imitation.oracles.queued import Log, opened

Match: TypeAlias = Literal["id", "context"]


def recorded(oracle: Answerer, log: Log, by: str = "oracle") -> Oracle:
    """Writes every question and answer to a log; a question that has an answer there is not asked again.

    So a run that is repeated after its process died asks only what it had not asked before. Other combinators go
    inside, so that what they decide is what is recorded.

    Args:
        oracle: who is asked.
        log: the log, or the path of its file.
        by: whose answers they are, in the log.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> log = QueryLog(f"{folder.name}/questions.db")
    >>> asked = []
    >>> oracle = recorded(lambda query: asked.append(query.id) or 1, log)
    >>> query = Query((0,), n_actions=2)
    >>> oracle.ask([query]) == oracle.ask([query]), len(asked)
    (True, 1)
    >>> log.close(); folder.cleanup()
    """
    return _Recorded(as_oracle(oracle), opened(log), by)


def replay(log: Log, match: Match = "id") -> Oracle:
    """Gives the answers that a log holds, and asks nobody.

    Args:
        log: the log, or the path of its file.
        match: ``"id"`` for the answer to this very question, so that a run can be repeated; ``"context"`` for the first
            answer at this context, whoever asked, so that other imitators can be tried with the same answers. Those
            come with ``evidence=False``, since they are repeated.

    ``ask`` raises ``UnknownQuery`` if there is no such question, and ``HelpNeeded`` if it is not answered.

    Raises:
        ValueError: if ``match`` is neither.
    """
    if match not in get_args(Match):
        raise ValueError(f'match must be "id" or "context", got {match!r}')
    return _ById(opened(log)) if match == "id" else _ByContext(opened(log))


class _Recorded:
    def __init__(self, oracle: Oracle, log: QueryLog, by: str) -> None:
        self._oracle, self._log, self._by = oracle, log, by

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        self._log.post(queries)
        answers = self._log.take(query.id for query in queries)
        new = [query for query in queries if query.id not in answers]
        if new:
            for query, answer in zip(new, check_answers(self._oracle.ask(new), new), strict=True):
                self._keep(query, answer)
            answers |= self._log.take(query.id for query in new)
        return [answers[query.id] for query in queries]

    def _keep(self, query: Query, answer: Answer) -> None:
        try:
            self._log.answer(query.id, answer, self._by)
        except AnswerConflict:
            # Somebody was quicker, in a console or in another process: the answer that is there counts.
            if self._log.entry(query.id).answer is None:
                raise


class _ById:
    def __init__(self, log: QueryLog) -> None:
        self._log = log

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        answers = self._log.take(query.id for query in queries)
        waiting = [query for query in queries if query.id not in answers]
        if waiting:
            raise HelpNeeded(waiting, f"it was never answered in {self._log.path}")
        return [answers[query.id] for query in queries]


class _ByContext:
    def __init__(self, log: QueryLog) -> None:
        self._known: dict[tuple[int, ...], Answer] = {}
        self._path = log.path
        for entry in log.entries():
            if entry.answer is not None:
                self._known.setdefault(entry.query.context, entry.answer)

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        found: list[Answer] = []
        for query in queries:
            if query.context not in self._known:
                raise UnknownQuery(
                    f"no answer at context {query.context} in {self._path}; first_of(...) does not help with questions "
                    "that were never asked, recorded(oracle, log) asks them"
                )
            answer = self._known[query.context]
            found.append(replace(answer, evidence=False) if isinstance(answer, Act) else answer)
        return found
