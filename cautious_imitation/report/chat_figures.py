"""The figures of a chat report, each one panel without legend: a colour and a marker an anchor, as everywhere.

Every function takes what it draws by anchor and returns a matplotlib ``Figure``; nothing touches pyplot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from cautious_imitation.report.anchors import ANCHORS
from cautious_imitation.report.axes import INK, TEXT_POINTS, draw_marks, dress, nats_axis
from cautious_imitation.report.chat_contract import Record
from cautious_imitation.report.chat_curves import Curve, Point
from cautious_imitation.report.chat_measures import SMALLEST_NATS, Histogram, Spread
from cautious_imitation.report.chat_rows import KL

MAX_PLACES = 20
"""Empty replies or appearances beyond this one are not drawn."""

_INCHES = (3.9, 2.95)
_DASHES = (0, (4, 2.5))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PHASE_WORDS = {"ramp": "budget grows", "full": "full budget", "longer": "longer"}


def charges(histograms: Mapping[str, Histogram]) -> Figure:
    """Share of decisions by their charge; the mark at the left is the share that is charged nothing."""
    figure, axes = _panel()
    bins = [
        (low, high)
        for one in histograms.values()
        for low, high, share in zip(one.edges, one.edges[1:], one.shares, strict=False)
        if share
    ]
    lowest = min([low for low, _ in bins], default=0.1)
    highest = max([high for _, high in bins], default=1.0)
    zero = lowest / 4
    for anchor, one in reversed(list(histograms.items())):
        kept = [place for place, low in enumerate(one.edges[:-1]) if lowest * 0.99 <= low < highest]
        edges = [one.edges[place] for place in [*kept, kept[-1] + 1]] if kept else [lowest, highest]
        shares = [one.shares[place] for place in kept] or [0.0]
        axes.stairs(shares, edges, color=ANCHORS[anchor].colour, linewidth=1.7, zorder=3)
        draw_marks(axes, anchor, [zero], [one.nothing])
    axes.set_xscale("log")
    axes.set_xlim(zero / 2, highest * 1.2)
    decades = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    ticks = [10.0**power for power in decades if lowest * 0.99 <= 10.0**power <= highest * 1.01]
    axes.xaxis.set_major_locator(FixedLocator([zero, *ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if x < lowest * 0.99 else _power(x)))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_xlabel(f"charge of a decision (nats; 0: below {_power(SMALLEST_NATS)})")
    axes.set_ylabel("share of decisions")
    dress(axes)
    return figure


def training(curve: Curve, beside: Sequence[Curve]) -> Figure:
    """Quantiles of charge and reward over the updates of ``curve``, on the scales that ``beside`` needs too."""
    figure = Figure(figsize=(_INCHES[0], 4.4), layout="constrained")
    charge = figure.add_subplot(2, 1, 1)
    reward = figure.add_subplot(2, 1, 2, sharex=charge)
    style = ANCHORS[curve.anchor]
    updates = [point.update for point in curve.points]
    for axes, key, name in ((charge, "charge_nats", "charge (nats)"), (reward, "reward", "reward")):
        values = np.array([getattr(point, key) for point in curve.points])
        for low, high, alpha in ((0, 4, 0.18), (1, 3, 0.32)):
            axes.fill_between(updates, values[:, low], values[:, high], color=style.colour, alpha=alpha, linewidth=0)
        axes.plot(updates, values[:, 2], color=style.colour, linewidth=1.8, label=curve.anchor)
        drawn = [value for other in beside for point in other.points for value in getattr(point, key)]
        if key == "charge_nats":
            drawn += [point.budget_nats for other in beside for point in other.points]
        margin = 0.05 * (max(drawn) - min(drawn)) or 0.5
        axes.set_ylim(min(drawn) - margin, max(drawn) + margin)
        axes.set_ylabel(name)
    budgets = [point.budget_nats for point in curve.points]
    charge.plot(updates, budgets, color=INK, linewidth=1.3, linestyle=_DASHES)
    for number, place in enumerate(_phase_starts(curve.points)):
        for axes in (charge, reward):
            axes.axvline(curve.points[place].update, color=INK, alpha=0.35, linewidth=0.9)
        # Phases may be short, and their names are not: neighbours stand at two heights.
        charge.annotate(
            _PHASE_WORDS[curve.points[place].phase],
            (curve.points[place].update, 1.0),
            (2, 3 + (number % 2) * TEXT_POINTS),
            ("data", "axes fraction"),
            textcoords="offset points",
            size=TEXT_POINTS - 1,
            color=INK,
            annotation_clip=False,
        )
    reward.set_xlabel("update")
    reward.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in (charge, reward):
        dress(axes)
    charge.tick_params(labelbottom=False)
    return figure


def costs_by_place(spreads: Mapping[str, Sequence[Spread]], what: str) -> Figure:
    """Median and quartiles of a cost for the first, second, ... of ``what``; single values where there are few."""
    figure, axes = _panel()
    shown = {anchor: [one for one in given if one.at <= MAX_PLACES] for anchor, given in spreads.items()}
    nats_axis(axes, "y", [value for given in shown.values() for one in given for value in _drawn(one)])
    limits = axes.get_ylim()
    for number, (anchor, given) in enumerate(shown.items()):
        shift = 0.16 * (number - (len(shown) - 1) / 2)
        with_quartiles = [(one.at + shift, one.quartiles) for one in given if one.quartiles is not None]
        places, medians = [place for place, _ in with_quartiles], [found[1] for _, found in with_quartiles]
        colour = ANCHORS[anchor].colour
        axes.plot(places, medians, color=colour, linewidth=1.4, zorder=3)
        draw_marks(axes, anchor, places, medians)
        axes.vlines(
            places,
            [found[0] for _, found in with_quartiles],
            [found[2] for _, found in with_quartiles],
            color=colour,
            linewidth=1.3,
            zorder=2,
        )
        few = [(one.at + shift, value) for one in given if one.quartiles is None for value in one.values]
        draw_marks(axes, anchor, [place for place, _ in few], [value for _, value in few], faint=True)
    axes.set_ylim(limits)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(0.4, max([one.at for given in shown.values() for one in given], default=1) + 0.6)
    axes.set_xlabel(what)
    axes.set_ylabel("charge (nats)")
    dress(axes)
    return figure


def _drawn(spread: Spread) -> Sequence[float]:
    return spread.values if spread.quartiles is None else spread.quartiles


def empty_shares(shares: Mapping[str, Sequence[float]]) -> Figure:
    """Share of episodes in which at least a given share of the replies is empty."""
    figure, axes = _panel()
    for anchor, given in reversed(list(shares.items())):
        values = np.sort(np.asarray(given))
        places = np.unique(np.concatenate([values, [1.0]]))
        at_least = [float(np.mean(values >= place - 1e-9)) for place in places]
        axes.stairs(
            at_least,
            np.concatenate([[0.0], places]),
            color=ANCHORS[anchor].colour,
            linewidth=1.8,
            zorder=3,
            baseline=None,
        )
        draw_marks(axes, anchor, [float(np.mean(values))], [float(np.mean(values >= np.mean(values) - 1e-9))])
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.05)
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_xlabel("empty replies of an episode, at least")
    axes.set_ylabel("share of episodes")
    dress(axes)
    return figure


def certificates(rows: Sequence[Record], budget_nats: float) -> Figure:
    """Distance to the demonstrator against the charge, with the line on which they are equal and the budget."""
    figure, axes = _panel()
    distances = [float(row[KL]) for row in rows]
    bars = [_error_bar(row) for row in rows]
    _, right = nats_axis(axes, "x", [*(float(row["charge_nats"]) for row in rows), budget_nats])
    _, top = nats_axis(axes, "y", [*distances, budget_nats, *(high for _, high in bars)])
    limits = axes.get_xlim(), axes.get_ylim()
    line = np.unique(np.concatenate([[0.0], np.geomspace(1e-6, max(right, top), 200)]))
    axes.plot(line, line, color=INK, linewidth=1.2, linestyle=_DASHES, zorder=1)
    axes.axhspan(budget_nats, top, color=INK, alpha=0.07, linewidth=0, zorder=0)
    axes.axhline(budget_nats, color=INK, linewidth=1.2, zorder=1)
    axes.annotate(
        "budget",
        (0.02, budget_nats),
        (0, 3),
        ("axes fraction", "data"),
        textcoords="offset points",
        color=INK,
        size=TEXT_POINTS - 0.5,
        style="italic",
    )
    for row, (low, high) in zip(rows, bars, strict=True):
        axes.vlines(
            row["charge_nats"], low, high, color=ANCHORS[row["anchor"]].colour, linewidth=1.1, alpha=0.8, zorder=2
        )
        draw_marks(axes, row["anchor"], [row["charge_nats"]], [row[KL]])
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    axes.set_xlabel("charge (nats an episode)")
    axes.set_ylabel("distance to the demonstrator (nats)")
    dress(axes)
    return figure


def _error_bar(row: Record) -> tuple[float, float]:
    """Two standard errors either way; a distance is never negative."""
    error = 2.0 * (row["kl_demonstrator_se"] or 0.0)
    return max(0.0, row[KL] - error), row[KL] + error


def _phase_starts(points: Sequence[Point]) -> list[int]:
    return [place for place, point in enumerate(points) if not place or point.phase != points[place - 1].phase]


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_INCHES, layout="constrained")
    return figure, figure.add_subplot()


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    return f"{value:g}" if -3 < exponent < 4 else f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def _percent(share: float, _: int) -> str:
    return f"{100 * share:.3g} %"
