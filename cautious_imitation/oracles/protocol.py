"""What is asked and what is answered: `Query`, `Act`, `Decline`, and the one method of an `Oracle`.

An oracle is asked many questions at once and answers each, in order, with an act or a decline. One that cannot answer
*now* raises `HelpNeeded`; whoever asked keeps its place, and asks the same questions again later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Protocol, TypeAlias, runtime_checkable
from uuid import uuid4

from cautious_imitation.demonstrations import Message


@dataclass(frozen=True)
class PlausibleAction:
    """One action that may come next, and how probable it is to whom.

    Attributes:
        action: the symbol.
        low: least probability that a plausible hypothesis gives it.
        mixture: its probability under the posterior mixture. Implausible hypotheses count there too, so it may lie
            outside of ``low`` and ``high``.
        high: largest probability that a plausible hypothesis gives it.
        text: the symbol as people write it, if that is known.
    """

    action: int
    low: float
    mixture: float
    high: float
    text: str | None = None


@dataclass(frozen=True)
class Query:
    """A question: what would the demonstrator do here?

    Attributes:
        context: the symbols so far, oldest first.
        n_actions: V; an answer is made of actions 0..V-1.
        ask_probability: how probable it was that the imitator would ask here.
        plausible: actions that may come next, the likeliest under the mixture first; not all of them if there are many.
        text: the context as people read it, if that is known.
        messages: the context as a conversation, if it is one. An unfinished reply of the agent is the last of them.
        id: stays the same for the same question of the same run, whoever repeats it; never shared by two questions.
        asker: the run, or the imitator, that asks.
        episode: which of the asker's episodes; None outside of any.
        deadline: seconds since 1970 after which nobody waits for the answer; None if somebody always will.

    >>> Query((0, 3, 1), n_actions=4, asker="tuesday", episode=2, id="tuesday/2/3").context
    (0, 3, 1)
    """

    context: tuple[int, ...]
    n_actions: int
    ask_probability: float = 1.0
    plausible: tuple[PlausibleAction, ...] = ()
    text: str | None = None
    messages: tuple[Message, ...] = ()
    id: str = field(default_factory=lambda: uuid4().hex)
    asker: str = "imitator"
    episode: int | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class Act:
    """What the demonstrator would do: one action or several in a row, or a whole reply in words.

    Attributes:
        actions: the actions, in order; empty if the answer is in words.
        text: a whole reply in words, which ends the turn. Whoever asked turns it into actions.
        evidence: whether it may be learned from: False if nobody chose it for this question, as when an earlier answer
            is repeated or somebody else than the demonstrator stands in.
        independent: whether it was decided without regard to the answer that this question gets one, and from this
            oracle; False if an earlier one declined it by what it would have answered. See ``Decline``.

    Raises:
        ValueError: if there are neither actions nor words, or both.

    >>> Act((3, 1)), Act(text="I don't know.")
    (Act((3, 1)), Act(text="I don't know."))
    """

    actions: tuple[int, ...] = ()
    text: str | None = None
    evidence: bool = True
    independent: bool = True

    def __repr__(self) -> str:
        shown = [f"{self.actions!r}"] if self.text is None else [f"text={self.text!r}"]
        shown += [f"{name}=False" for name in ("evidence", "independent") if not getattr(self, name)]
        return f"Act({', '.join(shown)})"

    def __post_init__(self) -> None:
        plain = (index(a) if hasattr(a, "__index__") and not isinstance(a, bool) else a for a in self.actions)
        object.__setattr__(self, "actions", tuple(plain))
        if bool(self.actions) == (self.text is not None):
            raise ValueError(
                f"an Act must hold actions, or text for a whole reply in words, got actions={self.actions!r} and "
                f"text={self.text!r}; Decline(reason) says that there is no answer"
            )


@dataclass(frozen=True)
class Decline:
    """No answer.

    Attributes:
        reason: why, in words.
        independent: whether it was decided without regard to what the answer would be, as when a budget is spent.
            Other declines select which answers are seen, and nothing is proven for a run that has one.
    """

    reason: str
    independent: bool = False


Answer: TypeAlias = Act | Decline


@runtime_checkable
class Oracle(Protocol):
    """Whoever answers questions. ``as_oracle`` makes one of functions, policies, estimators and models."""

    def ask(self, queries: Sequence[Query]) -> Sequence[Answer]:
        """Answers to all ``queries``, in their order.

        Raises:
            HelpNeeded: if some cannot be answered now. Nothing is lost: the same questions may be asked again.
        """


_WITHOUT_ORACLE = "pass oracle=f with f(query) -> action, or catch HelpNeeded and answer through observe()"


class HelpNeeded(Exception):
    """Questions wait for an answer that nobody could give at once.

    Attributes:
        queries: the questions, in the order in which they were asked.
    """

    def __init__(self, queries: Query | Iterable[Query], remedy: str | None = None) -> None:
        self.queries = (queries,) if isinstance(queries, Query) else tuple(queries)
        more = len(self.queries) - 1
        others = f", and {more} more question{'s' if more > 1 else ''}" if more else ""
        remedy = f"; {remedy}" if remedy else f" and has no oracle; {_WITHOUT_ORACLE}"
        super().__init__(f"the imitator asks for help at context {_shown(self.query.context)}{others}{remedy}")

    @property
    def query(self) -> Query:
        """The first of the questions."""
        return self.queries[0]


class OracleError(ValueError):
    """An oracle's answer is not one: too many, too few, or not made of actions."""


