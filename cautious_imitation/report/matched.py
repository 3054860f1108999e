"""Anchors compared where they earn the same reward, and where they ask no more often.

Two policies with different budgets differ in reward, distance and questions at once; a comparison holds some of them
equal. Between measured policies of one anchor stands their lottery: choosing one of them by lot before each episode
really attains the mean of their rewards and questions, and its distance to the demonstrator is at most the mean of
theirs, because the Kullback-Leibler divergence is convex. A lottery so looks a little worse than the best policy at its
reward, so both directions are shown (each side measured, the other by lot) and near ties are called ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linprog

from cautious_imitation.report.anchors import CONTROLS
from cautious_imitation.report.grid import KL, Cell, Grid

TIE_SHARE = 0.1
"""Two distances count as equal if they differ by at most this share of the larger one."""

_EQUAL = 1e-9
_SOLVED = 1e-6
"""Precision of the lotteries that are solved for."""

_NEEDED = ("reward", KL)


@dataclass(frozen=True)
class Match:
    """What an anchor does at the value that is held equal.

    Attributes:
        anchor: name of the anchor.
        reward: reward an episode.
        kl_nats: distance to the demonstrator.
        ask_rate: share of its steps on which it asks.
        asks_per_episode: questions an episode, None where not known.
        budget_nats: budget of a measured policy, None for a lottery.
        kind: ``measured``, ``lottery``, ``ends below`` (even its dearest policy earns less reward), ``starts above``
            (even its cheapest policy earns more reward) or ``none`` (no policy to compare with).
    """

    anchor: str
    reward: float | None
    kl_nats: float | None
    ask_rate: float | None
    asks_per_episode: float | None
    budget_nats: float | None
    kind: str


@dataclass(frozen=True)
class Comparison:
    """Policies of several anchors at one reward, seen from one of them.

    Attributes:
        deployment: name of the deployment.
        reward: the reward of the measured policy that the others are held to.
        subject: the cautious policy.
        others: the others.
        verdicts: for each of ``others``, from the point of view of the subject: ``better``, ``worse``, ``equal``
            (as far within ``TIE_SHARE``) or ``open``, where one side earns more reward and the other is closer.
    """

    deployment: str
    reward: float
    subject: Match
    others: tuple[Match, ...]
    verdicts: tuple[str, ...]


def _measured(cell: Cell) -> Match:
    """The means of ``cell``; an anchor of which no ask rate is known never asks."""
    return Match(
        cell.anchor,
        cell.metrics["reward"].mean,
        cell.metrics[KL].mean,
        cell.mean("ask_rate") or 0.0,
        cell.mean("asks_per_episode"),
        cell.budget_nats,
        "measured",
    )


def _none(anchor: str) -> Match:
    return Match(anchor, None, None, None, None, None, "none")


def _lottery(policies: Sequence[Match], weights: Sequence[float]) -> Match:
    def mean(name: str) -> float | None:
        drawn = [(weight, getattr(one, name)) for weight, one in zip(weights, policies, strict=True) if weight > _EQUAL]
        return None if any(value is None for _, value in drawn) else sum(weight * value for weight, value in drawn)

    return Match(
        policies[0].anchor,
        mean("reward"),
        mean("kl_nats"),
        mean("ask_rate"),
        mean("asks_per_episode"),
        None,
        "lottery",
    )


def at_reward(cells: Sequence[Cell], anchor: str, reward: float) -> Match:
    """What ``anchor`` does where it earns ``reward``: a measured one of ``cells`` or a lottery of the two around it."""
    policies = sorted(map(_measured, cells), key=lambda one: (one.reward, one.kl_nats))
    if not policies:
        return _none(anchor)
    rewards = [one.reward or 0.0 for one in policies]
    if reward > rewards[-1] + _EQUAL:
        return replace(policies[-1], kind="ends below")
    if reward < rewards[0] - _EQUAL:
        return replace(policies[0], kind="starts above")
    for one, own in zip(policies, rewards, strict=True):
        if abs(own - reward) <= _EQUAL:
            return one
    above = int(np.searchsorted(rewards, reward))
    share = (reward - rewards[above - 1]) / (rewards[above] - rewards[above - 1])
    return _lottery(policies[above - 1 : above + 1], (1 - share, share))


def verdict(subject: Match, other: Match) -> str:
    """Who is closer to the demonstrator; where rewards differ, only being ahead on both counts is a win."""
    if None in (subject.reward, subject.kl_nats, other.reward, other.kl_nats):
        return "open"
    distance, theirs = float(subject.kl_nats or 0.0), float(other.kl_nats or 0.0)
    if distance == theirs or abs(distance - theirs) <= TIE_SHARE * max(distance, theirs) < float("inf"):
        order = "equal"
    else:
        order = "better" if distance < theirs else "worse"
    ahead = float(subject.reward or 0.0) - float(other.reward or 0.0)
    if abs(ahead) <= _SOLVED:
        return order
    return order if order == ("better" if ahead > 0 else "worse") else "open"


def equal_reward(grid: Grid, subject: str = "cautious-minimax") -> list[Comparison]:
    """``subject`` against the Bayesian and the other cautious anchor at each reward that it or the Bayesian earns."""
    found = []
    others = [name for name in ("bayesian", "cautious-pointwise", "cautious-minimax") if name != subject]
    others = [name for name in others if name in grid.anchors]
    for deployment in grid.deployments:
        cells = {name: _budgeted(grid, name, deployment) for name in (subject, *others)}
        if not cells[subject]:
            continue
        setters = cells[subject] + cells.get("bayesian", [])
        for reward in sorted({cell.metrics["reward"].mean for cell in setters}):
            own, *theirs = (at_reward(cells[name], name, reward) for name in cells)
            found.append(
                Comparison(deployment, reward, own, tuple(theirs), tuple(verdict(own, match) for match in theirs))
            )
    return found


def with_no_more_questions(cells: Sequence[Cell], anchor: str, reward: float, asks: float) -> Match:
    """The closest lottery of ``cells`` that earns at least ``reward`` with at most ``asks`` questions an episode.

    ``kind`` is ``none`` if there is none.
    """
    policies = [_measured(cell) for cell in cells if "asks_per_episode" in cell.metrics]
    policies = [one for one in policies if one.kl_nats is not None and math.isfinite(one.kl_nats)]
    if not policies:
        return _none(anchor)
    solved = linprog(
        [one.kl_nats for one in policies],
        A_ub=[[-(one.reward or 0.0) for one in policies], [one.asks_per_episode for one in policies]],
        b_ub=[-reward, asks],
        A_eq=[[1.0] * len(policies)],
        b_eq=[1.0],
        method="highs",
    )
    return _lottery(policies, solved.x) if solved.status == 0 else _none(anchor)


def equal_asking(grid: Grid, subject: str = "cautious-minimax") -> list[Comparison]:
    """Each measured control against ``subject`` with at least its reward and at most its questions.

    ``others`` holds the control alone; the verdict is ``open`` where ``subject`` cannot.
    """
    found = []
    for deployment in grid.deployments:
        own = _budgeted(grid, subject, deployment)
        for name in CONTROLS:
            for control in map(_measured, _budgeted(grid, name, deployment)):
                if control.reward is None or control.asks_per_episode is None or not own:
                    continue
                match = with_no_more_questions(own, subject, control.reward, control.asks_per_episode)
                found.append(Comparison(deployment, control.reward, match, (control,), (verdict(match, control),)))
    return found


def _budgeted(grid: Grid, anchor: str, deployment: str) -> list[Cell]:
    cells = grid.curve(anchor, deployment, "budget_nats", need=_NEEDED)
    return [cell for cell in cells if cell.budget_nats is not None]
