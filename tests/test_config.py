"""Settings: presets, files and overrides, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from cautious_imitation.config import ANCHORS, CompareConfig, preset_names


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("preset", [name for name in preset_names() if not name.startswith("chat-")])
def test_presets_load_and_name_themselves(preset: str) -> None:
    assert CompareConfig.load(preset).preset == preset


def test_full_preset_holds_all_of_the_grid() -> None:
    (grid,) = CompareConfig.load("dialogue-acts-full").grids.values()
    assert set(grid.anchors) == set(ANCHORS)
    assert min(grid.n_demonstrations) == 1_000
    assert max(grid.n_demonstrations) == 100_000
    assert (min(grid.horizons), max(grid.horizons)) == (64, 512)


def test_override_replaces_one_value_and_leaves_the_rest() -> None:
    plain, changed = CompareConfig.load(), CompareConfig.load(overrides=["grids.main.seeds=[1, 2]"])
    assert changed.grids["main"].seeds == (1, 2)
    assert changed.grids["main"].budgets_nats == plain.grids["main"].budgets_nats
    assert changed.grids["controls"] == plain.grids["controls"]


def test_later_overrides_win_and_whole_sections_are_replaced() -> None:
    config = CompareConfig.load(overrides=["grids={only: {seeds: [3]}}", "grids.only.seeds=[4]"])
    assert list(config.grids) == ["only"]
    assert config.grids["only"].seeds == (4,)


def test_numbers_may_be_written_with_an_exponent() -> None:
    config = CompareConfig.load(overrides=["grids={g: {n_demonstrations: [1e3, 1E5], budgets_nats: [5e-1]}}"])
    assert config.grids["g"].n_demonstrations == (1_000, 100_000)
    assert config.grids["g"].budgets_nats == (0.5,)


def test_file_is_laid_over_the_preset_and_its_grids_replace(tmp_path: Path) -> None:
    path = written(tmp_path, "world: {depth: 2}\ngrids: {mine: {seeds: [7]}}\n")
    config = CompareConfig.load(file=path, overrides=["hypotheses={kind: trees, complexity: bic}"])
    assert (config.world.depth, config.world.agent_role) == (2, "assistant")
    assert list(config.grids) == ["mine"]
    assert config.hypotheses.complexity == "bic"
    only_depth = CompareConfig.load(file=written(tmp_path, "world: {depth: 2}"))
    assert only_depth.grids == CompareConfig.load().grids


def test_settings_of_trees_need_trees() -> None:
    with pytest.raises(ValueError, match=r'hypotheses.kind must be "trees" with hypotheses.leaf, got "dirichlet"'):
        CompareConfig.load(overrides=["hypotheses.leaf=kt"])


def test_what_a_config_says_can_be_loaded_again(tmp_path: Path) -> None:
    config = CompareConfig.load(overrides=["grids.main.seeds=[1]"])
    assert CompareConfig.load(file=written(tmp_path, config.model_dump_json())) == config


def test_loading_leaves_the_preset_as_it_was() -> None:
    before = CompareConfig.load()
    CompareConfig.load(overrides=["grids.main.seeds=[9]", "world.depth=1"], demonstrations="x.jsonl")
    assert CompareConfig.load() == before


def test_demonstrations_are_short_for_the_setting() -> None:
    config = CompareConfig.load(demonstrations="it's \\ mine: [1].jsonl")
    assert config.world.demonstrations == Path("it's \\ mine: [1].jsonl")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("grids.main.sedes=[1]", "grids.main.sedes is no setting .*did you mean 'seeds'"),
        ("grids.mian.seeds=[1]", "no grid 'mian' .*did you mean 'main'"),
        ("world.depht=2", "world.depht is no setting .*did you mean 'depth'"),
        ("hypotheses.laef=kt", "did you mean 'leaf'"),
        ("worlds.depth=2", "worlds is no setting .*did you mean 'world'"),
        ("grids.main.anchors=[bayesain]", "got 'bayesain'; did you mean 'bayesian'"),
        ("grids.main.seeds=1", r"seeds must be a list, got 1; write \[1\]"),
        ("grids.main.seeds=[]", "seeds must not be empty"),
        ("grids={}", "grids must not be empty"),
        ("grids.main.budgets_nats=[-1]", "budgets_nats.0: .*greater than or equal to 0, got -1"),
        ("grids.main.budgets_nats=[.inf]", "finite number, got inf"),
        ("grids.main.n_demonstrations=[1.5]", "got 1.5"),
        ("world.depth=0", "world.depth: .*got 0"),
        ("world=3", "world: .*got 3"),
        ("world.depth.deep=3", "world.depth: .*got {'deep': 3}"),
        ("tolerance=0", "tolerance: .*greater than 0, got 0"),
        ("seeds", "--set must look like a.b=c, got 'seeds'"),
        ("=3", "--set must look like a.b=c"),
        ("grids.main.seeds=[", "not valid YAML"),
    ],
)
def test_wrong_override_is_told_what_and_why(override: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        CompareConfig.load(overrides=[override])
    assert "\n" not in str(caught.value)


def test_every_mistake_is_told_and_no_other() -> None:
    with pytest.raises(ValueError) as caught:
        CompareConfig.load(overrides=["world.depht=2", "grids.main.seeds=[-1, -2]"])
    assert len(str(caught.value).split("; ")) == 4
    assert "empty" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("world:\n  depth: [1\n", "mine.yaml:3 is not valid YAML"),
        ("- 1\n- 2\n", "must hold settings by name"),
        ("", "must hold settings by name"),
        ("preset: dialogue-acts-full\n", "--preset is 'dialogue-acts'"),
        ("!!python/object:os.system {}\n", "not valid YAML"),
        ("a\tb: \x07", "not valid YAML"),
    ],
)
def test_wrong_file_is_told_what_and_why(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CompareConfig.load(file=written(tmp_path, text))


def test_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no settings file at"):
        CompareConfig.load(file=tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        CompareConfig.load(file=tmp_path / "binary.yaml")


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="got 'dialog-acts'; did you mean 'dialogue-acts'"):
        CompareConfig.load("dialog-acts")
