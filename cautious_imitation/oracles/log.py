"""Questions and answers that survive whatever happens to those who ask and those who answer."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cautious_imitation.oracles.database import Database
from cautious_imitation.oracles.protocol import (
    Act,
    Answer,
    AnswerConflict,
    Decline,
    Query,
    UnknownQuery,
    check_answer,
)

_QUERY = TypeAdapter(Query)
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Act | Decline)
_AT_ONCE = 500


class Status(StrEnum):
    """Where a question stands."""

    OPEN = "open"
    CLAIMED = "claimed"
    ANSWERED = "answered"
    DECLINED = "declined"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Entry:
    """A question in the log, and what became of it.

    Attributes:
        query: the question.
        status: a claim that has run out counts as open.
        posted_at: when it was asked, in seconds since 1970, like all times here.
        claimed_by: who is at it, or was when the answer came.
        lease_until: when the claim runs out.
        answer: None while there is none.
        answered_by: who answered or declined.
        answered_at: when.
        seconds: how long it took from the claim, or without one from the question.
        taken_at: when the run first went on with the answer; nothing can be undone after that.
    """

    query: Query
    status: Status
    posted_at: float
    claimed_by: str | None = None
    lease_until: float | None = None
    answer: Answer | None = None
    answered_by: str | None = None
    answered_at: float | None = None
    seconds: float | None = None
    taken_at: float | None = None


@dataclass(frozen=True)
class LogStatistics:
    """What is in a log.

    Attributes:
        counts: questions of each status.
        by_person: answers and declines of each who gave one.
        median_seconds: how long an answer takes, half of the time; None without answers.
        dependent_declines: declines that may have depended on what the answer would have been.
    """

    counts: dict[Status, int]
    by_person: dict[str, int]
    median_seconds: float | None
    dependent_declines: int


class QueryLog:
    """A queue of questions in one file, for any number of processes that ask and people who answer.

    A question is open until somebody claims it, for as long as the lease lasts, and answers or declines it; it expires
    if its deadline passes. Every method is one transaction: when it returns, the file has it for good, and when the
    process is killed before that, the file is as it was.

    Args:
        path: the file; made if there is none. Its folder has to exist.
        lease_seconds: how long a claim keeps others away.
        busy_seconds: how long to wait while others write.
        clock: seconds since 1970.

    Raises:
        LogError: from any method, if the file cannot be read or written.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> log = QueryLog(Path(folder.name, "questions.db"))
    >>> log.post([Query((0, 1), n_actions=3, id="a"), Query((2,), n_actions=3, id="b")])
    >>> log.claim("Ada").id, log.claim("Grace").id, log.claim("Alan")
    ('a', 'b', None)
    >>> log.answer("a", Act((2,)), by="Ada")
    True
    >>> log.entry("a").status, log.statistics().counts[Status.CLAIMED]
    (<Status.ANSWERED: 'answered'>, 1)
    >>> log.close(); folder.cleanup()
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        lease_seconds: float = 300.0,
        busy_seconds: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not lease_seconds > 0:
            raise ValueError(f"lease_seconds must be positive, got {lease_seconds!r}")
        self.database = Database(path, busy_seconds)
        self.lease_seconds = lease_seconds
        self._clock = clock

    @property
    def path(self) -> Path:
        """The file."""
        return self.database.path

    def close(self) -> None:
        """Close the file; it opens again when it is needed."""
        self.database.close()

    def post(self, queries: Iterable[Query]) -> None:
        """Ask questions; one that is there already is not asked twice.

        Raises:
            AnswerConflict: if a question of the same id is there, and is another one.
        """
        now = self._clock()
        rows = [
            (query.id, query.asker, query.episode, _QUERY.dump_json(query).decode(), now, query.deadline)
            for query in queries
        ]
        if not rows:
            return
        with self.database.writing() as connection:
            for row in rows:
                added = connection.execute(
                    "INSERT INTO queries (id, asker, episode, query, posted_at, deadline) VALUES (?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (id) DO NOTHING",
                    row,
                )
                if not added.rowcount:
                    known = connection.execute("SELECT query FROM queries WHERE id = ?", row[:1]).fetchone()["query"]
                    if not _same_question(known, row[3]):
                        raise AnswerConflict(
                            f"question {row[0]!r} is in {self.path} with another context; ids stand for one question: "
                            "name this run differently, or keep its answers in a file of its own"
                        )

    def claim(
        self, by: str, *, id: str | None = None, asker: str | None = None, skip: Collection[str] = ()
    ) -> Query | None:
        """Take the oldest open question for ``by`` alone, until it is answered or the lease runs out.

        Args:
            by: who is going to answer.
            id: this question; claiming one's own again makes the lease longer.
            asker: only a question of this run.
            skip: ids of questions that are left to others.

        Returns:
            The question, or None if there is none. With ``id`` there always is one.

        Raises:
            UnknownQuery: if there is no question ``id``.
            AnswerConflict: if somebody else is at question ``id``, or it is settled.
        """
        now = self._clock()
        with self.database.writing() as connection:
            self._expire(connection, now)
            if id is None:
                row = self._oldest_open(connection, now, asker, skip)
                if row is None:
                    return None
            else:
                row = self._row(connection, id)
                self._check_free(row, by, now)
            connection.execute(
                "UPDATE queries SET status = 'claimed', claimed_at = CASE WHEN claimed_by IS ?1 AND status = 'claimed' "
                "THEN claimed_at ELSE ?2 END, claimed_by = ?1, lease_until = ?3 WHERE seq = ?4",
                (by, now, now + self.lease_seconds, row["seq"]),
            )
            return _query(row)

    def release(self, id: str, by: str) -> None:
        """Give a claimed question back; nothing happens if ``by`` does not have it.

        Raises:
            UnknownQuery: if there is no question ``id``.
        """
        with self.database.writing() as connection:
            self._row(connection, id)
            connection.execute(
                "UPDATE queries SET status = 'open', claimed_by = NULL, claimed_at = NULL, lease_until = NULL "
                "WHERE id = ? AND status = 'claimed' AND claimed_by = ?",
                (id, by),
            )

    def answer(self, id: str, answer: Answer, by: str) -> bool:
        """Answer or decline a question. It need not be claimed, but nobody else may have it.

        Returns:
            Whether the answer is new; False if the question has this very answer already.

        Raises:
            UnknownQuery: if there is no question ``id``.
            AnswerConflict: if there is another answer, somebody else is at the question, or the run went on without.
            OracleError: if the answer holds something that is no action.
        """
        now = self._clock()
        with self.database.writing() as connection:
            row = self._row(connection, id)
            check_answer(answer, _query(row))
            given = None if row["answer"] is None else _ANSWER.validate_json(row["answer"])
            if given == answer:
                return False
            if given is None and row["status"] == "expired" and row["taken_at"] is None:
                pass  # Late, but the run has not gone on: better than no answer.
            else:
                self._check_free(row, by, now)
            began = row["claimed_at"] if row["claimed_by"] == by else row["posted_at"]
            connection.execute(
                "UPDATE queries SET status = ?, answer = ?, answered_by = ?, answered_at = ?, seconds = ?, "
                "claimed_by = ?, lease_until = NULL WHERE seq = ?",
                (
                    "declined" if isinstance(answer, Decline) else "answered",
                    _ANSWER.dump_json(answer).decode(),
                    by,
                    now,
                    max(0.0, now - began),
                    by,
                    row["seq"],
                ),
            )
            return True

    def undo(self, id: str, by: str) -> None:
        """Take one's answer back; the question is claimed again.

        Raises:
            UnknownQuery: if there is no question ``id``.
            AnswerConflict: if the answer is somebody else's, there is none, or the run has gone on with it.
        """
        now = self._clock()
        with self.database.writing() as connection:
            row = self._row(connection, id)
            if row["answer"] is None or row["answered_by"] != by:
                raise AnswerConflict(f"question {id!r} has no answer of {by!r} that could be undone")
            if row["taken_at"] is not None:
                raise AnswerConflict(f"the answer to question {id!r} cannot be undone: the run has gone on with it")
            connection.execute(
                "UPDATE queries SET status = 'claimed', answer = NULL, answered_by = NULL, answered_at = NULL, "
                "seconds = NULL, claimed_by = ?, claimed_at = ?, lease_until = ? WHERE seq = ?",
                (by, now, now + self.lease_seconds, row["seq"]),
            )

    def take(self, ids: Iterable[str]) -> dict[str, Answer]:
        """The answers that there are to questions ``ids``; from now on they are final.

        A question that has expired is declined by that.

        Raises:
            UnknownQuery: if there is no question of one of the ids.
        """
        wanted = list(dict.fromkeys(ids))
        now = self._clock()
        found: dict[str, Answer] = {}
        with self.database.reading() as connection:
            if not self._to_take(connection, wanted, now, found):
                return found
        with self.database.writing() as connection:
            self._expire(connection, now)
            fresh = self._to_take(connection, wanted, now, found)
            connection.executemany("UPDATE queries SET taken_at = ? WHERE id = ?", [(now, id) for id in fresh])
        return found

    def entry(self, id: str) -> Entry:
        """The question ``id`` and what became of it.

        Raises:
            UnknownQuery: if there is none.
        """
        with self.database.reading() as connection:
            return _entry(self._row(connection, id), self._clock())

    def entries(
        self,
        status: Status | str | None = None,
        *,
        asker: str | None = None,
        search: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Entry]:
        """Questions in the order in which they were asked.

        Args:
            status: only those.
            asker: only of this run.
            search: only those whose id, text or conversation contains this.
            limit: at most so many.
            offset: after so many others.
        """
        now = self._clock()
        conditions, values = ["1"], list[Any]()
        if status is not None:
            conditions.append(f"{_STATUS} = ?")
            values += [now, now, Status(status).value]
        if asker is not None:
            conditions.append("asker = ?")
            values.append(asker)
        if search:
            # The question is kept as JSON, in which a quotation mark in a text is escaped.
            conditions.append("(instr(lower(id), lower(?)) OR instr(lower(query), lower(?)))")
            values += [search, json.dumps(search, ensure_ascii=False)[1:-1]]
        values += [-1 if limit is None else limit, offset]
        with self.database.reading() as connection:
            rows = connection.execute(
                f"SELECT * FROM queries WHERE {' AND '.join(conditions)} ORDER BY seq LIMIT ? OFFSET ?", values
            ).fetchall()
        return [_entry(row, now) for row in rows]

    def statistics(self, asker: str | None = None) -> LogStatistics:
        """Counts and times over all questions, or those of one run."""
        now = self._clock()
        condition, values = ("asker = ?", (asker,)) if asker is not None else ("1", ())
        with self.database.reading() as connection:
            counts = connection.execute(
                f"SELECT {_STATUS} AS status, count(*) AS n FROM queries WHERE {condition} GROUP BY 1",
                (now, now, *values),
            ).fetchall()
            people = connection.execute(
                f"SELECT answered_by AS who, count(*) AS n FROM queries WHERE answer IS NOT NULL AND {condition} "
                "GROUP BY 1 ORDER BY n DESC, who",
                values,
            ).fetchall()
            seconds = connection.execute(
                f"SELECT seconds FROM queries WHERE status = 'answered' AND {condition} ORDER BY seconds", values
            ).fetchall()
            declines = connection.execute(
                f"SELECT count(*) AS n FROM queries WHERE status = 'declined' "
                f"AND NOT json_extract(answer, '$.independent') AND {condition}",
                values,
            ).fetchone()
        found = {row["status"]: row["n"] for row in counts}
        middle = [row["seconds"] for row in seconds[(len(seconds) - 1) // 2 : len(seconds) // 2 + 1]]
        return LogStatistics(
            {status: found.get(status.value, 0) for status in Status},
            {row["who"]: row["n"] for row in people},
            sum(middle) / len(middle) if middle else None,
            # A question that nobody answered in time may be one whose answer was hard to give.
            declines["n"] + found.get("expired", 0),
        )

    def askers(self) -> list[str]:
        """The runs that asked, by name."""
        with self.database.reading() as connection:
            return [row["asker"] for row in connection.execute("SELECT DISTINCT asker FROM queries ORDER BY asker")]

    def _row(self, connection: sqlite3.Connection, id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute("SELECT * FROM queries WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise UnknownQuery(f"no question {id!r} in {self.path}; ids are those of the queries that were posted")
        return row

    def _oldest_open(
        self, connection: sqlite3.Connection, now: float, asker: str | None, skip: Collection[str]
    ) -> sqlite3.Row | None:
        whose, values = ("AND asker = ?", [asker]) if asker is not None else ("", [])
        if skip:
            whose += f" AND id NOT IN ({', '.join('?' * len(skip))})"
            values += skip
        # Two questions to the index rather than one that it cannot answer.
        oldest = [
            connection.execute(
                f"SELECT * FROM queries WHERE {which} {whose} ORDER BY seq LIMIT 1", parameters
            ).fetchone()
            for which, parameters in (
                ("status = 'open'", values),
                ("status = 'claimed' AND lease_until <= ?", [now, *values]),
            )
        ]
        return min((row for row in oldest if row is not None), key=lambda row: row["seq"], default=None)

    def _check_free(self, row: sqlite3.Row, by: str, now: float) -> None:
        name = f"question {row['id']!r}"
        if row["answer"] is not None:
            raise AnswerConflict(
                f"{name} has another answer already, by {row['answered_by']!r}; it can be undone until the run goes on"
            )
        if row["status"] == "expired":
            raise AnswerConflict(f"{name} has expired, and the run went on without an answer")
        if row["status"] == "claimed" and row["claimed_by"] != by and row["lease_until"] > now:
            raise AnswerConflict(
                f"{name} is being answered by {row['claimed_by']!r}, for {row['lease_until'] - now:.0f} s more; take "
                "another one"
            )

    def _expire(self, connection: sqlite3.Connection, now: float) -> None:
        connection.execute(
            "UPDATE queries SET status = 'expired', claimed_by = NULL, lease_until = NULL "
            "WHERE deadline IS NOT NULL AND status IN ('open', 'claimed') AND deadline <= ?",
            (now,),
        )

    def _to_take(
        self, connection: sqlite3.Connection, wanted: Sequence[str], now: float, found: dict[str, Answer]
    ) -> list[str]:
        """Put answers into ``found``; the ids of those that were not taken before."""
        fresh, known = [], 0
        for begin in range(0, len(wanted), _AT_ONCE):
            some = wanted[begin : begin + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            rows = connection.execute(
                f"SELECT id, {_STATUS} AS current, answer, taken_at FROM queries WHERE id IN ({marks})",
                (now, now, *some),
            ).fetchall()
            known += len(rows)
            for row in rows:
                if row["answer"] is not None:
                    found[row["id"]] = _ANSWER.validate_json(row["answer"])
                elif row["current"] == "expired":
                    found[row["id"]] = Decline("nobody answered before the deadline")
                if row["id"] in found and row["taken_at"] is None:
                    fresh.append(row["id"])
        if known < len(wanted):
            for id in wanted:
                self._row(connection, id)
        return fresh


_STATUS = (
    "CASE WHEN status IN ('open', 'claimed') AND deadline <= ? THEN 'expired' "
    "WHEN status = 'claimed' AND lease_until <= ? THEN 'open' ELSE status END"
)
"""The status as of now, which is given twice."""


def _query(row: sqlite3.Row) -> Query:
    return _QUERY.validate_json(row["query"])


def _entry(row: sqlite3.Row, now: float) -> Entry:
    status = Status(row["status"])
    if status in (Status.OPEN, Status.CLAIMED) and row["deadline"] is not None and row["deadline"] <= now:
        status = Status.EXPIRED
    elif status is Status.CLAIMED and row["lease_until"] <= now:
        status = Status.OPEN
    return Entry(
        _query(row),
        status,
        row["posted_at"],
        None if status is Status.OPEN else row["claimed_by"],
        row["lease_until"] if status is Status.CLAIMED else None,
        None if row["answer"] is None else _ANSWER.validate_json(row["answer"]),
        row["answered_by"],
        row["answered_at"],
        row["seconds"],
        row["taken_at"],
    )


def _same_question(known: str, asked: str) -> bool:
    """Whether two questions are the same; whoever asks again may have other probabilities, or more patience."""
    one, other = json.loads(known), json.loads(asked)
    return all(one[key] == other[key] for key in ("context", "n_actions", "asker", "episode"))