class UnknownQuery(LookupError):
    """Nobody asked a question of this id."""


class AnswerConflict(ValueError):
    """A question has another answer already, or somebody else is at it."""


def check_answer(answer: Answer, query: Query) -> Answer:
    """The answer itself, if it can be one to ``query``.

    Raises:
        OracleError: if it is neither an ``Act`` nor a ``Decline``, or holds something that is no action.
    """
    if isinstance(answer, Decline):
        return answer
    if not isinstance(answer, Act):
        raise OracleError(
            f"oracle must answer with Act(actions), Act(text=...) or Decline(reason), got {answer!r}; as_oracle takes "
            "functions that return plain actions"
        )
    for action in answer.actions:
        if isinstance(action, bool) or not isinstance(action, int) or not 0 <= action < query.n_actions:
            raise OracleError(
                f"oracle must answer with an action in 0..{query.n_actions - 1}, or with one or more of them in a row, "
                f"got {action!r} in {answer.actions!r}"
            )
    return answer


def check_answers(answers: object, queries: Sequence[Query]) -> list[Answer]:
    """The answers as a list, one a query, each checked.

    Raises:
        OracleError: if there are not as many answers as questions, or one of them is none.
    """
    if not isinstance(answers, (list, tuple)) or len(answers) != len(queries):
        got = f"{len(answers)} answers" if isinstance(answers, (list, tuple)) else repr(answers)
        raise OracleError(f"oracle must give a list of one answer a question, got {got} for {len(queries)} questions")
    return [check_answer(answer, query) for answer, query in zip(answers, queries, strict=True)]


def answers_at_hand(oracle: Oracle, queries: Sequence[Query]) -> dict[str, Answer]:
    """Answers to those of ``queries`` that can be answered now, by their ids.

    Raises:
        OracleError: if an answer is none.
    """
    left = list(queries)
    while left:
        try:
            answers = check_answers(oracle.ask(left), left)
        except HelpNeeded as help_needed:
            waiting = {query.id for query in help_needed.queries}
            others = [query for query in left if query.id not in waiting]
            if len(others) == len(left):
                raise
            left = others
        else:
            return {query.id: answer for query, answer in zip(left, answers, strict=True)}
    return {}


def _shown(context: tuple[int, ...], most: int = 12) -> str:
    if len(context) <= most:
        return str(context)
    return f"(... {', '.join(map(str, context[-most:]))})"
