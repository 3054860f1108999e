"""``report.html``: one file with everything in it, readable without network, scripts or the paper."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cautious_imitation.atomic_files import write_text
from cautious_imitation.report import figures, wording
from cautious_imitation.report.anchors import ANCHORS, anchor_style
from cautious_imitation.report.axes import anchors_in
from cautious_imitation.report.costs import asking_by_demonstrations, asking_findings, price
from cautious_imitation.report.episodes import CHARGE_LABELS, STRIP_STEPS, read_episodes
from cautious_imitation.report.findings import (
    certificate_check,
    dearest_episode,
    finding,
    infeasible,
    promises,
    promises_by_accounting,
    where,
)
from cautious_imitation.report.grid import COLUMNS, METRICS, Grid, Row
from cautious_imitation.report.matched import TIE_SHARE, equal_asking, equal_reward
from cautious_imitation.report.svg import inline_svg

_SHARES = ("coverage", "ask_rate", "empty_reply_share")


def write_report(
    path: str | PathLike[str],
    rows: Sequence[Row],
    episodes: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> Path:
    """Write one self-contained HTML page about a comparison; the same input gives the same bytes.

    Args:
        path: file to write; it appears whole or not at all.
        rows: results, one mapping a cell and seed, with the keys of ``report.grid.COLUMNS``; None where a key has no
            meaning or no value.
        episodes: sampled episodes, each ``{anchor, budget_nats, n_demonstrations, deployment, steps}`` with steps
            ``{speaker, act, actor, charge_nats, ask_probability}``; may be empty.
        settings: whatever the reader should know about the run, printed at the end (JSON values).

    Returns:
        The path written.

    Raises:
        ValueError: if a row or an episode breaks its contract; nothing is written then.
    """
    page = render(rows, episodes, settings)
    target = Path(path)
    write_text(target, page)
    return target


def render(rows: Sequence[Row], episodes: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The page that ``write_report`` writes."""
    grid = Grid(rows)
    matched, asking = equal_reward(grid), equal_asking(grid)
    comparable = [one for one in matched if set(one.verdicts) - {"open"}]
    found = promises(grid)
    kept, checked = certificate_check(grid)
    style, script = _resource("report.css") + _colours(), _resource("report.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"nats": wording.nats, "percent": _unbroken_percent, "setting": wording.setting}
    template = environment.from_string(_resource("template.html.jinja"))
    return template.render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        anchors=ANCHORS,
        anchor_style=anchor_style,
        grid=grid,
        meanings=wording.DEPLOYMENT_MEANINGS,
        n_seeds=len({row["seed"] for row in grid.rows if row["seed"] is not None}),
        settings={key: _printed(value) for key, value in settings.items()},
        finding=finding(found),
        promises=found,
        where=where,
        price=price(grid, matched, asking),
        asking_by_demonstrations=asking_by_demonstrations(grid),
        figures=_figures(grid),
        equal_reward=comparable,
        n_incomparable=len(matched) - len(comparable),
        equal_asking=asking,
        asking_findings=asking_findings(asking),
        tie_share=TIE_SHARE,
        accountings=promises_by_accounting(grid),
        certificate_kept=kept,
        certificate_checked=checked,
        ask_rate_bins=list(zip(figures.ASK_RATE_COLOURS, figures.ASK_RATE_LABELS, strict=True)),
        episodes=read_episodes(episodes),
        strip_steps=STRIP_STEPS,
        charge_labels=CHARGE_LABELS,
        infeasible=infeasible(grid),
        n_infeasible=sum(row["status"] == "infeasible" for row in grid.rows),
        dearest=dearest_episode(grid),
        unheld=[row for row in grid.rows if row["anchor"] == "none" and row["empty_reply_share"] is not None],
        n_slack=sum(row["status"] == "slack" for row in grid.rows),
        columns=COLUMNS,
        table=[[_table_cell(row, key) for key in COLUMNS] for row in grid.rows],
        numeric={*METRICS, "n_demonstrations", "budget_nats", "horizon", "ask_price", "alpha", "seed", "seconds"},
    )


def _figures(grid: Grid) -> dict[str, tuple[list[str], list[tuple[str, Markup]]]]:
    """Each figure as the anchors it shows and a list of (deployment, SVG), one a panel."""
    drawn: dict[str, tuple[Callable[[Grid, str], Figure], str]] = {
        "headline": (figures.budget_against_distance, "Distance to the demonstrator against budget, both in nats"),
        "reward": (figures.reward_against_distance, "Reward an episode against distance to the demonstrator in nats"),
        "demonstrations": (
            figures.distance_against_demonstrations,
            "Distance to the demonstrator in nats against the number of demonstrated actions",
        ),
        "empty-budget": (figures.empty_replies, "Share of empty replies against budget in nats"),
        "empty-horizon": (
            partial(figures.empty_replies, against="horizon"),
            "Share of empty replies against the length of an episode",
        ),
    }
    found = {}
    for name, (draw, words) in drawn.items():
        shown: set[str] = set()
        panels = []
        for place, deployment in enumerate(grid.deployments):
            figure = draw(grid, deployment)
            shown |= set(anchors_in(figure))
            description = f"{words}, in the “{deployment}” deployment. The numbers are in the table of all results."
            panels.append((deployment, inline_svg(figure, f"{name}-{place}", description)))
        found[name] = ([anchor for anchor in grid.anchors if anchor in shown], panels)
    return found


def _table_cell(row: Row, key: str) -> tuple[str, str]:
    """What a table shows for a value, and what it sorts by."""
    value = row[key]
    if value is None:
        return "–", ""
    if key == "anchor":
        return anchor_style(value).label, str(list(ANCHORS).index(value))
    if isinstance(value, str):
        return value, value
    shown = wording.percent(value) if key in _SHARES else wording.nats(value) if key in METRICS else None
    return shown or wording.setting(value), repr(float(value))


def _unbroken_percent(share: float | None) -> str:
    return wording.percent(share).replace(" ", "\N{NO-BREAK SPACE}")


def _printed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _colours() -> str:
    """CSS that gives marks their colours; a strict Content-Security-Policy has no place for style attributes."""
    anchors = [f".anchor-{name} {{ --anchor: {style.colour}; }}\n" for name, style in ANCHORS.items()]
    asks = [f".ask-{place} {{ background: {colour}; }}\n" for place, colour in enumerate(figures.ASK_RATE_COLOURS)]
    return "".join(anchors + asks)


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
