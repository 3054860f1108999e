"""Training curves of a chat experiment: checked, and averaged over seeds update by update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cautious_imitation.report.chat_contract import (
    CHAT_ANCHORS,
    Record,
    entries,
    integer,
    number,
    optional_number,
    quantiles,
    word,
)

TRAINING_PHASES = ("ramp", "full", "longer")
"""The budget grows; it is whole; episodes are longer."""


@dataclass(frozen=True)
class Point:
    """One update: quantiles (5, 25, 50, 75, 95 %) over its episodes, means of them over seeds."""

    update: int
    phase: str
    budget_nats: float
    reward: tuple[float, ...]
    charge_nats: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """The training of the policies of one anchor and budget."""

    anchor: str
    budget_nats: float
    n_seeds: int
    points: tuple[Point, ...]


def read_curves(curves: Sequence[Record]) -> list[Curve]:
    """Check ``curves`` and average them over seeds; an update that not every seed reached counts those that did.

    Raises:
        ValueError: naming the curve, the point and the key that break the contract.
    """
    grouped: dict[tuple[str, float], dict[int, list[Point]]] = {}
    for index, record in enumerate(curves):
        where = f"curves[{index}]"
        anchor = word(record, "anchor", where, CHAT_ANCHORS)
        budget, seed = number(record, "budget_nats", where, low=0), integer(record, "seed", where)
        seeds = grouped.setdefault((anchor, budget), {})
        if seed in seeds:
            raise ValueError(f"{where} must be the only one of its anchor, budget_nats and seed, got seed {seed} twice")
        points = entries(record, "points", where)
        seeds[seed] = [_point(point, f"{where} points[{place}]") for place, point in enumerate(points)]
    ordered = sorted(grouped, key=lambda key: (CHAT_ANCHORS.index(key[0]), key[1]))
    return [Curve(*key, len(grouped[key]), _averaged(grouped[key])) for key in ordered]


def _point(record: Record, where: str) -> Point:
    for key in ("ask_rate", "empty_reply_share"):
        optional_number(record, key, where, low=0, high=1)
    for key in ("questions", "decisions"):
        integer(record, key, where, low=0)
    optional_number(record, "kl_demonstrator_nats", where, low=0)
    for key in ("price_of_a_nat", "entropy_nats"):
        optional_number(record, key, where)
    integer(record, "length", where, low=1)
    return Point(
        integer(record, "update", where, low=0),
        word(record, "phase", where, TRAINING_PHASES),
        number(record, "budget_nats", where, low=0),
        tuple(quantiles(record, "reward", where)),
        tuple(quantiles(record, "charge_nats", where)),
    )


def _averaged(seeds: dict[int, list[Point]]) -> tuple[Point, ...]:
    by_update: dict[int, list[Point]] = {}
    for seed in sorted(seeds):
        for point in seeds[seed]:
            by_update.setdefault(point.update, []).append(point)
    return tuple(
        Point(
            update,
            points[0].phase,
            _mean([point.budget_nats for point in points]),
            tuple(_mean(list(column)) for column in zip(*(point.reward for point in points), strict=True)),
            tuple(_mean(list(column)) for column in zip(*(point.charge_nats for point in points), strict=True)),
        )
        for update, points in sorted(by_update.items())
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
