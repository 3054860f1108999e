"""Loading language models: what is loaded is what was saved, and no damaged file ever passes for a model."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config
from transformers.utils import logging as transformers_logging

from cautious_imitation.language import loading
from cautious_imitation.language.loading import load_language_model
from tests.tiny_folders import CHATML, tiny_llama, tiny_tokenizer, write_folder, write_gguf

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENS = torch.tensor([[5, 9, 30, 7]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("whole") / "model"
    return folder, write_folder(folder)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("shards") / "model"
    network = write_folder(folder, tied=False, shards="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder, network


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


@pytest.fixture
def whole(saved: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0], tmp_path / "model"))


@pytest.fixture
def shards(sharded: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded[0], tmp_path / "model"))


def same_predictions(found: Any, network: Any) -> None:
    torch.testing.assert_close(found(TOKENS).logits, network(TOKENS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["saved", "sharded", "packed"])
def test_what_is_loaded_is_what_was_saved(kind: str, request: pytest.FixtureRequest) -> None:
    path, network = request.getfixturevalue(kind)
    model = load_language_model(path)
    same_predictions(model.network, network)
    assert model.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert model.tokenizer.chat_template == CHATML
    assert model.network.dtype == torch.float32
    assert model.n_symbols == len(model.tokenizer) == network.config.vocab_size


def test_a_folder_may_be_a_string_and_settings_are_passed_on(saved: tuple[Path, Any]) -> None:
    model = load_language_model(str(saved[0]), n_symbols=10, start_token=3)
    assert (model.n_symbols, model.start_token) == (10, 3)


def test_a_loaded_network_is_taken_as_it_is() -> None:
    network = tiny_llama(300).double()
    model = load_language_model(network)
    assert model.network is network
    assert model.tokenizer is None
    assert model.dtype == torch.float64
    tokenizer = tiny_tokenizer()
    assert load_language_model(network, tokenizer=tokenizer).tokenizer is tokenizer


def test_a_tokenizer_may_come_from_elsewhere(saved: tuple[Path, Any], whole: Path) -> None:
    for path in whole.glob("tokenizer*"):
        path.unlink()
    model = load_language_model(whole, tokenizer=saved[0])
    assert model.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_precision_is_that_of_the_files_or_the_one_asked_for(saved: tuple[Path, Any], tmp_path: Path) -> None:
    half = tmp_path / "half"
    tiny_llama(300).half().save_pretrained(half)
    tokenizer = tiny_tokenizer()
    assert load_language_model(half, tokenizer=tokenizer).network.dtype == torch.float16
    assert load_language_model(half, tokenizer=tokenizer, dtype="float32").network.dtype == torch.float32
    model = load_language_model(saved[0], dtype=torch.bfloat16)
    assert model.network.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    assert load_language_model(tiny_llama(300), dtype="float64").network.dtype == torch.float64


@pytest.mark.parametrize("dtype", ["int8", "half", torch.int64, 16])
def test_a_precision_that_is_none(dtype: Any, saved: tuple[Path, Any]) -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of float16, bfloat16, float32, float64, got"):
        load_language_model(saved[0], dtype=dtype)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_a_gpu_where_there_is_none(device: Any, saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r'device must be at hand, got \'cuda.*no CUDA GPU; use device="cpu"'):
        load_language_model(saved[0], device=device)


def test_a_gpu_too_many(saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r'device must be one of "cuda:0" to "cuda:1", got \'cuda:2\''):
        load_language_model(saved[0], device="cuda:2")


def test_a_device_that_is_none(saved: tuple[Path, Any]) -> None:
    with pytest.raises(ValueError, match=r"device must be one that torch knows.*'gpu'"):
        load_language_model(saved[0], device="gpu")


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def without(path: Path, name: str) -> None:
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, {"format": "pt"})


def replaced(path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(path)
    weights[name] = change(weights[name]).contiguous()
    save_file(weights, path, {"format": "pt"})


def configured(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def larger_tokenizer(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder)


UP = "model.layers.1.mlp.up_proj.weight"

BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights cut off": (
        lambda d: cut(d / WEIGHTS, 0.9),
        rf"{WEIGHTS} cannot be read .*delete it and download it again",
    ),
    "weights empty": (lambda d: cut(d / WEIGHTS, 0), rf"{WEIGHTS} cannot be read .*download it again"),
    "weights cut in the header": (lambda d: cut(d / WEIGHTS, 0.01), rf"{WEIGHTS} cannot be read .*download it again"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "model holds no weights .*download it again"),
    "one weight missing": (lambda d: without(d / WEIGHTS, UP), f"lacks 1 of the weights .*{UP}; delete it"),
    "another shape": (lambda d: replaced(d / WEIGHTS, UP, lambda w: w[:3]), f"has another shape for 1 .*{UP}; delete"),
    "not a number": (lambda d: replaced(d / WEIGHTS, UP, lambda w: w / 0), f"no finite numbers, in {UP}; delete"),
    "zeros": (lambda d: replaced(d / WEIGHTS, UP, torch.zeros_like), f"nothing but zeros for {UP}.*; delete"),
    "config cut off": (lambda d: cut(d / "config.json", 0.5), r"config\.json cannot be read .*download it again"),
    "config a list": (
        lambda d: (d / "config.json").write_text("[]"),
        r"config\.json must hold a JSON object, got list",
    ),
    "config empty": (lambda d: (d / "config.json").write_text("{}"), r"config\.json must name the model_type.*delete"),
    "config missing": (lambda d: (d / "config.json").unlink(), r"holds no config\.json.*download it again"),
    "config nonsense": (lambda d: configured(d, hidden_size="wide"), r"cannot be read .*download it again"),
    "unknown model": (lambda d: configured(d, model_type="new"), "'new', which Transformers .* does not know; install"),
    "no language model": (lambda d: T5Config().save_pretrained(d), "must be of a causal language model, got .*'t5'"),
    "adapter": (lambda d: (d / "adapter_config.json").write_text("{}"), "holds an adapter .*pass the merged network"),
    "no tokenizer": (lambda d: [p.unlink() for p in d.glob("tokenizer*")], "holds no tokenizer; pass tokenizer=..."),
    "tokenizer cut off": (lambda d: cut(d / "tokenizer.json", 0.5), r"tokenizer\.json cannot be read .*download"),
    "tokenizer empty": (
        lambda d: (d / "tokenizer.json").write_text("{}"),
        r"tokenizer\.json cannot be read .*download",
    ),
    "tokenizer config cut off": (lambda d: cut(d / "tokenizer_config.json", 0.5), r"tokenizer_config\.json cannot be"),
    "tokenizer of another kind": (
        lambda d: [(d / "tokenizer.json").unlink(), (d / "tokenizer.model").write_bytes(b"no such thing")],
        r"no tokenizer could be loaded from .*model .*or pass tokenizer=\.\.\.",
    ),
    "tokenizer too large": (larger_tokenizer, "tokenizer must match the network, which predicts 300 tokens, got .*301"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_folders_are_told_with_path_and_remedy(fault: str, whole: Path) -> None:
    break_it, words = BROKEN[fault]
    break_it(whole)
    with pytest.raises(ValueError, match=words) as caught:
        load_language_model(whole)
    assert str(whole) in str(caught.value) or "tokenizer must match" in str(caught.value)
    assert "\n" not in str(caught.value)


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def shorter_index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != first_shard(folder).name}
    (folder / INDEX).write_text(json.dumps(index))


def wrong_index(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {}}')


BROKEN_SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard missing": (lambda d: first_shard(d).unlink(), r"model-00001-of.* is missing, which .* lists; download"),
    "a shard cut off": (lambda d: cut(first_shard(d), 0.9), r"model-00001-of.* cannot be read .*download it again"),
    "a shard of another model": (
        lambda d: save_file({"a": torch.ones(2)}, first_shard(d), {"format": "pt"}),
        rf"model-00001-of.* lacks .*, which {INDEX} promises; delete it",
    ),
    "index cut off": (lambda d: cut(d / INDEX, 0.5), f"{INDEX} cannot be read .*download it again"),
    "index empty": (wrong_index, f"{INDEX} must map weights to files.*download it again"),
    "index too short": (shorter_index, "download it again"),
}


@pytest.mark.parametrize("fault", BROKEN_SHARDS)
def test_broken_shards_are_told_with_path_and_remedy(fault: str, shards: Path) -> None:
    break_it, words = BROKEN_SHARDS[fault]
    break_it(shards)
    with pytest.raises(ValueError, match=words) as caught:
        load_language_model(shards)
    assert str(shards) in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.0003, 0.01, 0.1, 0.3, 0.6, 0.99, 0.99999])
def test_gguf_files_cut_off(share: float, packed: tuple[Path, Any], tmp_path: Path) -> None:
    path = Path(shutil.copy(packed[0], tmp_path))
    cut(path, share)
    with pytest.raises(ValueError, match=r"tiny\.gguf.*delete it and download it again"):
        load_language_model(path)


def test_gguf_without_one_weight(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", leave_out="blk.1.attn_v.weight")
    with pytest.raises(ValueError, match=r"tiny\.gguf lacks 1 of the weights .*v_proj"):
        load_language_model(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_gguf_without_its_packages(package: str, packed: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(
        ImportError, match=rf"takes the package {package}.*pip install 'cautious-imitation\[language\]'"
    ):
        load_language_model(packed[0])


def test_pickles_are_not_opened(whole: Path) -> None:
    torch.save(load_file(whole / WEIGHTS), whole / "pytorch_model.bin")
    (whole / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"pickles only .*not read because they can run code; convert"):
        load_language_model(whole)


def test_code_of_a_model_is_not_run(whole: Path) -> None:
    (whole / "own.py").write_text("raise SystemExit('this ran')")
    configured(whole, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    with pytest.raises(ValueError, match="brings its own code, load it yourself"):
        load_language_model(whole)


@pytest.mark.parametrize("source", ["./none", "a/b/c", "~/none-such-folder", "none.gguf", Path("none")])
def test_paths_where_nothing_is(source: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"source must be .*, and nothing is there"):
        load_language_model(source)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("weights")
    with pytest.raises(ValueError, match=r"source must be a model's folder.*got file .*model\.txt"):
        load_language_model(tmp_path / "model.txt")


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("name", ["someone/some-model", "some-model", "no model"])
def test_the_hub_out_of_reach(name: str, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"check the name, the network and your access to it, or pass the path") as caught:
        load_language_model(name)
    assert str(caught.value).startswith(
        f"source {name!r} is no folder here and could not be fetched from the Hugging Face hub"
    )


def test_a_model_on_the_hub(saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append((name, "model*.safetensors" in allow_patterns))
        return str(saved[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    same_predictions(load_language_model("someone/some-model", tokenizer="someone/other").network, saved[1])
    assert asked == [("someone/other", False), ("someone/some-model", True)]


def test_nothing_is_printed_and_settings_of_transformers_stay(
    shards: Path, packed: tuple[Path, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.INFO)
    transformers_logging.enable_progress_bar()
    try:
        load_language_model(shards)
        load_language_model(packed[0])
        first_shard(shards).unlink()
        with pytest.raises(ValueError, match="missing"):
            load_language_model(shards)
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
        assert not huggingface_hub.utils.are_progress_bars_disabled()
    finally:
        transformers_logging.set_verbosity(verbosity)
        if not bars:
            transformers_logging.disable_progress_bar()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
