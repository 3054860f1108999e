"""K LoRA adapters on one network, read in one forward pass: a batched product for each layer, no loop over adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from itertools import chain
from os import PathLike
from typing import Any

import torch

from cautious_imitation.language.lora_adapter import LoraAdapter, layer_shape
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.model_stack import Stack

Tensor = torch.Tensor


class StackedLora(Stack):
    """K adapters of one network, each a language model; they share its weights and its head.

    A context takes K rows in one forward pass, one an adapter. The network that is given stays as it is: what runs is a
    copy of its modules on the same weights.

    Args:
        network: the network that the adapters were trained on, as ``LanguageModel`` takes it.
        adapters: folders that PEFT's ``save_pretrained`` wrote, with plain LoRA on linear layers; ranks, scales and
            layers may differ between them.
        tokenizer: as for ``LanguageModel``.
        n_symbols: as for ``LanguageModel``.
        start_token: as for ``LanguageModel``.

    Raises:
        FileNotFoundError: if a file of an adapter is missing.
        ValueError: if there is no adapter, one is damaged, no plain LoRA or for another network, or the network is no
            ``LanguageModel``.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022).
    """

    def __init__(
        self,
        network: Any,
        adapters: Sequence[str | PathLike[str]],
        tokenizer: Any = None,
        *,
        n_symbols: int | None = None,
        start_token: int | None = None,
    ) -> None:
        if isinstance(adapters, (str, PathLike)):
            raise ValueError(f"adapters must be a list of folders, got {adapters!r} alone; put it in a list")
        base = LanguageModel(network, tokenizer, n_symbols=n_symbols, start_token=start_token)
        self._stack(base, network, [LoraAdapter.read(folder, network) for folder in adapters])

    @classmethod
    def from_peft(
        cls,
        model: Any,
        names: Sequence[str] | None = None,
        tokenizer: Any = None,
        *,
        n_symbols: int | None = None,
        start_token: int | None = None,
    ) -> StackedLora:
        """Stack adapters that a ``peft.PeftModel`` holds; they are copied, the network's weights are shared.

        Args:
            model: the model; it stays as it is, except that the network's weights no longer take gradients.
            names: the adapters to stack, in this order; default all.
            tokenizer: as for ``LanguageModel``.
            n_symbols: as for ``LanguageModel``.
            start_token: as for ``LanguageModel``.

        Raises:
            ValueError: as the class itself, or if an adapter is unknown or merged into the network.
        """
        known = list(model.peft_config)
        chosen = known if names is None else list(names)
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise ValueError(f"names must be among the model's adapters {known}, got {unknown[0]!r}")
        network = _copy(model.get_base_model())
        wrapped = _unwrap(network)
        adapters = [
            LoraAdapter.checked(
                f"adapter {name!r}",
                f"the configuration of adapter {name!r}",
                model.peft_config[name].to_dict(),
                _held(wrapped, name),
                network,
            )
            for name in chosen
        ]
        stacked = cls.__new__(cls)
        base = LanguageModel(network, tokenizer, n_symbols=n_symbols, start_token=start_token)
        stacked._stack(base, network, adapters)
        return stacked

    def _stack(self, base: LanguageModel, network: Any, adapters: Sequence[LoraAdapter]) -> None:
        if not adapters:
            raise ValueError("adapters must hold at least one adapter, got none; read the network as a LanguageModel")
        self._n_adapters = self.rows_per_context = len(adapters)
        self.network = _copy(network)
        for name in sorted(set().union(*(adapter.factors for adapter in adapters))):
            _replace(self.network, name, _StackedLinear(self.network.get_submodule(name), name, adapters))
        self._base = copy(base)
        self._base.network, self._base.trunk = self.network, self.network.base_model
        self.tokenizer, self.start_token = base.tokenizer, base.start_token
        self.n_symbols, self.n_tokens = base.n_symbols, base.n_tokens
        self.n_features = len(adapters) * base.n_features

    def __len__(self) -> int:
        """K, the number of adapters."""
        return self._n_adapters

    @property
    def device(self) -> torch.device:
        """Where the head's weights are."""
        return self._base.device

    @property
    def computed_dtype(self) -> torch.dtype:
        """Precision of the head's weights."""
        return self._base.computed_dtype

    @property
    def max_length(self) -> int | None:
        """Longest context in tokens, None if the network sets no limit."""
        return self._base.max_length

    def features(self, tokens: Tensor, present: Tensor | None = None, cache: Any = None) -> tuple[Tensor, Any]:
        """What the head reads of each adapter, one after the other; one forward pass. See ``Reader.features``."""
        copies = None if present is None else present.repeat(len(self), 1)
        hidden, cache = self._base.features(tokens.repeat(len(self), 1), copies, cache)
        by_adapter = hidden.reshape(len(self), *tokens.shape, -1)
        return by_adapter.movedim(0, -2).flatten(-2), cache

    def logits(self, features: Tensor, members: Sequence[int] | None = None) -> Tensor:
        """The shared head on each adapter's part of the features; see ``Stack.logits``."""
        parts = features.reshape(*features.shape[:-1], len(self), -1)
        return self._base.logits(parts if members is None else parts[..., list(members), :])


