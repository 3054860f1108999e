"""Recorded behaviour: sequences of symbols in which every position says who chose it.

Conversations come from the shipped real chats or from the user's own JSONL, as sequences of dialogue acts.
"""

from __future__ import annotations

import bz2
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cautious_imitation.dialogue_labels import ACTS, label_turn
from cautious_imitation.types import Actor

Evidence: TypeAlias = Literal["demonstrator", "all"]
"""Whose actions are learned from: the demonstrator's only, or the imitator's as well. Never the environment's."""

_CODES = {actor: code for code, actor in enumerate(Actor)}
_SHORTEST_DIGESTED = 16
_SHAPE = '{"messages": [{"role": ..., "content": ...}, ...]}'


@dataclass(frozen=True, eq=False, repr=False)
class Demonstrations:
    """Sequences of symbols with the actor of every position. The arrays are copies, read-only.

    Attributes:
        sequences: one int64 array ``[T]`` of symbols >= 0 a sequence, oldest first; ``T`` may differ.
        actors: one uint8 array ``[T]`` a sequence, actors as ``actor_codes`` writes them.

    Raises:
        ValueError: if there is no sequence, symbols are not integers >= 0 in one dimension, or the actors do not match
            them one by one.

    >>> demonstrations = Demonstrations([[0, 3, 1]], [actor_codes(["demonstrator", "environment", "imitator"])])
    >>> demonstrations
    Demonstrations(1 sequence, 3 symbols: 1 demonstrator, 1 imitator, 1 environment)
    >>> demonstrations.learned("all")[0].tolist()
    [True, False, True]
    """

    sequences: tuple[NDArray[np.int64], ...]
    actors: tuple[NDArray[np.uint8], ...]

    def __post_init__(self) -> None:
        sequences = tuple(_symbols(sequence, index) for index, sequence in enumerate(self.sequences))
        actors = tuple(_actor_array(codes, index) for index, codes in enumerate(self.actors))
        if not sequences:
            raise ValueError("sequences must hold at least one sequence, got none; there is nothing to learn from")
        lengths, actor_lengths = [len(s) for s in sequences], [len(a) for a in actors]
        if len(lengths) != len(actor_lengths):
            raise ValueError(f"actors must hold one array a sequence, got {len(actors)} for {len(sequences)} sequences")
        for index, (n_symbols, n_actors) in enumerate(zip(lengths, actor_lengths, strict=True)):
            if n_symbols != n_actors:
                raise ValueError(f"actors[{index}] must name the actor of each of {n_symbols} symbols, got {n_actors}")
        object.__setattr__(self, "sequences", sequences)
        object.__setattr__(self, "actors", actors)

    def __len__(self) -> int:
        return len(self.sequences)

    def __repr__(self) -> str:
        counts = np.bincount(np.concatenate(self.actors), minlength=len(Actor))
        by_actor = ", ".join(f"{count} {actor.value}" for actor, count in zip(Actor, counts, strict=True) if count)
        plural = "" if len(self) == 1 else "s"
        symbols = f"{counts.sum()} symbols" + (f": {by_actor}" if by_actor else "")
        return f"Demonstrations({len(self)} sequence{plural}, {symbols})"

    def learned(self, evidence: Evidence = "demonstrator") -> tuple[NDArray[np.bool_], ...]:
        """Which positions are learned from: one boolean array ``[T]`` a sequence.

        Args:
            evidence: ``"demonstrator"``, or ``"all"`` for the imitator's actions as well.

        Raises:
            ValueError: if ``evidence`` is neither.
        """
        if evidence not in get_args(Evidence):
            raise ValueError(
                f'evidence must be "demonstrator" or "all", got {evidence!r}; '
                '"all" learns from the imitator\'s actions too'
            )
        if evidence == "demonstrator":
            return tuple(codes == _CODES[Actor.DEMONSTRATOR] for codes in self.actors)
        return tuple(np.isin(codes, (_CODES[Actor.DEMONSTRATOR], _CODES[Actor.IMITATOR])) for codes in self.actors)

    def n_learned(self, evidence: Evidence = "demonstrator") -> int:
        """Number of positions that are learned from, over all sequences; ``evidence`` as in ``learned``."""
        return sum(int(np.count_nonzero(mask)) for mask in self.learned(evidence))

    @classmethod
    def from_symbols(cls, sequences: Iterable[ArrayLike], n_symbols: int) -> Demonstrations:
        """Take sequences in which the symbol itself says whose it is.

        Args:
            sequences: arrays or lists of integers, each ``[T]``, oldest first.
            n_symbols: V; symbols 0..V-1 are the demonstrator's actions, larger ones the environment's.

        Raises:
            ValueError: if ``n_symbols`` is below 1, or ``sequences`` are not sequences of integers >= 0.

        >>> Demonstrations.from_symbols([[0, 5, 1], [2, 2]], n_symbols=3).n_learned()
        4
        """
        if n_symbols < 1:
            raise ValueError(f"n_symbols must be at least 1, got {n_symbols}; it counts the demonstrator's actions")
        symbols = tuple(_symbols(sequence, index) for index, sequence in enumerate(sequences))
        ours, theirs = _CODES[Actor.DEMONSTRATOR], _CODES[Actor.ENVIRONMENT]
        return cls(symbols, tuple(np.where(s < n_symbols, ours, theirs).astype(np.uint8) for s in symbols))

    @classmethod
    def dialogue_acts(cls) -> Demonstrations:
        """Real conversations that come with the library: 2,963 chats between two people, as dialogue acts.

        The demonstrator is the first speaker (symbols 0..8, see ``dialogue_labels.ACTS``), the environment the second
        one (9..17). Source: chitchat-dataset, MIT; ``cautious_imitation/data/README.md`` has notice and counts. Loaded
        once, from the package.

        >>> Demonstrations.dialogue_acts()
        Demonstrations(2963 sequences, 367455 symbols: 187022 demonstrator, 180433 environment)
        """
        return _shipped_chats()

    @classmethod
    def from_chats(
        cls, path: str | PathLike[str], agent_role: str = "assistant", other_role: str = "user"
    ) -> Demonstrations:
        """Read chats from a JSONL file, one ``{"messages": [{"role": ..., "content": ...}, ...]}`` a line.

        Each chat becomes a sequence of dialogue acts as in ``dialogue_acts``, with the agent as the demonstrator,
        whoever speaks first. Consecutive messages of one role are one turn. A message without text (empty or white
        space) contributes no act, so a turn of such messages is an empty reply. ``system`` messages, further keys and
        blank lines are ignored.

        An act is read from a whole message. So the acts of the agent's messages with weight 0, and of those that are
        only in part the speaker's (see ``Message``), count as the imitator's, and with the last message of a turn the
        end of the turn. After an unfinished message no turn ends.

        Args:
            path: the file, in UTF-8.
            agent_role: role of the speaker to imitate.
            other_role: role of whoever the agent talks to.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file holds no chat, a line is not a chat, a role is unknown, the agent never speaks or
                nothing of it counts (the message names path and line), or the two roles are the same or ``system``.
        """
        if agent_role == other_role or "system" in (agent_role, other_role):
            raise ValueError(
                "agent_role and other_role must be two different roles, neither of them the ignored 'system', "
                f"got {agent_role!r} and {other_role!r}"
            )
        path = Path(path)
        speakers = {agent_role: 0, other_role: 1}
        chats = [_chat_symbols(chat, speakers, where) for where, chat in read_chats(path)]
        if not chats:
            raise ValueError(f"{path} is empty; write one chat a line: {_SHAPE}")
        demonstrations = cls(*map(tuple, zip(*chats, strict=True)))
        if not demonstrations.n_learned():
            if demonstrations.n_learned("all"):
                raise ValueError(
                    f"{path} holds no whole message by agent_role={agent_role!r} with a weight other than 0, so there "
                    "is nothing to imitate; see what weight and given_characters its messages have"
                )
            raise ValueError(
                f"{path} holds no turn by agent_role={agent_role!r}, so there is nothing to imitate; "
                f"pass the role to imitate as agent_role"
            )
        return demonstrations


