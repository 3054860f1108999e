"""Adapters of the LoRA kind in PEFT's format: read, checked against the network they belong to, nothing else done."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

Tensor = torch.Tensor

_PREFIX = "base_model.model."
_KEY = re.compile(re.escape(_PREFIX) + r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")

# Settings that leave the product as it is, or are read here. Any other one that is switched on may change what the
# adapter computes, those included that PEFT has yet to invent.
_ORIGIN = {"peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"}
_SHAPE = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"}
_PLACE = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
_TRAINING = {"inference_mode", "lora_dropout", "eva_config", "loftq_config", "corda_config", "lora_ga_config"}
_DEFAULTS = {"runtime_config", "megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"}
_WITHOUT_EFFECT = _ORIGIN | _SHAPE | _PLACE | _TRAINING | _DEFAULTS
# Other initialisations change the network's own weights too, and the saved adapter is relative to those.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """Low-rank changes to linear layers: layer ``name`` adds ``scale * up @ down @ x``.

    Attributes:
        source: where it was found, for errors.
        factors: ``(down [r, in], up [out, r])`` by the layer's name in the network; r may differ.
        scales: the factor before the product, by the layer's name.
    """

    source: str
    factors: Mapping[str, tuple[Tensor, Tensor]]
    scales: Mapping[str, float]

    @classmethod
    def read(cls, folder: str | PathLike[str], network: torch.nn.Module) -> LoraAdapter:
        """Read what PEFT saved: ``adapter_config.json`` and ``adapter_model.safetensors``.

        Args:
            folder: a local folder.
            network: the network the adapter was trained on.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is damaged or incomplete, the adapter is no plain LoRA, or it does not fit the
                network; the message names the file.
        """
        folder = Path(folder)
        config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        for path in (config, weights):
            if not path.is_file():
                raise FileNotFoundError(
                    f"no file {path}; an adapter is a folder that PEFT's save_pretrained wrote, as safetensors"
                )
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{config} is damaged ({error}); save the adapter again") from error
        try:
            tensors = load_file(weights)
        except SafetensorError as error:
            raise ValueError(f"{weights} is damaged ({error}); save the adapter again") from error
        return cls.checked(str(weights), str(config), settings, tensors, network)

    @classmethod
    def checked(
        cls, source: str, config: str, settings: Any, tensors: Mapping[str, Tensor], network: torch.nn.Module
    ) -> LoraAdapter:
        """The adapter of PEFT's ``settings`` and ``tensors``, once both are known to be plain LoRA of ``network``.

        Raises:
            ValueError: as ``read``; ``config`` and ``source`` are how it calls the settings and the tensors.
        """
        _check_settings(config, settings)
        layers = dict(network.named_modules())
        factors = {}
        for name, pair in _pairs(source, tensors).items():
            if name not in layers:
                raise ValueError(
                    f"{source} changes layer {name}, which the network lacks; use the base model it was trained on"
                )
            if layers[name] in _embeddings(network):
                raise ValueError(f"{source} changes the embeddings {name}, which all adapters share; leave it out")
            _check_pair(source, name, pair, layers[name])
            factors[name] = pair
        missing = sorted(_targets(settings, layers) - factors.keys())
        if missing or not factors:
            raise ValueError(
                f"{source} lacks the weights of {missing[0] if missing else 'any layer'}, which {config} lists; save "
                "the adapter again"
            )
        scales = {name: _scale(config, settings, name, len(down)) for name, (down, _) in factors.items()}
        return cls(source, factors, scales)


def layer_shape(layer: torch.nn.Module) -> tuple[int, int] | None:
    """Outputs and inputs of a linear layer, None for layers of other kinds."""
    if isinstance(layer, torch.nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[1]), int(layer.weight.shape[0])
    return None


def _check_settings(config: str, settings: Any) -> None:
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise ValueError(f"{config} must describe an adapter of peft_type LORA, got {kind!r}")
    for key, value in settings.items():
        if key == "init_lora_weights":
            harmless = value in _PLAIN_STARTS
        else:
            harmless = key in _WITHOUT_EFFECT or not value or (key, value) == ("bias", "none")
        if not harmless:
            raise ValueError(
                f"{config} sets {key} = {value!r}; only plain LoRA on linear layers can be stacked, so merge the "
                "adapter and read it as a model of its own"
            )


def _pairs(source: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{source} holds {key}, which is no weight of a plain LoRA on linear layers")
        found.setdefault(match["module"], {})[match["factor"]] = tensor
    for name, factors in found.items():
        if len(factors) < 2:
            raise ValueError(f"{source} is incomplete: it lacks one of lora_A and lora_B of {name}; save it again")
    return {name: (factors["A"], factors["B"]) for name, factors in found.items()}


def _embeddings(network: Any) -> Iterator[torch.nn.Module]:
    yield network.get_input_embeddings()
    yield network.get_output_embeddings()


def _check_pair(source: str, name: str, pair: tuple[Tensor, Tensor], layer: torch.nn.Module) -> None:
    shape = layer_shape(layer)
    if shape is None:
        raise ValueError(f"{source} changes {name}, a {type(layer).__name__}; only linear layers can be stacked")
    down, up = (tuple(factor.shape) for factor in pair)
    rank = down[0] if down else 0
    if rank == 0 or (down, up) != ((rank, shape[1]), (shape[0], rank)):
        raise ValueError(
            f"{source} must hold factors [r, {shape[1]}] and [{shape[0]}, r] for {name}, got {list(down)} and "
            f"{list(up)}; use the base model it was trained on"
        )
    if not all(bool(factor.isfinite().all()) for factor in pair):
        raise ValueError(f"{source} must hold finite weights, got NaN or infinity in {name}; save it again")


def _targets(settings: Mapping[str, Any], layers: Mapping[str, torch.nn.Module]) -> set[str]:
    """Layers that the settings list, as far as they can be read off without guessing."""
    targets = settings.get("target_modules")
    narrowed = any(settings.get(key) for key in ("exclude_modules", "layers_to_transform"))
    if narrowed or not targets or targets == "all-linear":
        return set()
    if isinstance(targets, str):
        return {name for name in layers if re.fullmatch(targets, name)}
    return {name for name in layers if any(name == end or name.endswith("." + end) for end in targets)}


def _scale(config: str, settings: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r); both may be set layer by layer."""
    alpha = _for_layer(settings, "alpha_pattern", "lora_alpha", name)
    expected = _for_layer(settings, "rank_pattern", "r", name)
    if expected != rank:
        raise ValueError(
            f"{config} says rank {expected} for {name}, got weights of rank {rank}; save the adapter again"
        )
    if not isinstance(alpha, (int, float)):
        raise ValueError(f"{config} must say lora_alpha for {name}, got {alpha!r}; save the adapter again")
    return alpha / (sqrt(rank) if settings.get("use_rslora") else rank)


def _for_layer(settings: Mapping[str, Any], pattern_key: str, default_key: str, name: str) -> Any:
    for pattern, value in (settings.get(pattern_key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return settings.get(default_key)
