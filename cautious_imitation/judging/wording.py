"""What judges are asked, in words, and how their answers are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from cautious_imitation.demonstrations import Message
from cautious_imitation.oracles.judgements import TranscriptPair, Verdict

_CUT = "Both were cut after the same number of tokens, so where one stops says nothing about it."

BETTER = (
    "Here are two transcripts of a teacher and a student. Which one is better? Go by what the teacher says: whether it "
    f"makes sense, fits what came before, and is what a good teacher would say there. {_CUT}"
)
COMPLEX = (
    "Here are two transcripts of a teacher and a student. Which one is more complex, that is, less predictable? Go by "
    "how hard it would be to guess what the teacher says next from what came before. It does not matter which one is "
    f"better. {_CUT}"
)
QUESTIONS: Mapping[str, str] = MappingProxyType({"better": BETTER, "complex": COMPLEX})
"""What is asked, by the names that verdicts are filed under."""

LETTERS = ("A", "B")
"""What the transcripts of a pair are called, the first one first."""

_VERDICTS = {"a": Verdict.FIRST, "b": Verdict.SECOND, "tie": Verdict.TIE}
_ANSWER = re.compile(
    r"[\W_]*(?:(?:the |my )?(?:final )?(?:answer|verdict|choice)(?: is)?[\W_]+)?(?:transcript )?[\W_]*"
    r"(a|b|tie)[\W_]*",
    re.IGNORECASE,
)


def prompt(pair: TranscriptPair, *, ties: bool = True) -> str:
    """A pair as it is put to a language model.

    Args:
        pair: the question and two transcripts.
        ties: whether "tie" may be answered.

    >>> said = (Message(role="teacher", content="Hello!"), Message(role="student", content=""))
    >>> print(prompt(TranscriptPair("Which is better?", said, said[:1]), ties=False))
    Which is better?
    <BLANKLINE>
    Transcript A
      Teacher: Hello!
      Student: (says nothing)
    <BLANKLINE>
    Transcript B
      Teacher: Hello!
    <BLANKLINE>
    Answer with A or B, and nothing else.
    """
    shown = [
        "\n".join([f"Transcript {letter}", *map(_line, transcript or (None,))])
        for letter, transcript in zip(LETTERS, (pair.first, pair.second), strict=True)
    ]
    asked = (
        "Answer with A, B, or tie if neither is, and nothing else." if ties else "Answer with A or B, and nothing else."
    )
    return "\n\n".join([pair.question, *shown, asked])


def read_verdict(said: str) -> Verdict | None:
    """The verdict that an answer holds, in a line with nothing else in it; None if there is none or they differ.

    >>> read_verdict("**B**"), read_verdict("Answer: Transcript A."), read_verdict("A is good, but B is better")
    (<Verdict.SECOND: 'second'>, <Verdict.FIRST: 'first'>, None)
    """
    matches = [_ANSWER.fullmatch(line) for line in said.splitlines()]
    found = {match[1].lower() for match in matches if match is not None}
    return _VERDICTS[found.pop()] if len(found) == 1 else None


def _line(message: Message | None) -> str:
    """One message; further lines of it are indented, so that none of them reads as a heading or another speaker."""
    if message is None:
        return "  (nothing)"
    words = message.content.strip().replace("\n", "\n    ")
    return f"  {message.role.capitalize()}: {words or '(says nothing)'}"
