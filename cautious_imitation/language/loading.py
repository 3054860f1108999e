"""Loading language models: from the hub, a folder, a GGUF file, or a network that is already in memory.

Whatever is wrong with the files is said in one error that names them. Transformers fills weights that a file lacks with
random numbers and logs a warning; here that is an error, because its predictions would look like a model's.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any

import huggingface_hub
import torch
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.recent_context import RecentContext

_AGAIN = "delete it and download it again"
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")


@dataclass(frozen=True)
class _Files:
    """Where a model is on this machine: a folder, and the GGUF file in it if it is one."""

    folder: Path
    gguf: str | None = None

    @property
    def path(self) -> Path:
        """What the user would call the model."""
        return self.folder if self.gguf is None else self.folder / self.gguf


def load_language_model(
    source: Any,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    n_symbols: int | None = None,
    start_token: int | None = None,
    recent: RecentContext | None = None,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Weights are read from safetensors or GGUF only, never from pickles, and no code that comes with a model is run.

    Args:
        source: the id of a model on the Hugging Face hub (downloaded once, then kept in the hub's cache), the path of a
            folder as ``save_pretrained`` writes it, the path of a ``.gguf`` file (needs the extra ``language``), or a
            causal language model of Transformers that is already loaded.
        tokenizer: the matching one, or where to load it from, like ``source``. None: the one that comes with
            ``source``; a loaded network then has none, and contexts are tokens.
        device: such as "cpu", "cuda" or "cuda:1". None: the CPU; a loaded network stays where it is, otherwise it is
            moved itself, not a copy.
        dtype: precision of the weights, "float16", "bfloat16", "float32", "float64" or torch's. None: what the files
            hold, which for GGUF is single precision, as its packed numbers are unpacked.
        n_symbols: V, the tokens that are actions, as in ``LanguageModel``.
        start_token: stands in for an empty context, as in ``LanguageModel``.
        recent: a second half of the features, as in ``LanguageModel``.

    Raises:
        FileNotFoundError: if ``source`` is a path and nothing is there.
        OSError: if the hub cannot be reached, or has no such model for you.
        ValueError: if files are missing, damaged, or do not fit together; if they hold no causal language model that
            this version of Transformers knows; if there is no tokenizer, or it has more tokens than the model; if
            ``device`` is not at hand or ``dtype`` is none of the four.
        ImportError: if reading the files takes a package that is not installed; it names the extra.

    >>> load_language_model("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: source must be a model's folder, its .gguf file or its id on the hub, got 'no/such/folder', ...
    """
    wanted_device, wanted_dtype = _checked_device(device), _checked_dtype(dtype)
    if isinstance(tokenizer, (str, PathLike)):
        tokenizer = _tokenizer(_files(tokenizer, "tokenizer", weights=False))
    if isinstance(source, (str, PathLike)):
        files = _files(source, "source", weights=True)
        config = _config(files)
        if tokenizer is None:
            tokenizer = _tokenizer(files)
        network = _network(files, config, wanted_dtype)
        wanted_device = wanted_device or torch.device("cpu")
    else:
        network = source
    if wanted_device is not None:
        network = network.to(wanted_device)
    if wanted_dtype is not None:
        network = network.to(wanted_dtype)
    return LanguageModel(network, tokenizer, n_symbols=n_symbols, start_token=start_token, recent=recent)


def load_tokenizer(source: str | PathLike[str]) -> Any:
    """The tokenizer alone, from where ``load_language_model`` finds a model; errors as there."""
    return _tokenizer(_files(source, "source", weights=False))


def _checked_device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f'device must be one that torch knows, such as "cpu" or "cuda:0", got {device!r}') from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f'device must be at hand, got {str(chosen)!r} where torch finds no CUDA GPU; use device="cpu", or install '
            "a build of torch for the GPU's driver"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f'device must be one of "cuda:0" to "cuda:{torch.cuda.device_count() - 1}", got {str(chosen)!r}; there are '
            "no more GPUs"
        )
    return chosen


