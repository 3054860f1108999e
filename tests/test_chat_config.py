"""Settings of comparisons in chats: presets, short cuts, dry runs, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cautious_imitation.chat_config import (
    ChatConfig,
    DemonstrationsConfig,
    EpisodesConfig,
    EvaluationConfig,
    ImitatorConfig,
    LanguageConfig,
    TrainingConfig,
    demonstrations_path,
    load_config,
    opening_of,
)
from cautious_imitation.config import CompareConfig, preset_names
from cautious_imitation.language.small_gpt import shipped_tokenizer

CHATS = [name for name in preset_names() if name.startswith("chat-")]
SECTIONS: dict[str, Any] = {
    "language": LanguageConfig,
    "demonstrations": DemonstrationsConfig,
    "imitator": ImitatorConfig,
    "episodes": EpisodesConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}
KEYS = [f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields]
SUGGESTED = [key for key in KEYS if len(key.partition(".")[2]) > 3]


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("preset", CHATS)
def test_presets_load_and_name_themselves(preset: str) -> None:
    config = ChatConfig.load(preset)
    assert config.preset == preset
    assert config.experiment == "chat"
    assert {"bayesian", "cautious-minimax"} <= set(config.anchors)


def test_there_are_presets_of_chats() -> None:
    assert {"chat-tiny", "chat-smollm2", "chat-mixtral"} <= set(CHATS)


@pytest.mark.parametrize("preset", CHATS)
def test_what_a_config_says_can_be_loaded_again(tmp_path: Path, preset: str) -> None:
    config = ChatConfig.load(preset, overrides=["seeds=[4]"])
    assert ChatConfig.load(preset, written(tmp_path, config.model_dump_json())) == config


@pytest.mark.parametrize("key", SUGGESTED)
def test_a_misspelt_key_is_told_with_the_nearest_known_one(key: str) -> None:
    section, _, name = key.partition(".")
    wrong = name[0] + name[2] + name[1] + name[3:] + "s"
    assert f"{section}.{wrong}" not in KEYS
    with pytest.raises(ValueError, match=rf"^{section}\.{wrong} is no setting .*did you mean '{name}'\?$"):
        ChatConfig.load(overrides=[f"{section}.{wrong}=1"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("langauge.source=x", "langauge is no setting .*did you mean 'language'"),
        ("budget_nats=[1]", "budget_nats is no setting .*did you mean 'budgets_nats'"),
        ("seed=[1]", "seed is no setting .*did you mean 'seeds'"),
        ("budgets_nats=3", r"budgets_nats must be a list, got 3; write \[3\]"),
        ("budgets_nats=[]", "budgets_nats must not be empty"),
        ("budgets_nats=[-1]", "budgets_nats.0: .*greater than or equal to 0, got -1"),
        ("budgets_nats=[.inf]", "budgets_nats.0: .*finite number, got inf"),
        ("budgets_nats=[.nan]", "budgets_nats.0: .*got nan"),
        ("anchors=[bayesain]", "got 'bayesain'; did you mean 'bayesian'"),
        ("anchors=[cautious-minmax]", "did you mean 'cautious-minimax'"),
        # An anchor of exact comparisons is none here, so it must not be what is suggested.
        ("anchors=[none]", "got 'none'$"),
        ("anchors=[demonstrators]", "got 'demonstrators'$"),
        ("imitator.hypotheses=gausian", "got 'gausian'; did you mean 'gaussian'"),
        ("language.dtype=float_32", "got 'float_32'; did you mean 'float32'"),
        ("seeds=[-1]", "seeds.0: .*got -1"),
        ("episodes.length=0", "episodes.length: .*got 0"),
        ("episodes.length=long", "episodes.length: .*got 'long'"),
        ("episodes.temperature=0", "episodes.temperature: .*greater than 0, got 0"),
        ("episodes.opening=[{role: 3}]", r"episodes.opening.*got 3"),
        ("training.clip=.inf", "training.clip: .*got inf"),
        ("training.ramp_updates=-1", "training.ramp_updates: .*got -1"),
        ("evaluation.kept=0", "evaluation.kept: .*got 0"),
        ("demonstrations=3", "demonstrations: .*got 3"),
        ("experiment=exact", "experiment: .*got 'exact'"),
        ("grids.main.seeds=[1]", "grids is no setting"),
        ("seeds", "--set must look like a.b=c, got 'seeds'"),
        ("seeds=[", "not valid YAML"),
    ],
)
def test_wrong_override_is_told_what_and_why(override: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        ChatConfig.load(overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["evaluation.episodes=5", "episodes.parallel=2"],
            "evaluation.episodes must be a multiple of episodes.parallel, 2, got 5",
        ),
        (["demonstrations.demonstrator=null"], "demonstrations.demonstrator must name a model where .*, got none"),
        (
            ["episodes.length=64", "episodes.longer_length=63"],
            "episodes.longer_length must be at least episodes.length, 64, got 63; leave it out for twice as long",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_told_and_nothing_else(overrides: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=rf"^{told}$"):
        ChatConfig.load(overrides=overrides)


def test_every_mistake_is_told_and_no_other() -> None:
    with pytest.raises(ValueError) as caught:
        ChatConfig.load(overrides=["episodes.lenght=2", "seeds=[-1, -2]"])
    assert len(str(caught.value).split("; ")) == 4


def test_overrides_replace_one_value_and_leave_the_rest() -> None:
    plain, changed = ChatConfig.load(), ChatConfig.load(overrides=["episodes.length=99", "imitator.settings.noise=0.5"])
    assert changed.episodes == plain.episodes.model_copy(update={"length": 99})
    assert changed.imitator.settings == {**plain.imitator.settings, "noise": 0.5}
    assert changed.training == plain.training
    assert ChatConfig.load() == plain


def test_file_is_laid_over_the_preset_and_overrides_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "episodes: {length: 70, ask_price: 0.5}\nseeds: [5, 6]\n")
    config = ChatConfig.load(file=path, overrides=["episodes.ask_price=0.25"])
    assert (config.episodes.length, config.episodes.ask_price, config.seeds) == (70, 0.25, (5, 6))
    assert config.episodes.opening == ChatConfig.load().episodes.opening


@pytest.mark.parametrize("overrides", [[], ["demonstrations=3", "language=4"]])
def test_short_cuts_for_the_users_own_model_and_chats(overrides: list[str]) -> None:
    name = "it's \\ mine: [1].jsonl"
    config = ChatConfig.load(overrides=overrides, demonstrations=Path(name), model="my model")
    assert config.language.source == "my model"
    assert config.demonstrations.source == name
    # Nobody knows whose chats these are.
    assert config.demonstrations.demonstrator is None
    assert demonstrations_path(config) == Path(name)


def test_what_is_sampled_or_installed_is_no_file() -> None:
    assert demonstrations_path(ChatConfig.load("chat-tiny")) is None
    assert demonstrations_path(ChatConfig.load("chat-mixtral")) is None


@pytest.mark.parametrize("preset", CHATS)
def test_a_dry_run_is_no_larger_than_the_run(preset: str) -> None:
    config = ChatConfig.load(preset)
    small = config.small()
    assert small.language.dry_run
    assert not small.language.four_bit
    assert small.language.device is None
    # What everything depends on stays as it is.
    assert (small.anchors, small.budgets_nats, small.imitator) == (config.anchors, config.budgets_nats, config.imitator)
    assert small.seeds == config.seeds[:1]
    for section, keys in {
        "demonstrations": ("n_tokens",),
        "episodes": ("parallel", "answer_tokens"),
        "training": ("ramp_updates", "full_updates", "longer_updates"),
        "evaluation": ("episodes", "pairs"),
    }.items():
        for key in keys:
            assert getattr(getattr(small, section), key) <= getattr(getattr(config, section), key), key
    # Every phase is gone through that the run has, and no other.
    for key in ("ramp_updates", "full_updates", "longer_updates"):
        assert getattr(small.training, key) == bool(getattr(config.training, key))
    assert small.small() == small


def test_a_dry_run_keeps_what_is_smaller_already() -> None:
    overrides = ["episodes.length=50", "episodes.answer_tokens=3", "demonstrations.n_tokens=7", "evaluation.pairs=0"]
    alone = ["episodes.parallel=1", "evaluation.episodes=3", "training.ramp_updates=0"]
    small = ChatConfig.load(overrides=[*overrides, *alone, "episodes.opening=[{role: user, content: Hi}]"]).small()
    assert (small.episodes.parallel, small.training.ramp_updates) == (1, 0)
    assert (small.episodes.length, small.episodes.answer_tokens) == (50, 3)
    assert (small.demonstrations.n_tokens, small.evaluation.pairs) == (7, 0)


@pytest.mark.parametrize(
    "text",
    [
        "Hello! " * 60,
        "Ada: " + "could you help me with the school report, please? " * 10,
        "你好，老师。" * 20,
        "🙂" * 40,
    ],
    ids=["short words", "long words", "no letters", "no words"],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_an_opening_fits_into_the_episodes_of_a_dry_run(text: str, as_text: bool) -> None:
    opening = text if as_text else [{"role": "user", "content": text}]
    settings = ChatConfig.load().model_dump()
    settings["episodes"]["opening"] = opening
    small = ChatConfig.parse(settings).small()
    assert len(shipped_tokenizer()(text)["input_ids"]) + 16 < small.episodes.length


def test_openings_are_what_environments_take() -> None:
    assert isinstance(opening_of(ChatConfig.load("chat-mixtral")), str)
    first = opening_of(ChatConfig.load("chat-tiny"))[0]
    assert isinstance(first, dict)
    assert set(first) == {"role", "content"}


@pytest.mark.parametrize("preset", preset_names())
def test_the_preset_says_which_kind_of_comparison_it_is(preset: str) -> None:
    config = load_config(preset)
    assert type(config) is (ChatConfig if preset in CHATS else CompareConfig)
    assert config.preset == preset


def test_all_arguments_are_passed_on(tmp_path: Path) -> None:
    path = written(tmp_path, "seeds: [3]\n")
    arguments: Any = ("chat-tiny", path, ["budgets_nats=[1]"], "mine.jsonl", "mine")
    assert load_config(*arguments) == ChatConfig.load(*arguments)
    exact: Any = ("dialogue-acts", None, ["grids.main.seeds=[3]"], "mine.jsonl")
    assert load_config(*exact) == CompareConfig.load(*exact)


def test_a_model_is_refused_where_there_is_none() -> None:
    with pytest.raises(
        ValueError, match="--model is for presets of chats, got 'mine' with --preset dialogue-acts; try"
    ):
        load_config("dialogue-acts", model="mine")


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="got 'chat-tyni'; did you mean 'chat-tiny'"):
        load_config("chat-tyni")
