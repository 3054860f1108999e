"""Training in chats: the schedule, the curve of a run that was killed, several processes, and what it is charged."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cautious_imitation.divergences import kl
from cautious_imitation.finetuning.charged_mixture import ChargedBase
from cautious_imitation.finetuning.chat_evaluation import evaluate_chats
from cautious_imitation.finetuning.chat_policy import AsksAtRandom, ChatFeatures, ChatPolicy, reading_of
from cautious_imitation.finetuning.chat_training import CHECKPOINT, Schedule
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.imitators import BayesianImitator
from tests.chat_training_run import BUDGET_NATS, LENGTH, PARALLEL, SCHEDULE, chat_training
from tests.test_chat_env import KINDS, tiny

ROOT = Path(__file__).parents[1]


def started(folder: Path, **more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, "-m", "tests.chat_training_run", str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()


def found(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return json.loads((folder / "points.json").read_text()), load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("unbroken")
    finished(started(folder))
    return found(folder)


def test_the_schedule_goes_up_and_then_stays() -> None:
    schedule = Schedule(9.0, ramp=3, full=2, longer=1, length=10, longer_length=20)
    assert [schedule.budget(u) for u in range(schedule.updates)] == [3.0, 6.0, 9.0, 9.0, 9.0, 9.0]
    assert [schedule.phase(u) for u in range(schedule.updates)] == ["ramp"] * 3 + ["full"] * 2 + ["longer"]
    assert [schedule.length_of(u) for u in range(schedule.updates)] == [10] * 5 + [20]
    assert Schedule(9.0, ramp=0, full=1, longer=0, length=10, longer_length=10).budget(0) == 9.0
    with pytest.raises(ValueError, match="longer_length must be at least length"):
        Schedule(9.0, ramp=0, full=1, longer=0, length=10, longer_length=9)
    with pytest.raises(ValueError, match="ramp must be at least 0, got -1"):
        Schedule(9.0, ramp=-1, full=1, longer=0, length=10, longer_length=10)


def test_a_run_that_is_killed_again_and_again_has_the_curve_of_one_that_is_not(
    unbroken: tuple[list[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    """Killed as soon as there is a checkpoint that it did not begin with, at a moment that the seed chooses."""
    dice, kills = random.Random(0), 0
    while not (tmp_path / "points.json").exists():
        process = started(tmp_path)
        before = _stamp(tmp_path)
        while process.poll() is None and _stamp(tmp_path) == before:
            time.sleep(0.005)
        time.sleep(dice.random() * 0.4)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, said = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said.decode()
    assert kills >= 2
    points, weights = found(tmp_path)
    assert points == unbroken[0]
    assert len(points) == SCHEDULE.updates
    assert all(np.array_equal(weights[name], unbroken[1][name]) for name in weights)


def _stamp(folder: Path) -> float:
    path = folder / CHECKPOINT
    return path.stat().st_mtime_ns if path.exists() else 0.0


def test_two_processes_train_as_one(unbroken: tuple[list[dict[str, Any]], dict[str, Any]], tmp_path: Path) -> None:
    """As ``accelerate launch`` and ``torchrun`` start them; sums have another order, and nothing else.

    How far their rounding grows in five updates depends on the processor: the price of a nat was seen 1.2e-4 apart.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [started(tmp_path, RANK=str(number), LOCAL_RANK=str(number), **shared) for number in range(2)]
    for process in both:
        finished(process)
    points, weights = found(tmp_path)
    for ours, alone in zip(points, unbroken[0], strict=True):
        assert ours.keys() == alone.keys()
        for name, value in alone.items():
            assert ours[name] == (value if isinstance(value, str | None) else pytest.approx(value, rel=1e-3, abs=1e-5))
        assert ours["decisions"] == alone["decisions"]
    for name, values in unbroken[1].items():
        np.testing.assert_allclose(weights[name], values, rtol=1e-3, atol=1e-5)
    moved = max(float(np.abs(values).max()) for values in unbroken[1].values())
    assert moved > 0.01


