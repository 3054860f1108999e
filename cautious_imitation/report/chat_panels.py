"""The panels of a chat report: which budget and anchor each shows, its SVG, and the numbers under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cautious_imitation.report import chat_figures
from cautious_imitation.report.anchors import ANCHORS
from cautious_imitation.report.chat_contract import CHAT_ANCHORS, Record
from cautious_imitation.report.chat_curves import Curve
from cautious_imitation.report.chat_episodes import ChatEpisode
from cautious_imitation.report.chat_measures import (
    Histogram,
    Spread,
    by_place,
    charge_histogram,
    decision_charges,
    empty_costs,
    ngram_costs,
)
from cautious_imitation.report.chat_rows import KL
from cautious_imitation.report.svg import inline_svg
from cautious_imitation.report.wording import setting

PANELS_FROM = "after"
"""The phase whose transcripts are drawn."""

NGRAMS = (1, 2, 3)

_PLACES_LISTED = 8


@dataclass(frozen=True)
class Panel:
    """One drawing with its heading, and the anchors in it."""

    title: str
    svg: Markup
    anchors: tuple[str, ...]


class Panels:
    """All drawings of a report.

    Args:
        rows: rows of the experiment, checked.
        curves: training curves.
        episodes: transcripts of the phase ``PANELS_FROM``.
        budget_nats: the budget at which repetition is drawn, None without transcripts.

    Attributes:
        charges, training, empty_costs, empty_shares, repetition, certificates: lists of ``Panel``.
        histograms: (anchor, budget, histogram) of what ``charges`` draws.
        empty_numbers: (anchor, budget, ``Spread``) of what ``empty_costs`` draws.
        repetition_numbers: (anchor, n, ``Spread``) of what ``repetition`` draws.
        unrepeated: the n of n-grams that never appear often enough.
        too_few: what there are too few values of for quartiles, in words.
    """

    def __init__(
        self,
        rows: Sequence[Record],
        curves: Sequence[Curve],
        episodes: Sequence[ChatEpisode],
        budget_nats: float | None,
    ) -> None:
        self._episodes = episodes
        self._budgets = sorted({one.budget_nats for one in episodes})
        self.training = _training(curves)
        self.certificates = _certificates(rows)
        self.histograms: list[tuple[str, float, Histogram]] = []
        self.charges = self._draw_charges()
        self.empty_numbers: list[tuple[str, float, Spread]] = []
        self.too_few: list[str] = []
        self.empty_costs = self._draw_empty_costs()
        self.empty_shares = self._draw_empty_shares()
        self.repetition_numbers: list[tuple[str, int, Spread]] = []
        self.unrepeated: list[int] = []
        self.repetition = [] if budget_nats is None else self._draw_repetition(budget_nats)

    def _of(self, budget: float) -> dict[str, list[ChatEpisode]]:
        """Episodes of ``budget`` by anchor, in the order of anchors."""
        here = [one for one in self._episodes if one.budget_nats == budget]
        names = [name for name in CHAT_ANCHORS if any(one.anchor == name for one in here)]
        return {name: [one for one in here if one.anchor == name] for name in names}

    def _draw_charges(self) -> list[Panel]:
        panels = []
        for place, budget in enumerate(self._budgets):
            found = {name: charge_histogram(decision_charges(own)) for name, own in self._of(budget).items()}
            known = {name: one for name, one in found.items() if one is not None}
            self.histograms += [(name, budget, one) for name, one in known.items()]
            if known:
                svg = inline_svg(
                    chat_figures.charges(known),
                    f"charges-{place}",
                    f"Histogram of the charge of a decision, budget {setting(budget)} nats.",
                )
                panels.append(Panel(_budget(budget), svg, tuple(known)))
        return panels

    def _draw_empty_costs(self) -> list[Panel]:
        panels = []
        for place, budget in enumerate(self._budgets):
            spreads = {}
            for name, own in self._of(budget).items():
                costs = empty_costs(own)
                spreads[name] = by_place(costs)
                self.empty_numbers += [(name, budget, one) for one in spreads[name][:_PLACES_LISTED]]
                enough = sum(one.quartiles is not None for one in spreads[name])
                if not enough:
                    n = sum(map(bool, costs))
                    self.too_few.append(
                        f"{ANCHORS[name].label}, budget {setting(budget)}: an empty reply in {n} of {len(own)} episodes"
                    )
            if any(spreads.values()):
                svg = inline_svg(
                    chat_figures.costs_by_place(spreads, "empty reply of an episode"),
                    f"empty-costs-{place}",
                    f"Charge of the first, second and further empty replies, budget {setting(budget)} nats.",
                )
                panels.append(Panel(_budget(budget), svg, tuple(name for name, found in spreads.items() if found)))
        return panels

    def _draw_empty_shares(self) -> list[Panel]:
        panels = []
        for place, budget in enumerate(self._budgets):
            shares = {
                name: [one.empty_share for one in own if one.empty_share is not None]
                for name, own in self._of(budget).items()
            }
            known = {name: found for name, found in shares.items() if found}
            if known:
                svg = inline_svg(
                    chat_figures.empty_shares(known),
                    f"empty-shares-{place}",
                    f"Share of episodes with at least a given share of empty replies, budget {setting(budget)} nats.",
                )
                panels.append(Panel(_budget(budget), svg, tuple(known)))
        return panels

    def _draw_repetition(self, budget: float) -> list[Panel]:
        panels = []
        for n in NGRAMS:
            spreads = {name: by_place(ngram_costs(own, n)) for name, own in self._of(budget).items()}
            self.repetition_numbers += [
                (name, n, one) for name, found in spreads.items() for one in found[:_PLACES_LISTED]
            ]
            if any(spreads.values()):
                svg = inline_svg(
                    chat_figures.costs_by_place(spreads, "appearance in an episode"),
                    f"repetition-{n}",
                    f"Charge of the first, second and further appearances of {n}-grams, budget {setting(budget)} nats.",
                )
                title = "Single tokens" if n == 1 else f"{n} tokens in a row"
                panels.append(Panel(title, svg, tuple(name for name, found in spreads.items() if found)))
            else:
                self.unrepeated.append(n)
        return panels


def _training(curves: Sequence[Curve]) -> list[tuple[float, list[Panel]]]:
    """Panels of each budget, an anchor each."""
    found = []
    drawn = [one for one in curves if one.points]
    for place, budget in enumerate(sorted({one.budget_nats for one in drawn})):
        beside = [one for one in drawn if one.budget_nats == budget]
        panels = [
            Panel(
                f"{one.n_seeds} seed{'s' if one.n_seeds != 1 else ''}",
                inline_svg(
                    chat_figures.training(one, beside),
                    f"training-{place}-{number}",
                    f"Quantiles of charge and reward of an episode over training, {ANCHORS[one.anchor].label}, "
                    f"budget {setting(budget)} nats.",
                ),
                (one.anchor,),
            )
            for number, one in enumerate(beside)
        ]
        found.append((budget, panels))
    return found


def _certificates(rows: Sequence[Record]) -> list[Panel]:
    known = [row for row in rows if row[KL] is not None and row["phase"] != "before"]
    panels = []
    for place, budget in enumerate(sorted({row["budget_nats"] for row in known})):
        here = [row for row in known if row["budget_nats"] == budget]
        svg = inline_svg(
            chat_figures.certificates(here, budget),
            f"certificates-{place}",
            f"Distance to the demonstrator against charge, budget {setting(budget)} nats. The numbers are in the table "
            "of all results.",
        )
        panels.append(
            Panel(_budget(budget), svg, tuple(n for n in CHAT_ANCHORS if any(r["anchor"] == n for r in here)))
        )
    return panels


def _budget(budget: float) -> str:
    return f"Budget {setting(budget)} nats"
