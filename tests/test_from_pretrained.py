"""From a folder and a file of chats to an imitator in one call, and acting with torch predictions over tokens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from cautious_imitation import BayesianImitator, CautiousImitator, Demonstrations, HelpNeeded, Prediction
from cautious_imitation.hypotheses.language_models import LanguageModels
from cautious_imitation.hypotheses.low_rank_heads import LowRankHeads
from cautious_imitation.hypotheses.pretrained import build_hypotheses
from cautious_imitation.language.chats import chat_context, tokenized_chats
from cautious_imitation.language.loading import load_language_model
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.recent_context import RecentContext
from cautious_imitation.language.stacked_lora import StackedLora
from tests.tiny_folders import tiny_llama, tiny_tokenizer, write_folder

SETTINGS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "low_rank": {"n_heads": 3, "rank": 2, "n_blocks": 2, "seed": 5},
    "ensemble": {"prior": [0.25, 0.75]},
}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = [message("user", "hello there"), message("assistant", "how are you?"), message("user", "fine")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("from-pretrained") / "model"
    write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """The same model with another way to end."""
    other = tmp_path_factory.mktemp("other") / "model"
    write_folder(other)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * torch.linspace(0.2, 3, 16)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    return other


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for seed in range(2):
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        torch.manual_seed(seed)
        # It asks Transformers by a name that is on its way out.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            wrapped = peft.get_peft_model(tiny_llama(300), config)
        folders.append(tmp_path_factory.mktemp(f"adapter-{seed}"))
        wrapped.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    replies = ["thank you", "hello", "", "I am fine"]
    lines = [
        {"messages": [*CHAT[:1], message("assistant", replies[i % 4]), *CHAT[2:], message("assistant", replies[i % 3])]}
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def by_hand(kind: str, source: Any, chats: Path) -> Any:
    """The same in single steps."""
    settings = SETTINGS[kind]
    if kind == "ensemble":
        ensemble = LanguageModels([load_language_model(one) for one in source], **settings)
        return ensemble.fit(tokenized_chats(chats, ensemble.model.tokenizer))
    model = load_language_model(source)
    demonstrations = tokenized_chats(chats, model.tokenizer)
    if kind == "low_rank":
        return LowRankHeads.train(model, demonstrations, **settings)
    from cautious_imitation.hypotheses.gaussian_head import GaussianHead

    return GaussianHead(model, **settings).fit(demonstrations)


@pytest.mark.parametrize("kind", SETTINGS)
def test_two_lines(kind: Any, folder: Path, other_folder: Path, chats: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = [folder, other_folder] if kind == "ensemble" else folder
    imitator = CautiousImitator.from_pretrained(
        source, demonstrations=chats, hypotheses=kind, alpha=0.1, caution="minimax", progress=False, **SETTINGS[kind]
    )
    found = imitator.predict(chat_context(imitator.hypotheses.model.tokenizer, CHAT))
    assert capfd.readouterr() == ("", "")
    assert (imitator.alpha, imitator.caution, imitator.evidence) == (0.1, "minimax", "demonstrator")
    assert found.log_probs.shape == (300,)
    assert 0 < float(found.ask_probability) < 1

    expected = CautiousImitator(by_hand(kind, source, chats), alpha=0.1)
    context = chat_context(tiny_tokenizer(), CHAT)
    torch.testing.assert_close(found.log_probs, expected.predict(context).log_probs, rtol=0, atol=0)

    bayesian = BayesianImitator.from_pretrained(source, chats, kind, progress=False, **SETTINGS[kind])
    assert bayesian.evidence == "all"
    prediction = bayesian.predict(context)
    assert float(prediction.ask_probability) == 0
    expected_mixture = BayesianImitator(expected.hypotheses).predict(context).log_probs
    torch.testing.assert_close(prediction.log_probs, expected_mixture, rtol=0, atol=0)


def test_adapters_of_one_model(folder: Path, adapters: list[Path], chats: Path) -> None:
    imitator = CautiousImitator.from_pretrained(
        folder, chats, "ensemble", adapters=adapters, alpha=1e-4, progress=False
    )
    model = load_language_model(folder)
    stack = StackedLora(model.network, adapters, model.tokenizer, start_token=model.start_token)
    expected = LanguageModels(stack).fit(tokenized_chats(chats, model.tokenizer))
    np.testing.assert_array_equal(imitator.hypotheses.log_weights, expected.log_weights)
    assert abs(np.diff(expected.log_weights)[0]) > 1e-6
    assert len(imitator.hypotheses) == 2
    settings = {"n_symbols": 299, "start_token": 7, "progress": False}
    model = build_hypotheses("ensemble", folder, chats, adapters=adapters, **settings).model
    assert (model.n_symbols, model.start_token) == (299, 7)


def test_what_is_loaded_already(folder: Path, chats: Path) -> None:
    model = load_language_model(folder, n_symbols=299)
    demonstrations = tokenized_chats(chats, model.tokenizer)
    settings = SETTINGS["low_rank"]
    found = build_hypotheses("low_rank", model, demonstrations, progress=False, **settings)
    assert found.model is model
    loaded = build_hypotheses("low_rank", folder, chats, n_symbols=299, dtype="float64", progress=False, **settings)
    context = chat_context(model.tokenizer, CHAT)
    torch.testing.assert_close(found.mixture(context).double(), loaded.mixture(context), rtol=0, atol=1e-4)
    assert loaded.mixture(context).dtype == torch.float64


def test_long_chats_and_names_of_roles_are_passed_on(folder: Path, tmp_path: Path) -> None:
    line = json.dumps({"messages": [message("pupil", "hello there"), message("tutor", "I am fine, thank you")] * 9})
    (tmp_path / "long.jsonl").write_text(line + "\n", encoding="utf-8")
    settings = {"agent_role": "tutor", "other_role": "pupil", "progress": False, **SETTINGS["low_rank"]}
    with pytest.raises(ValueError, match=r"long\.jsonl:1: a chat must have at most 128 tokens"):
        build_hypotheses("low_rank", folder, tmp_path / "long.jsonl", **settings)
    build_hypotheses("low_rank", folder, tmp_path / "long.jsonl", long_chats="split", **settings)


def test_what_was_read_is_kept(folder: Path, chats: Path, tmp_path: Path) -> None:
    settings = {"cache": tmp_path / "cache", "progress": False, **SETTINGS["low_rank"]}
    first = BayesianImitator.from_pretrained(folder, chats, "low_rank", **settings)
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    again = BayesianImitator.from_pretrained(folder, chats, "low_rank", **settings)
    np.testing.assert_array_equal(first.hypotheses.log_weights, again.hypotheses.log_weights)


@pytest.mark.parametrize("kind", SETTINGS)
def test_save_and_load(kind: Any, folder: Path, other_folder: Path, chats: Path, tmp_path: Path) -> None:
    source = [folder, other_folder] if kind == "ensemble" else folder
    imitator = CautiousImitator.from_pretrained(source, chats, kind, alpha=0.1, progress=False, **SETTINGS[kind])
    imitator.save(tmp_path / "saved")
    context = chat_context(tiny_tokenizer(), CHAT)
    for model in (source, imitator.hypotheses.model):
        loaded = CautiousImitator.load(tmp_path / "saved", model=model)
        torch.testing.assert_close(
            loaded.predict(context).log_probs, imitator.predict(context).log_probs, rtol=0, atol=0
        )


def test_wrong_settings_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps({"messages": CHAT}), encoding="utf-8")
    nothing: Any = "./no-such-model"

    def make(*arguments: Any, **settings: Any) -> Any:
        return CautiousImitator.from_pretrained(nothing, good, *arguments, **settings)

    with pytest.raises(TypeError, match="got 'level'"):
        make(level=2)
    with pytest.raises(ValueError, match="alpha must be in"):
        make(alpha=2)
    with pytest.raises(ValueError, match="caution must be one of"):
        make(alpha=0.5, caution="great")
    with pytest.raises(ValueError, match="hypotheses must be one of gaussian, low_rank, ensemble, got 'trees'"):
        make("trees", alpha=0.5)
    with pytest.raises(TypeError, match=r'settings for hypotheses="low_rank" are n_heads, rank, .*; got \'heads\''):
        make("low_rank", alpha=0.5, heads=3)
    with pytest.raises(TypeError, match="got 'alpha'"):
        BayesianImitator.from_pretrained(nothing, good, "low_rank", alpha=0.5)
    with pytest.raises(ValueError, match=r"model must be a list of models, or one model with adapters=\[...\]"):
        make("ensemble", alpha=0.5)
    with pytest.raises(ValueError, match='model must be a single model for hypotheses="low_rank"'):
        make("low_rank", alpha=0.5, adapters=["one"])
    with pytest.raises(FileNotFoundError, match=r"no file of demonstrations at .*none\.jsonl"):
        CautiousImitator.from_pretrained(nothing, tmp_path / "none.jsonl", "low_rank", alpha=0.5)
    (tmp_path / "bad.jsonl").write_text("[]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.jsonl:1"):
        CautiousImitator.from_pretrained(nothing, tmp_path / "bad.jsonl", "low_rank", alpha=0.5)
    with pytest.raises(FileNotFoundError, match="source must be"):
        make("low_rank", alpha=0.5)


def test_the_kind_of_text_can_be_read_as_well(folder: Path, adapters: list[Path], chats: Path) -> None:
    settings: dict[str, Any] = {"recent": RecentContext(horizon_tokens=4), "progress": False}
    found: Any = build_hypotheses("gaussian", folder, chats, reads="both", **settings)
    assert found.model.n_features == 32
    with pytest.raises(ValueError, match=r"recent must be None for adapters, got RecentContext"):
        build_hypotheses("ensemble", folder, chats, adapters=adapters, **settings)


def test_settings_of_loading_come_too_late(folder: Path, chats: Path) -> None:
    model = load_language_model(folder)
    with pytest.raises(ValueError, match="dtype must be chosen where the model is loaded, got 'float64' with a Lang"):
        build_hypotheses("low_rank", model, chats, dtype="float64")
    with pytest.raises(ValueError, match="tokenizer must be given where a network without one is to read chats"):
        build_hypotheses("low_rank", model.network, chats)


@pytest.fixture(scope="module")
def wide() -> LanguageModels:
    """Two models over 2,048 tokens, in single precision."""
    networks = [tiny_llama(2048, seed=seed) for seed in (1, 2)]
    for network in networks:
        torch.nn.init.normal_(network.model.embed_tokens.weight, std=1.0)
    models = [LanguageModel(network, start_token=0) for network in networks]
    return LanguageModels(models, switching_rate=0.0)


class Fixed:
    """Stands for a generator that draws what it is told."""

    def __init__(self, draws: Any) -> None:
        self.draws = np.asarray(draws)

    def random(self, size: int) -> Any:
        return self.draws[:size]


def test_acting_draws_from_the_prediction(wide: LanguageModels) -> None:
    imitator: Any = CautiousImitator(wide, alpha=0.5, oracle=lambda query: 7)
    context = torch.tensor([[3, 1, 4], [1, 5, 9]])
    prediction = imitator.predict(context)
    assert prediction.log_probs.dtype == torch.float32
    whole = torch.cat([prediction.log_probs, prediction.log_ask[:, None]], -1).double().exp()
    cumulative = whole.cumsum(-1) / whole.sum(-1, keepdim=True)
    for draw in np.linspace(0.001, 0.999, 60):
        for row, action in enumerate(imitator.act(context, Fixed([draw, draw]))):
            symbol = int((cumulative[row] <= draw).sum())
            near = float((cumulative[row] - draw).abs().min()) < 1e-7
            expected = (symbol, "imitator") if symbol < 2048 else (7, "demonstrator")
            assert near or (action.symbol, action.actor) == expected


def test_acting_loses_no_action_to_rounding(wide: LanguageModels, monkeypatch: pytest.MonkeyPatch) -> None:
    rare = torch.full((2048,), 5e-8)
    rare[0] = 0.75
    prediction = Prediction(rare.log(), (1 - rare.double().sum()).float().log())
    imitator: Any = CautiousImitator(wide, alpha=0.5)
    monkeypatch.setattr(imitator, "predict", lambda context: prediction)
    cumulative = rare.double().cumsum(0)
    for symbol in (0, 1, 700, 2047):
        draw = float(cumulative[symbol] - rare[symbol] / 2)
        assert imitator.act([3, 1], Fixed([draw])).symbol == symbol


CONTEXTS: dict[str, Any] = {
    "array": np.array([[3, 1, 4], [1, 5, 9]]),
    "tensor": torch.tensor([[3, 1, 4], [1, 5, 9]]),
    "list": [[3, 1, 4], [1, 5, 9]],
    "ragged": [[3, 1, 4], [1, 5]],
    "ragged arrays": [np.array([3, 1, 4]), np.array([5])],
    "one array": np.array([3, 1, 4]),
    "one tensor": torch.tensor([3, 1, 4]),
    "one list": [3, 1, 4],
    "empty": np.array([], dtype=np.int64),
}


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("read", [False, True])
def test_asking_about_any_kind_of_context(name: str, read: bool, wide: LanguageModels) -> None:
    context = CONTEXTS[name]
    single = name.startswith("one") or name == "empty"
    rows = [context] if single else list(context)
    asked = []
    imitator: Any = CautiousImitator(wide, alpha=0.5, oracle=lambda query: asked.append(query) or 7)
    given = wide.model.read(context) if read else context
    actions = imitator.act(given, Fixed([0.9999999, 0.9999999]))
    assert isinstance(actions, list) is not single
    for query, row in zip(asked, rows, strict=True):
        assert query.context == tuple(int(token) for token in row)
        assert query.n_actions == 2048
        assert len(query.plausible) == 20
        assert all(0 <= listed.low <= listed.high <= 1 for listed in query.plausible)
    with pytest.raises(HelpNeeded):
        CautiousImitator(wide, alpha=0.5).act(given, Fixed([0.9999999, 0.9999999]))  # type: ignore[arg-type]


def test_observing_tokens() -> None:
    models = [LanguageModel(tiny_llama(300, seed=seed), start_token=0) for seed in (1, 2)]
    for context, action in (([3, 1], 4), (torch.tensor([3, 1]), torch.tensor(4)), (np.array([3, 1]), np.int64(4))):
        imitator = CautiousImitator(LanguageModels(models, switching_rate=0.0), alpha=0.5)
        imitator.observe(context, action, "environment")
        imitator.observe(context, action, "imitator")
        np.testing.assert_array_equal(imitator.hypotheses.log_weights, np.log([0.5, 0.5]))  # type: ignore[attr-defined]
        imitator.observe(context, action, "demonstrator")
        each = [float(model.log_probs(model.read(context).features)[4]) for model in models]
        np.testing.assert_allclose(
            np.diff(imitator.hypotheses.log_weights),  # type: ignore[attr-defined]
            np.diff(each),
            atol=1e-6,
        )


def test_demonstrations_of_tokens(folder: Path) -> None:
    tokens = Demonstrations.from_symbols([[5, 6, 7, 8], [6, 7, 8, 5]] * 3, n_symbols=300)
    model = tiny_llama(300)
    imitator = BayesianImitator.from_pretrained(model, tokens, "low_rank", progress=False, **SETTINGS["low_rank"])
    assert imitator.predict([5, 6]).log_probs.shape == (300,)