def _checked_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}; None keeps what the files hold")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _files(source: str | PathLike[str], name: str, weights: bool) -> _Files:
    """Where ``source`` is; downloads it if it is not on this machine."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"{name} must be a model's folder, its .gguf file or its id on the hub, got file {path}")
        return _Files(path.parent, path.name)
    if path.is_dir():
        return _Files(path)
    text = str(source)
    is_path = not isinstance(source, str) or text.count("/") > 1 or text[:1] in "./~" or "\\" in text
    if is_path or path.suffix == ".gguf":
        raise FileNotFoundError(
            f"{name} must be a model's folder, its .gguf file or its id on the hub, got {text!r}, and nothing is there"
        )
    kinds = ["*.json", "*.jinja", "*.model", "*.txt", *(["model*.safetensors"] if weights else [])]
    try:
        return _Files(Path(huggingface_hub.snapshot_download(text, allow_patterns=kinds, ignore_patterns=["*/*"])))
    except (OSError, ValueError) as error:
        raise OSError(
            f"{name} {text!r} is no folder here and could not be fetched from the Hugging Face hub ({_line(error)}); "
            "check the name, the network and your access to it, or pass the path of a folder that holds the model"
        ) from error


def _config(files: _Files) -> Any:
    """The network's configuration, which says what the files are, checked before the large ones are read."""
    if files.gguf is not None:
        _need_gguf(files)
        with _reading(files.path):
            return transformers.AutoConfig.from_pretrained(files.folder, gguf_file=files.gguf)
    path = files.folder / "config.json"
    if (files.folder / "adapter_config.json").exists():
        raise ValueError(
            f"{files.folder} holds an adapter (adapter_config.json), which is no model by itself; load the model it "
            "was trained on, and the adapter into it with peft, then pass the merged network as source"
        )
    if not path.exists():
        raise ValueError(
            f"{files.folder} holds no config.json, so it is no model of Transformers, or its download was interrupted; "
            f"{_AGAIN}, or pass the path of a .gguf file itself"
        )
    kind = _json(path).get("model_type")
    if kind is None:
        raise ValueError(f"{path} must name the model_type of a model of Transformers, got none; {_AGAIN}")
    if kind not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"{path} is of model_type {kind!r}, which Transformers {transformers.__version__} does not know; install a "
            "newer one, or, if the model brings its own code, load it yourself and pass the network as source"
        )
    with _reading(path):
        config = transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=False)
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{path} must be of a causal language model, got model_type {kind!r}, which is none")
    return config


def _tokenizer(files: _Files) -> Any:
    if files.gguf is not None:
        _need_gguf(files)
    else:
        _check_tokenizer(files.folder)
    what = f"no tokenizer could be loaded from {files.path}"
    remedy = f"{_AGAIN}, install a newer Transformers, or pass tokenizer=... with where the matching one is"
    with _reading(files.path, what, remedy):
        return transformers.AutoTokenizer.from_pretrained(
            files.folder, gguf_file=files.gguf, trust_remote_code=False, use_fast=True
        )


