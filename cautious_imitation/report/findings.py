"""What the rows say, in sentences: every number is counted from the rows, and a loss reads as plainly as a win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cautious_imitation.report.anchors import ANCHORS, CAUTIOUS
from cautious_imitation.report.grid import Grid, Row
from cautious_imitation.report.matched import Comparison
from cautious_imitation.report.wording import count_of, listed, nats, percent, setting

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
        ask_rate: mean share of steps on which it asked, None where nothing is known about asking.
    """

    anchor: str
    accounting: str | None
    runs: int
    over: int
    worst: Row | None
    ask_rate: float | None

    @property
    def label(self) -> str:
        """The anchor's name for readers."""
        return ANCHORS[self.anchor].label


def _share_of_budget(row: Row) -> float:
    return float(row["kl_demonstrator_nats"]) / max(float(row["budget_nats"]), TOLERANCE_NATS)


def promise(anchor: str, rows: Sequence[Row]) -> Promise:
    """Count in ``rows`` (of one anchor and accounting) how often the budget's promise was broken."""
    held = [row for row in rows if row["budget_nats"] is not None and row["kl_demonstrator_nats"] is not None]
    asks = [row["ask_rate"] for row in held if row["ask_rate"] is not None]
    return Promise(
        anchor,
        rows[0]["accounting"] if rows else None,
        len(held),
        sum(row["kl_demonstrator_nats"] > row["budget_nats"] + TOLERANCE_NATS for row in held),
        max(held, key=_share_of_budget, default=None),
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
    """The one finding: how many policies ended farther away than their budget allows, and how often they asked."""
    if not found:
        return "No policy with a budget was found in these rows, so nothing can be said about budgets."
    parts: list[str] = []
    cautious = [one for one in found if one.anchor in CAUTIOUS]
    for group, name in (
        ([one for one in found if one.anchor == "bayesian"], "the Bayesian imitator"),
        (cautious, "a cautious imitator"),
    ):
        runs, over = sum(one.runs for one in group), sum(one.over for one in group)
        if not runs:
            continue
        count = ("the only policy" if over else "no policy") if runs == 1 else count_of(over, runs)
        done = (
            "did" if parts else f"{'' if runs == 1 else 'policies '}drifted farther from the demonstrator than allowed"
        )
        parts.append(f"{'Held' if not parts else 'held'} within a budget of {name}, {count} {done}")
    rates = [
        f"{percent(one.ask_rate)} ({one.anchor.removeprefix('cautious-')})"
        for one in cautious
        if one.ask_rate is not None
    ]
    asking = f" On average the cautious one asked for help on {listed(rates)} of its steps." if rates else ""
    return "; ".join(parts) + "." + asking


def where(row: Row) -> str:
    """The setting of a row in a few words."""
    parts = [f"“{row['deployment']}” deployment"]
    if row["n_demonstrations"] is not None:
        parts.append(f"{setting(row['n_demonstrations'])} demonstrated actions")
    return ", ".join([*parts, f"episodes of {setting(row['horizon'])}"])


def _pairs(grid: Grid, first: str, second: str) -> list[tuple[Row, Row]]:
    keys = ("deployment", "n_demonstrations", "budget_nats", "horizon", "seed")
    partners = {tuple(row[key] for key in keys): row for row in grid.rows_of(second)}
    pairs = ((row, partners.get(tuple(row[key] for key in keys))) for row in grid.rows_of(first))
    return [(row, partner) for row, partner in pairs if partner is not None and row["budget_nats"] is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _asking(grid: Grid) -> str | None:
    pairs = [
        (minimax["ask_rate"], pointwise["ask_rate"])
        for minimax, pointwise in _pairs(grid, "cautious-minimax", "cautious-pointwise")
        if minimax["ask_rate"] is not None and pointwise["ask_rate"] is not None
    ]
    if not pairs:
        return None
    fewer = sum(minimax < pointwise for minimax, pointwise in pairs)
    rates = percent(_mean([pair[0] for pair in pairs])), percent(_mean([pair[1] for pair in pairs]))
    return (
        f"Questions: the minimax policy asked the demonstrator on {rates[0]} of its steps on average, the pointwise "
        f"one on {rates[1]}; with the same budget and data minimax asked less in {count_of(fewer, len(pairs))} cases."
    )


def _reward_at_equal_budget(grid: Grid) -> str | None:
    pairs = _pairs(grid, "cautious-minimax", "bayesian")
    pairs = [pair for pair in pairs if pair[0]["reward"] is not None and pair[1]["reward"] is not None]
    if not pairs:
        return None
    less = sum(cautious["reward"] < bayesian["reward"] for cautious, bayesian in pairs)
    means = nats(_mean([pair[0]["reward"] for pair in pairs])), nats(_mean([pair[1]["reward"] for pair in pairs]))
    return (
        f"Reward: with the same budget the minimax policy earned less than the Bayesian one in "
        f"{count_of(less, len(pairs))} cases (on average {means[0]} against {means[1]} an episode)."
    )


def _equal_reward(comparisons: Sequence[Comparison]) -> list[str]:
    sentences = []
    for deployment in dict.fromkeys(comparison.deployment for comparison in comparisons):
        verdicts = [
            verdict
            for comparison in comparisons
            if comparison.deployment == deployment
            for other, verdict in zip(comparison.others, comparison.verdicts, strict=True)
            if other.anchor == "bayesian"
        ]
        if not verdicts:
            continue
        tally = {kind: verdicts.count(kind) for kind in ("better", "worse", "equal", "open")}
        words = {"better": "closer", "worse": "farther", "equal": "as close", "open": "not comparable"}
        parts = [f"{words[kind]} in {count}" for kind, count in tally.items() if count]
        sentences.append(
            f"Distance at equal reward, “{deployment}” deployment: the minimax policy was {listed(parts)} of "
            f"{len(verdicts)} comparisons with a Bayesian one of whatever budget earns as much."
        )
    return sentences


def costs(grid: Grid, comparisons: Sequence[Comparison]) -> list[str]:
    """Sentences about what caution costs: questions, reward, and the comparison at equal reward."""
    found = [_asking(grid), _reward_at_equal_budget(grid), *_equal_reward(comparisons)]
    return [sentence for sentence in found if sentence]


def certificate_check(grid: Grid) -> tuple[int, int]:
    """Cautious rows in all accountings whose distance is at most charge + excess, and all that can be checked."""
    rows = [
        row
        for row in grid.rows
        if row["anchor"] in CAUTIOUS
        and None not in (row["kl_demonstrator_nats"], row["charge_nats"], row["excess_nats"])
    ]
    kept = sum(row["kl_demonstrator_nats"] <= row["charge_nats"] + row["excess_nats"] + TOLERANCE_NATS for row in rows)
    return kept, len(rows)
