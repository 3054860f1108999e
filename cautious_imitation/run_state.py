"""What is kept of a run of episodes, so that it can go on in another process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from cautious_imitation.atomic_files import write_text
from cautious_imitation.types import Actor

EpisodeEnd: TypeAlias = Literal["partner", "horizon", "declined"]

_FILE = "run.json"


@dataclass
class Episode:
    """One episode so far.

    Attributes:
        symbols: what was done, both sides together, oldest first.
        actors: who did it, one for each symbol.
        waiting: id of the question that it waits with; None if it does not.
        instead: the action that it takes if nobody answers; V if there is none.
        reply: what is left of the last answer.
        declines: how many questions were declined.
        dependent: how many questions were answered or declined in a way that may depend on the answer.
        questions: how many questions were answered or declined.
        listened: whether the partner has said what it had to say to these symbols.
        ended: why it ended: the partner left, the horizon was reached, or nobody answered; None while it goes on.
    """

    symbols: list[int] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    waiting: str | None = None
    instead: int | None = None
    reply: list[tuple[int, Actor]] = field(default_factory=list)
    questions: int = 0
    declines: int = 0
    dependent: int = 0
    listened: bool = False
    ended: EpisodeEnd | None = None


@dataclass(frozen=True)
class Start:
    """How the imitator was when the run began: with which probability it asked, and where."""

    context: list[int]
    ask_probability: float


@dataclass(frozen=True)
class RunState:
    """All there is to a run, but the answers, which are in its log.

    Attributes:
        schema: version of the format.
        settings: what the run was made with.
        first: how the imitator was; None if it has not predicted anything.
        episodes: as they stand.
        learned: ``(episode, position)`` of every symbol that was learned, in that order.
    """

    schema: Literal[1]
    settings: dict[str, Any]
    first: Start | None
    episodes: list[Episode]
    learned: list[tuple[int, int]]


_STATE = TypeAdapter(RunState)


def write_state(folder: Path, state: RunState) -> None:
    """Write the state to ``folder``, in place of what is there, in one step.

    Raises:
        OSError: if the folder cannot be written to.
    """
    write_text(folder / _FILE, json.dumps(asdict(state)) + "\n")


def read_state(folder: Path, settings: dict[str, Any]) -> RunState | None:
    """The state in ``folder``; None if there is none.

    Raises:
        ValueError: if the file is damaged or of another version, or the run has other ``settings``.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        state = _STATE.validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ValueError(f"{path} is no run of this version: {where}: {fault['msg']}; name another folder") from error
    for name, value in settings.items():
        if state.settings.get(name) != value:
            raise ValueError(
                f"{name} must be {state.settings.get(name)!r} to go on with the run in {folder}, got {value!r}; name "
                "another folder for a new run"
            )
    return state
