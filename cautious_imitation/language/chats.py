"""Chats as tokens, with the actor of each: what the agent wrote is the demonstrator's, all else the environment's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise, takewhile
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cautious_imitation.demonstrations import Chat, Demonstrations, Message, actor_codes, read_chats
from cautious_imitation.language.chat_writer import AGENT, OTHER, SYSTEM, ChatWriter, Messages
from cautious_imitation.types import Actor

LongChats: TypeAlias = Literal["error", "split"]


def tokenized_chats(
    chats: str | PathLike[str] | Iterable[Any],
    tokenizer: Any,
    *,
    agent_role: str = AGENT,
    other_role: str = OTHER,
    max_tokens: int | None = None,
    long_chats: LongChats = "error",
) -> Demonstrations:
    """Turn chats into tokens whose actors are known, one sequence a chat.

    Chats are written out by the tokenizer's chat template, with the agent as "assistant" and the other as "user"
    whatever they are called in the file. Of each of the agent's messages the demonstrator's are the tokens of what it
    wrote and the token that ends its turn, but not white space that the template puts after that; an empty message is
    the end of the turn alone. Everything else is the environment's: headers, the other speaker, ``system`` messages.

    Without a chat template each message is one line, ``User: hello``, after the tokenizer's first token if it adds one;
    the line break ends the turn, and a reply begins with the space after the colon.

    Tokens are those of the whole text, except that none reaches from a header into a reply: what stands before a reply
    is always the tokens that ``chat_context`` gives.

    A message of the agent with weight 0 is context, and so are its first ``given_characters`` (see ``Message``): the
    environment's, since a file does not say who else wrote them, and not learned from whatever counts as evidence. No
    token reaches from what was given into the rest, or over the end of an unfinished message, whose turn does not end.

    Args:
        chats: a JSONL file as for ``Demonstrations.from_chats``, or such chats: ``{"messages": [...]}`` each, or the
            list of messages itself.
        tokenizer: a fast tokenizer of Transformers.
        agent_role: role of the speaker to imitate.
        other_role: role of whoever the agent talks to.
        max_tokens: longest sequence, the model's context window; None for no limit.
        long_chats: what becomes of longer chats: ``"error"``, or ``"split"`` into several sequences, each from the
            beginning of a turn to the end of one of the agent's, with the ``system`` messages that the chat begins with
            in front of each; what nobody answered is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no chat, one is malformed, too long, or cannot be written by the chat template, a role
            is unknown, or the agent never speaks (the message names path and line); if a message contains the text of a
            special token, or a line break where those end turns; if the tokenizer is not a fast one.
    """
    if long_chats not in get_args(LongChats):
        raise ValueError(f'long_chats must be "error" or "split", got {long_chats!r}')
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}; None sets no limit")
    writer, roles = ChatWriter(tokenizer), _roles(agent_role, other_role)
    name = str(chats) if isinstance(chats, (str, PathLike)) else "chats"
    sequences, actors = [], []
    demonstrator, environment = actor_codes([Actor.DEMONSTRATOR, Actor.ENVIRONMENT])
    anything, spoken, learned = False, False, False
    for where, chat in _chats(chats):
        anything = True
        messages = _messages(chat.messages, roles, where)
        spoken |= any(message.role == AGENT for message in messages)
        learned |= any(message.role == AGENT and message.weight for message in messages)
        for tokens, ours in _sequences(writer, messages, where, max_tokens, long_chats):
            sequences.append(tokens)
            actors.append(np.where(ours, demonstrator, environment))
    if not anything:
        raise ValueError(
            f'{name} must hold at least one chat, {{"messages": [{{"role": ..., "content": ...}}]}}, got none'
        )
    if not spoken:
        raise ValueError(
            f"{name} must hold a message by the role to imitate, agent_role={agent_role!r}, got none; pass the role "
            "that your chats use as agent_role"
        )
    if not learned:
        raise ValueError(
            f"{name} must hold a message by agent_role={agent_role!r} with a weight other than 0, got none; there is "
            "nothing to imitate"
        )
    return Demonstrations(tuple(sequences), tuple(actors))


def chat_context(
    tokenizer: Any, messages: Iterable[Any], *, agent_role: str = AGENT, other_role: str = OTHER
) -> NDArray[np.int64]:
    """Tokens ``[L]`` of a chat so far and of the header of the agent's next reply, whose first token comes next.

    Args:
        tokenizer: as in ``tokenized_chats``.
        messages: ``{"role": ..., "content": ...}`` or ``Message`` each, oldest first; none if the agent opens it.
        agent_role: role of the speaker to imitate.
        other_role: role of whoever the agent talks to.

    Raises:
        ValueError: as ``tokenized_chats``.
    """
    where, roles = "messages", _roles(agent_role, other_role)
    listed = list(messages)
    chat = _validated({"messages": listed}, where).messages if listed else []
    tokens, _ = ChatWriter(tokenizer).written(_messages(chat, roles, where), where, reply_next=True)
    return tokens


def _sequences(
    writer: ChatWriter, messages: Messages, where: str, max_tokens: int | None, long_chats: LongChats
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """The chat as one sequence, or as several that fit: tokens ``[T]``, and which are the agent's ``[T]``."""
    whole = writer.written(messages, where)
    if max_tokens is None or len(whole[0]) <= max_tokens:
        yield whole
        return
    if long_chats == "error":
        raise ValueError(
            f"{where}: a chat must have at most {max_tokens} tokens, the longest that the model reads, got "
            f'{len(whole[0])}; pass long_chats="split" to cut it between turns, or shorten it'
        )
    lead = list(takewhile(lambda message: message.role == SYSTEM, messages))
    piece: Messages = []
    fitting = None
    answered = [part for part in _exchanges(messages[len(lead) :]) if part[-1].role == AGENT]
    for exchange in answered:
        longer = writer.written([*lead, *piece, *exchange], where)
        if piece and len(longer[0]) > max_tokens:
            if fitting is not None:
                yield fitting
            piece = []
            longer = writer.written([*lead, *exchange], where)
        if len(longer[0]) > max_tokens:
            raise ValueError(
                f"{where}: a reply with what it answers must have at most {max_tokens} tokens, the longest that the "
                f"model reads, got {len(longer[0])} from {exchange[0].content[:40]!r} on; shorten it"
            )
        piece, fitting = [*piece, *exchange], longer
    if fitting is not None:
        yield fitting


