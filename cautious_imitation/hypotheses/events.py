"""Events: a few kinds of next token, such as "the reply is empty", told apart by the tokens alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


class Events(ABC):
    """A map from a context and its next token to one of a few events, and what the choice of event may depend on.

    Contexts come in kinds ("at the start of a reply", "within one"); at each kind every action belongs to one event.
    At a kind either every event is possible, that is, has an action, or exactly one is, and then nothing is decided.
    A subclass says of which kind a context is, and what the event may depend on: its history, a short sequence of
    symbols. It sees nothing but the tokens.

    Args:
        partition: ``[n_kinds, V]``, the event of each action at each kind.
        n_events: how many events there are, 0..n_events-1.
        depth: length of histories; 0 if the event depends on nothing.
        n_history_symbols: histories are made of 0..n_history_symbols-1; default ``n_events + 1``, the events and one
            symbol more for those that have not happened. Where several kinds are open, a history should name the kind.

    Raises:
        ValueError: if ``partition`` breaks the rule above or names another event.
    """

    def __init__(
        self, partition: ArrayLike, n_events: int, *, depth: int = 0, n_history_symbols: int | None = None
    ) -> None:
        self.partition = _checked_partition(partition, n_events)
        self.n_events = n_events
        self.n_kinds, self.n_symbols = self.partition.shape
        self.depth = depth
        self.n_history_symbols = n_events + 1 if n_history_symbols is None else n_history_symbols
        self.is_open: NDArray[np.bool_] = (self.partition != self.partition[:, :1]).any(axis=1)
        """Kinds at which something is decided, that is, every event is possible: ``[n_kinds]``."""

    @abstractmethod
    def after(self, rows: Sequence[torch.Tensor]) -> tuple[Ints, Ints]:
        """Kinds ``[N]`` and histories ``[N, depth]``, oldest symbol first, at the end of N contexts ``[L]`` each."""

    @abstractmethod
    def along(self, sequence: Ints, positions: Ints) -> tuple[Ints, Ints]:
        """Kinds ``[P]`` and histories ``[P, depth]`` just before ``positions [P]`` of a sequence ``[T]``."""


class EmptyReplies(Events):
    """Whether an agent's reply ends before anything is said.

    At the start of a reply, that is, right after the tokens that open the agent's turn, event 0 is the reply that ends
    at once, 1 that something is said, and with ``blank_tokens`` 2 that it begins with one of them. Blanks have an event
    of their own because a loop of replies of white space is a loop of empty replies: if they counted as 1, nothing but
    the language model would govern it; if they counted as 0, nothing but the language model would say which it is.
    Within a reply nothing is decided.

    Args:
        n_symbols: V, the number of actions.
        end_tokens: actions that end a reply.
        start_suffix: the tokens that open the agent's turn; they need not be actions.
        blank_tokens: actions that say nothing, such as line breaks.
        memory: how many earlier replies' events the next one may depend on. Beyond 0 an event that was never seen makes
            every context after it new: the demonstrator's behaviour is unknown there, and the imitator asks whatever
            comes next.

    Raises:
        ValueError: if tokens are outside the alphabet, there is no ``start_suffix``, or nothing is left to be said.

    >>> events = EmptyReplies(n_symbols=4, end_tokens=[0], start_suffix=[5, 3])
    >>> events.partition[1].tolist()
    [0, 1, 1, 1]
    >>> events.along(np.array([5, 3, 0, 5, 3, 1, 2]), np.array([2, 5, 6]))[0].tolist()
    [1, 1, 0]
    """

    def __init__(
        self,
        n_symbols: int,
        end_tokens: Iterable[int],
        start_suffix: Iterable[int],
        *,
        blank_tokens: Iterable[int] = (),
        memory: int = 0,
    ) -> None:
        self.end_tokens = _tokens(end_tokens, "end_tokens", n_symbols)
        self.blank_tokens = _tokens(blank_tokens, "blank_tokens", n_symbols)
        self.start_suffix = _tokens(start_suffix, "start_suffix", None)
        if not self.end_tokens:
            raise ValueError("end_tokens must hold at least one action, got none; without one no reply ends")
        if not self.start_suffix:
            raise ValueError("start_suffix must hold at least one token, got none; it opens the agent's turn")
        both = sorted(set(self.end_tokens) & set(self.blank_tokens))
        if both:
            raise ValueError(f"blank_tokens must not be end_tokens too, got {both} in both; leave them in one")
        if memory < 0:
            raise ValueError(f"memory must be at least 0, got {memory}; it counts earlier replies")
        said = sorted(set(range(n_symbols)) - set(self.end_tokens) - set(self.blank_tokens))
        if not said:
            raise ValueError(
                f"end_tokens and blank_tokens must leave an action that says something, got all {n_symbols}; "
                "name fewer of them"
            )
        partition = np.full((2, n_symbols), _SAID)
        partition[1, list(self.end_tokens)] = _ENDED
        partition[1, list(self.blank_tokens)] = _BLANK
        super().__init__(partition, 3 if self.blank_tokens else 2, depth=memory)

    @classmethod
    def for_tokenizer(
        cls, tokenizer: Any, n_symbols: int | None = None, *, blanks: bool = True, memory: int = 0
    ) -> EmptyReplies:
        """Find the tokens in the chat template of a Transformers tokenizer.

        A reply opens with what ``add_generation_prompt`` adds, and ends with the special token that the template writes
        after an assistant's message, or the tokenizer's end of sequence. A reply's first token must not be merged with
        the opening: tokenise the two apart.

        Args:
            tokenizer: has a chat template with a generation prompt.
            n_symbols: V; default all tokens.
            blanks: whether tokens of white space are ``blank_tokens``.
            memory: see the class.

        Raises:
            ValueError: if there is no such template, or no token that ends a reply; then name the tokens yourself.
        """
        n_symbols = len(tokenizer) if n_symbols is None else n_symbols
        ends = _ends(tokenizer)
        blank_tokens: list[int] = []
        if blanks:
            texts = tokenizer.batch_decode([[token] for token in range(min(n_symbols, len(tokenizer)))])
            known = {*ends, *tokenizer.all_special_ids}
            blank_tokens = [token for token, text in enumerate(texts) if not text.strip() and token not in known]
        return cls(n_symbols, ends, _opening(tokenizer), blank_tokens=blank_tokens, memory=memory)

    def after(self, rows: Sequence[torch.Tensor]) -> tuple[Ints, Ints]:
        """Kinds and histories at the end of N contexts; only their last tokens are looked at if ``memory`` is 0."""
        tails = list(rows) if self.depth else [row[-len(self.start_suffix) :] for row in rows]
        lengths = np.array([len(tail) for tail in tails], dtype=np.int64)
        tokens = torch.cat(tails).cpu().numpy() if tails else np.empty(0, dtype=np.int64)
        ends = lengths.cumsum()
        return self._found(tokens, ends, ends - lengths)

    def along(self, sequence: Ints, positions: Ints) -> tuple[Ints, Ints]:
        """Kinds and histories just before ``positions`` of a sequence, in one pass over it."""
        return self._found(sequence, positions, np.zeros(len(positions), dtype=np.int64))

    def settings(self) -> dict[str, Any]:
        """The arguments that make the same events again, as JSON takes them."""
        return {
            "n_symbols": self.n_symbols,
            "end_tokens": list(self.end_tokens),
            "start_suffix": list(self.start_suffix),
            "blank_tokens": list(self.blank_tokens),
            "memory": self.depth,
        }

    def _found(self, tokens: Ints, ends: Ints, begins: Ints) -> tuple[Ints, Ints]:
        """Kinds and histories at ``ends [N]`` of sequences that lie in one array and there start at ``begins [N]``."""
        kinds = self._opens(tokens, ends, begins).astype(np.int64)
        histories = np.full((len(ends), self.depth), self.n_events, dtype=np.int64)
        if not self.depth:
            return kinds, histories
        starts = np.flatnonzero(self._opens(tokens, np.arange(len(tokens)), np.zeros(len(tokens), dtype=np.int64)))
        if len(starts):
            first = tokens[starts]
            # A reply that begins with no action, in another's words so to say, is not empty either.
            events = np.where(first < self.n_symbols, self.partition[1][np.minimum(first, self.n_symbols - 1)], _SAID)
            latest = np.searchsorted(starts, ends) - 1
            for back in range(self.depth):
                index = np.maximum(latest - back, 0)
                there = (latest >= back) & (starts[index] - len(self.start_suffix) >= begins)
                histories[there, self.depth - 1 - back] = events[index[there]]
        return kinds, histories

    def _opens(self, tokens: Ints, ends: Ints, begins: Ints) -> NDArray[np.bool_]:
        """Whether the agent's turn has just been opened at ``ends``, by tokens from ``begins`` on."""
        suffix = np.array(self.start_suffix)
        complete = ends - begins >= len(suffix)
        found = np.zeros(len(ends), dtype=np.bool_)
        window = ends[complete, None] + np.arange(-len(suffix), 0)
        found[complete] = (tokens[window] == suffix).all(axis=1)
        return found


