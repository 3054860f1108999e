"""A question in a log and what became of it, as it stands in the file and as it is shown."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from pydantic import TypeAdapter, ValidationError

from cautious_imitation.oracles.database import LogError
from cautious_imitation.oracles.protocol import Act, Answer, AnswerConflict, Decline, OracleError, Query

_QUERY = TypeAdapter(Query)
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Act | Decline)

T = TypeVar("T")

STATUS_NOW = (
    "CASE WHEN status IN ('open', 'claimed') AND deadline <= :now THEN 'expired' "
    "WHEN status = 'claimed' AND lease_until <= :now THEN 'open' ELSE status END"
)
"""The status as of now, which is the parameter ``:now``: what is written may not have been looked at since."""


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
        dependent_answers: questions that were answered or declined in a way that may depend on what the answer is,
            and those that expired; see ``certify``.
    """

    counts: dict[Status, int]
    by_person: dict[str, int]
    median_seconds: float | None
    dependent_answers: int


STORED_AS = {
    Status.OPEN: "'open', 'claimed'",
    Status.CLAIMED: "'claimed'",
    Status.ANSWERED: "'answered'",
    Status.DECLINED: "'declined'",
    Status.EXPIRED: "'open', 'claimed', 'expired'",
}
"""What the file may say of a question of each status."""


def written_query(query: Query) -> str:
    """A question as the file has it.

    Raises:
        ValueError: if it could not be read back, which nobody could repair once it is in the file.
    """
    try:
        written = _QUERY.dump_json(query).decode()
        _QUERY.validate_json(written)
    except ValueError as error:
        raise ValueError(
            f"question {query.id!r} cannot be kept: {_reason(error)}; a Query is made of plain finite numbers and text"
        ) from error
    return written


def written_answer(answer: Answer) -> str:
    """An answer as the file has it.

    Raises:
        OracleError: if it could not be read back as it is.
    """
    try:
        written = _ANSWER.dump_json(answer).decode()
        if _ANSWER.validate_json(written) == answer:
            return written
        reason = f"it would be read as {written}"
    except ValueError as error:
        reason = _reason(error)
    raise OracleError(f"answer {answer!r} cannot be kept: {reason}; Act and Decline are made of plain numbers and text")


def checksum(id: str, who: str, written: str) -> int:
    """Of a question and its asker, or of an answer and who gave it: differs where the disk has changed one of them."""
    return crc32(f"{id}\n{who}\n{written}".encode())


def read_query(row: sqlite3.Row, path: Path) -> Query:
    """The question of a row of the file at ``path``.

    Raises:
        LogError: if it is none.
    """
    _check_sum(row, "query", row["asker"], path)
    return _read(_QUERY, row["query"], row["id"], path)


def read_answer(row: sqlite3.Row, path: Path) -> Answer | None:
    """The answer of a row of the file at ``path``, if it has one.

    Raises:
        LogError: if it is none.
    """
    if row["answer"] is None:
        return None
    _check_sum(row, "answer", row["answered_by"], path)
    return _read(_ANSWER, row["answer"], row["id"], path)


def read_entry(row: sqlite3.Row, path: Path, now: float) -> Entry:
    """All of a row of the file at ``path``, with its status as of ``now``, in seconds since 1970.

    Raises:
        LogError: if it makes no sense.
    """
    status = Status(row["status"])
    if status in (Status.OPEN, Status.CLAIMED) and row["deadline"] is not None and row["deadline"] <= now:
        status = Status.EXPIRED
    elif status is Status.CLAIMED and row["lease_until"] <= now:
        status = Status.OPEN
    return Entry(
        read_query(row, path),
        status,
        row["posted_at"],
        None if status is Status.OPEN else row["claimed_by"],
        row["lease_until"] if status is Status.CLAIMED else None,
        read_answer(row, path),
        row["answered_by"],
        row["answered_at"],
        row["seconds"],
        row["taken_at"],
    )


def same_question(known: str, asked: str) -> bool:
    """Whether two written questions are the same; whoever asks again may have other probabilities, or more patience."""
    one, other = json.loads(known), json.loads(asked)
    return all(one[key] == other[key] for key in ("context", "n_actions", "asker", "episode"))


def check_same(row: sqlite3.Row, written: str, path: Path) -> None:
    """Let a question be asked again.

    Raises:
        AnswerConflict: if the one of the file at ``path`` is another one.
        LogError: if that one cannot be read.
    """
    read_query(row, path)
    if not same_question(row["query"], written):
        raise AnswerConflict(
            f"question {row['id']!r} is in {path} with another context; ids stand for one question: name this run "
            "differently, or keep its answers in a file of its own"
        )


def check_free(row: sqlite3.Row, by: str, now: float) -> None:
    """Let ``by`` have the question of a row that knows what has expired.

    Raises:
        AnswerConflict: if somebody else is at it, or it is settled.
    """
    name = f"question {row['id']!r}"
    if row["answer"] is not None:
        final = "; it can be undone until the run goes on" if row["taken_at"] is None else ", and the run has gone on"
        raise AnswerConflict(f"{name} has another answer already, by {row['answered_by']!r}{final}")
    if row["status"] == "expired":
        gone_on = "" if row["taken_at"] is None else ", and the run went on without an answer"
        raise AnswerConflict(f"{name} has expired{gone_on}; take another one")
    if row["status"] == "claimed" and row["claimed_by"] != by and row["lease_until"] > now:
        raise AnswerConflict(
            f"{name} is being answered by {row['claimed_by']!r}, for {row['lease_until'] - now:.0f} s more; take "
            "another one"
        )


def says(id: str, query: str, search: str) -> bool:
    """Whether the id, the text or the conversation of a written question contains ``search``, in whatever case."""
    wanted = search.casefold()
    if wanted in id.casefold():
        return True
    # Most questions say nothing of it, and need not be read to know that. Quotation marks are escaped in a text.
    if json.dumps(search, ensure_ascii=False)[1:-1].casefold() not in query.casefold():
        return False
    read = json.loads(query)
    texts = [read["text"] or "", *(message["content"] for message in read["messages"])]
    return any(wanted in text.casefold() for text in texts)


def _read(adapter: TypeAdapter[T], text: str, id: str, path: Path) -> T:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise _damaged(id, path, _reason(error)) from error


def _check_sum(row: sqlite3.Row, what: str, who: str, path: Path) -> None:
    known = row[f"{what}_sum"]
    if known is not None and known != checksum(row["id"], who, row[what]):
        raise _damaged(row["id"], path, f"the {what} is not the one that was kept")


def _damaged(id: str, path: Path, reason: str) -> LogError:
    return LogError(
        f"{path} is damaged: what it has of question {id!r} cannot be read ({reason}); go on with a copy of it"
    )


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
