"""Functions as judges, and the one door through which everything else becomes one: `as_judge`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, TypeAlias

from cautious_imitation.judging.language_model import LanguageModelJudge
from cautious_imitation.judging.oracle import OracleJudge
from cautious_imitation.judging.people import PeopleJudge
from cautious_imitation.judging.protocol import Judge, JudgeError, Open, Response, Ruling
from cautious_imitation.oracles.judgements import JudgementLog, TranscriptPair, Verdict
from cautious_imitation.oracles.language_model import is_network

Said: TypeAlias = "Verdict | str | Response | None"
"""What a function may return: which one it is ("first", "second", "tie"), a ``Ruling``, or None if that is open."""

Judging: TypeAlias = Any
"""What ``as_judge`` accepts; see there."""


class FunctionJudge:
    """Asks a function about one pair after another.

    Args:
        function: from a ``TranscriptPair`` to what it says; a text that is no verdict is kept as one that cannot be
            read.
        name: what the verdicts are filed under; default the function's own.

    >>> longer = FunctionJudge(lambda pair: "first" if len(pair.first) > len(pair.second) else "tie", "longer")
    >>> [ruling.verdict for ruling in longer.judge([TranscriptPair("Which is longer?", (), ())])]
    [<Verdict.TIE: 'tie'>]
    """

    def __init__(self, function: Callable[[TranscriptPair], Said], name: str | None = None) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    def judge(self, pairs: Sequence[TranscriptPair]) -> Iterator[Response]:
        """Responses, in order; what the function raises goes through.

        Raises:
            JudgeError: if the function returns something else than it may.
        """
        for pair in pairs:
            yield self._response(self.function(pair), pair)

    def _response(self, said: Said, pair: TranscriptPair) -> Response:
        if isinstance(said, (Ruling, Open)):
            return said
        if said is None:
            return Open(f"{self.name} returned None")
        if not isinstance(said, str):
            raise JudgeError(
                f'judge {self.name!r} must return "first", "second", "tie" or None for open, got {said!r} for pair '
                f"{pair.id!r}"
            )
        return Ruling(Verdict(said) if said in set(Verdict) else None, str(said))


def as_judge(judge: Judging, **options: Any) -> Judge:
    """Make a judge of whatever can compare two transcripts.

    Args:
        judge: one of

            - a ``Judge``, taken as it is; ``EndpointJudge(url, model)`` is one;
            - a function from a ``TranscriptPair`` to "first", "second" or "tie", or None if that is open;
            - a ``JudgementLog``, or the path of its file: people judge in a console, see ``PeopleJudge``;
            - a language model of Transformers or a ``LanguageModel``, see ``LanguageModelJudge``;
            - an ``Oracle`` that answers in words, see ``OracleJudge``.
        **options: those of the class that is made.

    Raises:
        TypeError: if it is none of these, or takes no such options.

    >>> as_judge(lambda pair: "tie", name="nobody").name
    'nobody'
    """
    make = _maker(judge)
    if make is None:
        if options:
            raise TypeError(
                f"options go with what is made into a judge, got {', '.join(options)} with a {type(judge).__name__}, "
                "which is one"
            )
        return judge  # type: ignore[no-any-return]
    return make(judge, **options)


def _maker(judge: Judging) -> Callable[..., Judge] | None:
    """What makes a judge of ``judge``; None if it is one."""
    if isinstance(judge, (str, PathLike, JudgementLog)):
        return PeopleJudge
    if not isinstance(judge, type) and isinstance(judge, Judge):
        return None
    if is_network(judge):
        return LanguageModelJudge
    if callable(getattr(judge, "ask", None)):
        return OracleJudge
    if callable(judge):
        return FunctionJudge
    raise TypeError(
        "judge must be a function of a TranscriptPair, an object with name and judge(pairs), an oracle, a language "
        f"model or the path of a log of judgements, got {judge!r}"
    )