def actor_codes(actors: Iterable[Actor | str]) -> NDArray[np.uint8]:
    """Actors as ``Demonstrations`` keep them: 0 demonstrator, 1 imitator, 2 environment, shape ``[T]``.

    Raises:
        ValueError: if one of them is no ``Actor``.

    >>> actor_codes([Actor.DEMONSTRATOR, Actor.ENVIRONMENT]).tolist()
    [0, 2]
    """
    return np.array([_CODES[Actor(actor)] for actor in actors], dtype=np.uint8)


def sequence_digests(sequences: Iterable[ArrayLike]) -> dict[int, str]:
    """Fingerprints of sequences by index, equal for equal symbols; those of fewer than 16 symbols have none.

    Short sequences recur by chance, which says nothing about where they come from.

    >>> sequence_digests([[0, 1], [0, 1] * 8])
    {1: '6f24316b4f76a091'}
    """
    symbols = (_symbols(sequence, index) for index, sequence in enumerate(sequences))
    return {
        index: blake2b(s.astype("<i8").tobytes(), digest_size=8).hexdigest()
        for index, s in enumerate(symbols)
        if len(s) >= _SHORTEST_DIGESTED
    }


class Message(BaseModel):
    """What one speaker said, and what of it may be learned from if the speaker is the agent.

    Attributes:
        role: who.
        content: the words.
        weight: 0 if nothing of it is learned: it is context for what follows. As in other formats for fine-tuning.
        given_characters: so many characters at the beginning were there before the speaker went on, written by the
            imitator for instance, and are not learned. The rest is, with the end of the turn.
        unfinished: whether the speaker left off there, so that the end of the turn is not learned either.

    >>> Message(role="assistant", content="Hello there", given_characters=6).content[6:]
    'there'
    """

    model_config = ConfigDict(frozen=True)

    role: StrictStr
    content: StrictStr
    weight: Literal[0, 1] = 1
    given_characters: int = Field(default=0, ge=0, strict=True)
    unfinished: bool = Field(default=False, strict=True)

    @field_validator("weight", "given_characters", "unfinished", mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any, info: ValidationInfo) -> Any:
        # Tools that keep chats in columns write null where a key is missing.
        return cls.model_fields[str(info.field_name)].default if value is None else value

    @model_validator(mode="after")
    def _given_is_a_part(self) -> Self:
        if self.given_characters > len(self.content):
            raise ValueError(
                f"given_characters must be at most the {len(self.content)} characters of the content, got "
                f"{self.given_characters}"
            )
        return self


