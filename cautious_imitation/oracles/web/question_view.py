"""A question as it is shown: its conversation, the part of a long context that fits, and the actions with ranges."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cautious_imitation.oracles.log import Entry, Status
from cautious_imitation.oracles.protocol import Act, Decline, PlausibleAction, Query
from cautious_imitation.oracles.words import AGENTS, begun_reply, knows_words

SHOWN_CHARACTERS = 40_000
SHOWN_SYMBOLS = 2_000


class Standing(StrEnum):
    """Where a question stands for whoever looks at it."""

    YOURS = "yours"
    TAKEN = "taken"
    LATE = "late"
    SETTLED = "settled"
    EXPIRED = "expired"


def standing(entry: Entry, person: str) -> Standing:
    """Whether ``person`` may answer, and if not, why."""
    if entry.status in (Status.ANSWERED, Status.DECLINED):
        return Standing.SETTLED
    if entry.status is Status.EXPIRED:
        return Standing.LATE if entry.taken_at is None else Standing.EXPIRED
    if entry.status is Status.CLAIMED and entry.claimed_by != person:
        return Standing.TAKEN
    return Standing.YOURS


@dataclass(frozen=True)
class Turn:
    """One message as it is shown."""

    role: str
    text: str
    by_agent: bool
    unfinished: bool


@dataclass(frozen=True)
class Range:
    """An action, and where its probabilities lie on a line from 0 to 100."""

    action: int
    text: str | None
    low: float
    mixture: float
    high: float
    start: float
    width: float
    mark: float


@dataclass(frozen=True)
class QuestionView:
    """What of a question is shown.

    Attributes:
        turns: the conversation, without what does not fit.
        text: the text, if there is no conversation.
        symbols: the symbols, if there is no text either.
        left_out: what does not fit, in words; empty if everything does.
        begun: the agent's reply as far as it goes, if it has begun one.
        in_words: whether an answer in words can be made sense of.
        ranges: the actions that may come next.
    """

    turns: tuple[Turn, ...]
    text: str | None
    symbols: tuple[int, ...]
    left_out: str
    begun: str
    in_words: bool
    ranges: tuple[Range, ...]


def question_view(query: Query, everything: bool = False) -> QuestionView:
    """What of a question is shown.

    Args:
        query: the question.
        everything: also what is too long to be read.

    >>> question_view(Query((1, 2), n_actions=3)).symbols, question_view(Query((), 3, text="x" * 50_000)).left_out
    ((1, 2), 'the first 10,000 characters')
    """
    turns, left_out = list[Turn](), ""
    text: str | None = None
    room = None if everything else SHOWN_CHARACTERS
    if query.messages:
        for message in reversed(query.messages):
            words = message.content if room is None else _last(message.content, room)
            turns.append(Turn(message.role, words, message.role in AGENTS, message.unfinished))
            if room is not None:
                # An empty message takes room too, or a million of them would fit.
                room -= len(words) + 20
                if room <= 0:
                    break
        total = sum(len(message.content) for message in query.messages)
        shown = sum(len(turn.text) for turn in turns)
        if len(turns) < len(query.messages) or shown < total:
            hidden = len(query.messages) - len(turns)
            left_out = f"the first {total - shown:,} characters" + (f", {hidden:,} messages" if hidden else "")
    if not query.messages and query.text is not None:
        text = query.text if everything else _last(query.text, SHOWN_CHARACTERS)
        if len(text) < len(query.text):
            left_out = f"the first {len(query.text) - len(text):,} characters"
    symbols = tuple[int, ...]()
    if not query.messages and query.text is None:
        symbols = query.context if everything else query.context[-SHOWN_SYMBOLS:]
        if len(symbols) < len(query.context):
            left_out = f"the first {len(query.context) - len(symbols):,} symbols"
    return QuestionView(
        tuple(reversed(turns)),
        text,
        symbols,
        left_out,
        begun_reply(query),
        knows_words(query),
        tuple(map(_range, query.plausible)),
    )


def snippet(query: Query, most: int = 140) -> str:
    """The end of a question, for a list.

    >>> snippet(Query((4, 5), n_actions=9)), snippet(Query((), 9, text="so it goes"), most=5)
    ('4 5', '…goes')
    """
    if query.messages:
        text = query.messages[-1].content
    elif query.text is not None:
        text = query.text
    else:
        text = " ".join(map(str, query.context[-most:]))
    text = " ".join(text[-4 * most :].split())
    return text if len(text) <= most else "…" + text[-most + 1 :].lstrip()


def answer_in_words(entry: Entry) -> str:
    """What was answered, as it is shown.

    >>> answer_in_words(Entry(Query((), 3, plausible=(PlausibleAction(1, 0, 0, 1, " no"),)), Status.ANSWERED, 0.0,
    ...                       answer=Act((1, 2))))
    '“ no” (1), 2'
    """
    answer = entry.answer
    if isinstance(answer, Decline):
        return answer.reason
    if isinstance(answer, Act) and answer.text is not None:
        return answer.text or "nothing"
    names = {one.action: one.text for one in entry.query.plausible if one.text is not None}
    actions = answer.actions if isinstance(answer, Act) else ()
    return ", ".join(f"“{names[action]}” ({action})" if action in names else str(action) for action in actions)


def _last(text: str, most: int) -> str:
    return text[-most:] if len(text) > most else text


def _range(one: PlausibleAction) -> Range:
    low, high, mark = (100 * min(1.0, max(0.0, share)) for share in (one.low, one.high, one.mixture))
    # A range of no width is still drawn.
    return Range(one.action, one.text, one.low, one.mixture, one.high, low, max(0.6, high - low), mark)
