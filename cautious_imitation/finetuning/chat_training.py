"""Training in chats from beginning to end: a budget that rises, longer episodes after that, checkpoints, and logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cautious_imitation.finetuning.chat_rollouts import ChatRollouts
from cautious_imitation.finetuning.ppo import PPO, UpdateReport
from cautious_imitation.finetuning.processes import rank, summed

Phase: TypeAlias = Literal["ramp", "full", "longer"]
Point: TypeAlias = dict[str, Any]
"""What one update saw, as JSON takes it: the fields of ``UpdateReport`` and where in the schedule it was."""

CHECKPOINT = "checkpoint.safetensors"
LOGS = "tensorboard"


@dataclass(frozen=True)
class Schedule:
    """How budgets and lengths change from update to update.

    Attributes:
        budget_nats: the whole budget of an episode.
        ramp: updates in which the budget rises in equal steps to the whole.
        full: updates with the whole budget.
        longer: updates with longer episodes after that, with the same budget.
        length: tokens of an episode.
        longer_length: tokens of a longer one.

    Raises:
        ValueError: if a number is negative, or longer episodes are not longer.

    >>> schedule = Schedule(10.0, ramp=2, full=1, longer=1, length=128, longer_length=256)
    >>> [(schedule.phase(u), schedule.budget(u), schedule.length_of(u)) for u in range(schedule.updates)]
    [('ramp', 5.0, 128), ('ramp', 10.0, 128), ('full', 10.0, 128), ('longer', 10.0, 256)]

    Source: Cohen, Hutter, Bengio, Russell 2024: ramp and whole for equally long, then the same again, twice as long.
    """

    budget_nats: float
    ramp: int
    full: int
    longer: int
    length: int
    longer_length: int

    def __post_init__(self) -> None:
        for name in ("budget_nats", "ramp", "full", "longer"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}")
        if not self.longer_length >= self.length >= 1:
            raise ValueError(
                f"longer_length must be at least length, and that at least 1, got {self.longer_length} and "
                f"{self.length}"
            )

    @property
    def updates(self) -> int:
        """How many there are in all."""
        return self.ramp + self.full + self.longer

    def phase(self, update: int) -> Phase:
        """Where in the schedule an update is."""
        return "ramp" if update < self.ramp else "full" if update < self.ramp + self.full else "longer"

    def budget(self, update: int) -> float:
        """The budget of an episode then, nats."""
        return self.budget_nats * min(1.0, (update + 1) / max(self.ramp, 1)) if self.ramp else self.budget_nats

    def length_of(self, update: int) -> int:
        """Tokens of an episode then."""
        return self.longer_length if self.phase(update) == "longer" else self.length


class ChatTraining:
    """Trains along a schedule; stopped at any moment, it goes on from its last checkpoint and ends with the same curve.

    Args:
        ppo: what learns; its episodes are ``ChatRollouts``.
        schedule: budgets and lengths.
        folder: where ``checkpoint.safetensors`` and the logs for TensorBoard are kept; None keeps nothing.
        checkpoint_every: updates between two checkpoints; the last update has one in any case.
        logs: whether to write logs for TensorBoard, which needs the package tensorboardX.

    Attributes:
        points: the curve so far, an entry an update.
        seconds: how long all of its updates took.

    Raises:
        ValueError: if a number is out of range.
        OSError: if the folder cannot be made.
    """

    def __init__(
        self,
        ppo: PPO,
        schedule: Schedule,
        folder: str | PathLike[str] | None = None,
        *,
        checkpoint_every: int = 1,
        logs: bool = True,
    ) -> None:
        if not isinstance(ppo.episodes, ChatRollouts):
            raise ValueError(f"ppo must play ChatRollouts, got {type(ppo.episodes).__name__}")
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
        self.ppo, self.schedule, self.points, self.seconds = ppo, schedule, list[Point](), 0.0
        self._rollouts = ppo.episodes
        self._folder = None if folder is None else Path(folder)
        self._checkpoint_every, self._logs = checkpoint_every, logs
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path | None:
        """The file that training goes on from."""
        return None if self._folder is None else self._folder / CHECKPOINT

    def resume(self) -> bool:
        """Take up the checkpoint that is there; whether there was one.

        Raises:
            ValueError: if it is damaged, or of other training; see ``PPO.load``.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        beside = self.ppo.load(self.checkpoint)
        self.points, self.seconds = list(beside["points"]), float(beside["seconds"])
        return True

    def run(self, until: int | None = None, told: Callable[[Point], None] | None = None) -> list[Point]:
        """Train up to the end of the schedule.

        Args:
            until: stop after so many updates in all; None for the whole schedule.
            told: called with the point of every update.

        Returns:
            The curve, all of it.

        Raises:
            OSError: if a checkpoint or a log cannot be written; the checkpoint before it stays.
            ValueError: as ``PPO.update``.
        """
        last = self.schedule.updates if until is None else min(until, self.schedule.updates)
        logs = self._begun_logs() if self.ppo.n_updates < last else None
        try:
            for update in range(self.ppo.n_updates, last):
                self.prepare(self.schedule.budget(update), self.schedule.length_of(update))
                began = time.perf_counter()
                point = self._point(self.ppo.update())
                self.seconds += time.perf_counter() - began
                self.points.append(point)
                if logs is not None:
                    logs.write(point)
                if (update + 1) % self._checkpoint_every == 0 or update + 1 == last:
                    self._save()
                if told is not None:
                    told(point)
        finally:
            if logs is not None:
                logs.close()
        return self.points

    def prepare(self, budget_nats: float, length: int) -> None:
        """Let the episodes that begin next have this budget and length."""
        self._rollouts.budget_nats, self._rollouts.length = budget_nats, length

    def _point(self, report: UpdateReport) -> Point:
        scripts = self._rollouts.transcripts()
        replies, empty = _total(sum(s.n_replies for s in scripts)), _total(sum(s.n_empty_replies for s in scripts))
        u, questions = report.update, round(report.questions * self._rollouts.n_all)
        return {
            "update": u,
            "phase": self.schedule.phase(u),
            "budget_nats": self.schedule.budget(u),
            "length": self.schedule.length_of(u),
            "reward": list(report.reward_quantiles),
            "charge_nats": list(report.charge_quantiles),
            "mean_reward": report.reward,
            "mean_charge_nats": report.charge_nats,
            "largest_charge_nats": report.largest_charge_nats,
            "questions": questions,
            "ask_rate": questions / max(report.decisions, 1),
            "empty_reply_share": empty / replies if replies else None,
            "price_of_a_nat": report.price_of_a_nat,
            "entropy_nats": report.entropy_nats,
            "decisions": report.decisions,
            "kl_demonstrator_nats": None,
            "divergence_nats": report.divergence_nats,
            "clipped": report.clipped,
        }

    def _save(self) -> None:
        # All processes have learned the same, so one of them writes.
        if self.checkpoint is not None and rank() == 0:
            self.ppo.save(self.checkpoint, {"points": self.points, "seconds": self.seconds})

    def _begun_logs(self) -> _Logs | None:
        if self._folder is None or not self._logs or rank():
            return None
        return _Logs(self._folder / LOGS, self.ppo.n_updates)


