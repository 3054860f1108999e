"""Language models on this machine as judges: which of two answers is likelier after the question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cautious_imitation.demonstrations import Message
from cautious_imitation.judging.protocol import Ruling
from cautious_imitation.judging.wording import LETTERS, prompt
from cautious_imitation.oracles.judgements import TranscriptPair, Verdict

if TYPE_CHECKING:
    import torch


class LanguageModelJudge:
    """Compares the log-probabilities that a language model gives to the answers "A" and "B".

    The model need not say either of them: only which one is likelier counts, so that small models without instruction
    tuning can judge at all. Most have a bias to one letter, whatever it stands for; each pair is shown in both orders,
    and the mean of the two differences is free of it.

    With a chat template the question is a user's message; without one it is plain text that ends with "Answer:".

    Args:
        model: a ``LanguageModel``, or a causal language model of Transformers, which is put in evaluation mode.
        tokenizer: a fast tokenizer; default that of a ``LanguageModel``.
        name: what the verdicts are filed under; default the network's.
        margin_nats: the largest difference of log-probabilities that is still a tie.
        both_orders: show each pair in both orders; False takes half the time and keeps the bias.
        rows_at_once: how many prompts are read in one forward pass.

    Raises:
        ValueError: if an argument cannot be used, or the tokenizer does not tell the answers apart.

    >>> from cautious_imitation.language.small_gpt import small_gpt
    >>> judge = LanguageModelJudge(small_gpt(), name="small")
    >>> said = (Message(role="teacher", content="hello"),)
    >>> [ruling.verdict for ruling in judge.judge([TranscriptPair("Which is better?", said, said)])]
    [<Verdict.TIE: 'tie'>]
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        margin_nats: float = 0.1,
        both_orders: bool = True,
        rows_at_once: int = 8,
    ) -> None:
        from cautious_imitation.language.chat_writer import ChatWriter, encoded
        from cautious_imitation.language.model import LanguageModel, Reader

        if not margin_nats >= 0:
            raise ValueError(f"margin_nats must be at least 0, got {margin_nats!r}; 0 makes ties of equal ones alone")
        if isinstance(rows_at_once, bool) or not isinstance(rows_at_once, int) or rows_at_once < 1:
            raise ValueError(f"rows_at_once must be an integer of at least 1, got {rows_at_once!r}")
        self._model: Reader = model if isinstance(model, Reader) else LanguageModel(model, tokenizer)
        tokenizer = self._model.tokenizer if tokenizer is None else tokenizer
        if tokenizer is None:
            raise ValueError("tokenizer must be the one that matches the model, got none; pass tokenizer=...")
        self._writer = ChatWriter(tokenizer)
        lead = " " if self._writer.template is None else ""
        self._answers = tuple(tuple(encoded(tokenizer, lead + letter)) for letter in LETTERS)
        self._check_answers()
        network = self._model.network
        self.name = name or getattr(network, "name_or_path", "") or type(network).__name__
        self._margin_nats, self._both_orders, self._rows_at_once = float(margin_nats), both_orders, rows_at_once

    def judge(self, pairs: Sequence[TranscriptPair]) -> Iterator[Ruling]:
        """Rulings, in order; ``said`` is by how many nats one answer is likelier.

        Where a prompt does not fit the model's context window there is no answer that can be read.

        Raises:
            ValueError: if a transcript holds the text of one of the tokenizer's special tokens.
        """
        for begin in range(0, len(pairs), self._rows_at_once):
            yield from self._rulings(pairs[begin : begin + self._rows_at_once])

    def _rulings(self, pairs: Sequence[TranscriptPair]) -> Iterator[Ruling]:
        prompts = [[self._prompt(shown) for shown in self._orders(pair)] for pair in pairs]
        most = self._model.max_length
        room = None if most is None else most - max(map(len, self._answers)) + 1
        too_long = [room is not None and max(map(len, orders)) > room for orders in prompts]
        fitting = [tokens for orders, long in zip(prompts, too_long, strict=True) if not long for tokens in orders]
        leanings = iter(self._leanings(fitting))
        for orders, long in zip(prompts, too_long, strict=True):
            if long:
                longest = max(map(len, orders))
                yield Ruling(None, f"the prompt of {longest} tokens does not fit the model's window of {most}")
            else:
                yield self._ruling([next(leanings) for _ in orders])

    def _orders(self, pair: TranscriptPair) -> list[TranscriptPair]:
        return [pair, replace(pair, first=pair.second, second=pair.first)] if self._both_orders else [pair]

    def _ruling(self, leanings: Sequence[float]) -> Ruling:
        """The verdict, given how much likelier A is than B in nats, in each order."""
        first = leanings[0] if len(leanings) == 1 else (leanings[0] - leanings[1]) / 2
        letter = LETTERS[0] if first >= 0 else LETTERS[1]
        orders = " in both orders" if self._both_orders else ""
        said = f"{letter} by {abs(first):.6g} nats{orders}"
        if abs(first) <= self._margin_nats:
            return Ruling(Verdict.TIE, said)
        return Ruling(Verdict.FIRST if first > 0 else Verdict.SECOND, said)

    def _prompt(self, pair: TranscriptPair) -> list[int]:
        from cautious_imitation.language.chat_writer import encoded
        from cautious_imitation.language.chats import chat_context

        text = prompt(pair, ties=False)
        if self._writer.template is not None:
            tokens: list[int] = chat_context(self._writer.tokenizer, [Message(role="user", content=text)]).tolist()
            return tokens
        for special in self._writer.specials:
            if special in text:
                raise ValueError(
                    f"pair {pair.id!r} must not contain {special!r}, which the tokenizer reads as a special token "
                    "rather than as what somebody wrote; take it out"
                )
        return encoded(self._writer.tokenizer, f"{self._writer.start}{text}\n\nAnswer:")

    def _leanings(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """log p(A) - log p(B) after each prompt, in nats."""
        # Answers of one token share the row that they are read from.
        begun = {answer[:n] for answer in self._answers for n in range(len(answer))}
        rows = [(i, prefix) for i in range(len(prompts)) for prefix in sorted(begun)]
        known: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
        for begin in range(0, len(rows), self._rows_at_once):
            batch = rows[begin : begin + self._rows_at_once]
            reading = self._model.read([[*prompts[i], *prefix] for i, prefix in batch])
            known |= zip(batch, self._model.log_probs(reading.features), strict=True)

        def log_prob(i: int, answer: tuple[int, ...]) -> float:
            return sum(float(known[i, answer[:n]][token]) for n, token in enumerate(answer))

        a, b = self._answers
        return [log_prob(i, a) - log_prob(i, b) for i in range(len(prompts))]

    def _check_answers(self) -> None:
        a, b = self._answers
        n = min(len(a), len(b))
        if a[:n] == b[:n]:
            raise ValueError(f"tokenizer must tell the answers {' and '.join(LETTERS)} apart, got tokens {a} and {b}")
        outside = [token for token in (*a, *b) if token >= self._model.n_symbols]
        if outside:
            raise ValueError(
                f"model must predict the tokens of {' and '.join(LETTERS)}, got one of {self._model.n_symbols} symbols "
                f"without {outside[0]}; load it with n_symbols=None"
            )
