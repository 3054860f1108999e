"""The figures of a report, each a matplotlib ``Figure`` made from plain rows.

Every function takes rows (or a ``Grid``) and ``deployment``: None draws one panel a deployment side by side with a
legend, as for a README; a name draws that panel alone, without legend. Colours and markers are those of
``report.anchors``. Nothing touches pyplot or its global state.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cautious_imitation.report.anchors import ANCHORS, CAUTIOUS, CONTROLS
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
from cautious_imitation.report.findings import TOLERANCE_NATS
from cautious_imitation.report.grid import KL, Cell, Grid, Row
from cautious_imitation.report.wording import DEPLOYMENT_MEANINGS, nats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows: TypeAlias = Grid | Sequence[Row]
Curves: TypeAlias = dict[tuple[str, str], list[Cell]]
"""Cells by anchor and deployment."""

_PANEL_INCHES = (4.6, 3.45)
_DASHES = (0, (4, 2.5))

ASK_RATE_BINS = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)
ASK_RATE_LABELS = ("under 1 %", "1–5 %", "5–20 %", "20–50 %", "50 % or more")
ASK_RATE_COLOURS = tuple(to_hex(colormaps["YlGnBu"](place)) for place in (0.0, 0.25, 0.5, 0.75, 1.0))


def ask_rate_colour(ask_rate: float) -> str:
    """The colour that stands for a share of steps asked."""
    return ASK_RATE_COLOURS[min(int(np.searchsorted(ASK_RATE_BINS, ask_rate, side="right")) - 1, 4)]


def headline(rows: Rows) -> Figure:
    """The one figure that tells the story: what the budget promised against the distance that was reached.

    It has a title and stands alone. Its anchors are the Bayesian and the cautious imitators, if there are any.

    Example:
        ``headline(rows).savefig("headline.png", dpi=200)``
    """
    grid = _grid(rows)
    curves = _curves(grid, "budget_nats", (KL,), budgeted=True)
    main = {key: cells for key, cells in curves.items() if key[0] in ("bayesian", *CAUTIOUS)}
    curves = main or curves
    budgets = [float(cell.budget_nats or 0.0) for curve in curves.values() for cell in curve]
    distances = [value for curve in curves.values() for cell in curve for value in _range(cell, KL)]

    def draw(axes: Axes, where: str) -> None:
        _draw_promise(axes, budgets, distances)
        axes.set_xlabel("budget: distance promised (nats an episode)")
        first = where == grid.deployments[0]
        axes.set_ylabel("true distance from the demonstrator (nats)" if first else "")
        limits = axes.get_ylim()
        _draw_curves(axes, curves, where, "budget_nats", KL)
        axes.set_ylim(limits)

    labels = {}
    for name in dict.fromkeys(anchor for anchor, _ in curves):
        cells = [cell for (anchor, _), curve in curves.items() if anchor == name for cell in curve]
        over = sum(cell.metrics[KL].mean > float(cell.budget_nats or 0.0) + TOLERANCE_NATS for cell in cells)
        label = ANCHORS[name].label
        labels[label] = f"{label}: {over} of {len(cells)} farther than promised"
    line = Line2D([], [], color=INK, linewidth=1.4, linestyle=_DASHES, label="distance = budget, the promise (y = x)")
    figure = _panels(grid, draw, None, curves, [line], columns=len(grid.deployments))
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + 0.35)
    for text in figure.legends[0].get_texts() if figure.legends else ():
        text.set_text(labels.get(text.get_text(), text.get_text()))
    words = "Does a budget against an imitator keep a policy near the demonstrator?"
    figure.suptitle(
        textwrap.fill(words, 42 * len(grid.deployments)),
        x=0.01,
        ha="left",
        color=INK,
        fontsize=TEXT_POINTS + 3.5,
        fontweight="bold",
    )
    return figure


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
    distances = [value for cell in shown for value in _range(cell, KL)]

    def draw(axes: Axes, where: str) -> None:
        _draw_promise(axes, budgets, distances)
        limits = axes.get_ylim()
        axes.set_xlabel("budget: distance promised (nats an episode)")
        axes.set_ylabel("true distance from the demonstrator (nats)")
        for cell in aside:
            if cell.deployment == where:
                draw_marks(axes, cell.anchor, [float(cell.budget_nats or 0.0)], [cell.metrics[KL].mean], faint=True)
        _draw_curves(axes, curves, where, "budget_nats", KL, unjoined=("demonstrator", *CONTROLS))
        axes.set_ylim(limits)

    return _panels(grid, draw, deployment, curves)


def _draw_promise(axes: Axes, budgets: Sequence[float], distances: Sequence[float]) -> None:
    """Scale ``axes`` for ``distances`` against ``budgets`` and draw the line on which they are equal."""
    lower, upper = nats_axis(axes, "x", budgets)
    _, top = nats_axis(axes, "y", [*distances, *budgets])
    line = np.unique(np.concatenate([np.linspace(max(lower, 0.0), 1.0, 50), np.geomspace(1e-3, upper, 100)]))
    line = line[(line >= max(lower, 0.0)) & (line <= upper)]
    axes.fill_between(line, line, top, color=INK, alpha=0.07, linewidth=0, zorder=0)
    axes.plot(line, line, color=INK, linewidth=1.4, linestyle=_DASHES, zorder=1)
    for words, x, y, across, up in (
        ("farther than promised", 0.03, 0.97, "left", "top"),
        ("promise kept", 0.97, 0.04, "right", "bottom"),
    ):
        axes.text(x, y, words, transform=axes.transAxes, ha=across, va=up, color=INK, size=TEXT_POINTS, style="italic")


def reward_against_distance(rows: Rows, deployment: str | None = None) -> Figure:
    """Reward against distance to the demonstrator, all anchors, filled with a colour for the share of steps asked.

    The policy of no anchor usually lies so far away that the rest would shrink to a blot: it is then drawn on the edge
    with its numbers beside it.
    """
    grid = _grid(rows)
    curves = _curves(grid, "budget_nats", (KL, "reward"))
    held = {key: cells for key, cells in curves.items() if key[0] != "none"} or curves
    distances = [cell.metrics[KL].mean for curve in held.values() for cell in curve]

    def draw(axes: Axes, where: str) -> None:
        _, right = nats_axis(axes, "x", distances)
        here = [cell.metrics["reward"].mean for (_, at), curve in held.items() if at == where for cell in curve]
        rewards = here or [cell.metrics["reward"].mean for curve in curves.values() for cell in curve]
        margin = 0.1 * (max(rewards) - min(rewards)) or 0.1
        top = max(rewards) + 2 * margin
        axes.set_ylim(min(rewards) - margin, top)
        axes.set_xlabel("true distance from the demonstrator (nats)")
        axes.set_ylabel("reward an episode")
        for (anchor, at), cells in reversed(curves.items()):
            if at != where:
                continue
            style = ANCHORS[anchor]
            x = [min(cell.metrics[KL].mean, right) for cell in cells]
            y = [min(cell.metrics["reward"].mean, top) for cell in cells]
            axes.plot(x, y, color=style.colour, linewidth=1.2, alpha=0.7, zorder=2)
            axes.scatter(
                x,
                y,
                s=120 if style.marker == "*" else 80 if style.marker in "XP" else 46,
                marker=style.marker,
                label=anchor,
                c=[ask_rate_colour(cell.mean("ask_rate") or 0.0) for cell in cells],
                edgecolors=style.colour,
                linewidths=1.7,
                zorder=5 if style.marker == "*" else 4,
                clip_on=False,
            )
            for cell, to_x, to_y in zip(cells, x, y, strict=True):
                distance, reward = cell.metrics[KL].mean, cell.metrics["reward"].mean
                if distance > right or reward > top:
                    axes.annotate(
                        f"{style.label.lower()}, off the scale:\n{nats(distance)} nats, reward {nats(reward)}",
                        (to_x, to_y),
                        xytext=(-9, -3),
                        textcoords="offset points",
                        ha="right",
                        va="top",
                        color=INK,
                        size=TEXT_POINTS - 1,
                    )
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

    extra = [
        Line2D(
            [], [], linestyle="none", marker="o", markersize=7, color=colour, markeredgecolor=INK, label=f"asks {label}"
        )
        for colour, label in zip(ASK_RATE_COLOURS, ASK_RATE_LABELS, strict=True)
    ]
    return _panels(grid, draw, deployment, curves, extra)


def distance_against_demonstrations(rows: Rows, deployment: str | None = None) -> Figure:
    """Distance to the demonstrator against the number of demonstrated actions, with the budget as a line."""
    grid = _grid(rows)
    curves = _curves(grid, "n_demonstrations", (KL,), budgeted=True)
    several = {key: cells for key, cells in curves.items() if len(cells) > 1}
    curves = several or curves
    shown = [cell for curve in curves.values() for cell in curve]
    budget = grid.reference["budget_nats"]
    distances = [value for cell in shown for value in _range(cell, KL)]

    def draw(axes: Axes, where: str) -> None:
        counts_axis(axes, [cell.n_demonstrations or 1 for cell in shown])
        nats_axis(axes, "y", distances + ([] if budget is None else [budget]))
        axes.set_xlabel("demonstrated actions")
        axes.set_ylabel("true distance from the demonstrator (nats)")
        if budget is not None:
            axes.axhline(budget, color=INK, linewidth=1.4, linestyle=_DASHES, zorder=1)
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
    curves = _curves(grid, against, ("empty_reply_share",), budgeted=True)
    several = {key: cells for key, cells in curves.items() if len(cells) > 1}
    curves = several or curves
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


def _range(cell: Cell, metric: str) -> tuple[float, float]:
    return cell.metrics[metric].low, cell.metrics[metric].high


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


def _draw_curves(
    axes: Axes, curves: Curves, where: str, vary: str, metric: str, *, unjoined: Sequence[str] = ()
) -> None:
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
                joined=anchor not in unjoined,
            )


def _panels(
    grid: Grid,
    draw: Callable[[Axes, str], None],
    deployment: str | None,
    curves: Curves,
    extra: Sequence[Line2D] = (),
    columns: int | None = None,
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
            meaning = f": {DEPLOYMENT_MEANINGS[name]}" if name in DEPLOYMENT_MEANINGS else ""
            axes.set_title(f"“{name}” deployment{meaning}", loc="left", color=INK, fontsize=TEXT_POINTS)
        dress(axes)
    if deployment is None and anchors:
        figure.legend(
            handles=[*legend_handles(anchors), *extra],
            loc="outside lower center",
            ncols=columns or min(len(anchors) + len(extra), 2 * len(shown)),
            frameon=False,
            labelcolor=INK,
            fontsize=TEXT_POINTS,
        )
    return figure
