"""A frozen causal language model, split where its output head begins: a trunk that reads and a head that predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch

from cautious_imitation.language.recent_context import RecentContext, State

Tensor = torch.Tensor

_PROBE_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class Reading:
    """Contexts and what a trunk made of them: all that a prediction needs.

    Hypothesis classes of language models take it wherever they take a context, so that a context is read once whatever
    is asked about it, and decoding with a cache can bring its own.

    Attributes:
        rows: the N contexts one by one, ``[L]`` tokens each, oldest first; lengths may differ.
        features: ``[..., d]``, what the model made of each after its last token; N rows in all.
    """

    rows: Sequence[Tensor]
    features: Tensor


class Reader(ABC):
    """What turns contexts of tokens into features, and features into logits: one language model, or several as one.

    Attributes:
        network: holds all weights that features depend on, under ``named_parameters``.
        tokenizer: the matching tokenizer, or None.
        n_symbols: V, the tokens that are actions: 0..V-1.
        n_features: d.
        n_tokens: what may stand in a context: tokens 0..n_tokens-1.
        start_token: stands in for an empty context; None if there is none.
        recent: what features hold beside what the output head reads; None for nothing.
        rows_per_context: how many rows a context takes in a forward pass.
    """

    network: Any
    tokenizer: Any
    n_symbols: int
    n_features: int
    n_tokens: int
    start_token: int | None
    recent: RecentContext | None = None
    rows_per_context: int = 1

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where features are."""

    @property
    @abstractmethod
    def computed_dtype(self) -> torch.dtype:
        """Precision in which features are computed; that of ``dtype``, or half."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of features: at least single, whatever the network computes in."""
        return torch.promote_types(self.computed_dtype, torch.float32)

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """Longest context in tokens, None if there is no limit."""

    @abstractmethod
    def features(self, tokens: Tensor, present: Tensor | None = None, cache: Any = None) -> tuple[Tensor, Any]:
        """What the output head reads, at every token.

        Args:
            tokens: ``[B, L]`` long, on any device; with a cache, only the new ones.
            present: ``[B, L']`` booleans, false where padding stands (left or right, it makes no difference); L' counts
                what is in the cache as well. None if there is no padding.
            cache: what the call before returned, None to begin.

        Returns:
            ``(features [B, L, d], cache)``.

        Raises:
            ValueError: if the context is longer than ``max_length``.
        """

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Logits of the next token at ``features [..., d]``, at least single precision: ``[..., V]``."""

    def log_probs(self, features: Tensor) -> Tensor:
        """Log-probabilities in nats at ``features [..., d]``, shaped as ``logits``: what the model itself predicts."""
        return self.logits(features).log_softmax(-1)

    def read(self, context: Any) -> Reading:
        """Read contexts: ``[..., L]`` tokens, or a list of ``[L]`` arrays of different lengths; one forward pass.

        A ``Reading`` comes back as it is.

        Raises:
            ValueError: if a context is no sequence of tokens that are known, is longer than ``max_length``, or is empty
                and there is no ``start_token``.
        """
        if isinstance(context, Reading):
            return context
        rows, shape = _rows(context)
        starts = [torch.tensor([self._needed_start()]) if not len(row) else row for row in rows]
        longest = max((len(row) for row in starts), default=1)
        tokens = torch.zeros((len(starts), longest), dtype=torch.long)
        present = torch.zeros((len(starts), longest), dtype=torch.bool)
        for i, row in enumerate(starts):
            tokens[i, longest - len(row) :] = row
            present[i, longest - len(row) :] = True
        self._check_tokens(tokens)
        features, _ = self.features(tokens, None if bool(present.all()) else present)
        return Reading(rows, features[:, -1].reshape(*shape, self.n_features))

    def _needed_start(self) -> int:
        if self.start_token is None:
            raise ValueError(
                "context must hold at least one token, got none; pass start_token=... to stand in for an empty context"
            )
        return self.start_token

    def _check_tokens(self, tokens: Tensor) -> None:
        outside = (tokens < 0) | (tokens >= self.n_tokens)
        if bool(outside.any()):
            raise ValueError(
                f"context must hold tokens in 0..{self.n_tokens - 1}, the network's vocabulary, got "
                f"{int(tokens[outside][0])}"
            )


class LanguageModel(Reader):
    """A Hugging Face causal language model whose weights never change here.

    Args:
        network: a causal language model of Transformers; it is put in evaluation mode. Its logits must be its output
            embeddings applied to the last hidden state of its base model, which is checked.
        tokenizer: the matching tokenizer; None if contexts are given as tokens only.
        n_symbols: V, the tokens that are actions: 0..V-1. Default: all that the head predicts. Where there are fewer,
            probabilities are renormalised over them.
        start_token: stands in for an empty context; default the tokenizer's or the network's first token.
        recent: a second half of the features, which the output head does not read but hypotheses do; None for none.

    Raises:
        ValueError: if the network is not such a model, the tokenizer knows more tokens than it predicts, or
            ``n_symbols`` or ``start_token`` is out of range.

    >>> import transformers
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> model = LanguageModel(transformers.LlamaForCausalLM(config), start_token=0)
    >>> model.logits(model.read([[1, 2, 3]]).features).shape
    torch.Size([1, 6])
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any = None,
        *,
        n_symbols: int | None = None,
        start_token: int | None = None,
        recent: RecentContext | None = None,
    ) -> None:
        head = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
        if head is None or not hasattr(network, "base_model"):
            raise ValueError(
                f"network must be a causal language model of Transformers with output embeddings, got "
                f"{type(network).__name__}; load it with AutoModelForCausalLM"
            )
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.trunk = network.base_model
        self.head = head
        n_predicted = int(head.weight.shape[0])
        if tokenizer is not None and len(tokenizer) > n_predicted:
            raise ValueError(
                f"tokenizer must match the network, which predicts {n_predicted} tokens, got one of {len(tokenizer)}; "
                "load both from one place"
            )
        self.n_symbols = n_predicted if n_symbols is None else int(n_symbols)
        if not 1 <= self.n_symbols <= n_predicted:
            raise ValueError(f"n_symbols must be in 1..{n_predicted}, what the network predicts, got {n_symbols}")
        self.recent = recent
        self.head_width = int(head.weight.shape[1])
        self.n_features = self.head_width + (0 if recent is None else int(network.config.hidden_size))
        self.n_tokens = int(network.get_input_embeddings().weight.shape[0])
        self.start_token = self._start_token(start_token)
        forward = signature(self.trunk.forward).parameters
        # Transformers 5 renamed it, and warns where the old name is used.
        self._cache_name = "cache" if "cache" in forward else "past_key_values"
        self._takes_positions = "position_ids" in forward
        self._averaged = None if recent is None else recent.block(self.trunk)
        self._check_head()

    @property
    def device(self) -> torch.device:
        """Where the head's weights are."""
        device: torch.device = self.head.weight.device
        return device

    @property
    def computed_dtype(self) -> torch.dtype:
        """Precision of the head's weights; means of recent tokens are in at least single precision."""
        dtype: torch.dtype = self.head.weight.dtype
        return dtype if self.recent is None else torch.promote_types(dtype, torch.float32)

    @property
    def max_length(self) -> int | None:
        """Longest context in tokens, None if the network sets no limit."""
        length = getattr(self.network.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @torch.no_grad()
    def features(self, tokens: Tensor, present: Tensor | None = None, cache: Any = None) -> tuple[Tensor, Any]:
        """What the head reads, at every token; see ``Reader.features``."""
        length = tokens.shape[1] if present is None else present.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"tokens must fit into the network's context window of {self.max_length}, got {length}; cut the oldest"
            )
        kept, state = (None, None) if cache is None else cache
        arguments: dict[str, Any] = {"use_cache": True, self._cache_name: kept}
        if present is not None:
            present = present.to(self.device)
            arguments["attention_mask"] = present.long()
            if self._takes_positions:
                positions = (present.long().cumsum(-1) - 1).clamp(min=0)
                arguments["position_ids"] = positions[:, -tokens.shape[1] :]
        with self.watched() as complete:
            output = self.trunk(input_ids=tokens.to(self.device), **arguments)
        here = None if present is None else present[:, -tokens.shape[1] :]
        features, state = complete(output.last_hidden_state, here, state)
        return features, (getattr(output, self._cache_name), state)

    @contextmanager
    def watched(self) -> Iterator[Callable[[Tensor, Tensor | None, State | None], tuple[Tensor, State | None]]]:
        """See what features need of the trunk's forward passes in the block, whoever calls for them.

        Yields:
            A function that completes what the output head reads after the last pass, ``hidden [B, L, d]`` (or its last
            positions), to features: ``(hidden, present [B, L], state) -> (features, state)``; ``present`` is false
            where padding stands, None where there is none, and ``state`` what the call before returned, None to begin.
        """
        recent, averaged = self.recent, self._averaged
        if recent is None or averaged is None:
            yield lambda hidden, present, state: (hidden.to(self.dtype), None)
            return
        seen: list[Tensor] = []

        def see(block: Any, inputs: Any, output: Any) -> None:
            seen[:] = [output if isinstance(output, Tensor) else output[0]]

        def complete(hidden: Tensor, present: Tensor | None, state: State | None) -> tuple[Tensor, State]:
            means, state = recent.means(seen.pop().to(self.dtype), present, state)
            return torch.cat([hidden.to(self.dtype), means[:, -hidden.shape[1] :]], dim=-1), state

        hook = averaged.register_forward_hook(see)
        try:
            yield complete
        finally:
            hook.remove()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[..., V]`` of the next token at ``features [..., d]``, at least single precision."""
        logits: Tensor = self.head(features[..., : self.head_width].to(self.head.weight.dtype))[..., : self.n_symbols]
        return logits.to(self.dtype)

    def keys_values(self, cache: Any, columns: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer, ``[R, H, columns, D]`` each, in a cache of the trunk.

        Raises:
            ValueError: if the network does not keep those of all ``columns`` tokens in every layer.
        """
        layers = getattr(cache, "layers", None) or ()
        kept = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
        complete = [
            (keys, values)
            for keys, values in kept
            if isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.shape[-2] == columns
        ]
        if not kept or len(complete) != len(kept):
            raise ValueError(
                f"model must keep the keys and values of all tokens, which {type(self.network).__name__} does not; use "
                "a network with plain attention layers"
            )
        return complete

    def _start_token(self, start_token: int | None) -> int | None:
        for source in (self.tokenizer, self.network.config):
            if start_token is None:
                start_token = getattr(source, "bos_token_id", None)
        if start_token is not None and not 0 <= start_token < self.n_tokens:
            raise ValueError(
                f"start_token must be in 0..{self.n_tokens - 1}, the network's vocabulary, got {start_token}"
            )
        return start_token

    @torch.no_grad()
    def _check_head(self) -> None:
        """Some networks scale or cap their logits; predictions from the head alone would be wrong, unnoticed."""
        probe = torch.tensor([[0, 1 % self.n_tokens, self.n_tokens // 2]], device=self.device)
        whole = self.network(input_ids=probe).logits[0, -1, : self.n_symbols].to(self.dtype)
        split = self.logits(self.features(probe)[0][0, -1])
        difference = float((whole - split).abs().max())
        if not difference <= _PROBE_TOLERANCE * (1 + float(whole.abs().max())):
            raise ValueError(
                f"network must compute its logits as its output embeddings of the last hidden state, got logits that "
                f"differ by {difference:.3g}; {type(self.network).__name__} scales or caps them"
            )


def _rows(context: Any) -> tuple[list[Tensor], tuple[int, ...]]:
    """Contexts one by one, ``[L]`` each, and the shape ``[...]`` that they have together."""
    ragged = isinstance(context, (list, tuple)) and len({np.shape(row)[:1] for row in context}) > 1
    if ragged:
        return [_long(row) for row in context], (len(context),)
    if isinstance(context, (list, tuple)) and context and isinstance(context[0], torch.Tensor) and context[0].ndim:
        context = torch.stack(list(context))
    tokens = _long(context)
    if not tokens.ndim:
        raise ValueError(f"context must be a sequence of tokens [..., L], got the single value {context!r}")
    shape = tuple(tokens.shape[:-1])
    count = int(np.prod(shape))
    return list(tokens.reshape(count, tokens.shape[-1])), shape


def _long(values: Any) -> Tensor:
    """``values`` as a long tensor on the host; integers only."""
    tensor = values.detach().cpu() if isinstance(values, torch.Tensor) else torch.tensor(np.asarray(values))
    if tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise ValueError(f"context must hold integer tokens, got {tensor.dtype}")
    return tensor.long()
