"""Which of two transcripts is better, asked of people: a queue of pairs in the same kind of file as the questions."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import uuid4

from pydantic import TypeAdapter

from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.leased_log import LeasedLog
from cautious_imitation.oracles.protocol import AnswerConflict, UnknownQuery


class Verdict(StrEnum):
    """Which transcript of a pair is better."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"


@dataclass(frozen=True)
class TranscriptPair:
    """Two transcripts to be compared.

    Attributes:
        question: what is to be judged, in words.
        first: one conversation, oldest message first.
        second: the other.
        id: stays the same for the same pair, whoever posts it again; never shared by two pairs.

    >>> pair = TranscriptPair("Which is kinder?", (), (Message(role="agent", content="Hi!"),), id="a")
    >>> pair.second[0].content
    'Hi!'
    """

    question: str
    first: tuple[Message, ...]
    second: tuple[Message, ...]
    id: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class Judgement:
    """A pair in the log, and what was said of it.

    Attributes:
        pair: the two transcripts.
        posted_at: when it was asked, in seconds since 1970, like all times here.
        verdict: None while there is none.
        judged_by: who gave it.
        judged_at: when.
        seconds: how long it took from the claim, or without one from the post.
        claimed_by: who is at it, while the lease lasts and there is no verdict.
        lease_until: when that runs out.
    """

    pair: TranscriptPair
    posted_at: float
    verdict: Verdict | None = None
    judged_by: str | None = None
    judged_at: float | None = None
    seconds: float | None = None
    claimed_by: str | None = None
    lease_until: float | None = None


@dataclass(frozen=True)
class JudgementCounts:
    """How far the judging is.

    Attributes:
        open: pairs that nobody has judged, claimed ones among them.
        judged: pairs that have a verdict.
        by_person: verdicts of each who gave one.
    """

    open: int
    judged: int
    by_person: dict[str, int]


