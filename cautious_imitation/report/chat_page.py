"""``report.html`` of a chat experiment: one file with everything in it, drawn from the files of the run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cautious_imitation.atomic_files import write_text
from cautious_imitation.report import wording
from cautious_imitation.report.anchors import ANCHORS
from cautious_imitation.report.chat_contract import CHAT_ANCHORS, PHASES, Record
from cautious_imitation.report.chat_curves import read_curves
from cautious_imitation.report.chat_episodes import read_chat_episodes
from cautious_imitation.report.chat_findings import VERDICTS, findings, headline
from cautious_imitation.report.chat_judgements import QUESTIONS, read_verdicts, shown_first_preferred, tallies
from cautious_imitation.report.chat_matched import ASK_RATE_APART, kept, lengthened, pairs_asking_alike, per_decision
from cautious_imitation.report.chat_measures import MIN_APPEARANCES, MIN_QUARTILES
from cautious_imitation.report.chat_panels import PANELS_FROM, Panels
from cautious_imitation.report.chat_rows import COLUMNS, KL, check_chat_rows, gather
from cautious_imitation.report.chat_shares import share_text
from cautious_imitation.report.chat_transcripts import SHADE_LABELS, common_budget, select
from cautious_imitation.report.page import _colours, _hash, _printed, _resource

_SHARES = ("ask_rate", "empty_reply_share", "empty_reply_low", "empty_reply_high")
_COUNTS = ("seed", "length", "episodes", "decisions", "asks", "replies", "empty_replies", "updates", "budget_nats")


def write_chat_report(
    path: str | PathLike[str],
    rows: Sequence[Record],
    curves: Sequence[Record],
    transcripts: Sequence[Record],
    judgements: Sequence[Record] | None,
    settings: Mapping[str, Any],
) -> Path:
    """Write one self-contained HTML page about a chat experiment; the same input gives the same bytes.

    Args:
        path: file to write; it appears whole or not at all.
        rows: ``rows`` of ``results.json``, one a policy that was evaluated, with the keys of ``chat_rows.COLUMNS``.
        curves: ``curves`` of ``curves.json``; may be empty.
        transcripts: ``transcripts`` of ``transcripts.json``; may be empty.
        judgements: ``verdicts`` of ``judgements.json``; None or empty if nothing was judged.
        settings: whatever the reader should know about the run, printed at the end (JSON values).

    Returns:
        The path written.

    Raises:
        ValueError: naming the record and the key that break the contract; nothing is written then.
    """
    page = render_chat(rows, curves, transcripts, judgements, settings)
    target = Path(path)
    write_text(target, page)
    return target


def render_chat(
    rows: Sequence[Record],
    curves: Sequence[Record],
    transcripts: Sequence[Record],
    judgements: Sequence[Record] | None,
    settings: Mapping[str, Any],
) -> str:
    """The page that ``write_chat_report`` writes."""
    check_chat_rows(rows)
    training, episodes, verdicts = read_curves(curves), read_chat_episodes(transcripts), read_verdicts(judgements or ())
    policies, pairs = gather(rows), pairs_asking_alike(rows)
    trained = [one for one in episodes if one.phase == PANELS_FROM]
    budget = common_budget(trained)
    shown = [one for one in trained if one.budget_nats == budget]
    # Episodes of several lengths cannot be set side by side; the shortest are those that the policies were trained on.
    shown = [one for one in shown if one.length == min(other.length for other in shown)]
    panels = Panels(rows, training, trained, budget)
    style, script = _resource("report.css") + _resource("chat.css") + _colours(), _resource("report.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"nats": wording.nats, "percent": _percent, "setting": wording.setting, "fine": _fine}
    ordered = sorted(rows, key=lambda row: (CHAT_ANCHORS.index(row["anchor"]), row["budget_nats"], row["seed"]))
    return environment.from_string(_resource("chat.html.jinja")).render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        anchors=ANCHORS,
        present=[name for name in CHAT_ANCHORS if any(row["anchor"] == name for row in rows)],
        headline=headline(kept(rows)),
        kept=kept(rows),
        transferred={one.anchor: one for one in kept(rows, ("transfer",))},
        known=any(row[KL] is not None for row in rows),
        findings=findings(rows, episodes, verdicts),
        verdict_words=VERDICTS,
        panels=panels,
        policies=[one for one in policies if one.empty is not None],
        pairs=pairs[0],
        n_apart=pairs[1],
        apart=ASK_RATE_APART,
        selections=select(shown),
        shown_budget=budget,
        shown_length=shown[0].length if shown else None,
        kl_by_token=any(one.kl_demonstrator is not None for one in shown),
        shade_labels=SHADE_LABELS,
        tallies=tallies(verdicts),
        judges=sorted({one.judge for one in verdicts}),
        n_verdicts=len(verdicts),
        shown_first={name: shown_first_preferred(verdicts, name) for name in QUESTIONS},
        complexity=_complexity(policies),
        lengthened=[
            (phase, sorted(lengthened(ordered, phase), key=lambda one: CHAT_ANCHORS.index(one.after["anchor"])))
            for phase in ("transfer", "longer")
        ],
        per_decision=per_decision,
        row_share=_row_share,
        kl_key=KL,
        min_quartiles=MIN_QUARTILES,
        min_appearances=MIN_APPEARANCES,
        columns=COLUMNS,
        numeric=set(COLUMNS) - {"anchor", "phase"},
        table=[[_cell(row, key) for key in COLUMNS] for row in rows],
        settings={key: _printed(value) for key, value in settings.items()},
    )


def _complexity(policies: Sequence[Any]) -> list[tuple[Any, list[float | None]]]:
    """Automatic complexity of trained policies, where any is known."""
    keys = ("bits_per_token", "distinct_1", "distinct_2", "distinct_3")
    found = [(one, [one.mean(key) for key in keys]) for one in policies if one.phase == PANELS_FROM]
    return [(one, values) for one, values in found if any(value is not None for value in values)]


def _row_share(row: Record) -> str:
    """The share of empty replies of a row, with its interval."""
    if row["empty_reply_share"] is None:
        return "–"
    return _unbroken(share_text(row["empty_reply_share"], row["empty_reply_low"], row["empty_reply_high"]))


def _cell(row: Record, key: str) -> tuple[str, str]:
    """What the table of all results shows for a value, and what it sorts by."""
    value = row[key]
    if value is None:
        return "–", ""
    if key == "anchor":
        return ANCHORS[value].label, str(CHAT_ANCHORS.index(value))
    if key == "phase":
        return value, f"{PHASES.index(value)}"
    shown = wording.setting(value) if key in _COUNTS else _percent(value) if key in _SHARES else wording.nats(value)
    return shown, repr(float(value))


def _fine(value: float | None) -> str:
    """A small number of nats with three figures."""
    return "–" if value is None else "0" if value == 0 else f"{value:.3g}" if value < 100 else wording.nats(value)


def _percent(share: float | None) -> str:
    return _unbroken(wording.percent(share))


def _unbroken(words: str) -> str:
    return words.replace(" ", "\N{NO-BREAK SPACE}")
