"""Whose turn it is in a transcript of tokens: how a chat opens, and what ends a turn, for any tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from pydantic import ValidationError

from cautious_imitation.demonstrations import Chat, Message
from cautious_imitation.language.chat_reader import read_messages
from cautious_imitation.language.chat_writer import AGENT, OTHER, SYSTEM, ChatWriter, Messages, decoded, encoded

Opening: TypeAlias = "str | Sequence[Any]"
"""A chat so far, as text or as messages, up to where the teacher's next word comes."""

_WHERE = "opening"
_MARKS = ("qz1zq", "qz2zq")
_BEFORE = ("yes", "Well, yes.", "Is it?\nNo!", "")
"""What may stand before the end of a turn, to see that it is written alike wherever it stands."""


@dataclass(frozen=True)
class _Ending:
    """What ends a turn, and what the environment writes after it, before the other's words.

    Attributes:
        text: how it reads.
        tokens: the tokens that it is; None if it is found by how it reads, whatever the tokens.
        then: tokens that follow of themselves.
    """

    text: str
    tokens: tuple[int, ...] | None
    then: tuple[int, ...]


class Turns:
    """Tokens of an opening, and where turns end after it; made by ``chat_turns``.

    Attributes:
        opening: tokens of the opening; the teacher's next token comes after them.
    """

    def __init__(
        self,
        writer: ChatWriter,
        opening: Sequence[int],
        begun: str,
        teacher_endings: Sequence[_Ending],
        student_endings: Sequence[_Ending],
        around_reply: tuple[str, str],
    ) -> None:
        self.opening = tuple(opening)
        self._tokenizer, self._specials, self._around_reply = writer.tokenizer, writer.specials, around_reply
        self._begun, self._opening_text = begun, self.text(opening)
        self._endings = {True: tuple(teacher_endings), False: tuple(student_endings)}
        # Most tokens cannot be the last of an ending that is found by how it reads.
        self._piece: Callable[[int], str] = lru_cache(maxsize=None)(lambda token: self.text([token]))

    def ended(
        self, is_teacher: bool, said: Sequence[int], *, first: bool = False
    ) -> tuple[str, tuple[int, ...]] | None:
        """Whether a turn ends with the last token of ``said``.

        Args:
            is_teacher: whether it is the teacher's turn.
            said: all tokens of the turn so far.
            first: whether it is the turn that the opening may have begun.

        Returns:
            Its words, without what ended it but with what was begun, and the tokens that the environment writes next;
            None if it goes on.
        """
        for ending in self._endings[is_teacher]:
            if ending.tokens is not None:
                n = len(ending.tokens)
                if tuple(said[-n:]) == ending.tokens:
                    return self.words(said[:-n], first=first), ending.then
            elif not ending.text[-1].isascii() or ending.text[-1] in self._piece(said[-1]):
                words, found, _ = self._turn_text(said, first).partition(ending.text)
                if found:
                    return self._bare(words), ending.then
        return None

    def words(self, said: Sequence[int], *, first: bool = False) -> str:
        """What the tokens of a turn say, without special tokens and blanks around it; arguments as for ``ended``."""
        return self._bare(self._turn_text(said, first))

    def reply(self, text: str) -> tuple[int, ...]:
        """Tokens with which the teacher says ``text`` and ends its turn."""
        before, after = self._around_reply
        said = text.strip()
        # The letter stands for what was said before, whatever it is.
        return _following(self._tokenizer, "A", (before + said if said else "") + after)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, special tokens among it."""
        return decoded(self._tokenizer, tokens)

    def _turn_text(self, said: Sequence[int], first: bool) -> str:
        if not first:
            return self.text(said)
        # Read on from the opening, so that blanks and characters at the seam are what they are there.
        return self._begun + self.text([*self.opening, *said])[len(self._opening_text) :]

    def _bare(self, text: str) -> str:
        for special in self._specials:
            text = text.replace(special, "")
        return text.strip()


def chat_turns(
    tokenizer: Any, n_symbols: int, opening: Opening, teacher: str | None = None, student: str | None = None
) -> Turns:
    """Find out how a tokenizer's chats are written.

    With a chat template a turn ends with the token, or text, by which the template ends it; what the template puts
    between that and the other's words is written by itself. Whoever writes the other's header instead ends the turn as
    well. Without a template a turn ends where the other's name stands at the beginning of a line, ``Student:``, which
    is written token by token by whoever speaks.

    Args:
        tokenizer: a fast tokenizer of Transformers.
        n_symbols: V, the tokens that can be said: 0..V-1.
        opening: text, with the special tokens of a template in it, or messages ``{"role": ..., "content": ...}``. It
            ends with the student's message, with the teacher's name or header, or with a reply that the teacher has
            begun.
        teacher: the teacher's role. Default "assistant" with a template and "Teacher" without.
        student: the student's role. Default "user" with a template and "Student" without.

    Raises:
        ValueError: if the tokenizer is not a fast one, the opening is no such chat, or turns would not be found in what
            the tokenizer writes, or not be ended by the tokens that can be said.

    >>> from cautious_imitation.language.small_gpt import shipped_tokenizer
    >>> turns = chat_turns(shipped_tokenizer(), 2048, [{"role": "user", "content": "hi"}])
    >>> turns.text(turns.opening)
    '<|start|><|user|>hi<|end|><|assistant|>'
    >>> words, header = turns.ended(True, shipped_tokenizer()("hello<|end|>")["input_ids"])
    >>> words, turns.text(header)
    ('hello', '<|user|>')
    """
    writer = ChatWriter(tokenizer)
    names = ("Teacher", "Student") if writer.template is None else (AGENT, OTHER)
    teacher, student = (name if given is None else given for given, name in zip((teacher, student), names, strict=True))
    if teacher == student or SYSTEM in (teacher, student):
        raise ValueError(
            f"teacher and student must be two different roles, neither of them {SYSTEM!r}, got {teacher!r} and "
            f"{student!r}"
        )
    build = _templated if writer.template is not None else _named
    turns = build(writer, opening, teacher, student)
    for token in turns.reply(""):
        if not 0 <= token < n_symbols:
            raise ValueError(
                f"the tokens that end a turn must be among the {n_symbols} that can be said, got {token}; load the "
                "model with n_symbols=None"
            )
    return turns


def _templated(writer: ChatWriter, opening: Opening, teacher: str, student: str) -> Turns:
    tokenizer = writer.tokenizer
    if isinstance(opening, str):
        tokens = encoded(tokenizer, opening)
        read = read_messages(tokenizer, tokens)
        if read is None:
            raise ValueError(
                f"opening must be a chat as the tokenizer's template writes it, up to the header of {teacher!r} or a "
                f"reply that it has begun, got {opening[-60:]!r}; pass messages instead"
            )
        said, begun = _parted(list(read))
    else:
        said, begun = _parted(_messages(opening, {teacher: AGENT, student: OTHER, SYSTEM: SYSTEM}))
        if begun:
            # The letter stands for whatever comes next: what is before it does not depend on it.
            probe = Message(role=AGENT, content=begun + "A", given_characters=len(begun))
            context = [message.model_copy(update={"weight": 0}) for message in said]
            whole, ours = writer.written([*context, probe], _WHERE)
            tokens = whole[: int(ours.argmax())].tolist()
        else:
            tokens = writer.written(said, _WHERE, reply_next=True)[0].tolist()
    first, second = (Message(role=role, content=mark) for role, mark in zip((AGENT, OTHER), _MARKS, strict=True))
    if said and said[-1].role == AGENT:
        raise ValueError(
            f"opening must not have two messages of {teacher!r} in a row at its end, since turns alternate; join them"
        )
    there = writer.opening([*said, first, second], _WHERE)
    between, header = _around(there)
    replied = writer.rendered([[*said, first]], _WHERE)[0]
    lead = replied.partition(_MARKS[0])[0].removeprefix(writer.opening(said, _WHERE))
    ending = replied.partition(_MARKS[0])[2].rstrip()
    after_teacher = ending.strip()
    after_student = writer.rendered([[*said, first, second]], _WHERE)[0].partition(_MARKS[1])[2].strip()
    # Where nothing ends a student's turn, the header of the teacher's does.
    after_student = after_student or header.strip()
    return Turns(
        writer,
        tokens,
        begun,
        # A blank before the student's words is theirs, since tokens begin with blanks rather than end with them.
        _template_endings(writer, between.rstrip(" "), after_teacher, teacher),
        _template_endings(writer, header, after_student, student),
        (lead, ending),
    )


def _template_endings(writer: ChatWriter, between: str, end: str, role: str) -> list[_Ending]:
    """What ends a turn of ``role``: ``end``, or the header after it."""
    before, found, after = between.partition(end) if end else ("", "", "")
    if not found or before.strip():
        raise ValueError(
            f"the chat template must end each turn of {role!r} the same, whatever follows, got {end!r} at the end of a "
            f"chat and {between!r} within; set tokenizer.chat_template to one that does, or to None for plain text"
        )
    tokens, odd = _marker(writer, end)
    if odd is not None:
        raise ValueError(
            f"the tokenizer must write {end!r} so that it reads alike wherever it ends a turn of {role!r}, which it "
            f"does not after {odd!r}; set tokenizer.chat_template to one with a special token there"
        )
    endings = [_Ending(end, tokens, _following(writer.tokenizer, end, after))]
    header = after.strip()
    if header:
        tokens, _ = _marker(writer, header)
        if tokens is not None:
            endings.append(_Ending(header, tokens, _following(writer.tokenizer, header, after.partition(header)[2])))
    return endings


def _marker(writer: ChatWriter, text: str) -> tuple[tuple[int, ...] | None, str | None]:
    """The tokens that ``text`` always is, special ones among them; else None, and after what it reads otherwise."""
    tokens = tuple(encoded(writer.tokenizer, text))
    written = [tuple(encoded(writer.tokenizer, before + text)) for before in _BEFORE]
    if writer.separators & set(tokens) and all(row[-len(tokens) :] == tokens for row in written):
        return tokens, None
    pairs = zip(_BEFORE, written, strict=True)
    return None, next((before for before, row in pairs if text not in decoded(writer.tokenizer, row)), None)


def _following(tokenizer: Any, before: str, text: str) -> tuple[int, ...]:
    """Tokens of ``text`` as they are after ``before``, where some tokenizers put no blank in front."""
    first, whole = encoded(tokenizer, before), encoded(tokenizer, before + text)
    return tuple(whole[len(first) :] if whole[: len(first)] == first else encoded(tokenizer, text))


def _around(text: str) -> tuple[str, str]:
    """What stands between the two marks, and after the second."""
    after_first = text.partition(_MARKS[0])[2]
    between, _, header = after_first.partition(_MARKS[1])
    return between, header


def _named(writer: ChatWriter, opening: Opening, teacher: str, student: str) -> Turns:
    tokenizer = writer.tokenizer
    headers = {name: f"\n{name}:" for name in (teacher, student)}
    for name, header in headers.items():
        _check_name(tokenizer, name, header)
    text = opening if isinstance(opening, str) else _lines(opening, teacher, student)
    last = {name: ("\n" + text).rfind(header) for name, header in headers.items()}
    if max(last.values()) < 0:
        raise ValueError(
            f"opening must be a chat with {teacher + ':'!r} and {student + ':'!r} at the beginning of lines, got "
            f"{text[:60]!r}"
        )
    if last[teacher] < last[student]:
        raise ValueError(
            f"opening must end with the teacher's name, {teacher + ':'!r}, or a reply that it has begun, got "
            f"{text[-60:]!r} at its end; add the name on a line of its own"
        )
    for special in writer.specials:
        if special in text.removeprefix(writer.start):
            raise ValueError(f"opening must not contain {special!r}, which is a special token; take it out")
    begun = ("\n" + text)[last[teacher] + len(headers[teacher]) :]
    tokens = encoded(tokenizer, writer.start + text.removeprefix(writer.start))
    by_teacher, by_student = ([_Ending(headers[name], None, ())] for name in (student, teacher))
    return Turns(writer, tokens, begun, by_teacher, by_student, (" ", headers[student]))


def _check_name(tokenizer: Any, name: str, header: str) -> None:
    """A name is found if some tokens end with it exactly, wherever it stands; others read across its end."""
    if not name.strip() or name != name.strip() or "\n" in name or ":" in name:
        raise ValueError(f"a name must be one line of words without a colon, got {name!r}")
    for before in _BEFORE:
        written = encoded(tokenizer, f"{before}{header} Well")
        ends = (decoded(tokenizer, written[:n]).endswith(header) for n in range(1, len(written) + 1))
        if not any(ends):
            raise ValueError(
                f"the tokenizer must write the name {name + ':'!r} at the beginning of a line with tokens of its own, "
                f"got {decoded(tokenizer, written)!r} for {f'{before}{header} Well'!r}, in which no token ends with "
                "it; choose another name"
            )


def _lines(opening: Sequence[Any], teacher: str, student: str) -> str:
    """Messages as plain text, one after the other, up to the teacher's next word."""
    messages = _messages(opening, {name: name for name in (teacher, student)})
    for number, message in enumerate(messages):
        if any(f"\n{name}:" in f"\n{message.content}" for name in (teacher, student)):
            raise ValueError(
                f"opening: messages[{number}] must not have a speaker's name at the beginning of a line; split it"
            )
    lines = [f"{m.role}:{' ' if m.content else ''}{m.content}" for m in messages]
    return "\n".join(lines if messages[-1].role == teacher else [*lines, f"{teacher}:"])


def _messages(opening: Sequence[Any], roles: Mapping[str, str]) -> Messages:
    try:
        listed = Chat.model_validate({"messages": list(opening)}).messages
    except (ValidationError, TypeError) as error:
        raise ValueError(
            f'opening must be a chat, text or messages {{"role": ..., "content": ...}}, got {str(opening)[:60]!r}'
        ) from error
    for message in listed:
        if message.role not in roles:
            raise ValueError(
                f"opening has the unknown role {message.role!r}; known are {', '.join(map(repr, roles))}: rename it, "
                "or pass teacher and student"
            )
    return [message.model_copy(update={"role": roles[message.role]}) for message in listed]


def _parted(messages: Messages) -> tuple[Messages, str]:
    """What was said, and the teacher's reply as far as it has begun."""
    if messages and messages[-1].role == AGENT:
        return messages[:-1], messages[-1].content
    return messages, ""
