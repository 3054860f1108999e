"""Dialogue acts: what a message does in a conversation, read from its words.

A conversation becomes a sequence of symbols: each message is one act, each turn closes with the end-of-turn act of its
speaker. Speaker 0 is the agent (whose behaviour is imitated), speaker 1 whoever it talks to; the symbol of an act is
``speaker * len(ACTS) + act``. The rules know English only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

ACTS: tuple[str, ...] = (
    "end of turn",
    "greeting",
    "farewell",
    "laugh",
    "acknowledgement",
    "question",
    "positive",
    "negative",
    "statement",
)
"""Names of the acts; an act is its index here."""

END_OF_TURN, GREETING, FAREWELL, LAUGH, ACKNOWLEDGEMENT, QUESTION, POSITIVE, NEGATIVE, STATEMENT = range(len(ACTS))

N_DIALOGUE_SYMBOLS = 2 * len(ACTS)
"""Symbols of a dialogue: the agent's acts, then the other speaker's."""

_GREETING = re.compile(r"(hi|hello|hey|yo|sup|howdy)\b")
_FAREWELL = re.compile(r"\b(bye|goodbye|gtg|see ya|ttyl|good ?night)\b")
_LAUGH = re.compile(r"[\W_]*(l+o+l+|(ha)+h?|haha\w*|lmao|rofl|hehe\w*)[\W_]*")
_GREETING_WORDS = 4
_ACKNOWLEDGEMENT_WORDS = 2
_MOOD = 0.35


def label(text: str) -> int:
    """Act of one message, an index into ``ACTS``; never ``END_OF_TURN``, which no message is by itself.

    The first rule that fits decides, whatever the case of the letters and the white space around them:

    1. greeting: opens with a greeting word and has at most 4 words;
    2. farewell: holds a farewell;
    3. laugh: is laughter and nothing else;
    4. question: holds a question mark;
    5. acknowledgement: at most 2 words, so also a message whose text is blank;
    6. positive or negative: VADER's compound score above 0.35 or below -0.35;
    7. statement: anything else.

    Sentiment is VADER's (Hutto and Gilbert, ICWSM 2014), loaded at the first message that needs it.

    >>> [ACTS[label(text)] for text in ("Hey there!", "I moved here last year", "ok", "I love this song so much")]
    ['greeting', 'statement', 'acknowledgement', 'positive']
    """
    text = text.strip().lower()
    n_words = len(text.split())
    if n_words <= _GREETING_WORDS and _GREETING.match(text):
        return GREETING
    if _FAREWELL.search(text):
        return FAREWELL
    if _LAUGH.fullmatch(text):
        return LAUGH
    if "?" in text:
        return QUESTION
    if n_words <= _ACKNOWLEDGEMENT_WORDS:
        return ACKNOWLEDGEMENT
    mood = _sentiment().polarity_scores(text)["compound"]
    if mood > _MOOD:
        return POSITIVE
    return NEGATIVE if mood < -_MOOD else STATEMENT


def label_turn(texts: Iterable[str], speaker: int) -> list[int]:
    """Symbols of one turn: an act a message, then the end of the turn; no messages at all is an empty reply.

    Args:
        texts: the messages of the turn, in order.
        speaker: 0 for the agent, 1 for the other one.

    Raises:
        ValueError: if ``speaker`` is neither 0 nor 1.

    >>> label_turn(["Hi", "how are you?"], speaker=1)
    [10, 14, 9]
    >>> label_turn([], speaker=0)
    [0]
    """
    if speaker not in (0, 1):
        raise ValueError(f"speaker must be 0 (the agent) or 1 (the other one), got {speaker!r}")
    first = speaker * len(ACTS)
    return [*(first + label(text) for text in texts), first + END_OF_TURN]


@cache
def _sentiment() -> SentimentIntensityAnalyzer:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
