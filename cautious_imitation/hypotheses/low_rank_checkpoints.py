"""How far the training of low-rank heads has come, on disk: what to go on from after an interruption."""

from __future__ import annotations

import json
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cautious_imitation.atomic_files import replacing, write_text
from cautious_imitation.demonstrations import Demonstrations

Tensor = torch.Tensor

_SCHEMA = 1


class Checkpoints:
    """The state of training after each block, in a folder; without a folder nothing is kept.

    Only the last state stays there, beside what takes long to compute again. Files appear whole or not at all.

    Args:
        folder: where; made if it is not there. None keeps nothing.
        settings: all that training depends on, of the kinds that JSON has.

    Raises:
        ValueError: if the folder holds training under other settings, or is damaged.
    """

    def __init__(self, folder: str | PathLike[str] | None, settings: dict[str, Any]) -> None:
        self._folder = None if folder is None else Path(folder)
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "low-rank-training.json"
        document = json.loads(json.dumps({"schema": _SCHEMA, **settings}))
        if path.exists():
            _check(path, document)
        else:
            write_text(path, json.dumps(document) + "\n")

    def latest(self) -> tuple[int, dict[str, Tensor] | None]:
        """The last block that was finished, and the state after it; ``(-1, None)`` if there is none."""
        found = self._states()
        return (int(found[-1].stem.rpartition("-")[2]), _read(found[-1])) if found else (-1, None)

    def write(self, number: int, state: dict[str, Tensor]) -> None:
        """Keep ``state`` after block ``number``, instead of the one before."""
        if self._folder is None:
            return
        before = self._states()
        self._write(f"low-rank-block-{number:05}.safetensors", state)
        for path in before:
            path.unlink()

    def rest(self, number: int) -> dict[str, Tensor] | None:
        """What ``write_rest`` kept of block ``number``, or None."""
        path = None if self._folder is None else self._folder / f"low-rank-rest-{number:05}.safetensors"
        return _read(path) if path is not None and path.exists() else None

    def write_rest(self, number: int, values: dict[str, Tensor]) -> None:
        """Keep what was computed once about the tokens of block ``number``."""
        self._write(f"low-rank-rest-{number:05}.safetensors", values)

    def _states(self) -> list[Path]:
        return [] if self._folder is None else sorted(self._folder.glob("low-rank-block-*.safetensors"))

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        if self._folder is not None:
            with replacing(self._folder / name) as temporary:
                save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, temporary)


def demonstrations_digest(demonstrations: Demonstrations) -> str:
    """Digest of sequences and actors."""
    digest = sha256()
    for sequence, actors in zip(demonstrations.sequences, demonstrations.actors, strict=True):
        digest.update(f"{len(sequence)} ".encode() + sequence.tobytes() + actors.tobytes())
    return digest.hexdigest()


def _check(path: Path, document: dict[str, Any]) -> None:
    remedy = f"choose another folder, or delete the files low-rank-* in {path.parent}, whose features may stay"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        different = sorted(key for key in {*document, *found} if document.get(key) != found.get(key))
    except (ValueError, TypeError) as error:
        raise ValueError(f"cache is damaged: {path} ({error}); {remedy}") from error
    if different:
        raise ValueError(f"cache {path.parent} holds training with other {', '.join(different)}; {remedy}")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from error
