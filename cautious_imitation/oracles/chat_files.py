"""Answers as demonstrations: a log written as chats, one a line, read back from them, and as exact symbols."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from itertools import count
from os import PathLike
from typing import Any

import numpy as np

from cautious_imitation.atomic_files import replacing
from cautious_imitation.demonstrations import Demonstrations, actor_codes, read_chats
from cautious_imitation.oracles.answer_lines import read_line, written_line
from cautious_imitation.oracles.entries import (
    Entry,
    Status,
    checksum,
    read_entry,
    same_question,
    written_answer,
    written_query,
)
from cautious_imitation.oracles.log import QueryLog
from cautious_imitation.oracles.protocol import Act, AnswerConflict, Query, check_answer
from cautious_imitation.oracles.vocabulary import Vocabulary, as_vocabulary
from cautious_imitation.types import Actor

_AT_ONCE = 500


def export_chats(
    log: QueryLog,
    path: str | PathLike[str],
    *,
    asker: str | None = None,
    vocabulary: Any = None,
    declined: bool = False,
) -> int:
    """Write every answered question as a chat, one a line, in the order in which they were asked.

    The answer is the agent's message at the end. Only what the oracle said is learned from it: the agent's earlier
    messages have weight 0, an unfinished reply counts as given, and a reply that the answer does not end is unfinished
    (see ``Message``). Answers that are no evidence have weight 0. ``Demonstrations.from_chats`` and ``tokenized_chats``
    read the file, and so does ``import_chats``, for which further keys say exactly what was asked and answered.

    A question that is no conversation becomes a message of the other speaker, its text. Symbols whose text nobody knows
    are written as numbers.

    Args:
        log: questions and answers.
        path: the file, replaced in one step.
        asker: only questions of this run.
        vocabulary: how actions are written (see ``as_vocabulary``); a language model's tokenizer if it is one's log.
        declined: also questions that were declined, with weight 0.

    Returns:
        How many lines there are.

    Raises:
        ValueError: if an action that belongs into a conversation cannot be written; names the question.
        OSError: if the file cannot be written.

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = tempfile.TemporaryDirectory()
    >>> log = QueryLog(Path(folder.name, "questions.db"))
    >>> log.post([Query((0, 1), n_actions=3, id="a")])
    >>> log.answer("a", Act((2,)), by="Ada")
    True
    >>> path = Path(folder.name, "answers.jsonl")
    >>> export_chats(log, path, vocabulary=["red", "green", "blue"])
    1
    >>> [(message.role, message.content) for _, chat in read_chats(path) for message in chat.messages]
    [('user', 'red, green'), ('assistant', 'blue')]
    >>> demonstrations(log)
    Demonstrations(1 sequence, 3 symbols: 1 demonstrator, 2 environment)
    >>> log.close(); folder.cleanup()
    """
    known = as_vocabulary(vocabulary)
    n_lines = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as lines:
        for entry in _settled(log, asker, declined):
            lines.write(written_line(entry, known) + "\n")
            n_lines += 1
    return n_lines


def import_chats(log: QueryLog, path: str | PathLike[str], *, by: str | None = None) -> int:
    """Read what ``export_chats`` wrote into a log: all of it, or nothing if a line cannot be read.

    Questions that the log has already are answered, and what is answered already is left as it is.

    Args:
        log: where questions and answers go.
        path: the file.
        by: who the answers are by; None for whoever the file names.

    Returns:
        How many answers are new.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no chat, or one that no export wrote; if an answer holds something that is no action
            (``OracleError``); or if a question has another answer in the log, is another one, or somebody is at it
            (``AnswerConflict``). The message names path and line.
    """
    # All lines are read before anything is written.
    entries = [(where, read_line(chat, where, by)) for where, chat in read_chats(path)]
    with log.database.writing() as connection:
        return sum(_restored(log, connection, entry, where) for where, entry in entries)


def demonstrations(log: QueryLog, *, asker: str | None = None, vocabulary: Any = None) -> Demonstrations:
    """Answers as exact symbols: a sequence an answer, with the context as the environment's doing.

    Args:
        log: questions and answers; only answers that are evidence count.
        asker: only questions of this run.
        vocabulary: how symbols are written (see ``as_vocabulary``); for replies in words, which only whoever asked can
            turn into actions.

    Raises:
        ValueError: if there is no answer to learn from; or if one is in words and there is no vocabulary, or it cannot
            write them.
    """
    known = as_vocabulary(vocabulary)
    environment, demonstrator = actor_codes([Actor.ENVIRONMENT, Actor.DEMONSTRATOR])
    sequences, actors = [], []
    for entry in _settled(log, asker, declined=False):
        if not isinstance(entry.answer, Act) or not entry.answer.evidence:
            continue
        actions = _actions(entry.query, entry.answer, known)
        sequences.append(np.array([*entry.query.context, *actions], dtype=np.int64))
        actors.append(np.repeat([environment, demonstrator], [len(entry.query.context), len(actions)]))
    if not sequences:
        whose = "" if asker is None else f" of {asker!r}"
        raise ValueError(f"{log.path} holds no answer to a question{whose} that may be learned from")
    return Demonstrations(tuple(sequences), tuple(actors))


def _settled(log: QueryLog, asker: str | None, declined: bool) -> Iterator[Entry]:
    wanted = {Status.ANSWERED, Status.DECLINED} if declined else {Status.ANSWERED}
    # A page at a time, since all questions with all that was plausible may be more than fits the memory.
    for offset in count(0, _AT_ONCE):
        entries = log.entries(asker=asker, limit=_AT_ONCE, offset=offset)
        yield from (entry for entry in entries if entry.status in wanted)
        if len(entries) < _AT_ONCE:
            return


def _actions(query: Query, act: Act, vocabulary: Vocabulary | None) -> tuple[int, ...]:
    if act.text is None:
        return act.actions
    if vocabulary is None:
        raise ValueError(
            f"the answer to question {query.id!r} is in words, {act.text[:40]!r}, and only who asked knows which "
            "actions they are; pass vocabulary=..., the tokenizer or the names that the imitator has"
        )
    try:
        actions = vocabulary.reply(query.context, act.text)
    except ValueError as error:
        raise ValueError(f"the answer to question {query.id!r} cannot be written in actions: {error}") from error
    check_answer(Act(actions), query)
    return actions


def _restored(log: QueryLog, connection: sqlite3.Connection, entry: Entry, where: str) -> bool:
    """Put a settled question into the log, within a transaction; whether its answer is new."""
    query, name = entry.query, f"{where}: question {entry.query.id!r}"
    assert entry.answer is not None, "every line holds an answer"
    try:
        written, answer = written_query(query), written_answer(entry.answer)
    except ValueError as error:
        raise type(error)(f"{where}: {error}") from error
    who = entry.answered_by or ""
    sums = checksum(query.id, query.asker, written), checksum(query.id, who, answer)
    settled = (entry.status.value, answer, sums[1], who, entry.answered_at, entry.seconds, who)
    row = connection.execute("SELECT * FROM queries WHERE id = ?", (query.id,)).fetchone()
    if row is None:
        connection.execute(
            "INSERT INTO queries (id, asker, episode, query, query_sum, posted_at, deadline, status, answer, "
            "answer_sum, answered_by, answered_at, seconds, claimed_by) "
            f"VALUES ({', '.join('?' * 14)})",
            (query.id, query.asker, query.episode, written, sums[0], entry.posted_at, query.deadline, *settled),
        )
        return True
    if not same_question(row["query"], written):
        raise AnswerConflict(f"{name} is another one in {log.path}; import into a log of its own")
    known = read_entry(row, log.path, time.time())
    if known.answer == entry.answer:
        return False
    if known.answer is not None:
        raise AnswerConflict(
            f"{name} has another answer in {log.path}, by {known.answered_by!r}; take the line out, or import into a "
            "log of its own"
        )
    if known.status is Status.CLAIMED and known.claimed_by != entry.answered_by:
        raise AnswerConflict(f"{name} is being answered by {known.claimed_by!r}; import again later")
    if known.taken_at is not None:
        raise AnswerConflict(f"{name} has expired, and the run went on without an answer; take the line out")
    connection.execute(
        "UPDATE queries SET status = ?, answer = ?, answer_sum = ?, answered_by = ?, answered_at = ?, seconds = ?, "
        "claimed_by = ?, lease_until = NULL WHERE id = ?",
        (*settled, query.id),
    )
    return True
