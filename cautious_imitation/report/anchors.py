"""The anchors a report knows: a name in plain words, one colour and one marker each, the same in every figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path


@dataclass(frozen=True)
class AnchorStyle:
    """How one anchor is named and drawn.

    Attributes:
        name: the value of ``anchor`` in the rows.
        label: a short name for legends and tables.
        meaning: one sentence for a reader who never heard of it.
        colour: hexadecimal; at least 3:1 against a white and against a near-black page, and told apart from its
            neighbours under the common colour-vision deficiencies (with the marker as second cue).
        marker: matplotlib marker.
    """

    name: str
    label: str
    meaning: str
    colour: str
    marker: str

    @property
    def marker_path(self) -> str:
        """The marker's outline as SVG path data, about 2 units wide and high, y pointing down."""
        marker = MarkerStyle(self.marker)
        path = marker.get_path().transformed(marker.get_transform())
        largest = np.abs(np.asarray(path.vertices)).max()
        commands = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
        parts = []
        for vertices, code in path.iter_segments():
            pairs = (vertices / largest).reshape(-1, 2)
            closing = code == Path.CLOSEPOLY
            points = "" if closing else " ".join(f"{x:.3f} {-y:.3f}" for x, y in pairs)
            parts.append(commands[code] + points)
        return "".join(parts)


_STYLES = (
    AnchorStyle(
        "bayesian",
        "Bayesian imitator",
        "predicts the average of all explanations of the recordings, each weighted by how well it fits",
        "#d55e00",
        "s",
    ),
    AnchorStyle(
        "cautious-pointwise",
        "Cautious, pointwise",
        "gives every action the least probability that any plausible explanation gives it; asks for help with the rest",
        "#009e73",
        "^",
    ),
    AnchorStyle(
        "cautious-minimax",
        "Cautious, minimax",
        "charges the distance to the worst single plausible explanation instead, with the same guarantee",
        "#0077c8",
        "o",
    ),
    AnchorStyle("none", "No anchor", "the optimiser chases reward with nothing to hold it", "#80868e", "X"),
    AnchorStyle(
        "demonstrator",
        "Demonstrator (ideal)",
        "the ideal: the trusted policy itself in the imitator's place, if only it were known",
        "#a5790a",
        "*",
    ),
    AnchorStyle(
        "bayesian-asks-max-prob",
        "Bayesian, asks when unsure",
        "control: asks where the Bayesian imitator's likeliest action is improbable",
        "#c2559d",
        "D",
    ),
    AnchorStyle(
        "bayesian-asks-count",
        "Bayesian, asks when new",
        "control: asks where the recordings hold few examples of the situation",
        "#8c6bd1",
        "p",
    ),
    AnchorStyle(
        "bayesian-asks-random", "Bayesian, asks at random", "control: asks on the toss of a coin", "#a4613b", "v"
    ),
    AnchorStyle("always-ask", "Always asks", "control: the demonstrator does everything", "#5f7d0e", "P"),
)

ANCHORS: dict[str, AnchorStyle] = {style.name: style for style in _STYLES}
"""Every anchor that a row may name, in the order of legends and tables."""

CAUTIOUS = ("cautious-minimax", "cautious-pointwise")
CONTROLS = ("bayesian-asks-max-prob", "bayesian-asks-count", "bayesian-asks-random")


def anchor_style(name: str) -> AnchorStyle:
    """The style of anchor ``name``.

    Raises:
        ValueError: if no anchor has that name.

    >>> anchor_style("bayesian").label
    'Bayesian imitator'
    """
    if name not in ANCHORS:
        raise ValueError(f"anchor must be one of {', '.join(ANCHORS)}, got {name!r}; correct the row")
    return ANCHORS[name]
