"""The figures of a report, each a matplotlib ``Figure`` made from plain rows.

Every function takes rows (or a ``Grid``) and ``deployment``: None draws one panel a deployment side by side with a
legend, as for a README; a name draws that panel alone, without legend. Colours and markers are those of
``report.anchors``. Nothing touches pyplot or its global state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cautious_imitation.report.anchors import ANCHORS
from cautious_imitation.report.axes import (
    INK,
    TEXT_POINTS,
    counts_axis,
    draw_curve,
    draw_marks,
    dress,
    legend_handles,
    nats_axis,
    percent_axis,
)
from cautious_imitation.report.grid import KL, Cell, Grid, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows: TypeAlias = Grid | Sequence[Row]
Curves: TypeAlias = dict[tuple[str, str], list[Cell]]
"""Cells by anchor and deployment."""

_PANEL_INCHES = (4.6, 3.45)

ASK_RATE_BINS = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)
ASK_RATE_LABELS = ("under 1 %", "1–5 %", "5–20 %", "20–50 %", "50 % or more")
ASK_RATE_COLOURS = tuple(to_hex(colormaps["cividis"](place)) for place in (0.0, 0.3, 0.52, 0.76, 1.0))


def ask_rate_colour(ask_rate: float) -> str:
    """The colour that stands for a share of steps asked."""
    return ASK_RATE_COLOURS[min(int(np.searchsorted(ASK_RATE_BINS, ask_rate, side="right")) - 1, 4)]


def headline(rows: Rows) -> Figure:
    """The one figure that tells the story: what the budget promised against the distance that was reached.

    Example:
        ``headline(rows).savefig("headline.png", dpi=160)``
    """
    return budget_against_distance(rows)


def budget_against_distance(rows: Rows, deployment: str | None = None) -> Figure:
    """Distance to the demonstrator against the budget, with the line on which the two are equal.

    Small pale marks are the same anchors with other numbers of demonstrations.

    Args:
        rows: rows of a comparison, or their ``Grid``.
        deployment: one deployment, or None for all.
    """
    grid = _grid(rows)
    curves = _curves(grid, "budget_nats", (KL,), budgeted=True)
    aside = [cell for cell in grid.cells if cell.budget_nats is not None and KL in cell.metrics and _pale(grid, cell)]
    shown = [cell for curve in curves.values() for cell in curve] + aside
    budgets = [float(cell.budget_nats or 0.0) for cell in shown]
    distances = [value for cell in shown for value in (cell.metrics[KL].low, cell.metrics[KL].high)]

    def draw(axes: Axes, where: str) -> None:
        lower, upper = nats_axis(axes, "x", budgets)
        bottom, top = nats_axis(axes, "y", [*distances, *budgets])
        line = np.unique(np.concatenate([np.linspace(max(lower, 0.0), 1.0, 50), np.geomspace(1e-3, upper, 100)]))
        line = line[(line >= max(lower, 0.0)) & (line <= upper)]
        axes.fill_between(line, line, top, color=INK, alpha=0.07, linewidth=0, zorder=0)
        axes.plot(line, line, color=INK, linewidth=1.4, linestyle=(0, (4, 2.5)), zorder=1)
        for words, place, vertical in (("farther than promised", 0.97, "top"), ("promise kept", 0.04, "bottom")):
            side = "left" if vertical == "top" else "right"
            axes.text(
                0.03 if side == "left" else 0.97,
                place,
                words,
                transform=axes.transAxes,
                ha=side,
                va=vertical,
                color=INK,
                size=TEXT_POINTS,
                style="italic",
                alpha=0.85,
            )
        axes.set_xlabel("budget: distance promised (nats an episode)")
        axes.set_ylabel("true distance to the demonstrator (nats)")
        for cell in aside:
            if cell.deployment == where:
                draw_marks(axes, cell.anchor, [float(cell.budget_nats or 0.0)], [cell.metrics[KL].mean], faint=True)
        _draw_curves(axes, curves, where, "budget_nats", KL)
        axes.set_ylim(bottom, top)

    return _panels(grid, draw, deployment, curves)


def reward_against_distance(rows: Rows, deployment: str | None = None) -> Figure:
    """Reward against distance to the demonstrator, all anchors, filled with a colour for the share of steps asked."""
    grid = _grid(rows)
    curves = _curves(grid, "budget_nats", (KL, "reward"))
    shown = [cell for curve in curves.values() for cell in curve]
    distances = [cell.metrics[KL].mean for cell in shown]

    def draw(axes: Axes, where: str) -> None:
        _, right = nats_axis(axes, "x", distances)
        axes.set_xlabel("true distance to the demonstrator (nats)")
        axes.set_ylabel("reward an episode")
        for (anchor, at), cells in reversed(curves.items()):
            if at != where:
                continue
            style = ANCHORS[anchor]
            # An infinite distance has no place on the axis: its mark sits on the right edge.
            x = [min(cell.metrics[KL].mean, right) for cell in cells]
            y = [cell.metrics["reward"].mean for cell in cells]
            axes.plot(x, y, color=style.colour, linewidth=1.2, alpha=0.7, zorder=2)
            axes.scatter(
                x,
                y,
                s=150 if style.marker == "*" else 95 if style.marker in "XP" else 52,
                marker=style.marker,
                c=[ask_rate_colour(cell.mean("ask_rate") or 0.0) for cell in cells],
                edgecolors=style.colour,
                linewidths=1.7,
                zorder=5 if style.marker == "*" else 4,
                clip_on=False,
            )
        axes.margins(y=0.1)
        axes.annotate(
            "better",
            (0.02, 0.985),
            xytext=(26, -22),
            xycoords="axes fraction",
            textcoords="offset points",
            color=INK,
            size=TEXT_POINTS,
            style="italic",
            arrowprops={"arrowstyle": "->", "color": INK, "alpha": 0.7},
        )
        rewards = [cell.metrics["reward"].mean for cell in shown]
        margin = 0.1 * (max(rewards, default=1.0) - min(rewards, default=0.0)) or 0.1
        axes.set_ylim(min(rewards, default=0.0) - margin, max(rewards, default=1.0) + margin)

    extra = [
        Line2D([], [], linestyle="none", marker="o", markersize=7, color=colour, label=f"asks {label}")
        for colour, label in zip(ASK_RATE_COLOURS, ASK_RATE_LABELS, strict=True)
    ]
    return _panels(grid, draw, deployment, curves, extra)


def distance_against_demonstrations(rows: Rows, deployment: str | None = None) -> Figure:
    """Distance to the demonstrator against the number of demonstrated actions, with the budget as a line."""
    grid = _grid(rows)
    curves = _curves(grid, "n_demonstrations", (KL,), budgeted=True)
    shown = [cell for curve in curves.values() for cell in curve if cell.n_demonstrations]
    budget = grid.reference["budget_nats"]
    distances = [value for cell in shown for value in (cell.metrics[KL].low, cell.metrics[KL].high)]

    def draw(axes: Axes, where: str) -> None:
        counts_axis(axes, [cell.n_demonstrations or 1 for cell in shown])
        nats_axis(axes, "y", distances + ([] if budget is None else [budget]))
        axes.set_xlabel("demonstrated actions")
        axes.set_ylabel("true distance to the demonstrator (nats)")
        if budget is not None:
            axes.axhline(budget, color=INK, linewidth=1.4, linestyle=(0, (4, 2.5)), zorder=1)
            axes.annotate(
                "budget",
                (1.0, budget),
                xytext=(-2, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                color=INK,
                size=TEXT_POINTS,
                style="italic",
            )
        _draw_curves(axes, curves, where, "n_demonstrations", KL)

    return _panels(grid, draw, deployment, curves)


def empty_replies(rows: Rows, deployment: str | None = None, *, against: str = "budget_nats") -> Figure:
    """Share of the agent's replies that say nothing, against the budget or the length of an episode.

    Args:
        rows: rows of a comparison, or their ``Grid``.
        deployment: one deployment, or None for all.
        against: ``"budget_nats"`` or ``"horizon"``.

    Raises:
        ValueError: if ``against`` is something else.
    """
    if against not in ("budget_nats", "horizon"):
        raise ValueError(f"against must be 'budget_nats' or 'horizon', got {against!r}")
    grid = _grid(rows)
    curves = _curves(grid, against, ("empty_reply_share",), budgeted=against == "budget_nats")
    shown = [cell for curve in curves.values() for cell in curve]

    def draw(axes: Axes, where: str) -> None:
        places = [float(getattr(cell, against) or 0.0) for cell in shown]
        if against == "budget_nats":
            nats_axis(axes, "x", places)
            axes.set_xlabel("budget (nats an episode)")
        else:
            counts_axis(axes, places)
            axes.set_xlabel("length of an episode")
        percent_axis(axes, [cell.metrics["empty_reply_share"].high for cell in shown])
        axes.set_ylabel("replies that are empty")
        _draw_curves(axes, curves, where, against, "empty_reply_share")

    return _panels(grid, draw, deployment, curves)


def _grid(rows: Rows) -> Grid:
    return rows if isinstance(rows, Grid) else Grid(rows)


def _curves(grid: Grid, vary: str, need: Sequence[str], *, budgeted: bool = False) -> Curves:
    """Cells along ``vary`` for each anchor and deployment that has any; ``budgeted`` keeps those with a budget."""
    curves: Curves = {}
    for anchor in grid.anchors:
        for deployment in grid.deployments:
            cells = grid.curve(anchor, deployment, vary, need)
            cells = [cell for cell in cells if not budgeted or cell.budget_nats is not None]
            cells = [cell for cell in cells if vary == "budget_nats" or getattr(cell, vary) is not None]
            if cells:
                curves[anchor, deployment] = cells
    return curves


def _pale(grid: Grid, cell: Cell) -> bool:
    """Whether ``cell`` differs from the cells drawn in full in its number of demonstrations only."""
    keys = ("horizon", "ask_price", "accounting", "alpha")
    others = (getattr(cell, key) in (None, grid.reference_of(cell.anchor, key)) for key in keys)
    return cell.n_demonstrations not in (None, grid.reference["n_demonstrations"]) and all(others)


def _draw_curves(axes: Axes, curves: Curves, where: str, vary: str, metric: str) -> None:
    for (anchor, deployment), cells in reversed(curves.items()):  # the main anchors on top
        if deployment == where:
            spreads = [cell.metrics[metric] for cell in cells]
            draw_curve(
                axes,
                anchor,
                [float(getattr(cell, vary)) for cell in cells],
                [spread.mean for spread in spreads],
                [spread.low for spread in spreads],
                [spread.high for spread in spreads],
            )


def _panels(
    grid: Grid,
    draw: Callable[[Axes, str], None],
    deployment: str | None,
    curves: Curves,
    extra: Sequence[Line2D] = (),
) -> Figure:
    """One panel for ``deployment``, or all panels with titles and a legend."""
    if deployment is not None and deployment not in grid.deployments:
        raise ValueError(f"deployment must be one of {', '.join(grid.deployments)}, got {deployment!r}")
    shown = grid.deployments if deployment is None else (deployment,)
    anchors = [name for name in grid.anchors if any(name == anchor for anchor, _ in curves)]
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(shown), height + (0.55 if deployment is None else 0.0)), layout="constrained")
    figure.set_facecolor("white")
    for column, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), column + 1)
        if any(name == where for _, where in curves):
            draw(axes, name)
        else:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "no results to draw", transform=axes.transAxes, ha="center", color=INK)
        if deployment is None:
            axes.set_title(f"“{name}” deployment", loc="left")
        dress(axes)
    if deployment is None and anchors:
        figure.legend(
            handles=[*legend_handles(anchors), *extra],
            loc="outside lower center",
            ncols=min(len(anchors) + len(extra), 3),
            frameon=False,
            labelcolor=INK,
            fontsize=TEXT_POINTS,
        )
    return figure
