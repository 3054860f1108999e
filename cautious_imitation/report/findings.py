"""What the rows say, in sentences: every number is counted from the rows, and a loss reads as plainly as a win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cautious_imitation.report.anchors import ANCHORS, CAUTIOUS
from cautious_imitation.report.grid import KL, Grid, Row
from cautious_imitation.report.wording import count_of, setting

TOLERANCE_NATS = 1e-5
"""A distance within this of its bound counts as kept: the solver meets budgets to about this precision."""


@dataclass(frozen=True)
class Promise:
    """How one anchor kept the promise of its budget.

    Attributes:
        anchor: name of the anchor.
        accounting: the rule by which asking was charged.
        runs: number of optimised policies that had a budget.
        over: how many of them lie farther from the demonstrator than their budget.
        worst: the row whose distance is the largest multiple of its budget, None without runs.
        certified: the row whose charge with questions free is the largest multiple of its budget, None if not known.
        ask_rate: mean share of steps on which it asked, None where nothing is known about asking.
    """

    anchor: str
    accounting: str | None
    runs: int
    over: int
    worst: Row | None
    certified: Row | None
    ask_rate: float | None

    @property
    def label(self) -> str:
        """The anchor's name for readers."""
        return ANCHORS[self.anchor].label


def _multiple_of_budget(rows: Sequence[Row], metric: str) -> Row | None:
    """The row whose ``metric`` is the largest multiple of its budget, None if no row has both."""
    held = [row for row in rows if row["budget_nats"] is not None and row[metric] is not None]
    return max(held, key=lambda row: float(row[metric]) / max(float(row["budget_nats"]), TOLERANCE_NATS), default=None)


def promise(anchor: str, rows: Sequence[Row]) -> Promise:
    """Count in ``rows`` (of one anchor and accounting) how often the budget's promise was broken."""
    held = [row for row in rows if row["budget_nats"] is not None and row["kl_demonstrator_nats"] is not None]
    asks = [row["ask_rate"] for row in held if row["ask_rate"] is not None]
    return Promise(
        anchor,
        rows[0]["accounting"] if rows else None,
        len(held),
        sum(row["kl_demonstrator_nats"] > row["budget_nats"] + TOLERANCE_NATS for row in held),
        _multiple_of_budget(held, KL),
        _multiple_of_budget(held, "free_charge_nats"),
        sum(asks) / len(asks) if asks else None,
    )


def promises(grid: Grid) -> list[Promise]:
    """The promises of the Bayesian and the cautious anchors that the rows hold, under the accounting drawn."""
    names = [name for name in ("bayesian", *CAUTIOUS) if name in grid.anchors]
    return [found for found in (promise(name, grid.rows_of(name)) for name in names) if found.runs]


def promises_by_accounting(grid: Grid) -> list[Promise]:
    """One promise for each cautious anchor and accounting; empty if there is one accounting only."""
    found = []
    for name in CAUTIOUS:
        own = [row for row in grid.rows if row["anchor"] == name]
        accountings = sorted({row["accounting"] for row in own if row["accounting"] is not None})
        if len(accountings) > 1:
            found += [promise(name, [row for row in own if row["accounting"] == rule]) for rule in accountings]
    return found


def finding(found: Sequence[Promise]) -> str:
    """The one finding: how many policies ended farther away than their budget allows."""
    if not found:
        return "No policy with a budget was found in these rows, so nothing can be said about budgets."
    parts: list[str] = []
    for names, name in ((("bayesian",), "the Bayesian imitator"), (CAUTIOUS, "a cautious imitator")):
        group = [one for one in found if one.anchor in names]
        runs, over = sum(one.runs for one in group), sum(one.over for one in group)
        if not runs:
            continue
        count = ("the only policy" if over else "no policy") if runs == 1 else count_of(over, runs)
        done = (
            "did" if parts else f"{'' if runs == 1 else 'policies '}drifted farther from the demonstrator than allowed"
        )
        parts.append(f"{'Held' if not parts else 'held'} within a budget of {name}, {count} {done}")
    return "; ".join(parts) + "."


def where(row: Row) -> str:
    """The setting of a row in a few words."""
    parts = [f"“{row['deployment']}” deployment"]
    if row["n_demonstrations"] is not None:
        parts.append(f"{setting(row['n_demonstrations'])} demonstrated actions")
    return ", ".join([*parts, f"episodes of {setting(row['horizon'])}"])


def certificate_check(grid: Grid) -> tuple[int, int]:
    """Cautious rows in all accountings whose distance is at most free charge + excess, and all that can be checked.

    The bound is on the charge that counts no question, whichever charge the budget was on.
    """
    keys = (KL, "free_charge_nats", "excess_nats")
    rows = [row for row in grid.rows if row["anchor"] in CAUTIOUS and all(row[key] is not None for key in keys)]
    kept = sum(row[KL] <= row["free_charge_nats"] + row["excess_nats"] + TOLERANCE_NATS for row in rows)
    return kept, len(rows)


def dearest_episode(grid: Grid) -> Row | None:
    """The row in which one possible episode costs the largest multiple of the budget, under the accounting drawn."""
    return _multiple_of_budget([row for name in grid.anchors for row in grid.rows_of(name)], "largest_charge_nats")


@dataclass(frozen=True)
class Infeasible:
    """Settings of one anchor and accounting that have no solution, gathered into one line.

    Attributes:
        anchor: name of the anchor.
        accounting: the rule by which asking was charged.
        cells: how many rows have no solution.
        budgets: their budgets, in nats.
        deployments: their deployments.
        least_nats: the smallest and the largest of the least budgets that would do, None where not known.
    """

    anchor: str
    accounting: str | None
    cells: int
    budgets: tuple[float, ...]
    deployments: tuple[str, ...]
    least_nats: tuple[float, float] | None


def infeasible(grid: Grid) -> list[Infeasible]:
    """The rows without a solution, a line for each anchor and accounting."""
    grouped: dict[tuple[str, str | None], list[Row]] = {}
    for row in grid.rows:
        if row["status"] == "infeasible":
            grouped.setdefault((row["anchor"], row["accounting"]), []).append(row)
    found = []
    for (anchor, accounting), rows in grouped.items():
        least = [float(row["least_charge_nats"]) for row in rows if row.get("least_charge_nats") is not None]
        found.append(
            Infeasible(
                anchor,
                accounting,
                len(rows),
                tuple(sorted({row["budget_nats"] for row in rows if row["budget_nats"] is not None})),
                tuple(name for name in grid.deployments if any(row["deployment"] == name for row in rows)),
                (min(least), max(least)) if least else None,
            )
        )
    return found