def test_no_episode_is_charged_more_than_its_budget(
    unbroken: tuple[list[dict[str, Any]], dict[str, Any]],
) -> None:
    for point in unbroken[0]:
        assert 0 < point["largest_charge_nats"] <= point["budget_nats"] * (1 + 1e-6)
        assert point["charge_nats"] == sorted(point["charge_nats"])
    assert any(point["questions"] for point in unbroken[0])


def test_a_damaged_checkpoint_is_refused_and_stays(tmp_path: Path) -> None:
    training = chat_training(tmp_path, logs=False)
    assert not training.resume()
    training.run(until=1)
    path = tmp_path / CHECKPOINT
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    with pytest.raises(ValueError, match="is damaged"):
        chat_training(tmp_path, logs=False).resume()
    assert path.read_bytes() == data[:-30]
    path.write_bytes(data)
    again = chat_training(tmp_path, logs=False)
    assert again.resume()
    assert again.points == training.points


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk without room."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.chat_training_run import chat_training\n"
        "training = chat_training(Path(sys.argv[1]), logs=False)\n"
        "training.run(until=1)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    training.run(until=2)\n"
        "except OSError as error:\n"
        "    print('refused:', error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "refused:" in said.stdout, said.stderr
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    kept = chat_training(tmp_path, logs=False)
    assert kept.resume()
    assert kept.ppo.n_updates == 1


def test_tensorboard_reads_what_is_logged(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    training = chat_training(tmp_path)
    training.run(until=2)
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    data, at, scalars = path.read_bytes(), 0, {}
    while at < len(data):
        # Each record: its length in eight bytes and a checksum of four, the record, and another checksum.
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    for point in training.points:
        step = point["update"]
        assert scalars["nats/mean_charge_nats", step] == pytest.approx(point["mean_charge_nats"], rel=1e-5)
        assert scalars["reward/mean_of_an_episode", step] == pytest.approx(point["mean_reward"], rel=1e-5)


def test_distances_and_charges_are_those_of_every_decision_read_again() -> None:
    demonstrator = tiny(KINDS["template"][0])
    training = chat_training(None)
    training.run(until=2)
    training.prepare(BUDGET_NATS, LENGTH)
    ppo = training.ppo
    chats = evaluate_chats(ppo.policy, ppo.critic, ppo.episodes, 2 * PARALLEL, demonstrator=demonstrator)
    assert len(chats) == 2 * PARALLEL
    policy: Any = ppo.policy
    model = policy.anchor.hypotheses.model
    seen = 0
    for chat in chats[:3]:
        script = chat.transcript
        assert chat.kl_demonstrator_nats is not None
        left = BUDGET_NATS
        for place in np.flatnonzero(script.charges > 0):
            context = torch.from_numpy(script.tokens[None, :place].copy())
            reading = model.read(context)
            observations = {
                "tokens": context,
                "n_tokens": torch.tensor([place]),
                "features": reading.features,
                "hidden": _hidden(training, context),
                "share_left": torch.tensor([1 - place / LENGTH], dtype=torch.float32),
                "left_nats": torch.tensor([left], dtype=torch.float64),
            }
            with torch.no_grad():
                decision = policy(observations)
            assert float(decision.charge_nats) == pytest.approx(script.charges[place], rel=1e-3, abs=1e-6)
            apart = kl(decision.log_probs[0].double(), demonstrator.log_probs(demonstrator.read(context).features)[0])
            expected = float(decision.log_act.exp()) * float(apart)
            assert chat.kl_demonstrator_nats[place] == pytest.approx(expected, rel=1e-3, abs=1e-6)
            left -= float(script.charges[place])
            seen += 1
        elsewhere = np.ones(len(script), dtype=bool)
        elsewhere[script.charges > 0] = False
        assert chat.kl_demonstrator_nats[elsewhere].max(initial=0.0) <= 1e-5
    assert seen > 10
    with pytest.raises(ValueError, match=f"n_episodes must be a multiple of {PARALLEL}, got 3"):
        evaluate_chats(ppo.policy, ppo.critic, ppo.episodes, 3)


def _hidden(training: Any, context: torch.Tensor) -> torch.Tensor:
    from cautious_imitation.environments.row_decoder import RowDecoder

    env = training.ppo.episodes.env
    layers = env.single_observation_space["hidden"].shape[0]
    return RowDecoder(env.model, context[0].tolist(), 1, layers).hidden.float()


def test_the_policy_begins_as_its_anchor_acts() -> None:
    training = chat_training(None)
    ppo: Any = training.ppo
    observations = ppo.episodes.begin(torch.Generator().manual_seed(0))
    base = ChargedBase.of(ppo.policy.anchor, reading_of(observations))
    with torch.no_grad():
        decision = ppo.policy(observations)
    assert torch.equal(decision.log_probs, base.log_probs)
    affordable = base.base_nats <= decision.spend_nats
    assert torch.equal(decision.charge_nats[affordable], base.base_nats[affordable].to(torch.float64))
    asking = AsksAtRandom(ppo.policy, 0.25)
    with torch.no_grad():
        other = asking(observations)
    np.testing.assert_allclose(other.log_ask.exp(), 1 - 0.75 * decision.log_act.exp(), atol=1e-6)
    np.testing.assert_allclose(other.charge_nats, 0.75 * decision.charge_nats)
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\), got 1"):
        AsksAtRandom(ppo.policy, 1.0)


