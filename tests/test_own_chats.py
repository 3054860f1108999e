"""A comparison on the user's own chats, from the file to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cautious_imitation import CompareConfig, Demonstrations, compare
from cautious_imitation.cli import app
from cautious_imitation.comparison.cells import Experiment
from cautious_imitation.comparison.run import _digest
from cautious_imitation.demonstrations import actor_codes
from cautious_imitation.dialogue_labels import END_OF_TURN, FAREWELL, GREETING
from cautious_imitation.environments.dialogue_acts import dialogue_acts_world
from cautious_imitation.types import Actor

REPLIES = ("great, thank you!", "what do you mean?", "haha", "that is terrible", "ok", "I went to the shop", "bye")
GRID = (
    "grids={g: {anchors: [bayesian, cautious-pointwise, cautious-minimax, demonstrator], horizons: [8], "
    "n_demonstrations: [500], budgets_nats: [1]}}"
)


def chats(path: Path, n_chats: int = 40, roles: tuple[str, str] = ("user", "assistant"), seed: int = 0) -> Path:
    """Chats in which the second role answers a question with a compliment more often than not."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(n_chats):
        messages = [{"role": "system", "content": "be kind"}]
        for turn in range(12):
            said = REPLIES[int(rng.integers(len(REPLIES)))]
            if turn % 2 and messages[-1]["content"].endswith("?") and rng.random() < 0.8:
                said = REPLIES[0]
            messages.append({"role": roles[turn % 2], "content": said})
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def typed(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)


def results(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_own_chats_end_to_end(tmp_path: Path) -> None:
    mine = chats(tmp_path / "my [own] chats.jsonl")
    run = typed("--demonstrations", mine, "--set", GRID, "--out", tmp_path / "run")
    assert run.exit_code == 0, run.stderr
    rows = results(tmp_path / "run")
    assert len(rows) == 8
    for row in rows:
        assert row["kl_demonstrator_nats"] <= row["charge_nats"] + row["excess_nats"] + 1e-9
    settings = json.loads((tmp_path / "run" / "settings.json").read_text(encoding="utf-8"))
    assert settings["demonstrations"] == mine.name
    assert settings["conversations"] == 40
    assert str(tmp_path) not in json.dumps(settings)
    assert mine.name in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    assert typed("--set", GRID, "--out", tmp_path / "shipped").exit_code == 0
    assert results(tmp_path / "shipped") != rows


def test_world_is_built_from_the_chats(tmp_path: Path) -> None:
    mine = chats(tmp_path / "mine.jsonl")
    experiment = Experiment(CompareConfig.load(demonstrations=mine))
    world, expected = experiment.world("same", 8), dialogue_acts_world(Demonstrations.from_chats(mine), "same", 8)
    np.testing.assert_array_equal(world.demonstrator, expected.demonstrator)
    np.testing.assert_array_equal(world.environment_policy, expected.environment_policy)
    assert not np.array_equal(world.demonstrator, dialogue_acts_world(horizon=8).demonstrator[: world.n_states])


def test_changed_chats_are_another_comparison(tmp_path: Path) -> None:
    mine = chats(tmp_path / "mine.jsonl")
    assert typed("--demonstrations", mine, "--set", GRID, "--out", tmp_path / "run").exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    moved = mine.rename(tmp_path / "elsewhere" / "mine.jsonl")
    again = typed("--demonstrations", moved, "--set", GRID, "--out", tmp_path / "run")
    assert again.exit_code == 0, again.stderr
    chats(moved, seed=1)
    changed = typed("--demonstrations", moved, "--set", GRID, "--out", tmp_path / "run")
    assert changed.exit_code == 2
    assert "another comparison's results" in changed.stderr


def test_other_roles_can_be_named(tmp_path: Path) -> None:
    mine = chats(tmp_path / "mine.jsonl", roles=("pupil", "tutor"))
    settings = ["world.agent_role=tutor", "world.other_role=pupil"]
    tutor = compare(CompareConfig.load(overrides=[GRID, *settings], demonstrations=mine))
    user = chats(tmp_path / "same.jsonl")
    assistant = compare(CompareConfig.load(overrides=[GRID], demonstrations=user))
    assert [row["reward"] for row in tutor.rows] == [row["reward"] for row in assistant.rows]


def test_messages_of_weight_0_are_nobodys_example(tmp_path: Path) -> None:
    mine = chats(tmp_path / "mine.jsonl")
    expected = dialogue_acts_world(Demonstrations.from_chats(mine), horizon=8)
    lines = [json.loads(line)["messages"] for line in mine.read_text(encoding="utf-8").splitlines()]
    # Somebody else has said goodbye all the time in the demonstrator's place.
    lines += [[m | {"content": "bye", "weight": 0} if m["role"] == "assistant" else m for m in chat] for chat in lines]
    mine.write_text("\n".join(json.dumps({"messages": chat}) for chat in lines), encoding="utf-8")
    world = dialogue_acts_world(Demonstrations.from_chats(mine), horizon=8)
    np.testing.assert_allclose(world.demonstrator[world.start], expected.demonstrator[expected.start], atol=0.02)
    assert expected.demonstrator[expected.start, FAREWELL] < 0.3


GOOD = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["mine.jsonl is empty", "one chat a line"]),
        ("\n\n", ["mine.jsonl is empty"]),
        (f"{GOOD}\n{GOOD[:-3]}\n", ["mine.jsonl:2:", "each line must be one chat"]),
        (f"{GOOD}\n\n[1]\n", ["mine.jsonl:3:"]),
        (GOOD.replace("assistant", "tutor"), ["mine.jsonl:1: unknown role 'tutor'", "agent_role"]),
        (GOOD.replace("assistant", "user"), ["no turn by agent_role='assistant'"]),
        (GOOD.replace('"hi"', "3"), ["mine.jsonl:1:", "content"]),
    ],
)
def test_unusable_chats_are_told_in_one_line(text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(text, encoding="utf-8")
    run = typed("--demonstrations", tmp_path / "mine.jsonl", "--out", tmp_path / "run")
    assert run.exit_code == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_a_run_notices_that_weights_moved(tmp_path: Path) -> None:
    """Moved, they leave all symbols and the number of learned acts as they were."""
    acts = [FAREWELL, END_OF_TURN, GREETING, END_OF_TURN]
    whose = [
        actor_codes([{"i": Actor.IMITATOR, "d": Actor.DEMONSTRATOR}[letter] for letter in letters])
        for letters in ("iidd", "ddii", "dddd")
    ]
    digests = [_digest(Demonstrations((np.array(acts),), (codes,))) for codes in whose]
    assert len(set(digests)) == 3
