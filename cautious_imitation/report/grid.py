"""Rows of a comparison put in order: checked, gathered over seeds, and cut along one setting at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from cautious_imitation.report.anchors import ANCHORS, anchor_style

Row: TypeAlias = Mapping[str, Any]

SETTINGS = ("anchor", "deployment", "n_demonstrations", "budget_nats", "horizon", "ask_price", "accounting", "alpha")
KL = "kl_demonstrator_nats"
"""The metric that everything is about: true distance to the demonstrator."""

METRICS = (
    "reward",
    "charge_nats",
    KL,
    "excess_nats",
    "free_charge_nats",
    "largest_charge_nats",
    "coverage",
    "ask_rate",
    "asks_per_episode",
    "empty_reply_share",
)
COLUMNS = (*SETTINGS, "seed", "status", *METRICS, "seconds")
STATUSES = ("optimal", "near-optimal", "slack", "infeasible")
_NUMBERS = ("n_demonstrations", "budget_nats", "horizon", "ask_price", "alpha", *METRICS, "seconds")


def check_rows(rows: Sequence[Row]) -> None:
    """Raise ``ValueError`` naming the first row that breaks the contract of ``results.json``."""
    if not rows:
        raise ValueError("rows must hold at least one result, got none; run the comparison first")
    for index, row in enumerate(rows):
        missing = [key for key in COLUMNS if key not in row]
        if missing:
            raise ValueError(
                f"rows[{index}] must have the key {missing[0]!r}, got {sorted(row)}; use None for no value"
            )
        anchor_style(row["anchor"])
        if row["status"] not in STATUSES:
            raise ValueError(f"rows[{index}] status must be one of {', '.join(STATUSES)}, got {row['status']!r}")
        for key in _NUMBERS:
            value = row[key]
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and (not numeric or math.isnan(value)):
                raise ValueError(f"rows[{index}] {key} must be a number or None, got {value!r}; use None for no value")


@dataclass(frozen=True)
class Spread:
    """One metric over the seeds of a cell."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: a setting, and each metric over its seeds (absent where no seed has a value)."""

    anchor: str
    deployment: str
    n_demonstrations: int | None
    budget_nats: float | None
    horizon: int
    ask_price: float | None
    accounting: str | None
    alpha: float | None
    metrics: Mapping[str, Spread]

    def mean(self, metric: str) -> float | None:
        """Mean of ``metric`` over seeds, None where it has no value."""
        spread = self.metrics.get(metric)
        return None if spread is None else spread.mean


def _most_common(values: Iterable[Any], prefer: Any = None) -> Any:
    """The commonest value that is not None (``prefer`` if present; the middle one among equally common)."""
    counts = Counter(value for value in values if value is not None)
    if not counts:
        return None
    if prefer in counts:
        return prefer
    top = sorted(value for value, count in counts.items() if count == max(counts.values()))
    return top[len(top) // 2]


class Grid:
    """All cells of a comparison and the one setting that figures hold fixed.

    Figures vary one setting and hold the rest at ``reference``: the value that most of the budgeted rows have. For
    accounting (``free`` first), alpha and ask price an anchor that never has the common value keeps its own.

    Args:
        rows: one mapping a result, with the keys of ``COLUMNS``.

    Raises:
        ValueError: if a row breaks the contract.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        check_rows(rows)
        self.rows = tuple(rows)
        grouped: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            grouped.setdefault(tuple(row[key] for key in SETTINGS), []).append(row)
        self.cells = tuple(_cell(key, members) for key, members in grouped.items())
        budgeted = [cell for cell in self.cells if cell.budget_nats is not None] or list(self.cells)
        self.reference: dict[str, Any] = {
            "accounting": _most_common((cell.accounting for cell in budgeted), prefer="free")
        } | {
            key: _most_common(getattr(cell, key) for cell in budgeted)
            for key in ("n_demonstrations", "horizon", "ask_price", "alpha", "budget_nats")
        }

    @cached_property
    def deployments(self) -> tuple[str, ...]:
        """Deployments in the rows: ``same`` and ``novel`` first."""
        present = {row["deployment"] for row in self.rows}
        return tuple(sorted(present, key=lambda name: ({"same": 0, "novel": 1}.get(name, 2), name)))

    @cached_property
    def anchors(self) -> tuple[str, ...]:
        """Anchors in the rows, in the order of ``ANCHORS``."""
        present = {row["anchor"] for row in self.rows}
        return tuple(name for name in ANCHORS if name in present)

    def reference_of(self, anchor: str, key: str) -> Any:
        """The value of setting ``key`` at which ``anchor`` is drawn when ``key`` does not vary."""
        own = [getattr(cell, key) for cell in self.cells if cell.anchor == anchor]
        if key in ("accounting", "alpha", "ask_price") and self.reference[key] not in own:
            return _most_common(own, prefer="free")
        return self.reference[key]

    def rows_of(self, anchor: str) -> list[Row]:
        """Rows of ``anchor`` under the accounting at which it is drawn, those without a solution left out."""
        accounting = self.reference_of(anchor, "accounting")
        return [
            row
            for row in self.rows
            if row["anchor"] == anchor and row["accounting"] == accounting and row["kl_demonstrator_nats"] is not None
        ]

    def curve(self, anchor: str, deployment: str, vary: str, need: Sequence[str] = ()) -> list[Cell]:
        """Cells of ``anchor`` along ``vary``, all other settings at the reference, in increasing order.

        Args:
            vary: the setting that changes along the curve; cells without a value for it come first.
            need: metrics without which a cell is left out.
        """
        fixed = {key: self.reference_of(anchor, key) for key in SETTINGS if key not in ("anchor", "deployment", vary)}
        chosen = [
            cell
            for cell in self.cells
            if cell.anchor == anchor
            and cell.deployment == deployment
            and all(getattr(cell, key) in (None, value) for key, value in fixed.items())
            and all(metric in cell.metrics for metric in need)
        ]
        return sorted(chosen, key=lambda cell: -1.0 if getattr(cell, vary) is None else getattr(cell, vary))


def _cell(key: tuple[Any, ...], rows: Sequence[Row]) -> Cell:
    metrics = {}
    for metric in METRICS:
        values = [float(row[metric]) for row in rows if row[metric] is not None]
        if values:
            metrics[metric] = Spread(math.fsum(values) / len(values), min(values), max(values))
    return Cell(**dict(zip(SETTINGS, key, strict=True)), metrics=metrics)