class JudgementLog(LeasedLog):
    """A queue of pairs in one file, for any number of processes that post and people who judge.

    The file may be the one of a ``QueryLog``. As there, every method is one transaction.

    Args:
        path: the file; made if there is none. Its folder has to exist.
        lease_seconds: how long a claim keeps others away.
        busy_seconds: how long to wait while others write.
        clock: seconds since 1970.

    Raises:
        LogError: from any method, if the file cannot be read or written.
        ValueError: if ``lease_seconds`` is not positive and finite, or ``busy_seconds`` negative.

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = tempfile.TemporaryDirectory()
    >>> log = JudgementLog(Path(folder.name, "questions.db"))
    >>> log.post([TranscriptPair("Which reply is better?", (), (), id="a")])
    >>> log.next("Ada").id, log.next("Grace")
    ('a', None)
    >>> log.judge("a", Verdict.TIE, by="Ada")
    True
    >>> log.entry("a").verdict, log.counts().judged
    (<Verdict.TIE: 'tie'>, 1)
    >>> log.close(); folder.cleanup()
    """

    def post(self, pairs: Iterable[TranscriptPair]) -> None:
        """Ask for judgements; a pair that is there already is not asked twice.

        Raises:
            AnswerConflict: if a pair of the same id is there, and is another one. Nothing is posted then.
        """
        rows = [(pair.id, _PAIR.dump_json(pair).decode()) for pair in pairs]
        if not rows:
            return
        now = self._clock()
        with self.database.writing() as connection:
            for id, written in rows:
                added = connection.execute(
                    "INSERT INTO judgements (id, pair, posted_at) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                    (id, written, now),
                )
                if not added.rowcount and self._row(connection, id)["pair"] != written:
                    raise AnswerConflict(
                        f"pair {id!r} is in {self.path} with other transcripts or another question; ids stand for one "
                        "pair: name this one differently"
                    )

    def next(self, by: str, *, skip: Collection[str] = ()) -> TranscriptPair | None:
        """Take the oldest open pair for ``by`` alone, until it is judged or the lease runs out.

        Args:
            by: who is going to judge.
            skip: ids of pairs that are left to others.

        Returns:
            The pair, or None if there is none.
        """
        now = self._clock()
        marks = ", ".join("?" * len(skip))
        with self.database.writing(durable=False) as connection:
            row = connection.execute(
                "SELECT * FROM judgements WHERE verdict IS NULL AND (lease_until IS NULL OR lease_until <= ?) "
                f"AND id NOT IN ({marks}) ORDER BY seq LIMIT 1",
                (now, *skip),
            ).fetchone()
            if row is None:
                return None
            self._lease(connection, row, by, now)
            return _pair(row)

    def claim(self, id: str, by: str) -> TranscriptPair:
        """Take the pair ``id``; claiming one's own again makes the lease longer.

        Raises:
            UnknownQuery: if there is no such pair.
            AnswerConflict: if somebody else is at it, or it is judged.
        """
        now = self._clock()
        with self.database.writing(durable=False) as connection:
            row = self._row(connection, id)
            self._check_free(row, by, now)
            self._lease(connection, row, by, now)
            return _pair(row)

    def release(self, id: str, by: str) -> None:
        """Give a claimed pair back; nothing happens if ``by`` does not have it.

        Raises:
            UnknownQuery: if there is no pair ``id``.
        """
        with self.database.writing(durable=False) as connection:
            self._row(connection, id)
            connection.execute(
                "UPDATE judgements SET claimed_by = NULL, claimed_at = NULL, lease_until = NULL "
                "WHERE id = ? AND verdict IS NULL AND claimed_by = ?",
                (id, by),
            )

    def judge(self, id: str, verdict: Verdict | str, by: str) -> bool:
        """Judge a pair. It need not be claimed, but nobody else may have it.

        Returns:
            Whether the verdict is new; False if the pair has this very verdict already.

        Raises:
            UnknownQuery: if there is no pair ``id``.
            AnswerConflict: if there is another verdict, or somebody else is at the pair.
            ValueError: if ``verdict`` is none of "first", "second" and "tie".
        """
        verdict, now = Verdict(verdict), self._clock()
        with self.database.writing() as connection:
            row = self._row(connection, id)
            if row["verdict"] == verdict:
                return False
            self._check_free(row, by, now)
            began = row["claimed_at"] if row["claimed_by"] == by else row["posted_at"]
            connection.execute(
                "UPDATE judgements SET verdict = ?, judged_by = ?, judged_at = ?, seconds = ?, claimed_by = NULL, "
                "claimed_at = NULL, lease_until = NULL WHERE seq = ?",
                (verdict.value, by, now, max(0.0, now - began), row["seq"]),
            )
            return True

    def undo(self, id: str, by: str) -> None:
        """Take one's verdict back; the pair is claimed again.

        Raises:
            UnknownQuery: if there is no pair ``id``.
            AnswerConflict: if there is no verdict, or it is somebody else's.
        """
        now = self._clock()
        with self.database.writing() as connection:
            row = self._row(connection, id)
            if row["verdict"] is None or row["judged_by"] != by:
                raise AnswerConflict(f"pair {id!r} has no verdict of {by!r} that could be undone")
            connection.execute(
                "UPDATE judgements SET verdict = NULL, judged_by = NULL, judged_at = NULL, seconds = NULL, "
                "claimed_by = ?, claimed_at = ?, lease_until = ? WHERE seq = ?",
                (by, now, now + self.lease_seconds, row["seq"]),
            )

    def entry(self, id: str) -> Judgement:
        """The pair ``id`` and what was said of it.

        Raises:
            UnknownQuery: if there is none.
        """
        with self.database.reading() as connection:
            return _judgement(self._row(connection, id), self._clock())

    def results(self, *, limit: int | None = None, newest_first: bool = False) -> list[Judgement]:
        """The pairs that have a verdict, in the order in which they were posted.

        Args:
            limit: at most so many.
            newest_first: in the order of the verdicts instead, the last one first.
        """
        order = "judged_at DESC, seq DESC" if newest_first else "seq"
        with self.database.reading() as connection:
            rows = connection.execute(
                f"SELECT * FROM judgements WHERE verdict IS NOT NULL ORDER BY {order} LIMIT ?",
                (-1 if limit is None else limit,),
            ).fetchall()
        return [_judgement(row, self._clock()) for row in rows]

    def counts(self) -> JudgementCounts:
        """How many pairs are judged, and by whom."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT judged_by AS who, count(*) AS n FROM judgements GROUP BY 1 ORDER BY n DESC, who"
            ).fetchall()
        by_person = {row["who"]: row["n"] for row in rows if row["who"] is not None}
        n_judged = sum(by_person.values())
        return JudgementCounts(sum(row["n"] for row in rows) - n_judged, n_judged, by_person)

    def _row(self, connection: sqlite3.Connection, id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute("SELECT * FROM judgements WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise UnknownQuery(f"no pair {id!r} in {self.path}; ids are those of the pairs that were posted")
        return row

    def _check_free(self, row: sqlite3.Row, by: str, now: float) -> None:
        name = f"pair {row['id']!r}"
        if row["verdict"] is not None:
            raise AnswerConflict(
                f"{name} has the verdict {row['verdict']!r} already, by {row['judged_by']!r}, who can undo it"
            )
        if row["claimed_by"] not in (None, by) and row["lease_until"] > now:
            raise AnswerConflict(
                f"{name} is being judged by {row['claimed_by']!r}, for {row['lease_until'] - now:.0f} s more; take "
                "another one"
            )

    def _lease(self, connection: sqlite3.Connection, row: sqlite3.Row, by: str, now: float) -> None:
        began = row["claimed_at"] if row["claimed_by"] == by else now
        connection.execute(
            "UPDATE judgements SET claimed_by = ?, claimed_at = ?, lease_until = ? WHERE seq = ?",
            (by, began, now + self.lease_seconds, row["seq"]),
        )


_PAIR = TypeAdapter(TranscriptPair)


def _pair(row: sqlite3.Row) -> TranscriptPair:
    return _PAIR.validate_json(row["pair"])


def _judgement(row: sqlite3.Row, now: float) -> Judgement:
    held = row["lease_until"] is not None and row["lease_until"] > now
    return Judgement(
        _pair(row),
        row["posted_at"],
        None if row["verdict"] is None else Verdict(row["verdict"]),
        row["judged_by"],
        row["judged_at"],
        row["seconds"],
        row["claimed_by"] if held else None,
        row["lease_until"] if held else None,
    )
