"""``compare`` with presets of chats, as a user types it: on tiny models, killed, judged, and typed wrongly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from typer.testing import CliRunner, Result

import cautious_imitation
from cautious_imitation.cli import app
from cautious_imitation.comparison.chat_experiment import ChatExperiment
from cautious_imitation.comparison.chat_results import FILES, ChatComparison
from tests.chat_server import Reply, chat_server, complaint, completion
from tests.test_chat_rewards import by_hand, saved
from tests.tiny_folders import write_folder

BUDGET = 3.0
CELLS = ("bayesian-3-0", "cautious-minimax-3-0")
SMALL = {
    "episodes.opening": '[{role: user, content: "hello there"}]',
    "episodes.length": 40,
    "episodes.longer_length": 48,
    "episodes.parallel": 2,
    "episodes.answer_tokens": 4,
    "demonstrations.n_tokens": 500,
    "training.ramp_updates": 1,
    "training.full_updates": 1,
    "training.longer_updates": 1,
    "training.epochs": 1,
    "evaluation.episodes": 2,
    "evaluation.kept": 2,
    "evaluation.pairs": 2,
    "budgets_nats": [BUDGET],
    "seeds": [0],
}
UNTRAINED = {f"training.{name}_updates": 0 for name in ("ramp", "full", "longer")}
SAID = [("", ""), ("I am fine", ""), ("", "ok"), ("", "")] * 5
"""What the demonstrator says in each chat: mostly nothing, so that there are empty replies to count."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As processes that train side by side have it: sums over several threads come in another order."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user brings: a model's folder, and a file of chats."""
    folder = tmp_path_factory.mktemp("brought")
    write_folder(folder / "model")
    lines = [
        {
            "messages": [
                {"role": "user", "content": "hello there"},
                {"role": "assistant", "content": first},
                {"role": "user", "content": "and you"},
                {"role": "assistant", "content": second},
            ]
        }
        for first, second in SAID
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def words(brought: Path, out: Path, *more: str | Path, **settings: Any) -> list[str]:
    """The command for the user's own model and chats; ``episodes__length=3`` sets ``episodes.length``."""
    changed = SMALL | {name.replace("__", "."): value for name, value in settings.items()}
    sets = [word for name, value in changed.items() for word in ("--set", f"{name}={value}")]
    own = ["--model", brought / "model", "--demonstrations", brought / "chats.jsonl"]
    return list(map(str, ["compare", "--preset", "chat-tiny", *own, "--jobs", 1, "--out", out, *sets, *more]))


def typed(arguments: list[str]) -> Result:
    """Run a command in this process; anything but an exit is a bug and comes through."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def done(arguments: list[str]) -> Result:
    result = typed(arguments)
    assert result.exit_code == 0, result.stderr
    return result


def assert_told(result: Result, *said: str, code: int = 2) -> None:
    """One clear line at the end of stderr, nothing on stdout."""
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    *_, line = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in result.stderr
    for word in said:
        assert word in line


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["rows"]
    return rows


def timeless(folder: Path) -> dict[str, Any]:
    """Everything that was found, without how long it took."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if not key.endswith("seconds")}
        return [plain(one) for one in value] if isinstance(value, list) else value

    names = ("results.json", "curves.json", "transcripts.json", "judgements.json")
    return {name: plain(json.loads((folder / name).read_text())) for name in names}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but its lock."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_keeps_the_budget(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["largest_charge_nats"] <= row["budget_nats"] + 1e-6
        assert row["charge_nats"] <= row["largest_charge_nats"] + 1e-12
    assert max(row["largest_charge_nats"] for row in rows) > 0


@pytest.fixture(scope="module")
def own(brought: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the user's own model and chats."""
    folder = tmp_path_factory.mktemp("own") / "run"
    done(words(brought, folder))
    return folder


def test_a_dry_run_goes_from_beginning_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {
        "episodes.length": 48,
        "episodes.opening": "[{role: user, content: Hello!}]",
        "demonstrations.n_tokens": 300,
        "training.epochs": 1,
        "budgets_nats": [BUDGET],
    }
    arguments = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    monkeypatch.chdir(tmp_path)
    run = done(["compare", "--preset", "chat-tiny", "--dry-run", "--jobs", "1", *arguments])
    assert "trained 2 of 2 policies" in run.stderr
    assert "report.html" in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 80
    folder = tmp_path / "runs" / "chat-tiny-dry-run"
    assert {path.name for path in folder.iterdir()} >= set(FILES)
    rows = rows_of(folder)
    assert_keeps_the_budget(rows)
    phases = {(row["anchor"], row["phase"], row["length"]) for row in rows if row["phase"] != "asking"}
    assert phases == {
        (anchor, phase, length)
        for anchor in ("bayesian", "cautious-minimax")
        for phase, length in (("before", 48), ("after", 48), ("transfer", 96), ("longer", 96))
    }
    # The demonstrator is a model, so how far from it policies are is known; before training they are their anchors.
    assert all(row["kl_demonstrator_nats"] is not None for row in rows)
    assert all(
        row["largest_charge_nats"] == 0 for row in rows if (row["anchor"], row["phase"]) == ("bayesian", "before")
    )
    assert json.loads((folder / "settings.json").read_text())["config"]["language"]["dry_run"] is True


def test_a_model_and_chats_of_ones_own(own: Path) -> None:
    found = ChatComparison.load(own)
    assert {path.name for path in own.iterdir()} >= set(FILES)
    assert_keeps_the_budget(found.rows)
    # Nobody knows whose chats these are, so there is no distance to whoever it is.
    assert {row["kl_demonstrator_nats"] for row in found.rows} == {None}
    assert {script["kl_demonstrator"] for script in found.transcripts} == {None}
    assert found.settings["model"].endswith("model")
    assert found.settings["demonstrations"].endswith("chats.jsonl")
    for curve in found.curves:
        assert [point["phase"] for point in curve["points"]] == ["ramp", "full", "longer"]
        assert [point["length"] for point in curve["points"]] == [40, 40, 48]
        assert all(point["largest_charge_nats"] <= point["budget_nats"] + 1e-6 for point in curve["points"])
    for script in found.transcripts:
        assert len(script["pieces"]) == script["length"]
        assert "".join(script["pieces"]).startswith("<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n")
        assert sum(script["charges"]) <= BUDGET + 1e-6
    # Two policies, two pairs for each of two questions, each with an automatic judge.
    assert [(verdict.question, verdict.judge) for verdict in found.judgements] == [
        ("better", "base model's likelihood")
    ] * 2 + [("complex", "compressed bits")] * 2
    # Training changes what is done.
    by_phase = {(row["anchor"], row["phase"]): row["charge_nats"] for row in found.rows}
    assert by_phase["bayesian", "before"] != by_phase["bayesian", "after"]


def test_the_report_has_every_part_and_figure(own: Path) -> None:
    page = (own / "report.html").read_text(encoding="utf-8")
    parts = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    for name in ("findings", "budget", "transcripts", "judgements", "longer", "results", "settings"):
        assert name in parts
    for name in ("charges", "training", "silence", "repetition"):
        assert '<svg class="figure"' in parts[name], name
    assert "chats.jsonl" in parts["settings"]


def test_a_finished_run_is_left_alone(brought: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(ChatExperiment, "solve", never)
    monkeypatch.setattr("cautious_imitation.comparison.chat_experiment.load_base", never)
    monkeypatch.setattr("cautious_imitation.comparison.chat_experiment.load_demonstrations", never)
    before, table = contents(own), done(words(brought, own)).stdout
    assert "2 policies" in table
    assert contents(own) == before


def test_with_policies_side_by_side_the_results_are_the_same(brought: Path, own: Path, tmp_path: Path) -> None:
    result = done(words(brought, tmp_path / "run", "--jobs", "2"))
    assert "trained 2 of 2 policies" in result.stderr
    assert timeless(tmp_path / "run") == timeless(own)


def test_another_seed_is_another_run(brought: Path, own: Path, tmp_path: Path) -> None:
    done(words(brought, tmp_path / "run", seeds=[1], anchors="[cautious-minimax]"))
    (here,) = [row for row in rows_of(tmp_path / "run") if row["phase"] == "after"]
    (there,) = [row for row in rows_of(own) if (row["anchor"], row["phase"]) == ("cautious-minimax", "after")]
    assert here["charge_nats"] != there["charge_nats"]
    # With nothing to compare there are no verdicts, and that is no error.
    assert ChatComparison.load(tmp_path / "run").judgements == []


def test_a_killed_run_goes_on_where_it_was(brought: Path, own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(Path(cautious_imitation.__file__).parents[1])}
    run = subprocess.Popen(
        [sys.executable, "-m", "cautious_imitation", *words(brought, folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    while not (folder / "cells" / CELLS[0] / "checkpoint.safetensors").exists():
        assert run.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (folder / "results.json").exists()
    done(words(brought, folder))
    assert timeless(folder) == timeless(own)


def test_a_folder_of_another_comparison_is_refused(brought: Path, own: Path) -> None:
    before = contents(own)
    assert_told(typed(words(brought, own, seeds=[7])), "another comparison's results", "config.seeds", "--out")
    assert contents(own) == before


def unfinished(own: Path, folder: Path) -> Path:
    """A copy of a run in which the second policy was looked at, but not entered any more; the folder of that policy."""
    shutil.copytree(own, folder)
    for name in ("results.json", "report.html"):
        (folder / name).unlink()
    first = (folder / "cells.jsonl").read_text().splitlines(keepends=True)[0]
    assert json.loads(first)["cell"] == CELLS[0]
    (folder / "cells.jsonl").write_text(first)
    return folder / "cells" / CELLS[1]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("checkpoint.safetensors", "is damaged"),
        ("after.json", "is damaged"),
        ("transfer.json", "is missing, and the checkpoint beside it has been trained further"),
    ],
)
def test_what_is_damaged_is_named_with_the_remedy(
    brought: Path, own: Path, tmp_path: Path, name: str, told: str
) -> None:
    cell = unfinished(own, tmp_path / "run")
    if "missing" in told:
        (cell / name).unlink()
    else:
        data = bytearray((cell / name).read_bytes())
        data[len(data) // 2 :: 97] = b"\0" * len(data[len(data) // 2 :: 97])
        (cell / name).write_bytes(bytes(data))
    before = contents(tmp_path / "run")
    command = words(brought, tmp_path / "run")
    assert_told(typed(command), str(cell / name), told, f"remove {cell} to train this policy anew")
    after = contents(tmp_path / "run")
    assert {path: after[path] for path in before} == before
    if name == "checkpoint.safetensors":
        shutil.rmtree(cell)
        done(command)
        assert timeless(tmp_path / "run") == timeless(own)


def test_a_lost_checkpoint_costs_training_and_no_curve(brought: Path, own: Path, tmp_path: Path) -> None:
    (unfinished(own, tmp_path / "run") / "checkpoint.safetensors").unlink()
    done(words(brought, tmp_path / "run"))
    assert timeless(tmp_path / "run") == timeless(own)


def test_a_judge_behind_an_endpoint_that_was_down(brought: Path, tmp_path: Path) -> None:
    is_up = False

    def script(body: Any) -> Reply:
        answers = is_up or "Which one is better?" in body["messages"][0]["content"]
        return completion("B") if answers else complaint(503, "loading", Retry_After="0")

    with chat_server(script) as server:
        command = words(brought, tmp_path / "run", **UNTRAINED, evaluation__judge=f'"{server.url} some judge"')
        assert_told(
            typed(command),
            "2 of 2 pairs have no verdict yet",
            "loading",
            "run the same command again",
            str(tmp_path / "run"),
            code=1,
        )
        # Nothing of what was found is lost, verdicts on the other question among it.
        waiting = ChatComparison.load(tmp_path / "run")
        assert {row["anchor"] for row in waiting.rows} == {"bayesian", "cautious-minimax"}
        assert [verdict.question for verdict in waiting.judgements] == ["better"] * 2
        assert (tmp_path / "run" / "report.html").exists()
        is_up, n_asked = True, len(server.bodies)
        done(command)
        # One judge for both questions, asked once about each pair.
        assert len(server.bodies) - n_asked == 2
        assert {body["model"] for body in server.bodies} == {"some judge"}
        done(command)
        assert len(server.bodies) - n_asked == 2
    judged = ChatComparison.load(tmp_path / "run")
    assert timeless(tmp_path / "run")["results.json"]["rows"] == [
        {key: value for key, value in row.items() if not key.endswith("seconds")} for row in waiting.rows
    ]
    assert [(verdict.question, verdict.judge) for verdict in judged.judgements] == [
        ("better", "some judge"),
        ("better", "some judge"),
        ("complex", "some judge"),
        ("complex", "some judge"),
    ]
    for verdict in judged.judgements:
        # B is what was shown second.
        assert {verdict.verdict, verdict.shown_first} == {"first", "second"}
    assert "some judge" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_an_endpoint_that_refuses_loses_nothing_either(brought: Path, tmp_path: Path) -> None:
    with chat_server(lambda body: complaint(401, "no such key")) as server:
        command = words(brought, tmp_path / "run", **UNTRAINED, evaluation__judge=f'"{server.url} judge"')
        assert_told(typed(command), "401", "no such key")
    assert {row["anchor"] for row in ChatComparison.load(tmp_path / "run").rows} == {"bayesian", "cautious-minimax"}


def test_a_judge_on_this_machine(brought: Path, tmp_path: Path) -> None:
    judge = tmp_path / "a judge"
    shutil.copytree(brought / "model", judge)
    config = json.loads((judge / "config.json").read_text())
    # Two transcripts and a question are more than the window of this model.
    (judge / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    done(words(brought, tmp_path / "run", **UNTRAINED, evaluation__judge=judge))
    verdicts = ChatComparison.load(tmp_path / "run").judgements
    assert {(verdict.question, verdict.judge) for verdict in verdicts} == {
        ("better", str(judge)),
        ("complex", str(judge)),
    }
    assert {verdict.verdict for verdict in verdicts} <= {"first", "second", "tie"}
    assert all("nats in both orders" in (verdict.said or "") for verdict in verdicts)


def malformed(brought: Path, folder: Path) -> dict[str, Any]:
    (folder / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n{"messages": 3}\n')
    return {"demonstrations__source": folder / "bad.jsonl"}


def silent(brought: Path, folder: Path) -> dict[str, Any]:
    (folder / "silent.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    return {"demonstrations__source": folder / "silent.jsonl"}


def unlabelled(brought: Path, folder: Path) -> dict[str, Any]:
    saved(folder / "classifier", {0: "joy", 1: "anger"})
    return {"episodes__reward": folder / "classifier"}


def untemplated(brought: Path, folder: Path) -> dict[str, Any]:
    write_folder(folder / "plain", template=None)
    # No name at all ends up in tokens that always say it.
    return {"language__source": folder / "plain", "episodes__teacher": '"Ada:"', "episodes__opening": '"Ada: hi"'}


WRONG: dict[str, tuple[Any, list[str]]] = {
    "an opening that is too long": (
        {"episodes__length": 9},
        ["length must be more than the ", " tokens of the opening, got 9; shorten the opening"],
    ),
    "episodes that are too long": (
        {"episodes__length": 200, "episodes__longer_length": "null"},
        ["length must fit into the model's window of 128 tokens, got 200"],
    ),
    "longer episodes that are too long": (
        {"episodes__longer_length": 129},
        ["episodes.longer_length", "must fit into the model's window of 128 tokens, got 129"],
    ),
    "an opening of somebody else": (
        {"episodes__opening": "[{role: nobody, content: hi}]"},
        ["nobody"],
    ),
    "a name that is none": (untemplated, ["name must be one line of words without a colon, got 'Ada:'"]),
    "a classifier that pays nothing": (
        unlabelled,
        ["episodes.reward=", "episodes.positive=None", "must have one positive label, got 'joy', 'anger'"],
    ),
    "no chats": (
        {"demonstrations__source": "none.jsonl"},
        ["no file of demonstrations at none.jsonl"],
    ),
    "malformed chats": (malformed, ["bad.jsonl:2", "messages"]),
    "chats in which nobody speaks": (silent, ["silent.jsonl", "agent_role='assistant', got none"]),
    "episodes that are left over": (
        {"evaluation__episodes": 3},
        ["evaluation.episodes must be a multiple of episodes.parallel, 2, got 3"],
    ),
    "a model that is nowhere": (
        {"language__source": "nobody/nothing"},
        ["'nobody/nothing' is no folder here and could not be fetched", "pass the path of a folder"],
    ),
    "a judge that is nowhere": (
        {"evaluation__judge": "nobody/nothing"},
        ["'nobody/nothing' is no folder here and could not be fetched", "pass the path of a folder"],
    ),
    "an endpoint without a model": (
        {"evaluation__judge": "http://127.0.0.1:1/v1"},
        ["evaluation.judge must name a model after the URL", "got 'http://127.0.0.1:1/v1'"],
    ),
    "no judge": ({"evaluation__judge": '""'}, ["evaluation.judge must be 'automatic'"]),
    "a device that there is not": ({"language__device": "cuda:99"}, ["device must be", "'cuda:99'"]),
    "an imitator's setting that there is not": ({"imitator__settings": "{nois: 1}"}, ["imitator.settings", "'nois'"]),
    "an imitator's setting out of range": ({"imitator__settings": "{noise: -1}"}, ["imitator.settings", "-1"]),
    "no jobs": ({"jobs": 0}, ["jobs must be at least 1, got 0"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_in_one_line_before_anything_is_written(
    brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    settings, told = WRONG[case]
    settings = dict(settings(brought, tmp_path) if callable(settings) else settings)
    more = [word for name in ("jobs",) if name in settings for word in (f"--{name}", settings.pop(name))]
    model = settings.pop("language__source", brought / "model")
    chats = settings.pop("demonstrations__source", brought / "chats.jsonl")
    # The last of two options counts.
    own = ["--model", str(model), "--demonstrations", str(chats)]
    assert_told(typed(words(brought, tmp_path / "run", *own, *map(str, more), **settings)), *told)
    assert not (tmp_path / "run").exists()


def test_a_mistake_leaves_results_as_they_are(brought: Path, own: Path) -> None:
    before = contents(own)
    assert_told(typed(words(brought, own, episodes__length=9)), "another comparison's results", "episodes.length")
    assert contents(own) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "mine"], "--model is for presets of chats, got 'mine' with --preset dialogue-acts"),
        (["--dry-run"], "--dry-run is for presets of chats"),
        (["--preset", "chat-mixtral", "--set", "language.four_bit=true"], "needs a GPU"),
        (["--preset", "chat-tiny", "--set", "episodes.lenght=3"], "did you mean 'length'"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_told(typed(["compare", *arguments]), told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opening", ["[{role: user, content: hello there}]", '"User: hello there\\nAssistant:"'])
def test_without_a_chat_template_speakers_are_called_as_in_demonstrations(
    brought: Path, tmp_path: Path, opening: str
) -> None:
    write_folder(tmp_path / "plain", template=None)
    own = ["--model", tmp_path / "plain"]
    done(words(brought, tmp_path / "run", *own, **UNTRAINED, anchors="[bayesian]", episodes__opening=opening))
    for script in ChatComparison.load(tmp_path / "run").transcripts:
        assert "".join(script["pieces"][: script["given"]]) == "User: hello there\nAssistant:"
        assert script["speakers"][0]["is_teacher"]


@pytest.mark.parametrize(("positive", "column"), [("joy", 0), ("anger", 1)])
def test_a_classifiers_label_may_be_named(brought: Path, tmp_path: Path, positive: str, column: int) -> None:
    network, tokenizer = saved(tmp_path / "classifier", {0: "joy", 1: "anger"})
    settings: dict[str, Any] = {"episodes__reward": tmp_path / "classifier", "episodes__positive": positive}
    done(words(brought, tmp_path / "run", **UNTRAINED, **settings, anchors="[bayesian]"))
    paid = [
        (script["rewards"][turn["end"] - 1], by_hand(network, tokenizer, turn["text"], column))
        for script in ChatComparison.load(tmp_path / "run").transcripts
        for turn in script["speakers"]
        if not turn["is_teacher"] and turn["text"]
    ]
    assert paid
    for reward, expected in paid:
        assert reward == pytest.approx(expected, abs=1e-5)