def test_an_anchor_that_reads_with_another_model_is_refused() -> None:
    env: Any = chat_training(None).ppo.episodes.env
    stranger = BayesianImitator(GaussianHead(tiny(KINDS["template"][0])))
    with pytest.raises(ValueError, match="anchor must have hypotheses that read with the environment's model"):
        ChatPolicy(env, stranger, 1.0)


def test_features_are_of_one_size_whatever_the_layers_are() -> None:
    env: Any = chat_training(None).ppo.episodes.env
    layers, width = env.single_observation_space["hidden"].shape
    hidden = torch.randn(5, layers, width, generator=torch.Generator().manual_seed(0))
    seen = {"hidden": hidden * torch.tensor([1.0, 1e3, 1e-1])[:layers, None], "share_left": torch.linspace(0, 1, 5)}
    found = ChatFeatures(env, 4.0)({**seen, "left_nats": torch.linspace(0, 4, 5, dtype=torch.float64)})
    assert found.shape == (5, layers * width + 2)
    np.testing.assert_allclose(found[:, -1], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found[:, :-2].reshape(5, layers, width).var(-1, unbiased=False), 1, rtol=1e-2)
    unlimited = ChatFeatures(env, float("inf"))({**seen, "left_nats": torch.full((5,), torch.inf)})
    assert torch.equal(unlimited[:, -1], torch.ones(5))


@pytest.mark.parametrize(
    ("budget_nats", "left_nats", "message"),
    [
        (4.0, torch.inf, "left_nats must be finite where budget_nats is 4.0, got inf; give the features and the chats"),
        (torch.inf, 3.0, "left_nats must be infinite where budget_nats is inf, got 3.0; give the features and the"),
    ],
)
def test_features_of_another_budget_than_that_of_the_chats_are_refused(
    budget_nats: float, left_nats: float, message: str
) -> None:
    ppo: Any = chat_training(None).ppo
    observations = ppo.episodes.begin(torch.Generator().manual_seed(0))
    # One chat of several is enough.
    left = torch.full_like(observations["left_nats"], budget_nats)
    left[1] = left_nats
    with pytest.raises(ValueError, match=message):
        ChatFeatures(ppo.episodes.env, budget_nats)({**observations, "left_nats": left})
