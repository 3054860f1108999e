"""One answer as a line of a file: a chat that ends with it, and keys that say exactly what was asked and answered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cautious_imitation.demonstrations import Chat, Message
from cautious_imitation.oracles.log import Entry, Status
from cautious_imitation.oracles.protocol import (
    Act,
    Answer,
    Decline,
    OracleError,
    PlausibleAction,
    Query,
    check_answer,
)
from cautious_imitation.oracles.vocabulary import Vocabulary, is_part_of_a_character

_AGENT, _OTHER = "assistant", "user"


class AnswerRecord(BaseModel):
    """What a line of an export holds beside ``messages``: the question and its answer, exactly.

    Attributes:
        conversation: whether the messages before the answer are the question's; else they are made from its text.
        context_text: ``Query.text``.
        declined: why there is no answer; None if there is one.
        posted_at: as in ``Entry``, like ``answered_by``, ``answered_at`` and ``seconds``.

    All others are attributes of ``Query``, ``Act`` and ``Decline``.
    """

    model_config = ConfigDict(extra="ignore")

    id: str
    asker: str
    episode: int | None = None
    context: list[int]
    n_actions: int = Field(ge=1)
    ask_probability: float = 1.0
    plausible: list[PlausibleAction] = []
    context_text: str | None = None
    conversation: bool
    deadline: float | None = None
    actions: list[int] = []
    text: str | None = None
    declined: str | None = None
    evidence: bool = True
    independent: bool = True
    posted_at: float
    answered_by: str | None = None
    answered_at: float
    seconds: float | None = None


def written_line(entry: Entry, vocabulary: Vocabulary | None) -> str:
    """The line of a settled question, without the line break.

    Raises:
        ValueError: if an action that belongs into a conversation cannot be written; names the question.
    """
    query, answer = entry.query, entry.answer
    act = answer if isinstance(answer, Act) else None
    record = AnswerRecord(
        id=query.id,
        asker=query.asker,
        episode=query.episode,
        context=list(query.context),
        n_actions=query.n_actions,
        ask_probability=query.ask_probability,
        plausible=list(query.plausible),
        context_text=query.text,
        conversation=bool(query.messages),
        deadline=query.deadline,
        actions=list(act.actions) if act else [],
        text=act.text if act else None,
        declined=answer.reason if isinstance(answer, Decline) else None,
        evidence=act is not None and act.evidence,
        independent=answer is not None and answer.independent,
        posted_at=entry.posted_at,
        answered_by=entry.answered_by,
        answered_at=entry.answered_at or entry.posted_at,
        seconds=entry.seconds,
    )
    messages = [message.model_dump(exclude_defaults=True) for message in _messages(query, act, vocabulary)]
    return json.dumps({"messages": messages, **record.model_dump()}, ensure_ascii=False)


def _messages(query: Query, act: Act | None, vocabulary: Vocabulary | None) -> list[Message]:
    """The conversation before the agent's reply, and the reply with the answer in it."""
    said, given = _asked(query, vocabulary)
    if act is None:
        text, finished = "", False
    elif act.text is not None:
        text, finished = act.text, True
    elif vocabulary is not None:
        text, finished = vocabulary.said(query.context, act.actions)
    else:
        text, finished = _listed(query, act.actions), not query.messages
    answer = Message(
        role=_AGENT,
        content=given + text,
        weight=1 if act is not None and act.evidence else 0,
        given_characters=len(given),
        unfinished=not finished,
    )
    context = [message.model_copy(update={"weight": 0}) if message.role == _AGENT else message for message in said]
    return [*context, answer]


def _asked(query: Query, vocabulary: Vocabulary | None) -> tuple[Sequence[Message], str]:
    """What was said, and the agent's unfinished reply."""
    messages: Sequence[Message] | None = query.messages
    if not messages:
        # Nobody has said anything yet, or whoever asked did not know the words.
        messages = vocabulary.conversation(query.context) if vocabulary is not None else None
    if messages is None:
        text = vocabulary.words(query.context) if vocabulary is not None else query.text
        return [Message(role=_OTHER, content=text if text is not None else _numbers(query.context))], ""
    if messages and messages[-1].role == _AGENT:
        return messages[:-1], messages[-1].content
    return messages, ""


def _listed(query: Query, actions: tuple[int, ...]) -> str:
    """Actions by the texts that came with the question."""
    texts = {plausible.action: plausible.text for plausible in query.plausible}
    words = [texts.get(action) for action in actions]
    found = [word for word in words if word is not None and not is_part_of_a_character(word)]
    if query.messages:
        if len(found) < len(words):
            raise ValueError(
                f"the answer to question {query.id!r} is the actions {actions}, and nobody knows how they are written "
                "in a conversation; pass vocabulary=..., or --tokenizer, the tokenizer that the imitator has"
            )
        return "".join(found)
    return ", ".join(found) if len(found) == len(words) else _numbers(actions)


def _numbers(symbols: Iterable[int]) -> str:
    return Vocabulary.numbers().text(symbols)


def read_line(chat: Chat, where: str, by: str | None) -> Entry:
    """The settled question of a line, which stands at ``where``; answered by ``by``, or whom the line names.

    Raises:
        ValueError: if ``written_line`` did not write it, or its answer is none.
    """
    try:
        record = AnswerRecord.model_validate(chat.model_extra)
        answer: Answer = (
            Act(tuple(record.actions), record.text, record.evidence, record.independent)
            if record.declined is None
            else Decline(record.declined, record.independent)
        )
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise ValueError(
            f"{where}: {key}: {fault['msg']}; a line must be an answer that export_chats wrote. Plain chats are no "
            "answers: Demonstrations.from_chats and tokenized_chats read them"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    who = by if by is not None else record.answered_by
    if who is None:
        raise ValueError(f"{where}: answered_by: is missing; pass by=... to say who answered")
    query = Query(
        tuple(record.context),
        record.n_actions,
        record.ask_probability,
        tuple(record.plausible),
        record.context_text,
        _question_of(chat.messages, where) if record.conversation else (),
        record.id,
        record.asker,
        record.episode,
        record.deadline,
    )
    try:
        check_answer(answer, query)
    except OracleError as error:
        raise OracleError(f"{where}: {error}") from error
    status = Status.ANSWERED if isinstance(answer, Act) else Status.DECLINED
    return Entry(
        query,
        status,
        record.posted_at,
        claimed_by=who,
        answer=answer,
        answered_by=who,
        answered_at=record.answered_at,
        seconds=record.seconds,
    )


def _question_of(messages: Sequence[Message], where: str) -> tuple[Message, ...]:
    """The conversation without the answer at its end; the inverse of ``_messages``."""
    *said, answer = messages
    if answer.role != _AGENT:
        raise ValueError(
            f"{where}: messages.{len(said)}: the answer must come last, by {_AGENT!r}, got {answer.role!r}"
        )
    question = [message.model_copy(update={"weight": 1}) for message in said]
    given = answer.content[: answer.given_characters]
    if given or (said and said[-1].role == _AGENT):
        question.append(Message(role=_AGENT, content=given))
    return tuple(question)
