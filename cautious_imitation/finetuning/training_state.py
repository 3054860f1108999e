"""Networks and optimisers in one file, so that training goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias
from zlib import crc32

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from cautious_imitation.atomic_files import write_safetensors

Tensor = torch.Tensor

Part: TypeAlias = torch.nn.Module | torch.optim.Optimizer

_SCHEMA = "1"


def write_training(path: str | PathLike[str], parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
    """Write parts and what else there is to one safetensors file, in place of what is there, in one step.

    Args:
        path: the file.
        parts: networks and optimisers by name.
        state: what JSON can hold.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    arrays = {
        f"{name}.{key}": tensor.detach().cpu().numpy()
        for name, part in parts.items()
        for key, tensor in _tensors(part).items()
    }
    written = json.dumps(dict(state))
    write_safetensors(path, arrays, {"schema": _SCHEMA, "state": written, "sum": _checksum(arrays, written)})


def read_training(path: str | PathLike[str], parts: Mapping[str, Part], state: Mapping[str, Any]) -> dict[str, Any]:
    """Put what ``write_training`` wrote into ``parts``.

    Args:
        path: the file.
        parts: networks and optimisers of the same shapes.
        state: what has to be as it was.

    Returns:
        The state as it was written.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another version, or differs in ``state`` or in shapes; ``parts`` stay as they
            were then.
    """
    path = Path(path)
    tensors, written = _read(path)
    for name, value in state.items():
        if written.get(name) != value:
            raise ValueError(f"{path} is of training with {name} = {written.get(name)!r}, this one has {value!r}")
    found = {name: _of(name, tensors) for name in parts}
    for name, part in parts.items():
        # An optimiser that has not begun knows no shapes; its network's are those that count.
        if isinstance(part, torch.nn.Module):
            _check_shapes(_tensors(part), found[name], f"{path}: {name}")
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            part.load_state_dict(found[name])
        else:
            part.load_state_dict(_optimizer_state(part, found[name]))
    return written


def _tensors(part: Part) -> dict[str, Tensor]:
    if isinstance(part, torch.nn.Module):
        return dict(part.state_dict())
    states: dict[int, dict[str, Any]] = part.state_dict()["state"]
    return {
        f"{number}.{key}": torch.as_tensor(value) for number, values in states.items() for key, value in values.items()
    }


def _of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def _optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        states.setdefault(int(number), {})[name] = tensor
    return {"state": states, "param_groups": optimizer.state_dict()["param_groups"]}


def _check_shapes(mine: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    if mine.keys() != found.keys():
        differing = sorted(mine.keys() ^ found.keys())
        raise ValueError(f"{where} must have the weights of this network, got a difference in {', '.join(differing)}")
    for name, tensor in mine.items():
        if tensor.shape != found[name].shape:
            raise ValueError(
                f"{where}.{name} must have shape {tuple(tensor.shape)}, got {tuple(found[name].shape)}; it is of "
                "another network"
            )


def _checksum(arrays: Mapping[str, NDArray[Any]], state: str) -> str:
    """Differs where a disk has changed something, which the format itself does not see."""
    found = crc32(state.encode())
    for name in sorted(arrays):
        found = crc32(arrays[name].tobytes(), crc32(name.encode(), found))
    return f"{found:08x}"


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dictionary
        if metadata.get("schema") != _SCHEMA:
            raise ValueError(f"{path} is no checkpoint of this version; train anew, or use the version that wrote it")
        state: dict[str, Any] = json.loads(metadata["state"])
        if metadata["sum"] != _checksum({name: tensor.numpy() for name, tensor in tensors.items()}, metadata["state"]):
            raise ValueError(f"{path} is damaged: it does not hold what was written; take an earlier checkpoint")
    except (SafetensorError, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); take an earlier checkpoint") from error
    return tensors, state
