"""Axes, marks and legends that all figures of a report share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cautious_imitation.report.anchors import ANCHORS, CONTROLS
from cautious_imitation.report.wording import setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK = "#22262b"
"""Colour of text, axes and lines that belong to no anchor; in HTML it becomes the page's own text colour."""

TEXT_POINTS = 9.5


def dress(axes: Axes) -> None:
    """Give ``axes`` the look of the report: two spines, a faint grid, one colour of ink."""
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_alpha(0.45)
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=TEXT_POINTS, length=3, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(INK)
        label.set_fontsize(TEXT_POINTS)
    axes.title.set_fontsize(TEXT_POINTS + 1)


def nats_axis(axes: Axes, name: str, values: Iterable[float]) -> tuple[float, float]:
    """Scale the axis ``name`` (``x`` or ``y``) of ``axes`` for nats from 0 to hundreds; returns its limits.

    Logarithmic from the smallest positive value on; where there is a 0, linear from there down to it. Infinite values
    count as beyond the upper limit.
    """
    finite = [value for value in values if math.isfinite(value)]
    positive = [value for value in finite if value > 0] or [1.0]
    lowest = max(min(positive), max(positive) * 1e-4)
    upper = max(positive) * 1.5
    decades = range(math.floor(math.log10(lowest)) - 1, math.ceil(math.log10(upper)) + 1)
    steps = (1, 2, 5) if upper / lowest < 2000 else (1,)
    round_numbers = [round(step * 10.0**power, 9) for power in decades for step in steps]
    threshold = max(number for number in round_numbers if number <= lowest)
    zero = any(value < threshold for value in finite)
    lower = -0.25 * threshold if zero else lowest / 1.4
    ticks = ([0.0] if zero else []) + [number for number in round_numbers if max(lower, 0.0) < number <= upper]
    if zero:
        ticks = [tick for tick in ticks if tick == 0 or tick >= threshold]
    setter, axis, limits = (
        (axes.set_xscale, axes.xaxis, axes.set_xlim) if name == "x" else (axes.set_yscale, axes.yaxis, axes.set_ylim)
    )
    if zero:
        setter("symlog", linthresh=threshold, linscale=0.35)
    else:
        setter("log")
    limits(lower, upper)
    _plain_ticks(axis, ticks)
    return lower, upper


def counts_axis(axes: Axes, values: Iterable[float]) -> None:
    """Logarithmic x axis for positive counts, with a tick at each measured value."""
    values = sorted(set(values))
    axes.set_xscale("log")
    axes.set_xlim(values[0] / 1.3, values[-1] * 1.3)
    _plain_ticks(axes.xaxis, values if len(values) <= 5 else values[:: math.ceil(len(values) / 5)])


def percent_axis(axes: Axes, values: Iterable[float]) -> None:
    """Linear y axis from 0 for shares, in per cent."""
    highest = max([value for value in values if math.isfinite(value)], default=0.0)
    axes.set_ylim(-0.03 * max(highest, 0.01), 1.1 * max(highest, 0.01))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))


def _plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: setting(value)))


def draw_curve(
    axes: Axes,
    anchor: str,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    *,
    joined: bool = True,
) -> None:
    """Draw one anchor's means as marks, joined by a line, with a thin bar from the lowest to the highest seed.

    An infinite value is drawn as an arrow head at the upper edge, joined to nothing.
    """
    style = ANCHORS[anchor]
    finite = [(place, value) for place, value in zip(x, y, strict=True) if math.isfinite(value)]
    shown_x, shown_y = [place for place, _ in finite], [value for _, value in finite]
    width = 1.0 if anchor in CONTROLS else 1.9
    if joined:
        axes.plot(shown_x, shown_y, color=style.colour, linewidth=width, zorder=3)
    draw_marks(axes, anchor, shown_x, shown_y)
    if low is not None and high is not None:
        axes.vlines(x, low, high, color=style.colour, linewidth=1.1, alpha=0.8, zorder=2)
    for place in (place for place, value in zip(x, y, strict=True) if not math.isfinite(value)):
        axes.annotate(
            "∞",
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -16),
            textcoords="offset points",
            ha="center",
            color=style.colour,
            arrowprops={"arrowstyle": "->", "color": style.colour},
        )


def draw_marks(axes: Axes, anchor: str, x: Sequence[float], y: Sequence[float], *, faint: bool = False) -> None:
    """Draw marks of one anchor, small and pale if ``faint``; their label is the anchor's name."""
    style = ANCHORS[anchor]
    larger = (1.35 if style.marker in "*XP" else 1.0) * (0.85 if anchor in CONTROLS else 1.0)
    axes.plot(
        x,
        y,
        linestyle="none",
        label=anchor,
        marker=style.marker,
        markersize=(3.6 if faint else 6.5) * larger,
        color=style.colour,
        markeredgewidth=0,
        alpha=0.45 if faint else 1.0,
        zorder=2 if faint else 4,
    )


def legend_handles(anchors: Iterable[str]) -> list[Line2D]:
    """Legend entries, one an anchor."""
    return [
        Line2D(
            [],
            [],
            color=ANCHORS[name].colour,
            marker=ANCHORS[name].marker,
            markersize=7,
            markeredgewidth=0,
            linewidth=1.7,
            label=ANCHORS[name].label,
        )
        for name in anchors
    ]


def anchors_in(figure: Figure) -> list[str]:
    """The anchors whose marks ``figure`` holds, in the order of legends."""
    labels = {artist.get_label() for axes in figure.axes for artist in axes.get_children()}
    return [name for name in ANCHORS if name in labels]
