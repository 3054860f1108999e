"""Language models of Transformers, on this machine, as oracles."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from cautious_imitation.oracles.protocol import Act, Answer, Decline, OracleError, Query

if TYPE_CHECKING:
    import torch

Reads: TypeAlias = Literal["tokens", "messages"]
"""What of a question is read: its context, as tokens that mean the same here, or its conversation, as text."""

_AGENT = "assistant"


def is_network(value: Any) -> bool:
    """Whether something is a causal language model of Transformers, or a ``LanguageModel`` that holds one.

    >>> is_network(len)
    False
    """
    if isinstance(value, type):
        return False
    network = getattr(value, "network", value)
    return callable(getattr(network, "generate", None)) and callable(getattr(network, "get_output_embeddings", None))


class LanguageModelOracle:
    """Asks a language model: it goes on from the context, up to and with a token that ends its reply.

    A model that shares the asker's tokenizer reads the context as it is and answers in tokens. If it has not stopped
    after ``max_new_tokens``, or its context window is full, the answer is what there is so far; the asker goes on from
    there. A model with another tokenizer reads the conversation through its own chat template and answers with the rest
    of the reply in words; one that is not over by then is declined, since a reply in words ends the turn.

    Logits are taken as they are: no penalties, no top-p, no other settings of the network's ``generation_config`` than
    its end tokens.

    Args:
        model: a causal language model of Transformers in evaluation mode, or a ``LanguageModel``.
        max_new_tokens: longest answer.
        reads: ``"tokens"`` if the asker's actions are this model's tokens, ``"messages"`` if not.
        tokenizer: default that of a ``LanguageModel``. Needed for ``"messages"``, with a chat template.
        stop_tokens: tokens that end a reply. Default: those of the network's ``generation_config``, or the tokenizer's
            end of sequence.
        generator: draws the tokens; None for the likeliest each. The answer to a question depends on the state and the
            question's place in the order of all that were asked, not on which are asked together, as far as predictions
            in a batch are equal to those alone.
        seed: draws the tokens instead of a generator. The answer to a question then depends on this and on the
            question's id alone, so a run that is resumed gets the same answers again.
        temperature: logits are divided by it before a token is drawn.
        rows_at_once: how many contexts are read in one forward pass.
        is_demonstrator: whether this model is the demonstrator that is imitated. If not, its answers are help but no
            evidence. If it is, they must be drawn: the likeliest token is not what a random demonstrator does.

    Raises:
        ValueError: if an argument cannot be used.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> network = LlamaForCausalLM(LlamaConfig(vocab_size=6, eos_token_id=None, **shape)).eval()
    >>> oracle = LanguageModelOracle(network, max_new_tokens=4)
    >>> [len(answer.actions) for answer in oracle.ask([Query((1, 2), n_actions=6), Query((3,), n_actions=6)])]
    [4, 4]
    """

    def __init__(
        self,
        model: Any,
        *,
        max_new_tokens: int,
        reads: Reads = "tokens",
        tokenizer: Any = None,
        stop_tokens: Collection[int] | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        temperature: float = 1.0,
        rows_at_once: int = 16,
        is_demonstrator: bool = False,
    ) -> None:
        if not is_network(model):
            raise ValueError(
                f"model must be a causal language model of Transformers or a LanguageModel, got "
                f"{type(model).__name__}; load it with AutoModelForCausalLM, and pass any other kind as a function"
            )
        if reads not in get_args(Reads):
            raise ValueError(f'reads must be "tokens" or "messages", got {reads!r}')
        for name, count in (("max_new_tokens", max_new_tokens), ("rows_at_once", rows_at_once)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {temperature!r}; generator=None takes the likeliest")
        if generator is not None and seed is not None:
            raise ValueError(f"seed must be None where a generator draws, got {seed!r}; pass one of the two")
        if generator is None and seed is None and temperature != 1.0:
            raise ValueError(
                f"temperature={temperature!r} needs a generator to draw with; pass generator=... or seed=..."
            )
        self._network = getattr(model, "network", model)
        self._tokenizer: Any = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
        n_predicted = int(self._network.get_output_embeddings().weight.shape[0])
        self._n_symbols = int(getattr(model, "n_symbols", n_predicted))
        self._n_tokens = int(self._network.get_input_embeddings().weight.shape[0])
        self._max_length = getattr(self._network.config, "max_position_embeddings", None)
        self._start_token = _first_known("bos_token_id", self._tokenizer, self._network.config)
        self._start_token = getattr(model, "start_token", self._start_token)
        self._stop_tokens = self._checked_stops(stop_tokens)
        self._reads, self._max_new_tokens, self._rows_at_once = reads, max_new_tokens, rows_at_once
        self._generator, self._seed = generator, seed
        self._temperature, self._is_demonstrator = temperature, is_demonstrator
        if reads == "messages":
            self._check_speech()

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers to all ``queries``, in their order.

        Raises:
            OracleError: if a question's actions are not this model's tokens, or it brings no conversation to be read.
            ValueError: if a context cannot be read, or the network is being trained. As after any exception, the
                generator is as it was before the call.
        """
        if self._network.training:
            raise ValueError("model must be in evaluation mode, where it says the same again; call model.eval()")
        if self._generator is None:
            return self._answers(queries)
        state = self._generator.get_state()
        try:
            return self._answers(queries)
        except BaseException:
            self._generator.set_state(state)
            raise

    def _answers(self, queries: Sequence[Query]) -> list[Answer]:
        rows = [self._row(place, query) for place, query in enumerate(queries)]
        answers: dict[int, Answer] = {}
        for batch in _batches(rows, self._rows_at_once):
            for row, tokens in zip(batch, self._continued(batch), strict=True):
                answers[row.place] = self._answer(row, tokens)
        return [answers[place] for place in range(len(queries))]

    def _row(self, place: int, query: Query) -> _Row:
        tokens = self._written(query) if self._reads == "messages" else self._shared(query)
        room = self._max_new_tokens if self._max_length is None else self._max_length - len(tokens)
        n_actions = self._n_symbols if self._reads == "messages" else query.n_actions
        return _Row(place, tokens, n_actions, max(0, min(self._max_new_tokens, room)), self._stream(query))

    def _shared(self, query: Query) -> list[int]:
        """The context in tokens, if the asker's actions are the same ones."""
        known = {self._n_symbols} | (set() if self._tokenizer is None else {len(self._tokenizer)})
        if query.n_actions not in known or query.n_actions > self._n_symbols:
            raise OracleError(
                f"question {query.id!r} must be about the {self._n_symbols} tokens of this model, got one of "
                f'{query.n_actions} actions; with another tokenizer pass reads="messages"'
            )
        outside = [token for token in query.context if not 0 <= token < self._n_tokens]
        if outside:
            raise OracleError(
                f"question {query.id!r} must have a context of tokens in 0..{self._n_tokens - 1}, the network's "
                f'vocabulary, got {outside[0]}; with another tokenizer pass reads="messages"'
            )
        if query.context:
            return list(query.context)
        if self._start_token is None:
            raise OracleError(
                f"question {query.id!r} has an empty context, which this model cannot go on from; give a LanguageModel "
                "with start_token=..."
            )
        return [self._start_token]

    def _written(self, query: Query) -> list[int]:
        """The conversation as this model's chat template writes it, up to where its own words begin."""
        from cautious_imitation.language.chats import chat_context

        if not query.messages:
            raise OracleError(f'question {query.id!r} has no conversation to read; reads="tokens" reads its context')
        begun = query.messages[-1].content if query.messages[-1].role == _AGENT else ""
        before = query.messages[:-1] if query.messages[-1].role == _AGENT else query.messages
        opening: list[int] = chat_context(self._tokenizer, before).tolist()
        return opening + list(self._tokenizer(begun, add_special_tokens=False)["input_ids"])

    def _answer(self, row: _Row, tokens: list[int]) -> Answer:
        over = bool(tokens) and tokens[-1] in self._stop_tokens
        if not row.room:
            return Decline(
                f"the context of {len(row.tokens)} tokens fills the model's window of {self._max_length}",
                independent=True,
            )
        if self._reads == "tokens":
            return Act(tuple(tokens), evidence=self._is_demonstrator)
        if not over:
            return Decline(f"the reply was not over after {len(tokens)} tokens; raise max_new_tokens")
        return Act(text=self._words(row.tokens, tokens[:-1]), evidence=self._is_demonstrator)

    def _words(self, before: list[int], tokens: list[int]) -> str:
        """What the tokens say after those before them; some tokenizers write a blank by what stands in front."""
        started: str = self._tokenizer.decode(before, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole: str = self._tokenizer.decode(
            [*before, *tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if whole.startswith(started):
            return whole[len(started) :]
        said: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return said

    def _stream(self, query: Query) -> np.random.Generator | None:
        """A source of randomness for one question alone."""
        if self._seed is not None:
            digest = sha256(query.id.encode()).digest()
            return np.random.default_rng([self._seed, int.from_bytes(digest[:16], "little")])
        if self._generator is None:
            return None
        import torch

        device = self._generator.device
        return np.random.default_rng(torch.randint(2**63 - 1, (2,), generator=self._generator, device=device).tolist())

    def _continued(self, rows: Sequence[_Row]) -> list[list[int]]:
        """What follows each of ``rows``, which have the same room: up to and with a stop token."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        if not rows[0].room:
            return [[] for _ in rows]
        longest = max(len(row.tokens) for row in rows)
        tokens = torch.zeros((len(rows), longest), dtype=torch.long)
        present = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            tokens[i, longest - len(row.tokens) :] = torch.tensor(row.tokens)
            present[i, longest - len(row.tokens) :] = 1
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=rows[0].room,
            pad_token_id=0,
            eos_token_id=sorted(self._stop_tokens) or None,
        )
        network, device = self._network, self._network.device
        # What these leave open is read from the network's own: temperatures, penalties, of which none is ours.
        own, network.generation_config = network.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
        try:
            whole = network.generate(
                input_ids=tokens.to(device),
                attention_mask=present.to(device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([_chooser(rows, self._temperature)]),
            )
        finally:
            network.generation_config = own
        return [self._ended(row[longest:]) for row in whole.tolist()]

    def _ended(self, tokens: list[int]) -> list[int]:
        ends = next((i for i, token in enumerate(tokens) if token in self._stop_tokens), len(tokens))
        return tokens[: ends + 1]

    def _checked_stops(self, stop_tokens: Collection[int] | None) -> frozenset[int]:
        if stop_tokens is None:
            found = _first_known("eos_token_id", getattr(self._network, "generation_config", None), self._tokenizer)
            stop_tokens = () if found is None else found if isinstance(found, (list, tuple)) else (found,)
        for token in stop_tokens:
            if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < self._n_tokens:
                raise ValueError(f"stop_tokens must be tokens in 0..{self._n_tokens - 1}, got {token!r}")
        return frozenset(int(token) for token in stop_tokens)

    def _check_speech(self) -> None:
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise ValueError(
                'tokenizer must have a chat template for reads="messages", got '
                f"{'none' if self._tokenizer is None else 'one without'}; set tokenizer.chat_template"
            )
        if not self._stop_tokens:
            raise ValueError('stop_tokens must say where a reply ends for reads="messages", got none')


@dataclass(frozen=True)
class _Row:
    """A context to go on from, with its own source of randomness."""

    place: int
    tokens: list[int]
    n_actions: int
    room: int
    stream: np.random.Generator | None


def _batches(rows: Sequence[_Row], rows_at_once: int) -> Iterator[list[_Row]]:
    """Rows of the same room together: how much one may say must not depend on what else is asked."""
    for room in sorted({row.room for row in rows}, reverse=True):
        alike = [row for row in rows if row.room == room]
        for begin in range(0, len(alike), rows_at_once):
            yield alike[begin : begin + rows_at_once]


def _chooser(rows: Sequence[_Row], temperature: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A logits processor that leaves the actions of each row, or the one that was drawn from them."""
    import torch

    n_actions = torch.tensor([row.n_actions for row in rows])

    def choose(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        actions = torch.arange(scores.shape[1], device=scores.device) < n_actions.to(scores.device)[:, None]
        scores = scores.masked_fill(~actions, -torch.inf)
        uniforms = [row.stream.random() for row in rows if row.stream is not None]
        if not uniforms:
            return scores
        cumulative = (scores.double() / temperature).softmax(-1).cumsum(-1)
        reached = torch.tensor(uniforms, dtype=torch.float64, device=scores.device)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, reached, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    return choose


def _first_known(name: str, *sources: Any) -> Any:
    return next((found for source in sources if (found := getattr(source, name, None)) is not None), None)