class Chat(BaseModel):
    """A conversation as it stands in a file: at least one message, oldest first. Further keys are kept unread."""

    model_config = ConfigDict(extra="allow")

    messages: list[Message] = Field(min_length=1)


def read_chats(path: str | PathLike[str]) -> Iterator[tuple[str, Chat]]:
    """Chats of a JSONL file, each with its ``path:line``; blank lines are passed over.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no chat; the message names path and line.
    """
    path = Path(path)
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"no file of demonstrations at {path}; it holds one chat a line: {_SHAPE}") from None
    with lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                yield where, Chat.model_validate_json(line.removeprefix(b"\xef\xbb\xbf"))
            except ValidationError as error:
                fault = error.errors()[0]
                key = ".".join(str(part) for part in fault["loc"])
                raise ValueError(
                    f"{where}: {f'{key}: ' if key else ''}{fault['msg']}; each line must be one chat, {_SHAPE}"
                ) from error


def _chat_symbols(chat: Chat, speakers: dict[str, int], where: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Act sequence of one chat, and the actor of each; ``speakers`` maps the two roles to 0 (agent) and 1."""
    for message in chat.messages:
        if message.role not in speakers and message.role != "system":
            raise ValueError(
                f"{where}: unknown role {message.role!r}; known are {', '.join(map(repr, speakers))} and 'system' "
                "(ignored): rename it, or pass agent_role and other_role"
            )
    spoken = [message for message in chat.messages if message.role != "system"]
    if not spoken:
        raise ValueError(f"{where}: nobody speaks, the chat has 'system' messages only; take the line out")
    symbols: list[int] = []
    actors: list[Actor] = []
    for role, turn in groupby(spoken, key=lambda message: message.role):
        messages = list(turn)
        worded = [message for message in messages if message.content.strip()]
        ended = not messages[-1].unfinished
        acts = label_turn((message.content for message in worded), speakers[role])
        symbols += acts if ended else acts[:-1]
        actors += [_actor(message, speakers[role]) for message in [*worded, *([messages[-1]] if ended else [])]]
    return np.array(symbols, dtype=np.int64), actor_codes(actors)


def _actor(message: Message, speaker: int) -> Actor:
    if speaker:
        return Actor.ENVIRONMENT
    # Whose doing a message is that two have written cannot be told from its act.
    whole = message.weight and not message.given_characters and not message.unfinished
    return Actor.DEMONSTRATOR if whole else Actor.IMITATOR


@cache
def _shipped_chats() -> Demonstrations:
    """Unpack what ``baselines/build_dialogue_acts.py`` wrote: a header line, then a chat a line, a letter a symbol."""
    packed = (files("cautious_imitation") / "data" / "dialogue_acts.jsonl.bz2").read_bytes()
    header, *chats = bz2.decompress(packed).splitlines()
    symbol_of_letter = np.full(256, -1)
    alphabet = json.loads(header)["alphabet"].encode("ascii")
    symbol_of_letter[list(alphabet)] = np.arange(len(alphabet))
    letters = [json.loads(chat).encode("ascii") for chat in chats]
    return Demonstrations.from_symbols(
        [symbol_of_letter[np.frombuffer(chat, dtype=np.uint8)] for chat in letters], n_symbols=len(ACTS)
    )


def _symbols(sequence: ArrayLike, index: int) -> NDArray[np.int64]:
    symbols = np.asarray(sequence)
    if symbols.ndim != 1 or not (np.issubdtype(symbols.dtype, np.integer) or symbols.size == 0):
        raise ValueError(
            f"sequences[{index}] must be integers in one dimension, got shape {symbols.shape} of {symbols.dtype}"
        )
    if symbols.size and symbols.min() < 0:
        raise ValueError(f"sequences[{index}] must hold symbols >= 0, got {symbols.min()}; alphabets start at 0")
    return _frozen(symbols, np.int64)


def _actor_array(codes: ArrayLike, index: int) -> NDArray[np.uint8]:
    values = np.asarray(codes)
    known = values.size == 0 or (
        np.issubdtype(values.dtype, np.integer) and 0 <= values.min() <= values.max() < len(Actor)
    )
    if values.ndim != 1 or not known:
        raise ValueError(
            f"actors[{index}] must be codes 0..{len(Actor) - 1} ({', '.join(Actor)}) in one dimension, "
            f"got {values!r}; actor_codes([...]) writes them"
        )
    return _frozen(values, np.uint8)


def _frozen(values: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    copy = values.astype(dtype)
    copy.setflags(write=False)
    return copy
