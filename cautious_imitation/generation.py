"""Sampling from an imitator through Transformers' own ``generate``: it says what it knows, and asks where it defers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cautious_imitation.continuations import Continuations, Generated
from cautious_imitation.hypotheses.base import check_symbols
from cautious_imitation.imitators import AfterDecline, BayesianImitator, CautiousImitator, check_after_decline
from cautious_imitation.language.model import LanguageModel, Reader
from cautious_imitation.oracles.function import Answerer, as_oracle

Tensor = torch.Tensor


def generate(
    imitator: BayesianImitator | CautiousImitator,
    contexts: Sequence[ArrayLike],
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    stop_tokens: Collection[int] | None = None,
    oracle: Answerer | None = None,
    max_questions: int | None = None,
    after_decline: AfterDecline = "stop",
    run: str | None = None,
) -> list[Generated]:
    """Continue contexts as the imitator does: draw a token from its prediction, or ask with the ask probability.

    One forward pass of the language model a token, whatever the number of hypotheses. An answer may be a whole reply;
    the imitator goes on after it. Nothing is learned: pass ``as_demonstrations(contexts, generated)`` to ``fit``.

    Args:
        imitator: either one, over hypotheses that read with a language model.
        contexts: ``[L]`` tokens each, of any lengths, oldest first. Repeat one for several continuations of it.
        max_new_tokens: longest continuation in tokens, answers included.
        generator: source of randomness. A continuation depends on its state and on the place in the list, not on the
            other contexts nor on ``max_new_tokens``, as far as predictions in a batch are equal to those alone.
        stop_tokens: tokens that end a text, whoever says them. Default: those of the network's ``generation_config``,
            or the tokenizer's end of sequence.
        oracle: answers questions, with a token, a sequence of them or a whole reply in words; whatever ``as_oracle``
            takes. Default: the imitator's. Questions of one step are asked together.
        max_questions: questions a text. It ends where the imitator would ask once more and carries that as its
            ``open_question``; 0 stops at the first one and needs no oracle.
        after_decline: what follows where the oracle declines: ``"stop"`` ends the text, ``"act"`` draws the token from
            the prediction, given that it acts.
        run: the asker's name; questions are called ``run/place in the list/position``. Default: a name that follows
            from the generator's state, so that the same call asks the same questions.

    Returns:
        One ``Generated`` a context.

    Raises:
        HelpNeeded: if questions cannot be answered now, or there is no oracle; carries the open one of each text. As
            after any exception, the generator is as it was before the call: with the answers at hand, the same call
            comes to the same questions and goes on from there.
        ValueError: if the imitator reads no language model, a context does not fit into its window or holds unknown
            tokens, or an answer is not one or more actions.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from cautious_imitation.continuations import as_demonstrations
    >>> from cautious_imitation.hypotheses.language_models import LanguageModels
    >>> shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = LlamaConfig(vocab_size=6, eos_token_id=None, **shape)
    >>> _ = torch.manual_seed(0)
    >>> models = LanguageModels([LanguageModel(LlamaForCausalLM(config)) for _ in range(2)])
    >>> imitator = CautiousImitator(models, alpha=0.1, oracle=lambda query: [4, 5])
    >>> texts = generate(imitator, [[1, 2], [3]], max_new_tokens=7, generator=torch.Generator().manual_seed(0))
    >>> [len(text) for text in texts]
    [7, 7]
    >>> imitator.fit(as_demonstrations([[1, 2], [3]], texts)).predict([1, 2]).log_probs.shape
    torch.Size([6])
    """
    model = _reader(imitator)
    _check_count("max_new_tokens", max_new_tokens, 1)
    state = generator.get_state()
    try:
        continuations = Continuations(
            imitator,
            _checked_contexts(model, contexts),
            generator=generator,
            **_settings(imitator, model, stop_tokens, oracle, max_questions, after_decline, run),
        )
        rows = continuations.growing()
        if any(not np.size(context) for context in contexts) and len(rows):
            # A start token stands for an empty context only; once there is a token, it must not be in the cache.
            tokens, present = continuations.padded(rows)
            features = model.read([row[mask] for row, mask in zip(tokens, present, strict=True)]).features
            continuations.grow(features, rows)
        while len(rows := continuations.growing()) and continuations.n_steps < max_new_tokens:
            _continue(model, continuations, rows, max_new_tokens - continuations.n_steps)
        return continuations.generated()
    except BaseException:
        generator.set_state(state)
        raise


class _ChosenTokens(LogitsProcessor):
    """Leaves of a network's scores nothing but the tokens that continuations choose; works in a ``with`` block."""

    def __init__(
        self, model: LanguageModel, continuations: Continuations | None = None, rows: NDArray[np.int64] | None = None
    ) -> None:
        self._model, self._continuations = model, continuations
        self._rows = np.empty(0, np.int64) if rows is None else rows
        self._chosen: Tensor | None = None
        self._seen: Tensor | None = None
        self._mask: Any = None
        self._state: Any = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._chosen = self._seen = self._state = None
        self._complete = self._open.enter_context(self._model.watched())
        for hook in (
            self._model.network.register_forward_pre_hook(self._see_mask, with_kwargs=True),
            self._model.head.register_forward_pre_hook(self._see_head),
        ):
            self._open.callback(hook.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        self._seen = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[B, V]`` that leave each row nothing but the token that was chosen for it."""
        if self._seen is None:
            raise RuntimeError(
                f"{type(self).__name__} must be used inside its with block, and by the network that the hypotheses "
                f"read with: with {type(self).__name__}(...) as processor: network.generate(...)"
            )
        if self._continuations is None:
            self._continuations = self._begin(input_ids.cpu())
        elif self._chosen is not None:
            self._check_taken(input_ids[:, -1].cpu())
        present = self._mask.bool() if self._chosen is None and isinstance(self._mask, Tensor) else None
        features, self._state = self._complete(self._seen[:, -1:], present, self._state)
        self._chosen = self._continuations.grow(features[:, -1], self._rows)
        return torch.full_like(scores, -torch.inf).scatter_(1, self._chosen[:, None].to(scores.device), 0.0)

    @property
    def stopping(self) -> StoppingCriteria:
        """Ends rows at a stop token, a full context window, or a question too many."""
        return _RowsEnded(self)

    def ended(self) -> Tensor:
        """Which rows have ended, ``[B]`` booleans on the host."""
        growing: ArrayLike = [] if self._continuations is None else self._continuations.growing()
        return torch.from_numpy(~np.isin(self._rows, growing))

    def _begin(self, prompts: Tensor) -> Continuations:
        raise NotImplementedError

    def _see_mask(self, network: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if self._chosen is None:
            self._mask = kwargs.get("attention_mask")

    def _see_head(self, head: Any, args: tuple[Tensor, ...]) -> None:
        self._seen = args[0]

    def _check_taken(self, last: Tensor) -> None:
        ended = self.ended()
        if len(last) != len(ended) or bool(((last != self._chosen) & ~ended).any()):
            raise ValueError(
                "generate must append the tokens that the imitator chose, got others; pass what it stops at "
                "(eos_token_id) as stop_tokens, use one beam, no later processor, and a new with block for each call"
            )


class ImitatorLogitsProcessor(_ChosenTokens):
    """Makes a network's own ``generate`` say what an imitator says: for those who call it themselves.

    In its ``with`` block it sees what the network's output head reads, so each token costs one forward pass::

        with ImitatorLogitsProcessor(imitator, generator) as processor:
            network.generate(
                tokens, attention_mask=mask, max_new_tokens=20, logits_processor=[processor],
                stopping_criteria=[processor.stopping],
            )
        texts = processor.generated()

    Answers are part of what ``generate`` returns: where the imitator asks, the oracle is asked at once, and the tokens
    of its reply are the next ones. A ``with`` block serves one call of ``generate``, with prompts padded on the left
    and one beam each; sampling settings have no effect, since only the chosen token is left to choose from.

    Args:
        imitator: over hypotheses that read with one network, the one that generates.
        generator: source of randomness.
        stop_tokens: as for ``generate``; they must be those at which the network's ``generate`` stops.
        oracle: as for ``generate``.
        max_questions: as for ``generate``; needs ``stopping``.
        after_decline: as for ``generate``; ``"stop"`` needs ``stopping``.
        run: as for ``generate``.

    Raises:
        ValueError: if the hypotheses read with several networks, or none.
    """

    def __init__(
        self,
        imitator: BayesianImitator | CautiousImitator,
        generator: torch.Generator,
        *,
        stop_tokens: Collection[int] | None = None,
        oracle: Answerer | None = None,
        max_questions: int | None = None,
        after_decline: AfterDecline = "stop",
        run: str | None = None,
    ) -> None:
        model = _reader(imitator)
        if not isinstance(model, LanguageModel):
            raise ValueError(
                f"imitator must read with one network to take part in its generate, got hypotheses over a "
                f"{type(model).__name__}; cautious_imitation.generation.generate decodes those"
            )
        super().__init__(model)
        self._imitator, self._generator = imitator, generator
        self._settings = _settings(imitator, model, stop_tokens, oracle, max_questions, after_decline, run)

    def __enter__(self) -> Self:
        self._continuations = None
        return super().__enter__()

    def generated(self) -> list[Generated]:
        """What followed each prompt of the last ``generate``.

        Raises:
            HelpNeeded: if questions wait for an answer; carries the open one of each text.
        """
        if self._continuations is None:
            raise RuntimeError("there is nothing yet; call the network's generate inside the with block first")
        return self._continuations.generated()

    def _begin(self, prompts: Tensor) -> Continuations:
        mask = torch.ones_like(prompts) if self._mask is None else self._mask
        padded_left = isinstance(mask, Tensor) and mask.shape == prompts.shape and not (mask.diff(dim=1) < 0).any()
        if not padded_left or not bool(mask[:, -1].all()):
            raise ValueError(
                "attention_mask must be [B, L] with padding on the left only; set padding_side='left' for the "
                "tokenizer, and use a dynamic cache"
            )
        contexts = [row[-int(length) :] for row, length in zip(prompts, mask.sum(1).tolist(), strict=True)]
        self._rows = np.arange(len(contexts))
        return Continuations(self._imitator, contexts, generator=self._generator, **self._settings)


class _RowsEnded(StoppingCriteria):
    def __init__(self, processor: _ChosenTokens) -> None:
        self._processor = processor

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return self._processor.ended().to(input_ids.device)


def _continue(model: Reader, continuations: Continuations, rows: NDArray[np.int64], max_new_tokens: int) -> None:
    """Let ``rows`` grow until all have ended, or the longest fills the context window with its padding."""
    tokens, present = continuations.padded(rows)
    if model.max_length is not None:
        # Rows of one batch are as long as the longest, and networks count positions of rows that have ended too.
        max_new_tokens = min(max_new_tokens, model.max_length - tokens.shape[1])
    if isinstance(model, LanguageModel):
        with _ChosenTokens(model, continuations, rows) as processor:
            _call_generate(model, processor, tokens, present, max_new_tokens)
    else:
        _decode(model, continuations, rows, tokens, present, max_new_tokens)


def _call_generate(
    model: LanguageModel, processor: _ChosenTokens, tokens: Tensor, present: Tensor, max_new_tokens: int
) -> None:
    network = model.network
    if not callable(getattr(network, "generate", None)):
        raise ValueError(f"network must have a generate method, got {type(network).__name__}; load a causal one")
    settings = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0)  # type: ignore[no-untyped-call]
    # What these leave open is read from the network's own: temperatures, end tokens, lengths, of which none is ours.
    own, network.generation_config = network.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        network.generate(
            input_ids=tokens.to(model.device),
            attention_mask=present.long().to(model.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([processor]),
            stopping_criteria=StoppingCriteriaList([processor.stopping]),
        )
    finally:
        network.generation_config = own


def _decode(
    model: Reader,
    continuations: Continuations,
    rows: NDArray[np.int64],
    tokens: Tensor,
    present: Tensor,
    max_new_tokens: int,
) -> None:
    """What ``generate`` of a network does, for several that are read as one."""
    cache = None
    for _ in range(max_new_tokens):
        features, cache = model.features(tokens, present, cache)
        tokens = continuations.grow(features[:, -1], rows)[:, None]
        growing = torch.from_numpy(np.isin(rows, continuations.growing()))
        if not bool(growing.any()):
            break
        present = torch.cat([present, growing[:, None]], 1)


def _reader(imitator: BayesianImitator | CautiousImitator) -> Reader:
    model = getattr(imitator.hypotheses, "model", None)
    if not isinstance(model, Reader):
        raise ValueError(
            f"imitator must have hypotheses that read with a language model, got {type(imitator.hypotheses).__name__}; "
            "act() samples from the others"
        )
    return model


def _settings(
    imitator: BayesianImitator | CautiousImitator,
    model: Reader,
    stop_tokens: Collection[int] | None,
    oracle: Answerer | None,
    max_questions: int | None,
    after_decline: AfterDecline,
    run: str | None,
) -> dict[str, Any]:
    if max_questions is not None:
        _check_count("max_questions", max_questions, 0)
    check_after_decline(after_decline)
    return {
        "stop_tokens": _stop_tokens(model, stop_tokens),
        "oracle": imitator.oracle if oracle is None else as_oracle(oracle),
        "after_decline": after_decline,
        "run": run,
        "max_questions": max_questions,
        "max_length": model.max_length,
    }


def _stop_tokens(model: Reader, stop_tokens: Collection[int] | None) -> Collection[int]:
    if stop_tokens is not None:
        return [int(token) for token in check_symbols(list(stop_tokens), model.n_symbols, "stop_tokens")]
    # Several networks that are read as one are found inside.
    settings = (getattr(network, "generation_config", None) for network in model.network.modules())
    for source in (next((found for found in settings if found is not None), None), model.tokenizer):
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return found if isinstance(found, (list, tuple)) else [int(found)]
    return ()


def _checked_contexts(model: Reader, contexts: Sequence[ArrayLike]) -> list[Tensor]:
    checked = []
    for index, context in enumerate(contexts):
        values = context.cpu() if isinstance(context, Tensor) else context
        tokens = check_symbols(values, model.n_tokens, f"contexts[{index}]")
        if tokens.ndim != 1:
            raise ValueError(f"contexts[{index}] must be a sequence of tokens [L], got shape {tokens.shape}")
        if model.max_length is not None and len(tokens) > model.max_length:
            raise ValueError(
                f"contexts[{index}] must fit into the network's context window of {model.max_length}, got "
                f"{len(tokens)} tokens; cut the oldest"
            )
        checked.append(torch.from_numpy(tokens.copy()))
    return checked


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
