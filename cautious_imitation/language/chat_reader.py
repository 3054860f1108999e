"""Tokens read back into conversations: what ``chat_writer`` writes, the other way round."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

from cautious_imitation.demonstrations import Message
from cautious_imitation.language.chat_writer import AGENT, OTHER, SYSTEM, ChatWriter, Messages, decoded, encoded

_WHERE = "the conversation"
_MARK = re.compile("qz[0-9]zq")
"""Contents of the chats that are written to see what stands between contents; in no chat template."""


def read_messages(tokenizer: Any, tokens: Iterable[int]) -> tuple[Message, ...] | None:
    """The conversation that ``tokens`` are, which end where the agent's next word comes.

    How turns open and end is found out by writing chats with the tokenizer's chat template, or is known where there is
    none. What was read is written again and compared, token by token.

    Args:
        tokenizer: as in ``tokenized_chats``.
        tokens: ``[L]``, as ``chat_context`` writes them, perhaps with the beginning of the agent's reply.

    Returns:
        Messages, oldest first, with the roles "system", "user" and "assistant". An unfinished reply of the agent is the
        last one. One that has not begun is none, except after a finished message of the agent, where it is an empty
        one. What the template says of itself, such as a default system message, is left out. None if ``tokens`` are no
        conversation, or not written with the tokens that the tokenizer would take.

    Raises:
        ValueError: if the tokenizer is not a fast one.

    >>> from cautious_imitation.language.chats import chat_context
    >>> from cautious_imitation.language.small_gpt import shipped_tokenizer
    >>> tokenizer = shipped_tokenizer()
    >>> context = [*chat_context(tokenizer, [{"role": "user", "content": "hi"}]), *tokenizer("hel")["input_ids"]]
    >>> [(message.role, message.content) for message in read_messages(tokenizer, context)]
    [('user', 'hi'), ('assistant', 'hel')]
    >>> read_messages(tokenizer, context[1:]) is None
    True
    """
    return chat_reader(tokenizer).messages(tokens)


def chat_reader(tokenizer: Any) -> ChatReader:
    """The reader of one tokenizer's chats; kept while its template and tokens are the same.

    Raises:
        ValueError: if the tokenizer is not a fast one.
    """
    if not getattr(tokenizer, "is_fast", False):
        return ChatReader(tokenizer)
    # Some templates tell the date.
    return _reader(tokenizer, tokenizer.chat_template, len(tokenizer), date.today())


@lru_cache(maxsize=8)
def _reader(tokenizer: Any, template: Any, n_tokens: int, day: date) -> ChatReader:
    return ChatReader(tokenizer)


@dataclass(frozen=True)
class _Forms:
    """What a template writes around contents.

    Attributes:
        first: before the first content, by its role, the longest first.
        between: after a content and before the next one, by the roles of both.
        prompts: after a content and before the agent's words, by its role; None for a chat that has not begun.
        leads: what stands between a prompt and the content of a reply: nothing, or a blank.
        ending: what ends the agent's turn.
    """

    first: list[tuple[str, str]] = field(default_factory=list)
    between: dict[str, dict[str, str]] = field(default_factory=dict)
    prompts: dict[str | None, set[str]] = field(default_factory=dict)
    leads: set[str] = field(default_factory=set)
    ending: str | None = None


class ChatReader:
    """Reads what ``ChatWriter`` writes, and knows how the agent's words become tokens and back.

    Args:
        tokenizer: a fast one; its chat template is looked at once.

    Raises:
        ValueError: if it is not a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._writer = ChatWriter(tokenizer)
        self._forms = _Forms() if self._writer.template is None else _forms(self._writer)

    def messages(self, tokens: Iterable[int]) -> tuple[Message, ...] | None:
        """See ``read_messages``."""
        wanted = [int(token) for token in tokens]
        for messages in self._parsed(decoded(self._writer.tokenizer, wanted)):
            try:
                if self._context(messages) == wanted:
                    return tuple(messages)
            except ValueError:
                # Not something that can be written, so not what was written.
                continue
        return None

    def reply(self, context: Sequence[int], text: str) -> tuple[int, ...]:
        """Tokens with which the agent says ``text`` after ``context`` and ends its turn.

        In a conversation they are those that ``tokenized_chats`` learns there. In other contexts they are those of the
        text alone and of the end of a turn.

        Raises:
            ValueError: if the text holds a special token, or a line break where those end turns; or if it is not known
                how a turn ends.
        """
        messages = self.messages(context)
        if messages is not None:
            said, unfinished = _parted(messages)
            whole = Message(role=AGENT, content=unfinished + text, given_characters=len(unfinished))
            tokens, ours = self._writer.written([*_context_only(said), whole], _WHERE)
            begin = int(ours.argmax())
            if tokens[:begin].tolist() == list(context):
                return tuple(tokens[ours].tolist())
        self._writer.check_contents([Message(role=AGENT, content=text)], _WHERE)
        ending = "\n" if self._writer.template is None else self._forms.ending
        if ending is None:
            raise ValueError(
                "the tokenizer's chat template does not show how a reply ends, so that a reply in words cannot be "
                "written; answer with actions, or set tokenizer.chat_template"
            )
        return tuple(encoded(self._writer.tokenizer, text) + encoded(self._writer.tokenizer, ending))

    def said(self, context: Sequence[int], actions: Sequence[int]) -> tuple[str, bool]:
        """What the agent says with the tokens ``actions`` after ``context``, and whether it ends its turn with them.

        Special tokens are no words and are left out.
        """
        before, text = decoded(self._writer.tokenizer, context), decoded(self._writer.tokenizer, [*context, *actions])
        # Of a character that is cut in two, the part before is not what it is with the rest.
        said = text[len(before) :] if text.startswith(before) else decoded(self._writer.tokenizer, actions)
        ending = "\n" if self._writer.template is None else self._forms.ending
        finished = ending is not None and said.endswith(ending)
        if finished and ending is not None:
            said = said[: -len(ending)]
        lead = self._lead(before)
        said = said.removeprefix(lead)
        for special in self._writer.specials:
            said = said.replace(special, "")
        return said, finished

    def _lead(self, before: str) -> str:
        """What the template writes before the content of a reply, if ``before`` is where one begins."""
        if self._writer.template is None:
            return " " if before.endswith(f"{AGENT.capitalize()}:") else ""
        begins = any(before.endswith(prompt) for prompts in self._forms.prompts.values() for prompt in prompts)
        return max(self._forms.leads, key=len, default="") if begins else ""

    def _context(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation up to the agent's next word."""
        said, unfinished = _parted(messages)
        if not unfinished:
            return [int(token) for token in self._writer.written(said, _WHERE, reply_next=True)[0]]
        # The letter stands for whatever comes next: what is before it does not depend on it.
        probe = Message(role=AGENT, content=unfinished + "A", given_characters=len(unfinished))
        tokens, ours = self._writer.written([*_context_only(said), probe], _WHERE)
        return [int(token) for token in tokens[: int(ours.argmax())]]

    def _parsed(self, text: str) -> Iterator[Messages]:
        """Conversations that ``text`` may be."""
        if self._writer.template is None:
            yield from _plain_lines(text.removeprefix(self._writer.start))
            return
        if text in self._forms.prompts.get(None, ()):
            yield []
        for role, opening in self._forms.first:
            if text.startswith(opening):
                yield from self._walked(text, len(opening), role)

    def _walked(self, text: str, begin: int, role: str) -> Iterator[Messages]:
        """Read on from where the first content begins, each time to the nearest thing that ends one."""
        messages: Messages = []
        while True:
            between = self._forms.between.get(role, {})
            forms = [re.escape(form) for form in sorted(between, key=len, reverse=True)]
            forms += [re.escape(prompt) + r"\Z" for prompt in self._forms.prompts.get(role, ()) if prompt]
            found = re.compile("|".join(forms)).search(text, begin) if forms else None
            if found is None:
                break
            messages.append(Message(role=role, content=text[begin : found.start()]))
            role, begin = between.get(found.group(), AGENT), found.end()
        if role == AGENT:
            yield _with_unfinished(messages, text[begin:])


def _parted(messages: Sequence[Message]) -> tuple[Messages, str]:
    """What was said, and the agent's unfinished reply, which may be empty."""
    if messages and messages[-1].role == AGENT:
        return list(messages[:-1]), messages[-1].content
    return list(messages), ""


def _context_only(messages: Messages) -> Messages:
    return [message.model_copy(update={"weight": 0}) for message in messages]


def _with_unfinished(messages: Messages, reply: str) -> Messages:
    shown = bool(reply) or bool(messages and messages[-1].role == AGENT)
    return [*messages, Message(role=AGENT, content=reply)] if shown else messages


def _plain_lines(text: str) -> Iterator[Messages]:
    *lines, last = text.split("\n")
    roles = {role.capitalize(): role for role in (SYSTEM, OTHER, AGENT)}
    messages = []
    for line in lines:
        name, colon, content = line.partition(":")
        if not colon or name not in roles:
            return
        messages.append(Message(role=roles[name], content=content.removeprefix(" ")))
    if last.startswith(opening := f"{AGENT.capitalize()}:"):
        yield _with_unfinished(messages, last.removeprefix(opening).removeprefix(" "))


def _forms(writer: ChatWriter) -> _Forms:
    """Write chats of a few messages in all roles, as far as the template accepts them, and take them apart.

    They are looked at as they are decoded, since some tokenizers put blanks after special tokens.
    """
    first: dict[str, str] = {}
    between: dict[str, dict[str, str]] = {}
    prompts: dict[str | None, set[str]] = {}
    leads: set[str] = set()
    ending = None
    # Where a template treats roles alike, or joins what is said first to what follows, it is taken for the user's.
    sequences = [roles for length in (1, 2, 3) for roles in product((OTHER, AGENT, SYSTEM), repeat=length)]
    # Some want a system message first and then roles to alternate, which shows a second turn later.
    sequences.append((SYSTEM, OTHER, AGENT, OTHER))
    for roles in [(), *sequences]:
        chat = [Message(role=role, content=f"qz{i}zq") for i, role in enumerate(roles)]
        opening = _written(writer, chat)
        if opening is not None:
            tail = _MARK.split(opening)
            if len(tail) == len(roles) + 1:
                prompts.setdefault(roles[-1] if roles else None, set()).add(tail[-1])
        parts = _MARK.split(_rendered(writer, chat)) if roles else []
        if len(parts) != len(roles) + 1:
            continue
        first.setdefault(parts[0], roles[0])
        for (one, other), form in zip(pairwise(roles), parts[1:-1], strict=True):
            if form:
                between.setdefault(one, {}).setdefault(form, other)
        if roles[-1] == AGENT and ending is None:
            ending = parts[-1].rstrip() or parts[-1] or None
    for before, known in prompts.items():
        forms = first if before is None else between.get(before, {})
        begun = [form for form, role in forms.items() if role == AGENT]
        leads |= {form.removeprefix(prompt) for form, prompt in product(begun, known) if form.startswith(prompt)}
    ordered = sorted(((role, form) for form, role in first.items()), key=lambda item: len(item[1]), reverse=True)
    return _Forms(ordered, between, prompts, leads, ending)


def _written(writer: ChatWriter, chat: Messages) -> str | None:
    try:
        return decoded(writer.tokenizer, encoded(writer.tokenizer, writer.opening(chat, _WHERE)))
    except ValueError:
        return None


def _rendered(writer: ChatWriter, chat: Messages) -> str:
    try:
        return decoded(writer.tokenizer, encoded(writer.tokenizer, writer.rendered([chat], _WHERE)[0]))
    except ValueError:
        return ""
