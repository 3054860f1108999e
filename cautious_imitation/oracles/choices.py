"""Actions offered as a numbered list, and answers in words that name one of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cautious_imitation.oracles.protocol import OracleError, Query

MOST_CHOICES = 100
"""A longer list is not a choice that anybody can make with care."""

_NONE_OF_THESE = 0
_NUMBER = re.compile(r"\(?(\d{1,4})[.):]?")


@dataclass(frozen=True)
class Choices:
    """What may be chosen.

    Attributes:
        texts: each action as people write it, in the order in which they are offered.
        all_of_them: whether these are all actions that there are; if not, number 0 says "none of these".

    >>> choices = Choices({2: "yes", 5: "no"}, all_of_them=True)
    >>> print(choices.listed())
    1. yes
    2. no
    >>> choices.chosen(" 2. "), choices.chosen("no"), choices.chosen("no, never")
    (5, 5, None)
    """

    texts: Mapping[int, str]
    all_of_them: bool

    def listed(self) -> str:
        """The list, one a line."""
        lines = [f"{number}. {text}" for number, text in enumerate(self.texts.values(), start=1)]
        return "\n".join(lines if self.all_of_them else [*lines, f"{_NONE_OF_THESE}. none of these"])

    def chosen(self, answer: str) -> int | None:
        """The action that an answer names by its number or its text, and nothing beside it; None if there is none.

        A text that is itself a number, or is offered twice, can be chosen by its place in the list only.
        """
        answer = answer.strip()
        number = _NUMBER.fullmatch(answer)
        if number is not None:
            place = int(number[1])
            return list(self.texts)[place - 1] if 1 <= place <= len(self.texts) else None
        named = [action for action, text in self.texts.items() if text.strip() == answer]
        return named[0] if len(named) == 1 else None

    def refused(self, answer: str) -> bool:
        """Whether an answer says that none of these is meant."""
        number = _NUMBER.fullmatch(answer.strip())
        return not self.all_of_them and number is not None and int(number[1]) == _NONE_OF_THESE


def offered(query: Query, names: Sequence[str] | None) -> Choices:
    """The actions of a query with their texts: by ``names``, else by those of the plausible ones that have a text.

    They are in the order of the alphabet: the likeliest first would tell whoever answers what the asker expects.

    Raises:
        OracleError: if there are no texts, too few names, or too many actions.
    """
    if query.n_actions > MOST_CHOICES:
        raise OracleError(
            f"question {query.id!r} is about one of {query.n_actions} actions, more than the {MOST_CHOICES} that are a "
            "choice, and has no conversation; give it as messages, so that the answer can be a reply"
        )
    if names is None:
        known = {plausible.action: plausible.text for plausible in query.plausible if plausible.text is not None}
        texts = {action: known[action] for action in sorted(known)}
    elif len(names) < query.n_actions:
        raise OracleError(
            f"action_names must name each of {query.n_actions} actions, got {len(names)}; names of further symbols, "
            "which others say, may follow"
        )
    else:
        texts = dict(enumerate(names[: query.n_actions]))
    if not texts:
        raise OracleError(
            f"question {query.id!r} has no conversation and no actions with texts, so nothing can be said about it in "
            "words; pass action_names, one for each action"
        )
    return Choices(texts, len(texts) == query.n_actions)


def situation(query: Query, names: Sequence[str] | None, describe: Callable[[Query], str] | None) -> str:
    """The context in words: as ``describe`` tells it, else the query's own text, else its symbols by name."""
    if describe is not None:
        return describe(query)
    if query.text is not None:
        return query.text
    known = names or ()
    said = [known[symbol] if symbol < len(known) else str(symbol) for symbol in query.context]
    return "\n".join(said) if said else "(nothing yet)"
