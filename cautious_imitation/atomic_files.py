"""Files that appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
from safetensors.numpy import save


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes the place of ``path`` when the block ends without an error.

    For writers that want a file name (``sqlite3``, ``safetensors.torch.save_file``). On an error the temporary file
    is removed and what was at ``path`` stays as it was.

    Raises:
        OSError: if the folder does not exist or cannot be written to.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> target = Path(folder.name, "notes.txt")
    >>> with replacing(target) as temporary:
    ...     written = temporary.write_text("kept")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('kept', 1)
    >>> folder.cleanup()
    """
    target = Path(path)
    # Not tempfile.mkstemp: its files are private (0600), and the mode would survive the rename.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, replacing what is there in one step.

    Raises:
        OSError: if the folder does not exist or cannot be written to.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 with the line ends it has, replacing what is there in one step.

    Raises:
        OSError: if the folder does not exist or cannot be written to.
    """
    write_bytes(path, text.encode("utf-8"))


def write_safetensors(
    path: str | PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named NumPy ``arrays`` to ``path`` in the safetensors format, replacing what is there in one step.

    Args:
        path: the file to write.
        arrays: arrays of any shape and layout, by name.
        metadata: text kept in the file's header.

    Raises:
        OSError: if the folder does not exist or cannot be written to.
    """
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    write_bytes(path, save(contiguous, metadata=dict(metadata) if metadata else None))
