"""Questions and answers that survive whatever happens to those who ask and those who answer."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from cautious_imitation.oracles.entries import (
    STATUS_NOW,
    STORED_AS,
    Entry,
    LogStatistics,
    Status,
    check_free,
    check_same,
    checksum,
    read_answer,
    read_entry,
    read_query,
    says,
    written_answer,
    written_query,
)
from cautious_imitation.oracles.leased_log import LeasedLog
from cautious_imitation.oracles.protocol import Answer, AnswerConflict, Decline, Query, UnknownQuery, check_answer

__all__ = ["Entry", "LogStatistics", "QueryLog", "Status"]


class QueryLog(LeasedLog):
    """A queue of questions in one file, for any number of processes that ask and people who answer.

    A question is open until somebody claims it, for as long as the lease lasts, and answers or declines it; it expires
    if its deadline passes. Every method is one transaction: when it returns, the file has it for good, and when the
    process is killed before that, the file is as it was. That holds for power cuts too, but for claims, which are not
    worth a wait for the disk: one that is lost leaves the question open.

    Args:
        path: the file; made if there is none. Its folder has to exist. ``":memory:"`` keeps no file.
        lease_seconds: how long a claim keeps others away.
        busy_seconds: how long to wait while others write.
        clock: seconds since 1970.

    Raises:
        LogError: from any method, if the file cannot be read or written.
        ValueError: if ``lease_seconds`` is not positive and finite, or ``busy_seconds`` negative.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from cautious_imitation.oracles.protocol import Act
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

    def post(self, queries: Iterable[Query]) -> None:
        """Ask questions; one that is there already is not asked twice.

        Raises:
            AnswerConflict: if a question of the same id is there, and is another one.
            ValueError: if a question holds what cannot be kept, such as a probability that is not a number.
        """
        now = self._clock()
        rows = [(query, written_query(query)) for query in queries]
        if not rows:
            return
        with self.database.writing() as connection:
            for query, written in rows:
                added = connection.execute(
                    "INSERT INTO queries (id, asker, episode, query, query_sum, posted_at, deadline) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                    (
                        query.id,
                        query.asker,
                        query.episode,
                        written,
                        checksum(query.id, query.asker, written),
                        now,
                        query.deadline,
                    ),
                )
                if not added.rowcount:
                    check_same(self._row(connection, query.id), written, self.path)

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
        with self._changing(now, durable=False) as connection:
            if id is None:
                row = self._oldest_open(connection, now, asker, skip)
                if row is None:
                    return None
            else:
                row = self._row(connection, id)
                check_free(row, by, now)
            renews = row["status"] == "claimed" and row["claimed_by"] == by and row["lease_until"] > now
            connection.execute(
                "UPDATE queries SET status = 'claimed', claimed_by = ?, claimed_at = ?, lease_until = ? WHERE seq = ?",
                (by, row["claimed_at"] if renews else now, now + self.lease_seconds, row["seq"]),
            )
            return read_query(row, self.path)

    def release(self, id: str, by: str) -> None:
        """Give a claimed question back; nothing happens if ``by`` does not have it.

        Raises:
            UnknownQuery: if there is no question ``id``.
        """
        with self._changing(self._clock(), durable=False) as connection:
            self._row(connection, id)
            connection.execute(
                "UPDATE queries SET status = 'open', claimed_by = NULL, claimed_at = NULL, lease_until = NULL "
                "WHERE id = ? AND status = 'claimed' AND claimed_by = ?",
                (id, by),
            )

    def answer(self, id: str, answer: Answer, by: str) -> bool:
        """Answer or decline a question. It need not be claimed, but nobody else may have it.

        After the deadline an answer is still taken, by whoever it is, until the run goes on without.

        Returns:
            Whether the answer is new; False if the question has this very answer already.

        Raises:
            UnknownQuery: if there is no question ``id``.
            AnswerConflict: if there is another answer, somebody else is at the question, or the run went on without.
            OracleError: if the answer holds something that is no action, or that cannot be kept.
        """
        now = self._clock()
        with self._changing(now) as connection:
            row = self._row(connection, id)
            check_answer(answer, read_query(row, self.path))
            written = written_answer(answer)
            if read_answer(row, self.path) == answer:
                return False
            # Late, but better than no answer as long as the run has not gone on.
            if row["status"] != "expired" or row["taken_at"] is not None:
                check_free(row, by, now)
            began = row["claimed_at"] if row["claimed_by"] == by else row["posted_at"]
            connection.execute(
                "UPDATE queries SET status = ?, answer = ?, answer_sum = ?, answered_by = ?, answered_at = ?, "
                "seconds = ?, claimed_by = ?, lease_until = NULL WHERE seq = ?",
                (
                    "declined" if isinstance(answer, Decline) else "answered",
                    written,
                    checksum(id, by, written),
                    by,
                    now,
                    max(0.0, now - began),
                    by,
                    row["seq"],
                ),
            )
            return True

    def undo(self, id: str, by: str) -> None:
        """Take one's answer back; the question is claimed again, or has expired if its deadline has passed.

        Raises:
            UnknownQuery: if there is no question ``id``.
            AnswerConflict: if the answer is somebody else's, there is none, or the run has gone on with it.
        """
        now = self._clock()
        with self._changing(now) as connection:
            row = self._row(connection, id)
            if row["answer"] is None or row["answered_by"] != by:
                raise AnswerConflict(f"question {id!r} has no answer of {by!r} that could be undone")
            if row["taken_at"] is not None:
                raise AnswerConflict(f"the answer to question {id!r} cannot be undone: the run has gone on with it")
            connection.execute(
                "UPDATE queries SET status = 'claimed', answer = NULL, answer_sum = NULL, answered_by = NULL, "
                "answered_at = NULL, seconds = NULL, claimed_by = ?, claimed_at = ?, lease_until = ? WHERE seq = ?",
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
        with self.database.reading() as connection:
            found, fresh = self._to_take(connection, wanted, now)
        if fresh:
            with self._changing(now) as connection:
                # Looked at again: an answer that was undone in between is none.
                found, fresh = self._to_take(connection, wanted, now)
                connection.executemany("UPDATE queries SET taken_at = ? WHERE id = ?", [(now, id) for id in fresh])
        return found

    def entry(self, id: str) -> Entry:
        """The question ``id`` and what became of it.

        Raises:
            UnknownQuery: if there is none.
        """
        with self.database.reading() as connection:
            return read_entry(self._row(connection, id), self.path, self._clock())

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
            search: only those whose id, text or conversation contains this, in whatever case.
            limit: at most so many.
            offset: after so many others.

        Raises:
            ValueError: if there is no such status, or a number is negative.
        """
        if offset < 0 or (limit is not None and limit < 0):
            raise ValueError(f"limit and offset must be at least 0, got {limit!r} and {offset!r}; None sets no limit")
        now = self._clock()
        source, conditions = "queries", ["1"]
        if status is not None:
            status, source = Status(status), "queries INDEXED BY queries_by_status"
            # What is stored, which the index knows, before what has become of it since.
            conditions += [f"status IN ({STORED_AS[status]})", f"{STATUS_NOW} = :status"]
        if asker is not None:
            conditions.append("asker = :asker")
        if search:
            conditions.append("says(id, query, :search)")
        values = {"now": now, "status": status, "asker": asker, "search": search, "offset": offset}
        values["limit"] = -1 if limit is None else limit
        with self.database.reading() as connection:
            connection.create_function("says", 3, says, deterministic=True)
            rows = connection.execute(
                f"SELECT * FROM {source} WHERE {' AND '.join(conditions)} ORDER BY seq LIMIT :limit OFFSET :offset",
                values,
            ).fetchall()
        return [read_entry(row, self.path, now) for row in rows]

    def statistics(self, asker: str | None = None) -> LogStatistics:
        """Counts and times over all questions, or those of one run."""
        whose = "1" if asker is None else "asker = :asker"
        values = {"now": self._clock(), "asker": asker}
        with self.database.reading() as connection:
            groups = connection.execute(
                f"SELECT {STATUS_NOW} AS status, answered_by, count(*) AS n FROM queries WHERE {whose} GROUP BY 1, 2",
                values,
            ).fetchall()
            seconds = connection.execute(
                f"SELECT seconds FROM queries WHERE status = 'answered' AND {whose} ORDER BY seconds", values
            ).fetchall()
            dependent = connection.execute(
                f"SELECT count(*) AS n FROM queries WHERE answer IS NOT NULL "
                f"AND NOT json_extract(answer, '$.independent') AND {whose}",
                values,
            ).fetchone()
        counts, by_person = dict.fromkeys(Status, 0), Counter[str]()
        for row in groups:
            counts[Status(row["status"])] += row["n"]
            if row["answered_by"] is not None:
                by_person[row["answered_by"]] += row["n"]
        middle = [row["seconds"] for row in seconds[(len(seconds) - 1) // 2 : len(seconds) // 2 + 1]]
        return LogStatistics(
            counts,
            dict(sorted(by_person.items(), key=lambda person: (-person[1], person[0]))),
            sum(middle) / len(middle) if middle else None,
            # A question that nobody answered in time may be one whose answer was hard to give.
            dependent["n"] + counts[Status.EXPIRED],
        )

    def askers(self) -> list[str]:
        """The runs that asked, by name."""
        with self.database.reading() as connection:
            return [row["asker"] for row in connection.execute("SELECT DISTINCT asker FROM queries ORDER BY asker")]

    @contextmanager
    def _changing(self, now: float, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction, in which deadlines that have passed are known."""
        with self.database.writing(durable=durable) as connection:
            # By its name, since SQLite would rather go through all open questions.
            connection.execute(
                "UPDATE queries INDEXED BY queries_by_deadline SET status = 'expired', lease_until = NULL "
                "WHERE deadline IS NOT NULL AND status IN ('open', 'claimed') AND deadline <= ?",
                (now,),
            )
            yield connection

    def _row(self, connection: sqlite3.Connection, id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute("SELECT * FROM queries WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise UnknownQuery(f"no question {id!r} in {self.path}; ids are those of the queries that were posted")
        return row

    def _oldest_open(
        self, connection: sqlite3.Connection, now: float, asker: str | None, skip: Collection[str]
    ) -> sqlite3.Row | None:
        whose = "" if asker is None else "AND asker = :asker "
        if skip:
            whose += "AND id NOT IN (SELECT value FROM json_each(:skip)) "
        values = {"now": now, "asker": asker, "skip": json.dumps(list(skip))}
        # Two questions to the index rather than one that it cannot answer; that of askers has all their answers too.
        oldest = [
            connection.execute(
                f"SELECT * FROM queries INDEXED BY queries_by_status WHERE {which} {whose}ORDER BY seq LIMIT 1", values
            ).fetchone()
            for which in ("status = 'open'", "status = 'claimed' AND lease_until <= :now")
        ]
        return min((row for row in oldest if row is not None), key=lambda row: row["seq"], default=None)

    def _to_take(
        self, connection: sqlite3.Connection, wanted: Sequence[str], now: float
    ) -> tuple[dict[str, Answer], list[str]]:
        """The answers that there are, in the order of ``wanted``, and the ids of those that were not taken before."""
        rows = connection.execute(
            f"SELECT id, {STATUS_NOW} AS current, answer, answer_sum, answered_by, taken_at FROM queries "
            "WHERE id IN (SELECT value FROM json_each(:wanted))",
            {"now": now, "wanted": json.dumps(wanted)},
        ).fetchall()
        by_id = {row["id"]: row for row in rows}
        found, fresh = dict[str, Answer](), list[str]()
        for id in wanted:
            row = by_id[id] if id in by_id else self._row(connection, id)
            answer = read_answer(row, self.path)
            if answer is None and row["current"] == "expired":
                answer = Decline("nobody answered before the deadline")
            if answer is not None:
                found[id] = answer
                if row["taken_at"] is None:
                    fresh.append(id)
        return found, fresh
