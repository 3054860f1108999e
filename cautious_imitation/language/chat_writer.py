"""Chats written out as one tokenizer's model expects them, with the agent's own tokens told apart."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from cautious_imitation.demonstrations import Message

Messages: TypeAlias = list[Message]
"""Messages with one of the three roles below, oldest first."""

AGENT, OTHER, SYSTEM = "assistant", "user", "system"

_REMEDY = "set tokenizer.chat_template to one that does, or to None for plain text"


@dataclass(frozen=True)
class _Reply:
    """Where in the text of a chat a message of the agent stands."""

    opening: int
    learned: int
    """Where what is learned begins: after what was given, if anything was."""
    end: int
    """Where it ends: after the end of the turn, or before it in an unfinished message."""
    message: Message

    @property
    def borders(self) -> tuple[int, ...]:
        """What no token reaches across."""
        return (self.opening, self.learned, *((self.end,) if self.message.unfinished else ()))


class ChatWriter:
    """Writes chats as one tokenizer's model expects them, and knows where in the text the agent's words are."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"tokenizer must be a fast one, which tells where in the text its tokens are, got "
                f"{type(tokenizer).__name__}; load it with AutoTokenizer and use_fast=True"
            )
        self.tokenizer = tokenizer
        self.template = tokenizer.chat_template
        added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.specials = sorted({*added.values(), *tokenizer.all_special_tokens})
        # The unknown token stands for any text.
        self.separators = set(added) - {tokenizer.unk_token_id}
        first = tokenizer("a")["input_ids"][:1]
        adds_first = (
            first == [tokenizer.bos_token_id] and first != tokenizer("a", add_special_tokens=False)["input_ids"][:1]
        )
        self.start = tokenizer.bos_token if adds_first else ""

    def written(
        self, messages: Messages, where: str, *, reply_next: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens ``[T]`` of a chat, and which of them are the agent's to be learned from ``[T]``.

        Args:
            messages: oldest first, with the three roles that chat templates know.
            where: the chat's place, for errors.
            reply_next: end with the header of the agent's next reply.

        Raises:
            ValueError: if the chat cannot be written so that the agent's tokens are told apart.
        """
        self.check_contents(messages, where)
        text, replies = self._replies(messages, where, reply_next)
        borders = sorted({border for reply in replies for border in reply.borders})
        tokens, starts, firsts = self._encoded(text, borders)
        ours = np.zeros(len(tokens), dtype=np.bool_)
        for reply in replies:
            if reply.message.weight:
                end = firsts[reply.end] if reply.message.unfinished else np.searchsorted(starts, reply.end)
                ours[firsts[reply.learned] : end] = True
        return tokens, ours

    def opening(self, messages: Messages, where: str) -> str:
        """The text of a chat so far, up to the agent's words in its next reply.

        Raises:
            ValueError: if the template cannot write this chat.
        """
        return self._openings(messages, [len(messages)], where)[0]

    def check_contents(self, messages: Messages, where: str) -> None:
        """See that nothing in ``messages`` would be read as something that nobody wrote.

        Raises:
            ValueError: if a message holds a special token, or a line break where those end turns.
        """
        for number, message in enumerate(messages):
            for special in self.specials:
                if special in message.content:
                    raise ValueError(
                        f"{where}: messages[{number}] must not contain {special!r}, which the tokenizer reads as a "
                        "special token rather than as what somebody wrote; take it out"
                    )
            if self.template is None and "\n" in message.content:
                raise ValueError(
                    f"{where}: messages[{number}] must be one line, since the tokenizer has no chat template and a "
                    "line break ends the turn; replace line breaks, or set tokenizer.chat_template"
                )

    def _replies(self, messages: Messages, where: str, reply_next: bool) -> tuple[str, list[_Reply]]:
        """The text of a chat, and where in it each of the agent's messages is."""
        places = [i for i, message in enumerate(messages) if message.role == AGENT]
        openings = self._openings(messages, places + ([len(messages)] if reply_next else []), where)
        text = openings.pop() if reply_next else self.rendered([messages], where)[0]
        replies = []
        ending = ""
        for i, opening in zip(places, openings, strict=True):
            message = messages[i]
            said = text[len(opening) :]
            rest = _after(message.content, said) if text.startswith(opening) else None
            if rest is not None and ending and rest.startswith(ending):
                # Turns mostly end alike, and then the chat so far need not be written once more to find the end.
                end = len(text) - len(rest) + len(ending)
            else:
                end, ending = self._end(messages[: i + 1], opening, text, where)
            learned, content = len(opening), message.content
            if message.given_characters:
                learned += _place(message.given_characters, content, said)
            if message.unfinished:
                end = max(learned, len(opening) + _place(len(content), content, said))
            replies.append(_Reply(len(opening), learned, end, message))
        return text, replies

    def _end(self, messages: Messages, opening: str, text: str, where: str) -> tuple[int, str]:
        """Where in ``text`` the last of ``messages`` ends, and what marks the end, without blanks after it."""
        turn = self.rendered([messages], where)[0]
        rest = _after(messages[-1].content, turn[len(opening) :]) if turn.startswith(opening) else None
        name = f"messages[{len(messages) - 1}]"
        if rest is None or not text.startswith(turn):
            raise ValueError(
                f"{where}: the chat template must write {name} as it is, and the same whatever follows; it writes "
                f"{turn[_shared(opening, turn) :]!r}; {_REMEDY}"
            )
        if not rest:
            raise ValueError(f"{where}: the chat template must end the turn of {name}; {_REMEDY}")
        ending = rest.rstrip() or rest
        return len(turn) - len(rest) + len(ending), ending

    def _openings(self, messages: Messages, positions: Sequence[int], where: str) -> list[str]:
        """The text up to the agent's words at each of ``positions`` in a chat.

        That is the template's prompt for a reply if replies do begin there. Not so where it writes no header then, or,
        for a chat that the agent opens, leaves out what comes first; then two replies tell by where they part.
        """
        histories = [messages[:i] for i in positions]
        openings = self.rendered(histories, where, prompt=True)
        # Where a reply has words, a prompt that is none shows later; the first two speak for the others.
        blank = [i == len(messages) or not messages[i].content.strip() for i in positions]
        doubtful = [k for k in range(len(positions)) if k < 2 or blank[k]]
        if self._corrected(openings, histories, doubtful, where):
            self._corrected(openings, histories, [k for k in range(len(positions)) if k not in doubtful], where)
        return openings

    def _corrected(self, openings: list[str], histories: list[Messages], which: list[int], where: str) -> bool:
        """Correct those of ``openings`` after which no reply begins; whether one of them follows on something said."""
        replies = [[*histories[k], Message(role=AGENT, content="A")] for k in which]
        found = False
        for k, probe in zip(which, self.rendered(replies, where), strict=True):
            if not (probe.startswith(openings[k]) and probe[len(openings[k]) :].lstrip().startswith("A")):
                other = self.rendered([[*histories[k], Message(role=AGENT, content="B")]], where)[0]
                openings[k] = probe[: _shared(probe, other)]
                found |= bool(histories[k])
        return found

    def rendered(self, chats: list[Messages], where: str, prompt: bool = False) -> list[str]:
        """The text of each of ``chats``; with ``prompt`` what the template puts before a reply stands at the end.

        Raises:
            ValueError: if the template cannot write one of them.
        """
        if not chats:
            return []
        if self.template is None:
            return [self._plain(chat) + (f"{AGENT.capitalize()}:" if prompt else "") for chat in chats]
        try:
            rendered: list[str] = self.tokenizer.apply_chat_template(
                [[{"role": m.role, "content": m.content} for m in chat] for chat in chats],
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except TemplateError as error:
            raise ValueError(f"{where}: the chat template cannot write this chat: {error}") from error
        return rendered

    def _plain(self, messages: Messages) -> str:
        lines = [f"{m.role.capitalize()}:{' ' if m.content else ''}{m.content}\n" for m in messages]
        return self.start + "".join(lines)

    def _encoded(self, text: str, borders: Sequence[int]) -> tuple[NDArray[np.int64], list[int], dict[int, int]]:
        """Tokens of ``text``, where each starts, and which is the first after each of ``borders``, which ascend.

        What stands before a border has the tokens that it has when nothing follows. Tokenizers that look ahead, or join
        characters from both sides, are given the text in two pieces there.
        """
        cuts: list[int] = []
        firsts: dict[int, int] = {}
        character, token = 0, 0
        tokens, starts = self._pieces(text, cuts)
        for last, border in pairwise([0, *borders]):
            # Text is taken apart at special tokens and cuts: what stands before the last one need not be read again.
            separators = range(bisect_left(starts, border) - 1, token, -1)
            found = next((n for n in separators if tokens[n] in self.separators), None)
            if found is not None:
                character, token = starts[found], found
            before, _ = self._pieces(text[character:border], [])
            if last in firsts and before[: max(firsts[last] - token, 0)] != tokens[token : firsts[last]]:
                # Without what follows, a token would reach across the border before this one.
                cuts.append(last)
                tokens, starts = self._pieces(text, cuts)
                character, token = last, firsts[last]
                before, _ = self._pieces(text[character:border], [])
            firsts[border] = token + len(before)
            if tokens[token : firsts[border]] != before:
                cuts.append(border)
                tokens, starts = self._pieces(text, cuts)
                character, token = border, firsts[border]
        return np.array(tokens, dtype=np.int64), starts, firsts

    def _pieces(self, text: str, cuts: list[int]) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        starts: list[int] = []
        for begin, end in pairwise([0, *cuts, len(text)]):
            encoded = self.tokenizer(
                text[begin:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            tokens += encoded["input_ids"]
            starts += [begin + start for start, _ in encoded["offset_mapping"]]
        return tokens, starts


def _shared(one: str, two: str) -> int:
    """Length of the beginning that two texts share."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _after(content: str, said: str) -> str | None:
    """What follows ``content`` in the text of a turn; None if the turn does not begin with it, give or take blanks."""
    if said.startswith(content) and len(said) > len(content):
        return said[len(content) :]
    # Trimmed by the template, perhaps to nothing; a blank that is left is not the content's then.
    bare = content.strip()
    begun = said.lstrip() if bare else said
    return begun[len(bare) :] if begun.startswith(bare) else None


def _place(n: int, content: str, said: str) -> int:
    """Where in the text of a turn the first ``n`` characters of ``content`` end, given what ``_after`` goes by."""
    if said.startswith(content) and len(said) > len(content):
        return n
    bare = content.strip()
    begin = len(said) - len(said.lstrip()) if bare else 0
    return begin + min(max(n - (len(content) - len(content.lstrip())), 0), len(bare))


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Tokens of ``text`` as it is, nothing added at its beginning or end."""
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of ``tokens`` as it is, special tokens among it."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