class _Logs:
    """An event file for TensorBoard; what was logged before from update ``first`` on counts no more.

    Written at once, not by a thread: where the disk is full, a thread would end, and training wait for it for ever.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboardX import RecordWriter

        folder.mkdir(exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        # In the order of names TensorBoard reads them; several may begin in one second.
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}"))
        self._add(file_version="brain.Event:2")
        self._add(step=first, session_log={"status": "START"})

    def write(self, point: Point) -> None:
        """Add a point; it is on the disk afterwards."""
        for name, value in _scalars(point).items():
            self._add(step=point["update"], summary={"value": [{"tag": name, "simple_value": value}]})
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write(Event(wall_time=time.time(), **event).SerializeToString())


def _total(number: int) -> int:
    """The sum over all processes."""
    import torch

    return int(summed(torch.tensor(number)))


def _scalars(point: Point) -> dict[str, float]:
    """Names say what is measured and in which unit."""
    nats = ("mean_charge_nats", "largest_charge_nats", "budget_nats", "price_of_a_nat", "entropy_nats")
    found = {f"nats/{name}": point[name] for name in nats} | {
        "reward/mean_of_an_episode": point["mean_reward"],
        "questions/an_update": point["questions"],
        "questions/share_of_decisions": point["ask_rate"],
        "replies/share_empty": point["empty_reply_share"],
        "ppo/divergence_nats_of_an_update": point["divergence_nats"],
        "ppo/share_clipped": point["clipped"],
    }
    return {name: value for name, value in found.items() if value is not None}
