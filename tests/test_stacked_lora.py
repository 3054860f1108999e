"""Stacked LoRA adapters predict as PEFT does with each adapter alone, in a single forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.hypotheses.language_models import LanguageModels
from cautious_imitation.language.stacked_lora import StackedLora
from tests.tiny_models import tiny_network

# PEFT asks a layer for what Transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

CONFIGS = (
    {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    {"r": 4, "target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"down_proj": 1}},
    {"r": 1, "lora_alpha": 3, "target_modules": r".*mlp\.(up|down)_proj", "alpha_pattern": {"up_proj": 2}},
)
TOKENS = torch.tensor([[3, 1, 0, 2, 2], [1, 1, 3, 0, 2]])


def save_adapter(folder: Path, network: Any, seed: int, **settings: Any) -> Path:
    """An adapter with random weights, B included, which PEFT starts at zero."""
    model = peft.get_peft_model(network, peft.LoraConfig(**settings))
    randomise(model, seed)
    model.save_pretrained(folder)
    return folder


def randomise(model: torch.nn.Module, seed: int, part: str = "lora_") -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [save_adapter(root / str(i), tiny_network(), i, **config) for i, config in enumerate(CONFIGS)]


@pytest.fixture(scope="module")
def alone(folders) -> list[Any]:
    """Each adapter by PEFT, on a network of its own."""
    return [peft.PeftModel.from_pretrained(tiny_network(), folder).eval() for folder in folders]


@pytest.fixture(scope="module")
def stacked(folders) -> StackedLora:
    return StackedLora(tiny_network(), folders, n_symbols=3, start_token=3)


def close(one, other, **tolerances) -> None:
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), **{"rtol": 1e-9, "atol": 1e-11, **tolerances})


@torch.no_grad()
def logits_of(models: list[Any], tokens: torch.Tensor) -> torch.Tensor:
    """``[B, L, K, V]``, one model after the other."""
    return torch.stack([model(input_ids=tokens).logits[..., :3] for model in models], dim=-2)


def test_logits_are_those_of_each_adapter_alone(stacked, alone):
    features, _ = stacked.features(TOKENS)
    assert features.shape == (2, 5, stacked.n_features)
    logits = stacked.logits(features)
    close(logits, logits_of(alone, TOKENS))
    spread = logits.log_softmax(-1).exp().amax(-2) - logits.log_softmax(-1).exp().amin(-2)
    assert (spread.amax(-1) > 0.01).all(), "the adapters must differ for this to show anything"
    assert torch.equal(stacked.logits(features, [2, 0]), logits[..., [2, 0], :])


def test_the_order_is_that_of_the_list(folders, alone):
    turned = StackedLora(tiny_network(), folders[::-1], n_symbols=3)
    close(turned.logits(turned.features(TOKENS)[0]), logits_of(alone[::-1], TOKENS))


def test_decoding_with_a_cache_is_reading_at_once(stacked):
    at_once, _ = stacked.features(TOKENS)
    cache, parts = None, []
    for t in range(TOKENS.shape[1]):
        step, cache = stacked.features(TOKENS[:, t : t + 1], cache=cache)
        parts.append(step)
    close(torch.cat(parts, dim=1), at_once)


@pytest.mark.parametrize("left", [True, False])
def test_padding_makes_no_difference(stacked, left):
    short = TOKENS[1:, :2]
    padding = torch.zeros((1, 3), dtype=torch.long)
    tokens = torch.cat([TOKENS[:1], torch.cat([padding, short] if left else [short, padding], dim=1)])
    present = torch.ones((2, 5), dtype=torch.bool)
    present[1, slice(3) if left else slice(2, None)] = False
    features, _ = stacked.features(tokens, present)
    if left:
        close(features[1, 3:], stacked.features(short)[0][0])
    else:
        close(features[1, :2], stacked.features(short)[0][0])
    close(features[0], stacked.features(TOKENS[:1])[0][0])


def test_padded_decoding_with_a_cache(stacked):
    """Left padding stays in the cache while new tokens come in."""
    tokens, present = TOKENS.clone(), torch.ones((2, 5), dtype=torch.bool)
    present[1, :2] = False
    _, cache = stacked.features(tokens[:, :4], present[:, :4])
    step, _ = stacked.features(tokens[:, 4:], present, cache)
    close(step[1, 0], stacked.features(tokens[1:, 2:])[0][0, -1])


@pytest.mark.parametrize("n_adapters", [1, 3])
def test_one_forward_pass_a_step_whatever_the_number(folders, n_adapters):
    stacked = StackedLora(tiny_network(), folders[:n_adapters], n_symbols=3, start_token=3)
    trunk, layers = [], []
    stacked.network.base_model.register_forward_hook(lambda *_: trunk.append(1))
    for layer in stacked.network.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not stacked.network.get_output_embeddings():
            layer.register_forward_hook(lambda _, rows, __: layers.append(len(rows[0])))
    class_ = LanguageModels(stacked)
    for n_calls, ask in enumerate((class_.mixture, lambda c: class_.plausible_min(c, 0.1)), start=1):
        ask(TOKENS)
        assert len(trunk) == n_calls
        assert layers == [2 * n_adapters] * (7 * n_calls)


def test_rows_of_all_adapters_count_when_demonstrations_are_read(stacked):
    """A forward pass takes as many rows as adapters, so fewer sequences go into it."""
    read = []
    handle = stacked.network.base_model.register_forward_pre_hook(
        lambda _, __, arguments: read.append(tuple(arguments["input_ids"].shape)), with_kwargs=True
    )
    LanguageModels(stacked).fit(np.random.default_rng(0).integers(3, size=(40, 61)))
    handle.remove()
    assert all(n_rows * length <= 4096 for n_rows, length in read)
    assert sum(n_rows for n_rows, length in read if length == 60) == 3 * 40


def test_the_network_that_is_given_stays_as_it_is(folders):
    network = tiny_network()
    before, names = network(input_ids=TOKENS).logits, [name for name, _ in network.named_modules()]
    stacked = StackedLora(network, folders, n_symbols=3)
    assert torch.equal(network(input_ids=TOKENS).logits, before)
    assert [name for name, _ in network.named_modules()] == names
    shared = {parameter.data_ptr() for parameter in network.parameters()}
    assert shared <= {parameter.data_ptr() for parameter in stacked.network.parameters()}


def test_the_class_is_that_of_a_list(stacked, alone):
    class Module(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=tokens).logits[..., :3]

    sequences = [[0, 1, 3, 2, 2, 0, 1, 1], [2, 3, 3, 0]]
    listed = FiniteHypotheses([Module(m) for m in alone], n_symbols=3, start_symbol=3, switching_rate=1e-3)
    class_ = LanguageModels(stacked).fit(sequences)
    listed.fit(sequences)
    close(class_.log_weights, listed.log_weights)
    log_pi = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    for context in ([], [0, 3, 1]):
        close(class_.mixture(context), listed.mixture(context))
        close(class_.plausible_min(context, 1e-3), listed.plausible_min(context, 1e-3))
        close(class_.worst_kl(context, log_pi, 1e-3), listed.worst_kl(context, log_pi, 1e-3))


def test_saved_weights_belong_to_their_adapters(stacked, folders, tmp_path):
    class_ = LanguageModels(stacked).fit([[0, 1, 2, 2]])
    class_.save(tmp_path)
    again = StackedLora(tiny_network(), folders, n_symbols=3, start_token=3)
    assert torch.equal(LanguageModels.load(tmp_path, again).mixture([0, 1]), class_.mixture([0, 1]))
    for others in (folders[::-1], [*folders[:2], folders[1]]):
        with pytest.raises(ValueError, match="models must be those that were saved"):
            LanguageModels.load(tmp_path, StackedLora(tiny_network(), others, n_symbols=3, start_token=3))


def test_adapters_of_a_peft_model(folders, stacked):
    model = peft.PeftModel.from_pretrained(tiny_network(), folders[0], adapter_name="0")
    model.load_adapter(folders[1], adapter_name="1")
    model.load_adapter(folders[2], adapter_name="2")
    with torch.no_grad():
        before = model.eval()(input_ids=TOKENS).logits
    inside = StackedLora.from_peft(model, n_symbols=3, start_token=3)
    close(inside.features(TOKENS)[0], stacked.features(TOKENS)[0])
    last = StackedLora.from_peft(model, ["2"], n_symbols=3)
    close(last.features(TOKENS)[0], stacked.features(TOKENS)[0][..., 12:])
    assert torch.equal(model(input_ids=TOKENS).logits, before)
    with pytest.raises(ValueError, match="names must be among"):
        StackedLora.from_peft(model, ["3"])
    model.merge_adapter(["0"])
    with pytest.raises(ValueError, match=r"merged; call model\.unmerge_adapter"):
        StackedLora.from_peft(model)


def test_convolutions_that_are_linear(tmp_path):
    """GPT-2 keeps the weights of its linear layers transposed."""

    def network() -> Any:
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=5, n_positions=16, n_embd=8, n_layer=1, n_head=2, initializer_range=1.0
        )
        return transformers.GPT2LMHeadModel(config).double().eval()

    targets = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    folders = [save_adapter(tmp_path / str(i), network(), i, r=i + 1, **targets) for i in range(2)]
    stacked = StackedLora(network(), folders, n_symbols=3, start_token=0)
    alone = [peft.PeftModel.from_pretrained(network(), folder).eval() for folder in folders]
    close(stacked.logits(stacked.features(TOKENS)[0]), logits_of(alone, TOKENS))


def test_a_network_in_half_precision_has_adapters_in_single(folders):
    stacked = StackedLora(tiny_network(scale=2.0).bfloat16(), folders, n_symbols=3)
    assert {parameter.dtype for name, parameter in stacked.network.named_parameters() if "down" in name.split(".")} == {
        torch.float32
    }
    assert stacked.dtype == torch.float32
    alone = [peft.PeftModel.from_pretrained(tiny_network(scale=2.0).bfloat16(), folder).eval() for folder in folders]
    expected = logits_of(alone, TOKENS).float()
    close(stacked.logits(stacked.features(TOKENS)[0]), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


class TestRefusals:
    """Each message names the file, and what is wrong with it."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        return save_adapter(tmp_path / "adapter", tiny_network(), 0, **CONFIGS[0])

    def refused(self, folder: Path, match: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=match):
            StackedLora(tiny_network(), [folder])

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_a_file_is_missing(self, folder, name):
        (folder / name).unlink()
        self.refused(folder, name, FileNotFoundError)

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_a_file_is_cut_short(self, folder, name):
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
        self.refused(folder, f"{name} is damaged")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("use_dora", True),
            ("bias", "all"),
            ("modules_to_save", ["lm_head"]),
            ("trainable_token_indices", [0]),
            ("init_lora_weights", "pissa"),
            ("a_setting_of_next_year", 0.5),
        ],
    )
    def test_other_kinds_of_adapter(self, folder, key, value):
        self.edit(folder, {key: value})
        self.refused(folder, rf"adapter_config\.json sets {key} = ")

    def test_another_method(self, folder):
        self.edit(folder, {"peft_type": "IA3"})
        self.refused(folder, r"adapter_config\.json must describe an adapter of peft_type LORA, got 'IA3'")

    def test_weights_of_a_layer_are_missing(self, folder):
        path, tensors = self.tensors(folder)
        safetensors.torch.save_file({k: v for k, v in tensors.items() if "q_proj" not in k}, path)
        self.refused(folder, r"adapter_model\.safetensors lacks the weights of model\.layers\.0\.self_attn\.q_proj")

    def test_one_factor_is_missing(self, folder):
        path, tensors = self.tensors(folder)
        safetensors.torch.save_file({k: v for k, v in tensors.items() if "q_proj.lora_B" not in k}, path)
        self.refused(folder, r"adapter_model\.safetensors is incomplete: it lacks one of lora_A and lora_B of .*q_proj")

    def test_the_rank_is_another(self, folder):
        self.edit(folder, {"r": 3})
        self.refused(folder, r"adapter_config\.json says rank 3 for .*q_proj, got weights of rank 2")

    def test_weights_are_not_finite(self, folder):
        path, tensors = self.tensors(folder)
        next(iter(tensors.values()))[0, 0] = torch.nan
        safetensors.torch.save_file(tensors, path)
        self.refused(folder, r"adapter_model\.safetensors must hold finite weights")

    def test_something_else_is_in_the_file(self, folder):
        path, tensors = self.tensors(folder)
        safetensors.torch.save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2)}, path)
        self.refused(folder, r"adapter_model\.safetensors holds base_model\.model\.lm_head\.weight")

    def test_another_network(self, folder):
        with pytest.raises(ValueError, match=r"must hold factors \[r, 4\] and \[4, r\] for .*q_proj, got \[2, 6\]"):
            StackedLora(tiny_network(width=4), [folder])
        self.edit(folder, {"target_modules": ["nothing"]})
        path, tensors = self.tensors(folder)
        safetensors.torch.save_file({k.replace("q_proj", "query"): v for k, v in tensors.items()}, path)
        self.refused(folder, r"changes layer model\.layers\.0\.self_attn\.query, which the network lacks")

    @pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
    def test_the_head_is_shared(self, tmp_path):
        folder = save_adapter(tmp_path, tiny_network(), 0, r=1, target_modules=["lm_head", "q_proj"])
        self.refused(folder, r"adapter_model\.safetensors holds base_model\.model\.lm_head\.base_layer\.weight")
        path, tensors = self.tensors(folder)
        safetensors.torch.save_file({k: v for k, v in tensors.items() if "lora" in k}, path)
        self.refused(folder, "changes the embeddings lm_head, which all adapters share")

    def test_no_list_of_adapters(self, folder):
        with pytest.raises(ValueError, match="adapters must hold at least one"):
            StackedLora(tiny_network(), [])
        with pytest.raises(ValueError, match="adapters must be a list of folders"):
            StackedLora(tiny_network(), folder)

    def test_rows_that_a_layer_sees_out_of_order(self, stacked):
        layer = stacked.network.get_submodule("model.layers.0.mlp.up_proj")
        with pytest.raises(ValueError, match="must see their rows in order"):
            layer(torch.zeros((6, 6), dtype=torch.float64))

    def edit(self, folder: Path, changes: dict[str, Any]) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def tensors(self, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
        path = folder / "adapter_model.safetensors"
        return path, safetensors.torch.load_file(path)
