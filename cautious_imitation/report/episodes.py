"""Sampled episodes made ready to be shown: checked, cut into strips and turns, summed up."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from cautious_imitation.report.anchors import ANCHORS, AnchorStyle, anchor_style

STRIP_STEPS = 64
"""Steps in one line of a strip."""

CHARGE_BINS_NATS = (0.01, 0.1, 0.3, 1.0)
"""Upper edges of the shades of a step's charge; the last shade is open."""

CHARGE_LABELS = ("under 0.01", "0.01–0.1", "0.1–0.3", "0.3–1", "1 or more")

_SPEAKERS = ("agent", "student")
_ACTORS = ("imitator", "demonstrator", "environment")
_END_OF_TURN = "end of turn"


@dataclass(frozen=True)
class Step:
    """One symbol of an episode; ``shade`` is the index of its charge among the shades, ``asked`` by the agent."""

    act: str
    agent: bool
    asked: bool
    charge_nats: float
    ask_probability: float
    shade: int


@dataclass(frozen=True)
class Turn:
    """Consecutive steps of one speaker; ``empty`` if it holds nothing but its own end."""

    agent: bool
    steps: tuple[Step, ...]
    empty: bool


@dataclass(frozen=True)
class Episode:
    """One episode of one anchor."""

    style: AnchorStyle
    deployment: str
    budget_nats: float | None
    n_demonstrations: int | None
    steps: tuple[Step, ...]

    @property
    def turns(self) -> list[Turn]:
        """The steps by speaker, in order."""
        found = []
        for agent, group in groupby(self.steps, key=lambda step: step.agent):
            steps = tuple(group)
            empty = len(steps) == 1 and steps[0].act.replace("-", " ").replace("_", " ").lower() == _END_OF_TURN
            found.append(Turn(agent, steps, empty))
        return found

    @property
    def strips(self) -> list[tuple[Step, ...]]:
        """The steps in lines of ``STRIP_STEPS``."""
        return [self.steps[start : start + STRIP_STEPS] for start in range(0, len(self.steps), STRIP_STEPS)]

    @property
    def charge_nats(self) -> float:
        """Sum of the charges, in nats."""
        return math.fsum(step.charge_nats for step in self.steps)

    @property
    def n_agent_steps(self) -> int:
        """How many steps were the agent's, whoever acted in its place."""
        return sum(step.agent for step in self.steps)

    @property
    def n_asked(self) -> int:
        """How many of them the demonstrator took on being asked."""
        return sum(step.asked for step in self.steps)

    @property
    def n_turns(self) -> int:
        """How many turns the agent had."""
        return sum(turn.agent for turn in self.turns)

    @property
    def n_empty(self) -> int:
        """How many of those said nothing."""
        return sum(turn.agent and turn.empty for turn in self.turns)


def read_episodes(episodes: Sequence[Mapping[str, Any]]) -> list[Episode]:
    """Check ``episodes`` and put them in the order of anchors, then deployments.

    Raises:
        ValueError: naming the episode and step whose speaker, actor or charge cannot be.
    """
    found = []
    for index, episode in enumerate(episodes):
        style = anchor_style(episode["anchor"])
        steps = tuple(_step(step, f"episodes[{index}] steps[{place}]") for place, step in enumerate(episode["steps"]))
        found.append(Episode(style, episode["deployment"], episode["budget_nats"], episode["n_demonstrations"], steps))
    order = list(ANCHORS)
    deployments = {"same": 0, "novel": 1}
    return sorted(
        found, key=lambda one: (deployments.get(one.deployment, 2), one.deployment, order.index(one.style.name))
    )


def _step(step: Mapping[str, Any], where: str) -> Step:
    for key, known in (("speaker", _SPEAKERS), ("actor", _ACTORS)):
        if step[key] not in known:
            raise ValueError(f"{where} {key} must be one of {', '.join(known)}, got {step[key]!r}; correct the episode")
    charge = float(step["charge_nats"])
    if not charge >= -1e-9:
        raise ValueError(f"{where} charge_nats must be at least 0, got {charge}; charge exact divergences")
    agent = step["speaker"] == "agent"
    return Step(
        step["act"],
        agent,
        agent and step["actor"] == "demonstrator",
        charge,
        float(step["ask_probability"]),
        bisect_right(CHARGE_BINS_NATS, charge),
    )