def _exchanges(messages: Messages) -> Iterator[Messages]:
    """Cut where the agent has spoken and another goes on."""
    begin = 0
    for i, (message, following) in enumerate(pairwise(messages), start=1):
        if message.role == AGENT != following.role:
            yield messages[begin:i]
            begin = i
    if messages[begin:]:
        yield messages[begin:]


def _roles(agent_role: str, other_role: str) -> dict[str, str]:
    """What chat templates call each role."""
    if agent_role == other_role or SYSTEM in (agent_role, other_role):
        raise ValueError(
            f"agent_role and other_role must be two different roles, neither of them {SYSTEM!r}, which is context, "
            f"got {agent_role!r} and {other_role!r}"
        )
    return {agent_role: AGENT, other_role: OTHER, SYSTEM: SYSTEM}


def _messages(messages: Iterable[Message], roles: Mapping[str, str], where: str) -> Messages:
    written = []
    for message in messages:
        if message.role not in roles:
            raise ValueError(
                f"{where}: unknown role {message.role!r}; known are {', '.join(map(repr, roles))}: rename it, or pass "
                "agent_role and other_role"
            )
        written.append(message.model_copy(update={"role": roles[message.role]}))
    return written


def _chats(chats: str | PathLike[str] | Iterable[Any]) -> Iterator[tuple[str, Chat]]:
    """Chats with where they stand: ``path:line``, or their place in the list."""
    if isinstance(chats, (str, PathLike)):
        yield from read_chats(Path(chats))
        return
    for index, chat in enumerate(chats):
        where = f"chats[{index}]"
        yield where, _validated(chat if isinstance(chat, Mapping) else {"messages": chat}, where)


def _validated(chat: Mapping[str, Any], where: str) -> Chat:
    try:
        return Chat.model_validate(chat)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise ValueError(f'{where}: {key}: {fault["msg"]}; a message is {{"role": ..., "content": ...}}') from error
