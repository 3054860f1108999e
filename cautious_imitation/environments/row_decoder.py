"""Rows of tokens that one network reads on, each at its own pace, without reading anything twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.recent_context import RecentContext

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class _Block:
    """What a network keeps of R rows that were read together.

    Attributes:
        keys_values: of each layer, keys and values, ``[R, H, T, D]`` each; a row stands at the right end.
        recent: the running sum of ``RecentContext``, and the weights in it; None if features hold no such mean.
        lengths: ``[R]``, how many of the T columns a row has.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    recent: tuple[Tensor, Tensor] | None
    lengths: Tensor

    def taken(self, places: Sequence[int], columns: int) -> _Block:
        """Some of the rows, with so many columns."""
        index = torch.tensor(places)
        kept = [(_columns(keys, index, columns), _columns(values, index, columns)) for keys, values in self.keys_values]
        recent = None if self.recent is None else (_picked(self.recent[0], index), _picked(self.recent[1], index))
        return _Block(kept, recent, self.lengths[index])


class RowDecoder:
    """N rows that begin with the same tokens and go on by a token at a time, some of them or all.

    Rows that advance together take one forward pass, and those that do not take no part in it. What was kept of rows
    that were read in different passes is put together by copying, never by reading again.

    Args:
        model: the network; it must keep keys and values of all tokens, as attention without a limited window does.
        opening: ``[L]`` tokens that every row begins with; read once.
        n_rows: N.
        hidden_layers: how many of the last hidden states to keep; 1 is what the output head reads.

    Attributes:
        features: ``[N, d]``, what the output head reads after each row's last token, as ``model.read`` gives it.
        hidden: ``[N, hidden_layers, width]``, the last hidden states there, the last one as the output head reads it.
        n_passes: forward passes so far.
        n_rows_read: rows in all of them.

    Raises:
        ValueError: if the network has fewer hidden states, or keeps something else than keys and values.

    >>> from cautious_imitation.language.small_gpt import small_gpt
    >>> model = small_gpt()
    >>> rows = RowDecoder(model, [1, 2], n_rows=3)
    >>> rows.append([2, 0], [7, 8])
    >>> torch.allclose(rows.features, model.read([[1, 2, 8], [1, 2], [1, 2, 7]]).features, atol=1e-4)
    True
    >>> rows.n_passes, rows.n_rows_read
    (2, 3)
    """

    def __init__(self, model: LanguageModel, opening: Sequence[int], n_rows: int, hidden_layers: int = 1) -> None:
        self._model, self._hidden_layers = model, hidden_layers
        self._watched = _blocks(model, hidden_layers)
        self.n_passes = self.n_rows_read = 0
        tokens = torch.tensor([list(opening)])
        self._opening_block, features, hidden = self._read(tokens, None, None)
        self._opening = (features[0], hidden[0])
        self.features = features.repeat(n_rows, 1)
        self.hidden = hidden.repeat(n_rows, 1, 1)
        self._source: list[tuple[_Block, int]] = [(self._opening_block, 0)] * n_rows

    def begin(self, rows: Sequence[int]) -> None:
        """Let rows begin anew; nothing is read."""
        for row in rows:
            self._source[row] = (self._opening_block, 0)
            self.features[row], self.hidden[row] = self._opening

    def drop(self, rows: Sequence[int]) -> None:
        """Let go of what was kept of rows; they read nothing until they begin anew, and their states are zeros."""
        for row in rows:
            # Any block would do; this one is kept in any case.
            self._source[row] = (self._opening_block, 0)
            self.features[row] = self.hidden[row] = 0

    def append(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Add one token to each of ``rows`` and read it: one forward pass."""
        said = dict(zip(rows, tokens, strict=True))
        order, block = self._together(rows)
        columns = block.keys_values[0][0].shape[-2] + 1
        lengths = block.lengths + 1
        whole = bool((lengths == columns).all())
        present = None if whole else torch.arange(columns) >= columns - lengths[:, None]
        read, features, hidden = self._read(torch.tensor([[said[row]] for row in order]), present, block)
        index = torch.tensor(order, device=features.device)
        self.features[index], self.hidden[index] = features, hidden
        for place, row in enumerate(order):
            self._source[row] = (read, place)

    def _together(self, rows: Sequence[int]) -> tuple[list[int], _Block]:
        """What was kept of ``rows`` in one block, and their order in it."""
        parts: dict[int, list[int]] = {}
        # In the order in which they are kept, so that a block that goes on as a whole need not be copied.
        for row in sorted(rows, key=lambda row: self._source[row][1]):
            parts.setdefault(id(self._source[row][0]), []).append(row)
        sources = [(self._source[part[0]][0], part) for part in parts.values()]
        columns = max(int(self._source[row][0].lengths[self._source[row][1]]) for row in rows)
        if len(sources) == 1:
            block, part = sources[0]
            places = [self._source[row][1] for row in part]
            if places == list(range(len(block.lengths))) and block.keys_values[0][0].shape[-2] == columns:
                return part, block
        taken = [block.taken([self._source[row][1] for row in part], columns) for block, part in sources]
        order = [row for part in parts.values() for row in part]
        if len(taken) == 1:
            return order, taken[0]
        layers = zip(*(block.keys_values for block in taken), strict=True)
        kept = [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers]
        states = [block.recent for block in taken if block.recent is not None]
        recent = (torch.cat([s for s, _ in states]), torch.cat([w for _, w in states])) if states else None
        return order, _Block(kept, recent, torch.cat([block.lengths for block in taken]))

    def _read(self, tokens: Tensor, present: Tensor | None, block: _Block | None) -> tuple[_Block, Tensor, Tensor]:
        """Read ``[R, L]`` tokens on: what is kept, features ``[R, d]`` and hidden states ``[R, layers, width]``."""
        kept: Any = DynamicCache()
        for layer, (keys, values) in enumerate([] if block is None else block.keys_values):
            # Given as they are; to update with them would copy them once more.
            kept.update(keys[:, :, :0], values[:, :, :0], layer)
            kept.layers[layer].keys, kept.layers[layer].values = keys, values
        seen: list[Tensor] = []

        def see(module: Any, inputs: Any, output: Any) -> None:
            seen.append(output if isinstance(output, Tensor) else output[0])

        def see_first(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        hooks = [
            module.register_forward_pre_hook(see_first, with_kwargs=True)
            if first
            else module.register_forward_hook(see)
            for module, first in self._watched
        ]
        try:
            features, (kept, state) = self._model.features(
                tokens, present, (kept, None if block is None else block.recent)
            )
        finally:
            for hook in hooks:
                hook.remove()
        self.n_passes += 1
        self.n_rows_read += len(tokens)
        last = features[:, -1]
        states = [layer[:, -1].to(last.dtype) for layer in seen] + [last[:, : self._model.head_width]]
        hidden = torch.stack(states, dim=1)
        lengths = torch.full((len(tokens),), tokens.shape[1]) if block is None else block.lengths + 1
        return _Block(self._model.keys_values(kept, int(lengths.max())), state, lengths), last, hidden


def _blocks(model: LanguageModel, hidden_layers: int) -> list[tuple[Any, bool]]:
    """Modules that give the hidden states before the last one, and whether it is what goes into them that counts."""
    depth = int(getattr(model.trunk.config, "num_hidden_layers", 0))
    if not 1 <= hidden_layers <= depth + 1:
        raise ValueError(
            f"hidden_layers must be in 1..{depth + 1}, what {type(model.network).__name__} has with its embeddings, "
            f"got {hidden_layers}"
        )
    if hidden_layers > 1 and int(model.trunk.config.hidden_size) != model.head_width:
        raise ValueError(
            f"hidden_layers must be 1 for {type(model.network).__name__}, whose output head reads another width than "
            f"its layers have, got {hidden_layers}"
        )
    numbers = range(depth - hidden_layers + 1, depth)
    return [(RecentContext(layer=max(number, 1) / depth).block(model.trunk), number == 0) for number in numbers]


def _columns(values: Tensor, index: Tensor, columns: int) -> Tensor:
    """Rows ``index`` of ``[R, H, T, D]`` with their last ``columns``, or with empty ones before them."""
    picked = _picked(values, index)[:, :, -columns:]
    missing = columns - picked.shape[-2]
    return torch.nn.functional.pad(picked, (0, 0, missing, 0)) if missing > 0 else picked


def _picked(values: Tensor, index: Tensor) -> Tensor:
    return values.index_select(0, index.to(values.device))
