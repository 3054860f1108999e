"""Anchors compared where they earn the same reward, and where they ask as often.

Two policies with different budgets differ in reward, distance and questions at once; a comparison holds one of them
equal. Between two measured policies the values are interpolated linearly. Choosing one of the two by lot before each
episode really attains the interpolated reward, and its distance to the demonstrator is at most the interpolated one,
because the Kullback-Leibler divergence is convex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cautious_imitation.report.anchors import CONTROLS
from cautious_imitation.report.grid import KL, Cell, Grid

ASK_RATE_TOLERANCE = 0.02
"""Two ask rates are called equal within this difference when there is nothing to interpolate between."""
_EQUAL = 1e-9
_NEEDED = ("reward", KL)


@dataclass(frozen=True)
class Match:
    """What an anchor does at the value that is held equal.

    Attributes:
        anchor: name of the anchor.
        reward: reward an episode.
        kl_nats: distance to the demonstrator.
        ask_rate: share of its steps on which it asks.
        kind: ``measured``, ``interpolated``, ``ends below`` (even its dearest policy earns less reward),
            ``starts above`` (even its cheapest policy earns more reward) or ``none`` (no policy to compare with).
    """

    anchor: str
    reward: float | None
    kl_nats: float | None
    ask_rate: float | None
    kind: str


@dataclass(frozen=True)
class Comparison:
    """One cautious policy, the matches of the others, and who did better.

    Attributes:
        deployment: name of the deployment.
        budget_nats: budget of the cautious policy.
        subject: the cautious policy as measured.
        others: the others at the same reward or ask rate.
        verdicts: for each of ``others``: ``better``, ``worse``, ``equal``, ``mixed`` or ``open`` from the point of view
            of the subject; ``open`` where nothing can be compared.
    """

    deployment: str
    budget_nats: float
    subject: Match
    others: tuple[Match, ...]
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class _Point:
    reward: float
    kl_nats: float
    ask_rate: float

    def match(self, anchor: str, kind: str = "measured") -> Match:
        return Match(anchor, self.reward, self.kl_nats, self.ask_rate, kind)


def _point(cell: Cell) -> _Point:
    """The measured means of ``cell``; an anchor of which no ask rate is known never asks."""
    return _Point(cell.metrics["reward"].mean, cell.metrics[KL].mean, cell.mean("ask_rate") or 0.0)


def _between(at: float, places: Sequence[float], values: Sequence[float]) -> float:
    value = float(np.interp(at, places, values))
    return float("inf") if np.isnan(value) else value  # a neighbour is infinitely far


def at_reward(cells: Sequence[Cell], anchor: str, reward: float) -> Match:
    """What ``anchor`` does where it earns ``reward``, from its measured ``cells`` (any order)."""
    points = sorted(map(_point, cells), key=lambda point: (point.reward, point.kl_nats))
    if not points:
        return Match(anchor, None, None, None, "none")
    if reward > points[-1].reward + _EQUAL:
        return points[-1].match(anchor, "ends below")
    if reward < points[0].reward - _EQUAL:
        return points[0].match(anchor, "starts above")
    rewards = [point.reward for point in points]
    distance = _between(reward, rewards, [point.kl_nats for point in points])
    asks = _between(reward, rewards, [point.ask_rate for point in points])
    return Match(anchor, reward, distance, asks, "interpolated")


def _reward_verdict(subject: _Point, other: Match) -> str:
    """Who is closer to the demonstrator at equal reward; where rewards differ, only a win on both sides counts."""
    if other.kl_nats is None:
        return "open"
    closer = subject.kl_nats < other.kl_nats - _EQUAL
    farther = subject.kl_nats > other.kl_nats + _EQUAL
    if other.kind == "ends below":
        return "open" if farther else "better"
    if other.kind == "starts above":
        return "open" if closer else "worse"
    return "better" if closer else "worse" if farther else "equal"


def equal_reward(grid: Grid, subject: str = "cautious-minimax") -> list[Comparison]:
    """Each measured policy of ``subject`` against the other cautious anchor and the Bayesian one at its reward."""
    found = []
    others = [name for name in ("bayesian", "cautious-pointwise", "cautious-minimax") if name != subject]
    others = [name for name in others if name in grid.anchors]
    for deployment in grid.deployments:
        for cell in grid.curve(subject, deployment, "budget_nats", need=_NEEDED):
            if cell.budget_nats is None:
                continue
            own = _point(cell)
            matches = tuple(
                at_reward(grid.curve(name, deployment, "budget_nats", need=_NEEDED), name, own.reward)
                for name in others
            )
            verdicts = tuple(_reward_verdict(own, match) for match in matches)
            found.append(Comparison(deployment, cell.budget_nats, own.match(subject), matches, verdicts))
    return found


def at_ask_rate(cells: Sequence[Cell], anchor: str, ask_rate: float) -> Match:
    """What ``anchor`` does where it asks on a share ``ask_rate`` of its steps, from its measured ``cells``."""
    points = sorted(map(_point, cells), key=lambda point: point.ask_rate)
    if not points:
        return Match(anchor, None, None, None, "none")
    nearest = min(points, key=lambda point: abs(point.ask_rate - ask_rate))
    if abs(nearest.ask_rate - ask_rate) <= ASK_RATE_TOLERANCE:
        return nearest.match(anchor)
    rates = [point.ask_rate for point in points]
    if rates[0] < ask_rate < rates[-1]:
        reward = _between(ask_rate, rates, [point.reward for point in points])
        distance = _between(ask_rate, rates, [point.kl_nats for point in points])
        return Match(anchor, reward, distance, ask_rate, "interpolated")
    return Match(anchor, None, None, nearest.ask_rate, "none")


def _asking_verdict(subject: _Point, other: Match) -> str:
    """Who is at least as good on reward and on distance, where both ask as often."""
    if other.reward is None or other.kl_nats is None:
        return "open"
    gains = (subject.reward - other.reward, other.kl_nats - subject.kl_nats)
    wins, losses = any(gain > _EQUAL for gain in gains), any(gain < -_EQUAL for gain in gains)
    return "mixed" if wins and losses else "better" if wins else "worse" if losses else "equal"


def equal_asking(grid: Grid, subject: str = "cautious-minimax") -> list[Comparison]:
    """Each measured policy of ``subject`` against the asking controls of the same budget at its ask rate."""
    found = []
    others = [name for name in CONTROLS if name in grid.anchors]
    for deployment in grid.deployments:
        for cell in grid.curve(subject, deployment, "budget_nats", need=(*_NEEDED, "ask_rate")):
            if cell.budget_nats is None or not others:
                continue
            own = _point(cell)
            matches = tuple(
                at_ask_rate(
                    [
                        other
                        for other in grid.curve(name, deployment, "budget_nats", need=(*_NEEDED, "ask_rate"))
                        if other.budget_nats in (None, cell.budget_nats)
                    ],
                    name,
                    own.ask_rate,
                )
                for name in others
            )
            verdicts = tuple(_asking_verdict(own, match) for match in matches)
            found.append(Comparison(deployment, cell.budget_nats, own.match(subject), matches, verdicts))
    return found
