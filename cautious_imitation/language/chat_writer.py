"""Chats written out as one tokenizer's model expects them, with the agent's own tokens told apart."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

Messages: TypeAlias = list[dict[str, str]]
"""``{"role": ..., "content": ...}`` each, with one of the three roles below."""

AGENT, OTHER, SYSTEM = "assistant", "user", "system"

_REMEDY = "set tokenizer.chat_template to one that does, or to None for plain text"


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
        """Tokens ``[T]`` of a chat, and which of them are the agent's ``[T]``.

        Args:
            messages: oldest first, with the three roles that chat templates know.
            where: the chat's place, for errors.
            reply_next: end with the header of the agent's next reply.

        Raises:
            ValueError: if the chat cannot be written so that the agent's tokens are told apart.
        """
        self._check_contents(messages, where)
        text, spans = self._spans(messages, where, reply_next)
        tokens, starts, first_tokens = self._encoded(text, [begin for begin, _ in spans])
        ours = np.zeros(len(tokens), dtype=np.bool_)
        for first, (_, end) in zip(first_tokens, spans, strict=True):
            ours[first : np.searchsorted(starts, end)] = True
        return tokens, ours

    def _check_contents(self, messages: Messages, where: str) -> None:
        for number, message in enumerate(messages):
            for special in self.specials:
                if special in message["content"]:
                    raise ValueError(
                        f"{where}: messages[{number}] must not contain {special!r}, which the tokenizer reads as a "
                        "special token rather than as what somebody wrote; take it out"
                    )
            if self.template is None and "\n" in message["content"]:
                raise ValueError(
                    f"{where}: messages[{number}] must be one line, since the tokenizer has no chat template and a "
                    "line break ends the turn; replace line breaks, or set tokenizer.chat_template"
                )

    def _spans(self, messages: Messages, where: str, reply_next: bool) -> tuple[str, list[tuple[int, int]]]:
        """The text of a chat, and where in it each of the agent's messages begins and ends, end of turn included."""
        replies = [i for i, message in enumerate(messages) if message["role"] == AGENT]
        openings = self._openings(messages, replies + ([len(messages)] if reply_next else []), where)
        text = openings.pop() if reply_next else self._rendered([messages], where)[0]
        spans = []
        ending = ""
        for i, opening in zip(replies, openings, strict=True):
            rest = _after(messages[i]["content"], text[len(opening) :]) if text.startswith(opening) else None
            if rest is not None and ending and rest.startswith(ending):
                # Turns mostly end alike, and then the chat so far need not be written once more to find the end.
                end = len(text) - len(rest) + len(ending)
            else:
                end, ending = self._end(messages[: i + 1], opening, text, where)
            spans.append((len(opening), end))
        return text, spans

    def _end(self, messages: Messages, opening: str, text: str, where: str) -> tuple[int, str]:
        """Where in ``text`` the last of ``messages`` ends, and what marks the end, without blanks after it."""
        turn = self._rendered([messages], where)[0]
        rest = _after(messages[-1]["content"], turn[len(opening) :]) if turn.startswith(opening) else None
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
        openings = self._rendered(histories, where, prompt=True)
        # Where a reply has words, a prompt that is none shows later; the first two speak for the others.
        blank = [i == len(messages) or not messages[i]["content"].strip() for i in positions]
        doubtful = [k for k in range(len(positions)) if k < 2 or blank[k]]
        if self._corrected(openings, histories, doubtful, where):
            self._corrected(openings, histories, [k for k in range(len(positions)) if k not in doubtful], where)
        return openings

    def _corrected(self, openings: list[str], histories: list[Messages], which: list[int], where: str) -> bool:
        """Correct those of ``openings`` after which no reply begins; whether one of them follows on something said."""
        replies = [[*histories[k], {"role": AGENT, "content": "A"}] for k in which]
        found = False
        for k, probe in zip(which, self._rendered(replies, where), strict=True):
            if not (probe.startswith(openings[k]) and probe[len(openings[k]) :].lstrip().startswith("A")):
                other = self._rendered([[*histories[k], {"role": AGENT, "content": "B"}]], where)[0]
                openings[k] = probe[: _shared(probe, other)]
                found |= bool(histories[k])
        return found

    def _rendered(self, chats: list[Messages], where: str, prompt: bool = False) -> list[str]:
        if not chats:
            return []
        if self.template is None:
            return [self._plain(chat) + (f"{AGENT.capitalize()}:" if prompt else "") for chat in chats]
        try:
            rendered: list[str] = self.tokenizer.apply_chat_template(
                chats, tokenize=False, add_generation_prompt=prompt
            )
        except TemplateError as error:
            raise ValueError(f"{where}: the chat template cannot write this chat: {error}") from error
        return rendered

    def _plain(self, messages: Messages) -> str:
        lines = [f"{m['role'].capitalize()}:{' ' if m['content'] else ''}{m['content']}\n" for m in messages]
        return self.start + "".join(lines)

    def _encoded(self, text: str, begins: Sequence[int]) -> tuple[NDArray[np.int64], list[int], list[int]]:
        """Tokens of ``text``, where each starts, and which is the first after each of ``begins``.

        What stands before each of ``begins`` has the tokens that it has when nothing follows. Tokenizers that look
        ahead, or join characters from both sides, are given the text in two pieces there.
        """
        cuts: list[int] = []
        first_tokens = []
        character, token = 0, 0
        tokens, starts = self._pieces(text, cuts)
        for begin in begins:
            # Text is taken apart at special tokens and cuts: what stands before the last one need not be read again.
            separators = range(bisect_left(starts, begin) - 1, token, -1)
            found = next((n for n in separators if tokens[n] in self.separators), None)
            if found is not None:
                character, token = starts[found], found
            before, _ = self._pieces(text[character:begin], [])
            first_tokens.append(token + len(before))
            if tokens[token : token + len(before)] != before:
                cuts.append(begin)
                tokens, starts = self._pieces(text, cuts)
                character, token = begin, first_tokens[-1]
        return np.array(tokens, dtype=np.int64), starts, first_tokens

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
