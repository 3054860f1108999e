"""The rows that tell the story, as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from cautious_imitation.comparison.cells import Row
from cautious_imitation.report.findings import TOLERANCE_NATS
from cautious_imitation.report.grid import SETTINGS, Cell, Grid
from cautious_imitation.report.wording import DEPLOYMENT_MEANINGS, nats, percent, setting

WIDTH = 80
"""Columns of the narrowest terminal that the table fits."""

_EXTREMES = ("none", "always-ask")
_ORDER = (
    "bayesian",
    "cautious-pointwise",
    "cautious-minimax",
    "demonstrator",
    "bayesian-asks-max-prob",
    "bayesian-asks-count",
    "bayesian-asks-random",
)
_MAX_BUDGETS = 2


def summary_tables(rows: Sequence[Row]) -> list[Table]:
    """One table a deployment, at the setting that most rows share, asking free of charge.

    At most two budgets, those with the most anchors; in each the anchors in one fixed order, controls last. Means over
    seeds.

    Raises:
        ValueError: if a row breaks the contract of ``results.json``.
    """
    grid = Grid(rows)
    return [_table(grid, deployment) for deployment in grid.deployments]


def summary_caption(rows: Sequence[Row]) -> str:
    """What holds for all of ``summary_tables``, and how to read them; lines of at most 80 characters."""
    fixed = Grid(rows).reference
    seeds = len({row["seed"] for row in rows if row["seed"] is not None})
    return (
        f"{setting(fixed['n_demonstrations'])} demonstrated acts, episodes of {setting(fixed['horizon'])} symbols, "
        f"{setting(fixed['ask_price'])} of reward a question"
        + (f", means of {seeds} seeds" if seeds > 1 else "")
        + ".\n"
        "budget: what the anchor allowed. KL: the exact distance of what is done from the\n"
        "demonstrator; both in nats an episode. kept: whether KL is within budget.\n"
        "asks: share of decisions put to the demonstrator. empty: share of empty turns."
    )


def _table(grid: Grid, deployment: str) -> Table:
    meaning = DEPLOYMENT_MEANINGS.get(deployment)
    table = Table(
        title=f"{deployment}: {meaning}" if meaning else deployment, title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("budget", justify="right", no_wrap=True)
    table.add_column("anchor", no_wrap=True)
    for name in ("KL", "kept", "reward", "asks", "empty"):
        table.add_column(name, justify="right", no_wrap=True)
    cells = {(cell.anchor, cell.budget_nats): cell for cell in grid.cells if _shown(grid, cell, deployment)}
    for anchor in _EXTREMES:
        if (anchor, None) in cells:
            table.add_row("", *_values(cells[anchor, None]))
    for budget in _budgets(cells):
        if table.row_count:
            table.add_section()
        members = [cells[anchor, budget] for anchor in _ORDER if (anchor, budget) in cells]
        for place, cell in enumerate(members):
            table.add_row(setting(budget) if place == 0 else "", *_values(cell))
    return table


def _shown(grid: Grid, cell: Cell, deployment: str) -> bool:
    fixed = (key for key in SETTINGS if key not in ("anchor", "deployment", "budget_nats"))
    return cell.deployment == deployment and all(
        getattr(cell, key) in (None, grid.reference_of(cell.anchor, key)) for key in fixed
    )


def _budgets(cells: dict[tuple[str, float | None], Cell]) -> list[float]:
    """The budgets with the most anchors, in increasing order; of equals the smallest and the largest."""
    anchors = Counter(budget for _, budget in cells if budget is not None)
    most = sorted(budget for budget, count in anchors.items() if count == max(anchors.values()))
    return most if len(most) <= _MAX_BUDGETS else [most[0], most[-1]]


def _values(cell: Cell) -> tuple[str | Text, ...]:
    """The columns from ``anchor`` on; a dash where nothing was solved or a number has no meaning."""
    return (
        cell.anchor,
        _rounded(cell.mean("kl_demonstrator_nats")),
        _kept(cell),
        _rounded(cell.mean("reward")),
        percent(cell.mean("ask_rate")),
        percent(cell.mean("empty_reply_share")),
    )


def _kept(cell: Cell) -> Text:
    """Whether the budget held for the distance to the demonstrator, whatever the seed."""
    distance = cell.metrics.get("kl_demonstrator_nats")
    if cell.budget_nats is None or distance is None:
        return Text("–")
    kept = distance.high <= cell.budget_nats + TOLERANCE_NATS
    return Text("yes", "green") if kept else Text("no", "bold red")


def _rounded(value: float | None) -> str:
    """``nats``, with 9.99999 read as 10."""
    return nats(None if value is None else round(value, 3))
