"""What a language model makes of demonstrations: the features before every learned token, kept on disk if wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cautious_imitation.atomic_files import replacing, write_text
from cautious_imitation.demonstrations import Demonstrations, Evidence
from cautious_imitation.language.model import Reader

Tensor = torch.Tensor

_SCHEMA = 1
_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class DemonstrationFeatures:
    """Learned tokens and what the model had read before each of them, in the order of the demonstrations.

    Attributes:
        features: ``[N, d]``, what the output head reads before the token.
        tokens: ``[N]`` long, the tokens that were chosen.
        sequences: ``[N]`` long, which sequence of the demonstrations each belongs to.
    """

    features: Tensor
    tokens: Tensor
    sequences: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


def read_demonstrations(
    model: Reader,
    demonstrations: Demonstrations,
    *,
    evidence: Evidence = "demonstrator",
    cache: str | PathLike[str] | None = None,
    progress: bool = False,
) -> DemonstrationFeatures:
    """Read demonstrations, one forward pass of the model over each, whatever is to be learned from them.

    Args:
        model: the language model that reads, or several read as one.
        demonstrations: sequences of its tokens.
        evidence: whose tokens are learned, as in ``Demonstrations.learned``.
        cache: folder for what was read. Reading that was interrupted goes on where it stopped, and is not repeated.
            Half precision is kept as such. None keeps nothing.
        progress: show a progress bar.

    Raises:
        ValueError: if nothing is to be learned, a learned token is no action, a sequence is longer than the context
            window, or ``cache`` holds what another model or other demonstrations gave, or is damaged.
    """
    batches = list(_batches(model, demonstrations, evidence))
    folder = None if cache is None else _checked_folder(Path(cache), _fingerprint(model, demonstrations, evidence))
    parts = []
    for number, batch in enumerate(track(batches, "reading demonstrations", disable=not progress)):
        path = None if folder is None else folder / f"features-{number:05}.safetensors"
        parts.append(_stored(path) if path is not None and path.exists() else _read(model, batch, path))
    features, tokens, sequences = (torch.cat([part[key] for part in parts]) for key in _KEYS)
    return DemonstrationFeatures(features.to(model.device, model.dtype), tokens.to(model.device), sequences)


_KEYS = ("features", "tokens", "sequences")

_Batch = list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]
"""Index, tokens ``[T]`` and learned positions of each sequence."""


def _batches(model: Reader, demonstrations: Demonstrations, evidence: Evidence) -> Iterator[_Batch]:
    """Neighbouring sequences that fit into one forward pass together, padding included."""
    batch: _Batch = []
    longest, anything = 0, False
    for index, (sequence, learned) in enumerate(
        zip(demonstrations.sequences, demonstrations.learned(evidence), strict=True)
    ):
        if not learned.any():
            continue
        _check_sequence(model, index, sequence, learned)
        anything = True
        longest = max(longest, len(sequence))
        if batch and longest * (len(batch) + 1) * model.rows_per_context > _TOKENS_AT_ONCE:
            yield batch
            batch, longest = [], len(sequence)
        batch.append((index, sequence, np.flatnonzero(learned)))
    if batch:
        yield batch
    if not anything:
        raise ValueError(f'demonstrations must hold something to learn under evidence="{evidence}", got nothing')


def _check_sequence(model: Reader, index: int, sequence: NDArray[np.int64], learned: NDArray[np.bool_]) -> None:
    wrong = sequence[learned & (sequence >= model.n_symbols)]
    if len(wrong):
        raise ValueError(
            f"sequences[{index}] must have learned tokens in 0..{model.n_symbols - 1}, which the model can say, got "
            f"{wrong[0]}"
        )
    if model.max_length is not None and len(sequence) > model.max_length:
        raise ValueError(
            f"sequences[{index}] must fit into the model's context window of {model.max_length} tokens, got "
            f"{len(sequence)}; cut or split it"
        )


def _read(model: Reader, batch: _Batch, path: Path | None) -> dict[str, Tensor]:
    """One forward pass over sequences padded on the right, where no earlier position can see it."""
    longest = max(1, *(len(sequence) - 1 for _, sequence, _ in batch))
    tokens = torch.zeros((len(batch), longest), dtype=torch.long)
    for i, (_, sequence, _) in enumerate(batch):
        tokens[i, : len(sequence) - 1] = torch.from_numpy(sequence[:-1].copy())
    features, _ = model.features(tokens)
    parts = []
    for i, (_, _, positions) in enumerate(batch):
        if positions[0] == 0:
            parts.append(model.read([[]]).features)
        parts.append(features[i, torch.from_numpy(positions[positions > 0] - 1).to(features.device)])
    found = {
        "features": torch.cat(parts).to(model.computed_dtype).cpu(),
        "tokens": torch.from_numpy(np.concatenate([sequence[positions] for _, sequence, positions in batch])),
        "sequences": torch.from_numpy(np.concatenate([np.full(len(p), index) for index, _, p in batch])),
    }
    if path is not None:
        with replacing(path) as temporary:
            save_file(found, temporary)
    return found


def _stored(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is read again") from error


def model_digest(model: Reader) -> str:
    """Digest of what a model's predictions depend on; of each weight matrix 64 values stand for the rest."""
    digest = sha256(f"{model.start_token} {model.n_symbols} {model.recent}".encode())
    for name, parameter in model.network.named_parameters():
        values = parameter.detach().reshape(-1)
        # Spread over the whole, since adapters that are stacked share a parameter.
        some = values[:: max(1, len(values) // 64)][:64].to("cpu", torch.float32).numpy()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + some.tobytes())
    return digest.hexdigest()


def _fingerprint(model: Reader, demonstrations: Demonstrations, evidence: Evidence) -> str:
    """Digest of what the features depend on."""
    digest = sha256(f"{_SCHEMA} {evidence} {_TOKENS_AT_ONCE} {model_digest(model)}".encode())
    for sequence, actors in zip(demonstrations.sequences, demonstrations.actors, strict=True):
        digest.update(sequence.tobytes() + actors.tobytes())
    return digest.hexdigest()


def _checked_folder(folder: Path, fingerprint: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "features.json"
    if note.exists():
        try:
            found = json.loads(note.read_text(encoding="utf-8")).get("fingerprint")
        except (ValueError, AttributeError):
            found = None
        if found != fingerprint:
            raise ValueError(
                f"cache {folder} holds features of another model or of other demonstrations, or is damaged; "
                "choose another folder, or delete this one"
            )
    else:
        write_text(note, json.dumps({"schema": _SCHEMA, "fingerprint": fingerprint}) + "\n")
    return folder
