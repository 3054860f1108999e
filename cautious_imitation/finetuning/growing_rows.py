"""Rows of tokens that a network reads again and again as they grow: each token once, as long as its weights stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from cautious_imitation.language.model import LanguageModel

Tensor = torch.Tensor


class GrowingRows:
    """What a network keeps of rows that go on, some of them or all, by any number of tokens at a time.

    A row that no longer begins with what was read of it is read anew. Nothing here notices that weights change: then
    begin with another one.

    Args:
        model: the network; it must keep keys and values of all tokens, as attention without a limited window does.

    Raises:
        ValueError: if the features hold means of recent tokens as well.

    >>> from cautious_imitation.language.small_gpt import small_gpt
    >>> model = small_gpt()
    >>> rows = GrowingRows(model)
    >>> for tokens in ([[1, 2, 0], [3, 0, 0]], [[1, 2, 4], [3, 5, 6]]):
    ...     lengths = torch.tensor([2, 1]) if tokens[0][-1] == 0 else torch.tensor([3, 3])
    ...     features = rows.read(torch.tensor(tokens), lengths, [0, 1])
    >>> torch.allclose(features, model.read([[1, 2, 4], [3, 5, 6]]).features, atol=1e-4)
    True
    """

    def __init__(self, model: LanguageModel) -> None:
        if model.recent is not None:
            raise ValueError("model must have recent=None, what its output head reads and nothing else")
        self._model = model
        # Of all rows so far, by number: their tokens, how many, what was made of the last one, and of each layer the
        # keys and values [R, H, T, D], in which a row stands at the right end.
        self._tokens = torch.zeros((0, 0), dtype=torch.long)
        self._lengths = torch.zeros(0, dtype=torch.long)
        self._last = torch.zeros((0, model.n_features), dtype=model.dtype, device=model.device)
        self._layers: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def read(self, tokens: Tensor, n_tokens: Tensor, rows: Sequence[int]) -> Tensor:
        """Features ``[n, d]`` after each row's last token: one forward pass over what is new.

        Args:
            tokens: ``[n, L]``, padded on the right, on the CPU.
            n_tokens: ``[n]``, how many of them are there, at least 1, on the CPU.
            rows: the n different numbers of the rows, at least 0.

        Raises:
            ValueError: if the network keeps something else than keys and values.
        """
        self._make_room(max(rows) + 1, tokens.shape[1])
        numbers = torch.tensor(rows)
        known = self._known(tokens, n_tokens, numbers)
        grown = (known < n_tokens).nonzero().squeeze(1)
        if len(grown):
            self._read_on(tokens[grown], n_tokens[grown], numbers[grown], known[grown])
        return self._last[numbers.to(self._last.device)]

    def _known(self, tokens: Tensor, n_tokens: Tensor, numbers: Tensor) -> Tensor:
        """How many tokens of each row need not be read."""
        before, known = self._tokens[numbers, : tokens.shape[1]], self._lengths[numbers]
        same = (before == tokens) | (torch.arange(tokens.shape[1]) >= known[:, None])
        return torch.where(same.all(1) & (known <= n_tokens), known, 0)

    def _read_on(self, tokens: Tensor, n_tokens: Tensor, numbers: Tensor, known: Tensor) -> None:
        n_new = n_tokens - known
        columns, longest = int(known.max()), int(n_new.max())
        places = torch.arange(longest)
        chunk = tokens.gather(1, (known[:, None] + places).clamp(max=tokens.shape[1] - 1))
        # What is known ends where the new tokens begin, so that a row has no holes.
        kept = torch.arange(columns) >= columns - known[:, None]
        present = torch.cat([kept, places < n_new[:, None]], dim=1)
        whole = bool(present.all())
        features, (cache, _) = self._model.features(
            chunk, None if whole else present, (self._cache(numbers, columns), None)
        )
        last = features[torch.arange(len(chunk), device=features.device), (n_new - 1).to(features.device)]
        layers = self._model.keys_values(cache, columns + longest)
        if not bool(present[:, -1].all()):
            # What is not there goes to the left.
            order = present.long().argsort(dim=1, stable=True)[:, None, :, None]
            layers = [(_in_order(keys, order), _in_order(values, order)) for keys, values in layers]
        self._keep(layers, numbers, tokens, n_tokens, last)

    def _cache(self, numbers: Tensor, columns: int) -> Any:
        """What was kept of rows, their last columns, as the network takes it."""
        cache: Any = DynamicCache()
        if not columns:
            return cache
        for layer, (keys, values) in enumerate(self._layers):
            # Given as they are; to update with them would copy them once more.
            cache.update(keys[:0, :, :0], values[:0, :, :0], layer)
            cache.layers[layer].keys = self._taken(keys, numbers, columns)
            cache.layers[layer].values = self._taken(values, numbers, columns)
        return cache

    def _taken(self, values: Tensor, numbers: Tensor, columns: int) -> Tensor:
        recent = values[:, :, values.shape[2] - columns :]
        if len(numbers) == len(recent) and bool((numbers == torch.arange(len(numbers))).all()):
            return recent
        return recent.index_select(0, numbers.to(values.device))

    def _keep(
        self, layers: list[tuple[Tensor, Tensor]], numbers: Tensor, tokens: Tensor, n_tokens: Tensor, last: Tensor
    ) -> None:
        self._tokens = self._tokens.index_copy(0, numbers, _wider(tokens, self._tokens.shape[1]))
        self._lengths = self._lengths.index_copy(0, numbers, n_tokens)
        self._last = self._last.index_copy(0, numbers.to(last.device), last)
        columns = int(self._lengths.max())
        all_of_them = len(numbers) == len(self._lengths) and bool((numbers == torch.arange(len(numbers))).all())

        def together(before: Tensor | None, now: Tensor) -> Tensor:
            now = now[:, :, max(now.shape[2] - columns, 0) :]
            if all_of_them:
                return now
            kept = now.new_zeros((len(self._lengths), now.shape[1], columns, now.shape[3]))
            if before is not None:
                before = before[:, :, max(before.shape[2] - columns, 0) :]
                kept[: len(before), :, columns - before.shape[2] :] = before
            kept[numbers.to(now.device), :, columns - now.shape[2] :] = now
            return kept

        # A layer at a time, so that what was kept of it can go.
        for number, (keys, values) in enumerate(layers):
            old_keys, old_values = self._layers[number] if number < len(self._layers) else (None, None)
            kept = together(old_keys, keys), together(old_values, values)
            self._layers[number : number + 1] = [kept]

    def _make_room(self, n_rows: int, length: int) -> None:
        """Know as many rows, and tokens of each, nothing of which has been read."""
        missing = max(n_rows - len(self._lengths), 0)
        self._tokens = _wider(self._tokens, length)
        self._tokens = torch.cat([self._tokens, self._tokens.new_zeros((missing, self._tokens.shape[1]))])
        self._lengths = torch.cat([self._lengths, self._lengths.new_zeros(missing)])
        self._last = torch.cat([self._last, self._last.new_zeros((missing, self._last.shape[1]))])


def _in_order(values: Tensor, order: Tensor) -> Tensor:
    return values.take_along_dim(order.to(values.device), 2)


def _wider(tokens: Tensor, length: int) -> Tensor:
    """``tokens`` with zeros on the right, ``length`` columns at least."""
    return torch.nn.functional.pad(tokens, (0, max(length - tokens.shape[1], 0)))