class _StackedLinear(torch.nn.Module):
    """A linear layer on K x B rows, the first B with the first adapter's change, and so on.

    Adapters of lower rank are padded with zeros, and those that leave this layer alone are all zeros.
    """

    def __init__(self, layer: Any, name: str, adapters: Sequence[LoraAdapter]) -> None:
        super().__init__()
        self.layer = layer
        n_outputs, n_inputs = layer_shape(layer) or (0, 0)
        rank = max(len(adapter.factors[name][0]) for adapter in adapters if name in adapter.factors)
        # Adapters are kept in single precision on a network in half, as PEFT does.
        kind = {"dtype": torch.promote_types(layer.weight.dtype, torch.float32), "device": layer.weight.device}
        down = torch.zeros((len(adapters), n_inputs, rank), **kind)
        up = torch.zeros((len(adapters), rank, n_outputs), **kind)
        for k, adapter in enumerate(adapters):
            if name in adapter.factors:
                first, second = adapter.factors[name]
                down[k, :, : len(first)] = first.T
                up[k, : len(first)] = second.T.to(**kind) * adapter.scales[name]
        self.down = torch.nn.Parameter(down, requires_grad=False)
        self.up = torch.nn.Parameter(up, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The layer's own; some networks look at its precision."""
        weight: Tensor = self.layer.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        bias: Tensor | None = self.layer.bias
        return bias

    def forward(self, rows: Tensor) -> Tensor:
        """``rows [K B, L, in]`` to ``[K B, L, out]``."""
        if rows.ndim < 3 or len(rows) % len(self.down):
            raise ValueError(
                f"layers with adapters must see their rows in order, [{len(self.down)} B, L, d], got "
                f"{list(rows.shape)}; networks that sort tokens, as mixtures of experts do, cannot be stacked"
            )
        shared = self.layer(rows)
        by_adapter = rows.reshape(len(self.down), -1, rows.shape[-1]).to(self.down.dtype)
        base = shared.reshape(len(self.down), -1, shared.shape[-1]).to(self.up.dtype)
        changed = torch.baddbmm(base, by_adapter @ self.down, self.up)
        return changed.to(shared.dtype).reshape(shared.shape)


def _copy(network: Any) -> Any:
    """The same modules anew, on the same weights."""
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    return deepcopy(network, shared)


def _replace(network: torch.nn.Module, name: str, layer: torch.nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, layer)


def _unwrap(network: torch.nn.Module) -> dict[str, Any]:
    """Put the linear layers back that PEFT has wrapped; the wrappers by name. Nothing else of PEFT may be left."""
    wrapped = {name: layer for name, layer in network.named_modules() if hasattr(layer, "base_layer")}
    for name, layer in wrapped.items():
        if getattr(layer, "merged", False):
            raise ValueError(f"model must hold its adapters unmerged, got {name} merged; call model.unmerge_adapter()")
        if layer_shape(layer.base_layer) is not None:
            _replace(network, name, layer.base_layer)
    for name, layer in network.named_modules():
        if type(layer).__module__.partition(".")[0] == "peft":
            raise ValueError(
                f"model must hold adapters of plain LoRA on linear layers only, got a {type(layer).__name__} at {name}"
            )
    return wrapped


def _held(wrapped: Mapping[str, Any], adapter: str) -> dict[str, Tensor]:
    """The weights of one adapter, under the names that they have in a file."""
    return {
        f"base_model.model.{name}.lora_{factor}.weight": getattr(layer, f"lora_{factor}")[adapter].weight.detach()
        for name, layer in wrapped.items()
        for factor in "AB"
        if adapter in getattr(layer, f"lora_{factor}")
    }