_ENDED, _SAID, _BLANK = range(3)


def _checked_partition(partition: ArrayLike, n_events: int) -> Ints:
    table = np.array(partition)
    if table.ndim != 2 or 0 in table.shape or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(
            f"partition must be integers [n_kinds, V], got shape {table.shape} of {table.dtype}; "
            "write the event of each action at each kind"
        )
    if table.min() < 0 or table.max() >= n_events:
        raise ValueError(
            f"partition must hold events in 0..{n_events - 1}, got {table.min()}..{table.max()}; raise n_events"
        )
    for kind, row in enumerate(table):
        n_possible = len(np.unique(row))
        if n_possible not in (1, n_events):
            raise ValueError(
                f"partition must give every event an action at each kind, or all actions to one event, got "
                f"{n_possible} of {n_events} events at kind {kind}; join events, or split the kind"
            )
    table = table.astype(np.int64)
    table.setflags(write=False)
    return table


def _tokens(values: Iterable[int], name: str, n_symbols: int | None) -> tuple[int, ...]:
    tokens = tuple(int(value) for value in values)
    for token in tokens:
        if token < 0 or (n_symbols is not None and token >= n_symbols):
            known = "at least 0" if n_symbols is None else f"in 0..{n_symbols - 1}, the actions"
            raise ValueError(f"{name} must be {known}, got {token}; are they of this tokenizer?")
    return tokens


