"""Oracles that answer in words as judges: a pair is put to them as a message, and their reply is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cautious_imitation.demonstrations import Message
from cautious_imitation.judging.protocol import JudgeError, Open, Response, Ruling
from cautious_imitation.judging.wording import prompt, read_verdict
from cautious_imitation.oracles.judgements import TranscriptPair
from cautious_imitation.oracles.protocol import Act, Answer, HelpNeeded, Oracle, Query, answers_at_hand, check_answers


class OracleJudge:
    """Asks an oracle that answers conversations in words.

    A reply that names neither transcript, or that the oracle declines, is one that cannot be read, with what was said
    or why. Where the oracle needs help now, as when a server is down, what is left stays open.

    Args:
        oracle: such as an ``EndpointOracle``, or a ``LanguageModelOracle`` with ``reads="messages"``.
        name: what the verdicts are filed under.
        pairs_at_once: how many are asked together. Verdicts are known, and can be kept, when all of them are.

    Raises:
        ValueError: if ``pairs_at_once`` is below 1.

    >>> from cautious_imitation.oracles.function import as_oracle
    >>> judge = OracleJudge(as_oracle(lambda query: "B."), "always B")
    >>> list(judge.judge([TranscriptPair("Which is better?", (), ())]))
    [Ruling(verdict=<Verdict.SECOND: 'second'>, said='B.', reversed=False)]
    """

    def __init__(self, oracle: Oracle, name: str, *, pairs_at_once: int = 16) -> None:
        if isinstance(pairs_at_once, bool) or not isinstance(pairs_at_once, int) or pairs_at_once < 1:
            raise ValueError(f"pairs_at_once must be an integer of at least 1, got {pairs_at_once!r}")
        self.oracle, self.name, self.pairs_at_once = oracle, name, pairs_at_once

    def judge(self, pairs: Sequence[TranscriptPair]) -> Iterator[Response]:
        """Responses, in order.

        Raises:
            JudgeError: if the oracle answers in actions.
            OracleError: if its answers are none, and what else it raises, ``HelpNeeded`` aside.
        """
        for begin in range(0, len(pairs), self.pairs_at_once):
            batch = pairs[begin : begin + self.pairs_at_once]
            queries = [_query(pair) for pair in batch]
            try:
                answers = check_answers(list(self.oracle.ask(queries)), queries)
            except HelpNeeded as help_needed:
                waiting = {query.id for query in help_needed.queries}
                known = answers_at_hand(self.oracle, [query for query in queries if query.id not in waiting])
                reason = _reason(help_needed)
                for query in queries:
                    yield self._ruling(known[query.id], query) if query.id in known else Open(reason)
                yield from [Open(reason)] * (len(pairs) - begin - len(batch))
                return
            for answer, query in zip(answers, queries, strict=True):
                yield self._ruling(answer, query)

    def _ruling(self, answer: Answer, query: Query) -> Ruling:
        if not isinstance(answer, Act):
            return Ruling(None, answer.reason)
        if answer.text is None:
            raise JudgeError(
                f"judge {self.name!r} must answer in words, got actions {answer.actions!r} for pair {query.id!r}; a "
                'LanguageModelOracle does with reads="messages"'
            )
        return Ruling(read_verdict(answer.text), answer.text)


def _query(pair: TranscriptPair) -> Query:
    # Its actions do not matter, since the answer is in words.
    return Query((), 1, messages=(Message(role="user", content=prompt(pair)),), id=pair.id, asker="judge")


def _reason(help_needed: HelpNeeded) -> str:
    """What it says after the context that it was asked at, which is empty for all pairs."""
    said = str(help_needed)
    return said.partition("; ")[2] or said
