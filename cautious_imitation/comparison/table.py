"""The rows that tell the story, as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from cautious_imitation.comparison.cells import Row


def summary_table(rows: Sequence[Row]) -> Table:
    """The cells at the commonest horizon, ask price, alpha and number of demonstrations, asking free of charge.

    Means over seeds. Distances in nats an episode.
    """
    horizon, price, n = (_commonest(rows, key) for key in ("horizon", "ask_price", "n_demonstrations"))
    shown = [
        row
        for row in rows
        if row["accounting"] == "free"
        and row["horizon"] == horizon
        and row["ask_price"] == price
        and row["n_demonstrations"] in (None, n)
    ]
    table = Table(
        title=f"{n} demonstrated acts, {horizon} symbols an episode, {price} of reward a question",
        caption="KL: distance of what is done from the demonstrator, exact. Charge: what the anchor counted. nats/episode",
    )
    table.add_column("deployment")
    table.add_column("anchor", no_wrap=True)
    for name in ("budget", "charge", "KL", "reward", "asks", "empty replies"):
        table.add_column(name, justify="right")
    groups: dict[tuple[str, float | None, str, float | None], list[Row]] = {}
    for row in shown:
        groups.setdefault((row["deployment"], row["budget_nats"], row["anchor"], row["alpha"]), []).append(row)
    previous = None
    for (deployment, budget, anchor, _), members in groups.items():
        if previous is not None and previous != deployment:
            table.add_section()
        previous = deployment
        table.add_row(
            deployment,
            anchor,
            _number(budget, "g"),
            _number(_mean(members, "charge_nats"), ".2f"),
            _number(_mean(members, "kl_demonstrator_nats"), ".2f"),
            _number(_mean(members, "reward"), ".2f"),
            _number(_mean(members, "ask_rate"), ".1%"),
            _number(_mean(members, "empty_reply_share"), ".2%"),
        )
    return table


def _commonest(rows: Sequence[Row], key: str) -> float | int | None:
    counted = Counter(row[key] for row in rows if row[key] is not None)
    return counted.most_common(1)[0][0] if counted else None


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) / len(values) if values else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
