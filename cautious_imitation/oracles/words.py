"""Answers in words, as people write them: what goes on from a reply that has begun, and saying nothing."""

from __future__ import annotations

import unicodedata

from cautious_imitation.oracles.protocol import Act, Query

AGENTS = ("assistant", "agent", "demonstrator")
"""Roles of whoever is imitated, in a conversation."""

SILENCE = Act(text="")
"""The turn ends without a word, or without another one."""


def in_words(words: str, query: Query, *, within_word: bool = False) -> Act:
    """A reply in words; where the agent has begun one it goes on, after a blank if it begins a new word.

    Args:
        words: what was written, at least one character that is no blank.
        query: what it answers.
        within_word: whether it begins within the last word of what the agent has begun.

    >>> from cautious_imitation.demonstrations import Message
    >>> query = Query((0,), n_actions=9, messages=(Message(role="assistant", content="I like choco"),))
    >>> in_words("of all kinds", query).text, in_words("late", query, within_word=True).text
    (' of all kinds', 'late')
    """
    begun = begun_reply(query)
    return Act(text=f" {words}" if begun and not within_word and _new_word(begun[-1], words[0]) else words)


def begun_reply(query: Query) -> str:
    """The agent's reply as far as it goes, if it has begun one."""
    last = query.messages[-1] if query.messages else None
    return last.content if last is not None and last.role in AGENTS else ""


def knows_words(query: Query) -> bool:
    """Whether the run could understand a reply in words: it has shown some itself."""
    return bool(query.messages) or query.text is not None or any(action.text is not None for action in query.plausible)


def knows_silence(query: Query) -> bool:
    """Whether saying nothing is an answer: the context is a conversation, in which turns end."""
    return bool(query.messages)


def _new_word(before: str, after: str) -> bool:
    """Whether a blank belongs between two characters, which is so in scripts that have blanks between words."""
    spaced = not any(unicodedata.east_asian_width(character) in "WF" for character in (before, after))
    return spaced and not before.isspace() and after.isalnum()
