"""Chats that were played, as the rows and transcripts that a comparison writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import fsum, sqrt
from operator import and_, eq
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.finetuning.chat_evaluation import PlayedChat
from cautious_imitation.intervals import wilson_interval
from cautious_imitation.judging.complexity import complexity
from cautious_imitation.types import Actor

Record: TypeAlias = dict[str, Any]

_UNFINISHED = "\ufffd"
_WINDOW = 8
"""Tokens before a token that are read with it."""

_ACTORS = [actor.value for actor in Actor]

COMPARED_TOKENS = 32
"""Teacher's tokens of an episode whose complexity is measured: all policies' at the same length."""


def row_of(name: Mapping[str, Any], chats: Sequence[PlayedChat], tokenizer: Any, **more: Any) -> Record:
    """A row of ``results.json``.

    Args:
        name: anchor, phase, budget, seed and length.
        chats: all episodes of the policy.
        tokenizer: writes tokens as text.
        **more: whatever else the row holds.
    """
    rewards = [chat.reward for chat in chats]
    charges = [float(chat.transcript.charges.sum()) for chat in chats]
    distances = [float(c.kl_demonstrator_nats.sum()) for c in chats if c.kl_demonstrator_nats is not None]
    replies = sum(chat.transcript.n_replies for chat in chats)
    empty = sum(chat.transcript.n_empty_replies for chat in chats)
    decisions, asks = sum(chat.decisions for chat in chats), sum(chat.questions for chat in chats)
    low, high = wilson_interval(empty, replies) if replies else (None, None)
    spoken = [_teacher_pieces(chat, tokenizer) for chat in chats]
    found = complexity(spoken, COMPARED_TOKENS)
    lengths = [t.end - t.begin for c in chats for t in c.transcript.spoken if t.is_teacher and t.finished]
    return {
        **name,
        "episodes": len(chats),
        "reward": float(np.mean(rewards)),
        "reward_se": _standard_error(rewards),
        "charge_nats": float(np.mean(charges)),
        "largest_charge_nats": max(charges),
        "kl_demonstrator_nats": float(np.mean(distances)) if distances else None,
        "kl_demonstrator_se": _standard_error(distances) if distances else None,
        "decisions": decisions,
        "asks": asks,
        "ask_rate": asks / decisions if decisions else 0.0,
        "replies": replies,
        "empty_replies": empty,
        "empty_reply_share": empty / replies if replies else None,
        "empty_reply_low": low,
        "empty_reply_high": high,
        "reply_tokens": float(np.mean(lengths)) if lengths else None,
        "bits_per_token": found.bits_per_token,
        "distinct_1": found.distinct_1,
        "distinct_2": found.distinct_2,
        "distinct_3": found.distinct_3,
        **more,
    }


def records_of(name: Mapping[str, Any], chats: Sequence[PlayedChat], tokenizer: Any) -> list[Record]:
    """The transcripts of ``transcripts.json``; arguments as for ``row_of``."""
    return [_record(name, number, chat, tokenizer) for number, chat in enumerate(chats)]


def _record(name: Mapping[str, Any], number: int, chat: PlayedChat, tokenizer: Any) -> Record:
    script = chat.transcript
    distances = chat.kl_demonstrator_nats
    return {
        **name,
        "episode": number,
        "given": script.n_given,
        "pieces": _pieces(script.tokens, tokenizer),
        "actors": [_ACTORS[code] for code in script.actors],
        "turns": script.turns.tolist(),
        "speakers": [
            {
                "is_teacher": turn.is_teacher,
                "begin": turn.begin,
                "end": turn.end,
                "finished": turn.finished,
                "empty": turn.is_empty,
                "text": turn.text,
            }
            for turn in script.spoken
        ],
        "charges": _rounded(script.charges),
        "kl_demonstrator": None if distances is None else _rounded(distances),
        "rewards": _rounded(script.rewards),
        "questions": list(script.questions),
    }


def _pieces(tokens: NDArray[np.int64], tokenizer: Any) -> list[str]:
    """The text of each token; a character that several make together stands with the last of them.

    Tokens are read with those just before them, since what a token reads as may depend on these, but not with all that
    came before, which would take a time that grows with the square of the length.
    """
    listed = tokens.tolist()

    def read(begin: int, end: int) -> str:
        text: str = tokenizer.decode(listed[begin:end], clean_up_tokenization_spaces=False)
        return text

    pieces, shown, begin, breaks = [], "", 0, [0]
    for n in range(1, len(listed) + 1):
        whole = read(begin, n)
        # An unfinished character reads as a mark that the next token takes back.
        done = whole if n == len(listed) else whole.rstrip(_UNFINISHED)
        if done != whole and not done.startswith(shown):
            pieces.append("")
            continue
        same = len(shown) if done.startswith(shown) else sum(accumulate(map(eq, shown, done), and_))
        pieces.append(done[same:])
        shown = done
        if done == whole:
            if n - begin > _WINDOW:
                # From a break on, so that no character is cut; the last one, if none is near.
                begin = next((place for place in breaks if place >= n - _WINDOW), breaks[-1])
                breaks, shown = [place for place in breaks if place >= begin], read(begin, n)
            breaks.append(n)
    return pieces


def _teacher_pieces(chat: PlayedChat, tokenizer: Any) -> list[str]:
    """What the teacher said, token by token, one reply after the other."""
    script = chat.transcript
    chosen = np.concatenate(
        [np.arange(turn.begin, turn.end) for turn in script.spoken if turn.is_teacher] or [np.empty(0, np.int64)]
    )
    return list(tokenizer.batch_decode([[token] for token in script.tokens[chosen].tolist()]))


def _rounded(values: NDArray[np.float64]) -> list[float]:
    """To nine digits: what is shown, and what sums are checked against, needs no more."""
    return [float(f"{value:.9g}") for value in values]


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = fsum(values) / len(values)
    return sqrt(fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
