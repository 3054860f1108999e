"""What caution costs, in sentences: questions, reward, and the distance where these are held equal."""

from __future__ import annotations

from collections.abc import Sequence

from cautious_imitation.report.anchors import ANCHORS, CAUTIOUS
from cautious_imitation.report.findings import promises
from cautious_imitation.report.grid import Grid, Row
from cautious_imitation.report.matched import Comparison
from cautious_imitation.report.wording import count_of, listed, nats, percent, setting


def _pairs(grid: Grid, first: str, second: str) -> list[tuple[Row, Row]]:
    """Rows of two anchors at the same setting; what means nothing to one of them (None) cannot differ."""
    always = ("deployment", "n_demonstrations", "budget_nats", "horizon", "seed")
    partners: dict[tuple[object, ...], list[Row]] = {}
    for row in grid.rows_of(second):
        partners.setdefault(tuple(row[key] for key in always), []).append(row)
    pairs = []
    for row in grid.rows_of(first):
        for partner in partners.get(tuple(row[key] for key in always), []):
            agree = all(row[key] == partner[key] or None in (row[key], partner[key]) for key in ("ask_price", "alpha"))
            if agree and row["budget_nats"] is not None:
                pairs.append((row, partner))
                break
    return pairs


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _asking(grid: Grid) -> str | None:
    pairs = [
        (minimax["ask_rate"], pointwise["ask_rate"])
        for minimax, pointwise in _pairs(grid, "cautious-minimax", "cautious-pointwise")
        if minimax["ask_rate"] is not None and pointwise["ask_rate"] is not None
    ]
    if not pairs:
        rates = [percent(one.ask_rate) for one in promises(grid) if one.anchor in CAUTIOUS and one.ask_rate is not None]
        return f"Questions: the cautious policy asked on {listed(rates)} of its steps on average." if rates else None
    fewer = sum(minimax < pointwise for minimax, pointwise in pairs)
    rates = [percent(_mean(list(side))) for side in zip(*pairs, strict=True)]
    return (
        f"Questions: minimax asked the demonstrator on {rates[0]} of its steps on average, pointwise on {rates[1]}; "
        f"minimax less in {count_of(fewer, len(pairs))} settings."
    )


def _reward_at_equal_budget(grid: Grid) -> str | None:
    pairs = _pairs(grid, "cautious-minimax", "bayesian")
    pairs = [pair for pair in pairs if pair[0]["reward"] is not None and pair[1]["reward"] is not None]
    if not pairs:
        return None
    less = sum(cautious["reward"] < bayesian["reward"] for cautious, bayesian in pairs)
    means = nats(_mean([pair[0]["reward"] for pair in pairs])), nats(_mean([pair[1]["reward"] for pair in pairs]))
    return (
        f"Reward: with the same budget minimax earned less than the Bayesian policy in {count_of(less, len(pairs))} "
        f"settings (on average {means[0]} against {means[1]})."
    )


def _tally(verdicts: Sequence[str]) -> str:
    words = {"better": "closer", "equal": "about as close", "worse": "farther"}
    parts = [f"{words[kind]} in {verdicts.count(kind)}" for kind in words if kind in verdicts]
    return f"{listed(parts)} of {len(verdicts)}"


def _equal_reward(comparisons: Sequence[Comparison]) -> str | None:
    parts = []
    for deployment in dict.fromkeys(one.deployment for one in comparisons):
        pairs = _verdicts([one for one in comparisons if one.deployment == deployment], "bayesian")
        if pairs:
            asks = percent(_mean([one.subject.ask_rate or 0.0 for one, _ in pairs]))
            tally = _tally([verdict for _, verdict in pairs])
            parts.append(f"{tally} (“{deployment}” deployment, asking on {asks} of its steps)")
    if not parts:
        return None
    return (
        "Distance at equal reward: beside a Bayesian policy that earns as much, on whatever budget and without asking, "
        f"minimax was {'; '.join(parts)}."
    )


def _verdicts(comparisons: Sequence[Comparison], anchor: str) -> list[tuple[Comparison, str]]:
    """The comparisons with ``anchor`` that have a verdict."""
    pairs = (
        (one, other.anchor, verdict)
        for one in comparisons
        for other, verdict in zip(one.others, one.verdicts, strict=True)
    )
    return [(one, verdict) for one, name, verdict in pairs if name == anchor and verdict != "open"]


def _against_controls(comparisons: Sequence[Comparison]) -> str:
    verdicts = [one.verdicts[0] for one in comparisons if one.verdicts[0] != "open"]
    unmatched = sum(one.subject.kind == "none" for one in comparisons)
    said = [f"was {_tally(verdicts)}"] if verdicts else []
    said += [f"could not earn as much with so few questions in {unmatched}{' more' * bool(said)}"] if unmatched else []
    return "; it ".join(said) or "cannot be compared"


def _equal_asking(comparisons: Sequence[Comparison]) -> str | None:
    if not comparisons:
        return None
    return (
        "Caution or just asking: beside Bayesian policies that ask too, held to their reward and their number of "
        f"questions, minimax {_against_controls(comparisons)}."
    )


def asking_findings(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence a control: the minimax anchor held to at least its reward and at most its questions."""
    names = dict.fromkeys(one.others[0].anchor for one in comparisons)
    grouped = {name: [one for one in comparisons if one.others[0].anchor == name] for name in names}
    return [
        f"Beside “{ANCHORS[name].label}”, minimax {_against_controls(members)}." for name, members in grouped.items()
    ]


def price(grid: Grid, at_reward: Sequence[Comparison], at_asking: Sequence[Comparison]) -> list[str]:
    """What caution costs, a sentence each: questions, reward, and the distance where these are held equal."""
    found = [_asking(grid), _reward_at_equal_budget(grid), _equal_reward(at_reward), _equal_asking(at_asking)]
    return [sentence for sentence in found if sentence]


def asking_by_demonstrations(grid: Grid) -> list[str]:
    """How the minimax anchor's questions change with the number of demonstrations, a sentence a deployment."""
    sentences = []
    for deployment in grid.deployments:
        cells = grid.curve("cautious-minimax", deployment, "n_demonstrations", need=("ask_rate",))
        if len(cells) > 1:
            (few, few_asks), (many, many_asks) = (
                (setting(cell.n_demonstrations), percent(cell.mean("ask_rate"))) for cell in (cells[0], cells[-1])
            )
            sentences.append(
                f"“{deployment}”: minimax asks on {few_asks} of its steps with {few} of them, "
                f"on {many_asks} with {many}."
            )
    return sentences
