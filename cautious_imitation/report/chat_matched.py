"""Policies set side by side: against their budget, at the same ask rate, and with longer episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cautious_imitation.report.anchors import CAUTIOUS
from cautious_imitation.report.chat_contract import CHAT_ANCHORS, SLACK, Record
from cautious_imitation.report.chat_rows import KL, ask_rate
from cautious_imitation.report.findings import TOLERANCE_NATS

TRAINED = ("after", "longer")
"""Phases that a policy was evaluated in right after it had been trained."""

ASK_RATE_APART = 0.02
"""Two policies ask about as often if the shares of decisions on which they ask differ by at most this."""

ERRORS = 2.0
"""Standard errors that make a difference clear."""


@dataclass(frozen=True)
class Kept:
    """How the policies of one anchor kept their budgets.

    Attributes:
        anchor: name of the anchor.
        policies: how many there are.
        known: of how many the distance to the demonstrator is known.
        over: how many of those are farther away than their budget.
        clearly_over: how many are by more than ``ERRORS`` standard errors.
        within_charge: how many of those are at most as far as they were charged, up to ``ERRORS`` standard errors.
        charged_over: how many policies had an episode that was charged more than the budget.
        worst: the row whose distance is the largest multiple of its budget, None where none is known.
        ask_rate: share of their decisions that were questions, None without decisions.
    """

    anchor: str
    policies: int
    known: int
    over: int
    clearly_over: int
    within_charge: int
    charged_over: int
    worst: Record | None
    ask_rate: float | None


def kept(rows: Sequence[Record], phases: Sequence[str] = TRAINED) -> list[Kept]:
    """How the policies of each anchor in ``phases`` kept their budgets."""
    found = []
    for anchor in CHAT_ANCHORS:
        own = [row for row in rows if row["anchor"] == anchor and row["phase"] in phases]
        if not own:
            continue
        known = [row for row in own if row[KL] is not None]
        found.append(
            Kept(
                anchor,
                len(own),
                len(known),
                sum(row[KL] > row["budget_nats"] + TOLERANCE_NATS for row in known),
                sum(_low(row) > row["budget_nats"] + TOLERANCE_NATS for row in known),
                sum(_low(row) <= row["charge_nats"] + TOLERANCE_NATS for row in known),
                sum(row["largest_charge_nats"] > row["budget_nats"] + TOLERANCE_NATS for row in own),
                max(known, key=lambda row: row[KL] / max(row["budget_nats"], TOLERANCE_NATS), default=None),
                ask_rate(own),
            )
        )
    return found


@dataclass(frozen=True)
class Pair:
    """A Bayesian policy and the cautious one that asks most nearly as often; ``verdict`` is on the cautious one."""

    bayesian: Record
    cautious: Record
    verdict: str

    @property
    def apart(self) -> float:
        """By how much the ask rates differ."""
        return float(abs(self.bayesian["ask_rate"] - self.cautious["ask_rate"]))


def pairs_asking_alike(rows: Sequence[Record]) -> tuple[list[Pair], int]:
    """Each trained Bayesian policy with the cautious policy of each kind that asks most nearly as often.

    Policies of the same budget come first, as long as their ask rates differ by at most ``ASK_RATE_APART``; of several
    that ask as often, the one with the same seed. Both have the same phase and length, and replies; a Bayesian policy
    that was made to ask at random, phase ``asking``, stands for the one that never asks. The verdict is
    ``lower`` or ``higher`` where the intervals of their shares of empty replies are apart, else ``open``.

    Returns:
        The pairs whose ask rates differ by at most ``ASK_RATE_APART``, and how many nearest pairs differ by more.
    """
    usable = [row for row in rows if _trained(row) in TRAINED and row["replies"] and row["ask_rate"] is not None]
    asking = {(row["budget_nats"], row["seed"], row["length"]) for row in usable if row["phase"] == "asking"}
    found, n_apart = [], 0
    for row in (row for row in usable if row["anchor"] == "bayesian"):
        if row["phase"] == "after" and (row["budget_nats"], row["seed"], row["length"]) in asking:
            continue
        for anchor in CAUTIOUS:
            others = [
                other
                for other in usable
                if other["anchor"] == anchor and (other["phase"], other["length"]) == (_trained(row), row["length"])
            ]
            if not others:
                continue
            nearest = min(others, key=lambda other: _apart(row, other))
            if abs(row["ask_rate"] - nearest["ask_rate"]) <= ASK_RATE_APART + SLACK:
                found.append(Pair(row, nearest, _verdict(row, nearest)))
            else:
                n_apart += 1
    return found, n_apart


@dataclass(frozen=True)
class Lengthened:
    """A policy, and the same anchor, budget and seed with longer episodes (``phase``: ``longer`` or ``transfer``)."""

    before: Record
    after: Record

    def change(self, key: str, error_key: str) -> str:
        """``more``, ``less`` or ``open``: whether ``key`` clearly grew, beyond ``ERRORS`` standard errors."""
        error = ((self.before[error_key] or 0.0) ** 2 + (self.after[error_key] or 0.0) ** 2) ** 0.5
        difference = self.after[key] - self.before[key]
        if abs(difference) <= max(ERRORS * error, TOLERANCE_NATS):
            return "open"
        return "more" if difference > 0 else "less"


def _trained(row: Record) -> str:
    """The phase of training that a policy had been through."""
    return "after" if row["phase"] == "asking" else str(row["phase"])


def lengthened(rows: Sequence[Record], phase: str) -> list[Lengthened]:
    """Trained policies beside themselves in ``phase``, in the order of rows."""
    first = {(row["anchor"], row["budget_nats"], row["seed"]): row for row in rows if row["phase"] == "after"}
    later = [row for row in rows if row["phase"] == phase]
    keys = [(row["anchor"], row["budget_nats"], row["seed"]) for row in later]
    return [Lengthened(first[key], row) for key, row in zip(keys, later, strict=True) if key in first]


def per_decision(row: Record, key: str) -> float | None:
    """Nats of ``key`` for each decision of the teacher, None where unknown."""
    if row[key] is None or not row["decisions"]:
        return None
    return float(row[key] * row["episodes"] / row["decisions"])


def _low(row: Record) -> float:
    return float(row[KL] - ERRORS * (row["kl_demonstrator_se"] or 0.0))


def _apart(row: Record, other: Record) -> tuple[bool, bool, float, bool]:
    # Rates that differ in nothing but rounding are equal, so that the seed decides.
    difference = round(abs(row["ask_rate"] - other["ask_rate"]), 9)
    far = difference > ASK_RATE_APART + SLACK
    return far, not far and other["budget_nats"] != row["budget_nats"], difference, other["seed"] != row["seed"]


def _verdict(row: Record, other: Record) -> str:
    if other["empty_reply_high"] < row["empty_reply_low"]:
        return "lower"
    return "higher" if other["empty_reply_low"] > row["empty_reply_high"] else "open"