def _check_tokenizer(folder: Path) -> None:
    """Read its files one by one, so that an error names the file."""
    if not any(path for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        raise ValueError(f"{folder} holds no tokenizer; pass tokenizer=... with where the matching one is")
    if (path := folder / "tokenizer_config.json").exists():
        _json(path)
    if (path := folder / "tokenizer.json").exists():
        # Older releases of Transformers blame a package that is not needed, whatever is wrong with it.
        with _reading(path):
            Tokenizer.from_file(str(path))


def _network(files: _Files, config: Any, dtype: torch.dtype | None) -> Any:
    """The network, on the CPU: what fails here is the files' fault, not that of a GPU that is full."""
    settings: dict[str, Any] = {"config": config, "output_loading_info": True}
    if files.gguf is not None:
        settings |= {"gguf_file": files.gguf, "dtype": dtype or torch.float32}
    else:
        _check_weights(files.folder)
        settings |= {"use_safetensors": True, "trust_remote_code": False, "dtype": dtype or "auto"}
        # Reported rather than raised: the report has the name.
        settings["ignore_mismatched_sizes"] = True
    loader: Any = transformers.AutoModelForCausalLM
    with _reading(files.path):
        network, report = loader.from_pretrained(files.folder, **settings)
    for fault, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape for")):
        if report.get(fault):
            names = sorted(str(key if isinstance(key, str) else key[0]) for key in report[fault])
            raise ValueError(
                f"{files.path} {what} {len(names)} of the weights that its configuration asks for, such as "
                f"{names[0]}; {_AGAIN}"
            )
    for name, parameter in network.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"{files.path} holds weights that are no finite numbers, in {name}; {_AGAIN}")
        # Some programs reserve a file's whole length first; where a download stopped, it goes on with zeros.
        if parameter.ndim > 1 and not bool(parameter.any()):
            raise ValueError(f"{files.path} holds nothing but zeros for {name}, as if cut off while loading; {_AGAIN}")
    return network


def _check_weights(folder: Path) -> None:
    """Open every file of weights, so that an error names the file: truncated ones are found by their header."""
    index: dict[str, str] = {}
    if (folder / _WEIGHTS).exists():
        names = [_WEIGHTS]
    elif (folder / _INDEX).exists():
        found = _json(folder / _INDEX).get("weight_map")
        if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
            raise ValueError(f'{folder / _INDEX} must map weights to files under "weight_map"; {_AGAIN}')
        index = found
        names = sorted(set(index.values()))
    elif list(folder.glob("*.bin")):
        raise ValueError(
            f"{folder} holds weights as pickles only (*.bin), which are not read because they can run code; convert "
            "them with Transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    else:
        raise ValueError(f"{folder} holds no weights ({_WEIGHTS}, or {_INDEX} and what it lists); {_AGAIN}")
    held: set[str] = set()
    for name in names:
        if not (folder / name).exists():
            raise ValueError(f"{folder / name} is missing, which {_INDEX} beside it lists; download it again")
        with _reading(folder / name), safe_open(folder / name, "pt") as file:
            held |= set(file.keys())
    lacking = sorted(set(index) - held)
    if lacking:
        raise ValueError(f"{folder / index[lacking[0]]} lacks {lacking[0]}, which {_INDEX} promises; {_AGAIN}")


def _need_gguf(files: _Files) -> None:
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise ImportError(
                f"reading {files.path} takes the package {package}, which is not installed; "
                "pip install 'cautious-imitation[language]'"
            )


def _json(path: Path) -> dict[str, Any]:
    with _reading(path):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}; {_AGAIN}")
    return value


@contextmanager
def _reading(path: Path, what: str | None = None, remedy: str = _AGAIN) -> Iterator[None]:
    """Read files quietly; whatever the libraries raise over damaged ones is told as one error.

    They raise nearly everything: errors of their own, KeyError and IndexError, for tokenizers a bare ``Exception``.
    """
    try:
        with _quiet():
            yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{what or f'{path} cannot be read'} ({_line(error)}); {remedy}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither log nor progress bars of Transformers; afterwards its settings are what they were."""
    library: Any = transformers_logging
    hub: Any = huggingface_hub.utils
    verbosity = library.get_verbosity()
    bars, hub_silent = library.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
    # Switching bars warns where an environment variable has the last word.
    with warnings.catch_warnings(action="ignore"):
        library.disable_progress_bar()
    library.set_verbosity(logging.CRITICAL)
    try:
        # The bar over a GGUF file's tensors heeds no setting.
        with redirect_stderr(StringIO()):
            yield
    finally:
        library.set_verbosity(verbosity)
        with warnings.catch_warnings(action="ignore"):
            if bars:
                library.enable_progress_bar()
            if hub_silent:
                hub.disable_progress_bars()


def _line(error: Exception) -> str:
    """What an error says, on one line."""
    return shorten(f"{type(error).__name__}: {error}", 240, placeholder=" ...")
