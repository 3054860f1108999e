"""Rows of a chat experiment: checked, and gathered over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cautious_imitation.report.chat_contract import (
    CHAT_ANCHORS,
    PHASES,
    SLACK,
    Record,
    integer,
    number,
    optional_number,
    word,
)
from cautious_imitation.report.chat_shares import Share, share_of

KL = "kl_demonstrator_nats"

SETTINGS = ("anchor", "phase", "budget_nats", "seed", "length")
"""What tells one row from another."""

COLUMNS = (
    *SETTINGS,
    "episodes",
    "reward",
    "reward_se",
    "charge_nats",
    "largest_charge_nats",
    KL,
    "kl_demonstrator_se",
    "decisions",
    "asks",
    "ask_rate",
    "replies",
    "empty_replies",
    "empty_reply_share",
    "empty_reply_low",
    "empty_reply_high",
    "reply_tokens",
    "bits_per_token",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "updates",
    "seconds",
)

_COUNTS = ("decisions", "asks", "replies", "empty_replies", "updates")
_OPTIONAL = ("reward_se", "kl_demonstrator_se", "reply_tokens", "bits_per_token")
_SHARES = ("ask_rate", "empty_reply_share", "empty_reply_low", "empty_reply_high")
_DISTINCT = ("distinct_1", "distinct_2", "distinct_3")


@dataclass(frozen=True)
class Policies:
    """The policies of one setting, one a seed.

    Attributes:
        anchor: name of the anchor.
        budget_nats: hard budget of an episode.
        phase: one of ``PHASES``.
        length: tokens of an episode.
        rows: their rows.
    """

    anchor: str
    budget_nats: float
    phase: str
    length: int
    rows: tuple[Record, ...]

    def mean(self, key: str) -> float | None:
        """Mean of ``key`` over the policies that have a value."""
        values = [float(row[key]) for row in self.rows if row[key] is not None]
        return math.fsum(values) / len(values) if values else None

    def error(self, key: str, error_key: str) -> float | None:
        """Standard error of ``mean(key)``: over seeds where there are several, else that of the row."""
        values = [float(row[key]) for row in self.rows if row[key] is not None]
        if len(values) < 2:
            errors = [float(row[error_key]) for row in self.rows if row[error_key] is not None]
            return errors[0] if errors else None
        mean = math.fsum(values) / len(values)
        return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))

    @property
    def ask_rate(self) -> float | None:
        """Share of all decisions that were questions."""
        return ask_rate(self.rows)

    @property
    def empty(self) -> Share | None:
        """Share of all finished replies that are empty."""
        return empty_share(self.rows)

    def per_decision(self, key: str) -> float | None:
        """Nats of ``key`` for each decision of the teacher."""
        held = [row for row in self.rows if row[key] is not None and row["decisions"]]
        if not held:
            return None
        return math.fsum(row[key] * row["episodes"] for row in held) / float(sum(row["decisions"] for row in held))


def ask_rate(rows: Sequence[Record]) -> float | None:
    """Share of all decisions of ``rows`` that were questions, None without decisions."""
    decisions = sum(row["decisions"] for row in rows)
    return float(sum(row["asks"] for row in rows) / decisions) if decisions else None


def empty_share(rows: Sequence[Record]) -> Share | None:
    """Share of all finished replies of ``rows`` that are empty, None without replies."""
    return share_of(sum(row["empty_replies"] for row in rows), sum(row["replies"] for row in rows))


def check_chat_rows(rows: Sequence[Record]) -> None:
    """Check ``rows`` of ``results.json``.

    Raises:
        ValueError: naming the first row and key that break the contract, or the second of two rows of one policy.
    """
    if not rows:
        raise ValueError("rows must hold at least one policy, got none; evaluate one first")
    seen: dict[tuple[object, ...], int] = {}
    for index, row in enumerate(rows):
        where = f"rows[{index}]"
        _check_row(row, where)
        key = tuple(row[name] for name in SETTINGS)
        if key in seen:
            raise ValueError(
                f"{where} must differ from rows[{seen[key]}] in one of {', '.join(SETTINGS)}, got {list(key)} twice"
            )
        seen[key] = index


def gather(rows: Sequence[Record]) -> list[Policies]:
    """Rows over their seeds, by anchor, budget, phase and length."""
    grouped: dict[tuple[str, float, str, int], list[Record]] = {}
    for row in rows:
        grouped.setdefault((row["anchor"], float(row["budget_nats"]), row["phase"], row["length"]), []).append(row)
    ordered = sorted(grouped, key=lambda key: (CHAT_ANCHORS.index(key[0]), key[1], PHASES.index(key[2]), key[3]))
    return [Policies(*key, tuple(sorted(grouped[key], key=lambda row: row["seed"]))) for key in ordered]


def _check_row(row: Record, where: str) -> None:
    word(row, "anchor", where, CHAT_ANCHORS)
    word(row, "phase", where, PHASES)
    integer(row, "seed", where)
    for key in ("length", "episodes"):
        integer(row, key, where, low=1)
    for key in _COUNTS:
        integer(row, key, where, low=0)
    for key in ("budget_nats", "charge_nats", "largest_charge_nats", "seconds"):
        number(row, key, where, low=0)
    number(row, "reward", where)
    for key in _OPTIONAL:
        optional_number(row, key, where, low=0)
    for key in (*_SHARES, *_DISTINCT):
        optional_number(row, key, where, low=0, high=1)
    optional_number(row, KL, where, low=0)
    for part, whole, share in (("asks", "decisions", "ask_rate"), ("empty_replies", "replies", "empty_reply_share")):
        _check_share(row, where, part, whole, share)
    bounds = ("empty_reply_low", "empty_reply_share", "empty_reply_high")
    if len({row[key] is None for key in bounds}) > 1 or (
        row["replies"] and not row[bounds[0]] - SLACK <= row[bounds[1]] <= row[bounds[2]] + SLACK
    ):
        raise ValueError(
            f"{where} {bounds[0]} and {bounds[2]} must enclose {bounds[1]}, got {[row[key] for key in bounds]}; "
            "all are null without replies"
        )
    if row[KL] is None and row["kl_demonstrator_se"] is not None:
        raise ValueError(f"{where} kl_demonstrator_se must be null where {KL} is, got {row['kl_demonstrator_se']!r}")
    if row["largest_charge_nats"] < row["charge_nats"] * (1 - SLACK) - SLACK:
        raise ValueError(
            f"{where} largest_charge_nats must be at least charge_nats, {row['charge_nats']:g}, got "
            f"{row['largest_charge_nats']:g}; correct the row"
        )


def _check_share(row: Record, where: str, part: str, whole: str, share: str) -> None:
    if row[part] > row[whole]:
        raise ValueError(f"{where} {part} must be at most {whole}, {row[whole]}, got {row[part]}; correct the row")
    if not row[whole]:
        # Nothing of nothing: no share, or none of it asked.
        wrong = row[share] is not None and not (share == "ask_rate" and row[share] == 0)
        expected = "null"
    else:
        expected = f"{row[part] / row[whole]:.6g}"
        wrong = row[share] is None or abs(row[share] - row[part] / row[whole]) > SLACK
    if wrong:
        raise ValueError(f"{where} {share} must be {part}/{whole}, {expected}, got {row[share]!r}; correct the row")