_QUESTION = {"role": "user", "content": "Hello"}
_REMEDY = "pass end_tokens and start_suffix to EmptyReplies yourself"


def _rendered(tokenizer: Any, messages: list[dict[str, str]], opened: bool) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(f"tokenizer must have a chat template, got {type(tokenizer).__name__} without; {_REMEDY}")
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
    return text


def _encoded(tokenizer: Any, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def _opening(tokenizer: Any) -> list[int]:
    """The tokens of the generation prompt."""
    closed, opened = (_encoded(tokenizer, _rendered(tokenizer, [_QUESTION], opened)) for opened in (False, True))
    if opened[: len(closed)] != closed or len(opened) == len(closed):
        raise ValueError(
            f"tokenizer must have a chat template whose add_generation_prompt adds tokens at the end, got {opened} "
            f"after {closed}; {_REMEDY}"
        )
    return opened[len(closed) :]


def _ends(tokenizer: Any) -> list[int]:
    """The special token that the template writes after an assistant's message, and the end of sequence."""
    answer = {"role": "assistant", "content": "Good day"}
    rest = _rendered(tokenizer, [_QUESTION, answer], False).rpartition(answer["content"])[2]
    special = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    ends = [token for token in _encoded(tokenizer, rest)[:1] if token in special]
    if tokenizer.eos_token_id is not None:
        ends.append(int(tokenizer.eos_token_id))
    if not ends:
        raise ValueError(f"tokenizer must have a special token that ends a reply, got none; {_REMEDY}")
    return sorted(set(ends))
