"""Write the README's tables and figure from the results of comparisons.

    make compare && .venv/bin/python baselines/build_readme.py [--results runs/dialogue-acts/results.json]
    make compare ARGS="--preset chat-tiny" && .venv/bin/python baselines/build_readme.py --chats

Replaces what stands between the two ``results`` markers in README.md, and docs/figures/headline.png; with ``--chats``
what stands between the two ``chats`` markers instead.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

from cautious_imitation.atomic_files import write_bytes, write_text
from cautious_imitation.intervals import wilson_interval
from cautious_imitation.report.figures import headline

ROOT = Path(__file__).parents[1]
ANCHORS = ("bayesian", "cautious-pointwise", "cautious-minimax", "bayesian-asks-max-prob")
BUDGETS = (2.0, 10.0)
METRICS = ("kl_demonstrator_nats", "reward", "ask_rate", "empty_reply_share")
SETTING = {"accounting": "free", "horizon": 64, "ask_price": 0.05, "n_demonstrations": 10_000}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of the shown anchors, means over seeds."""
    lines = [
        "| deployment | anchor | budget, nats | KL to the demonstrator, nats | reward | questions | empty replies |",
        "|---|---|---|---|---|---|---|",
    ]
    for deployment in ("same", "novel"):
        for budget in BUDGETS:
            for anchor in ANCHORS:
                setting = {**SETTING, "deployment": deployment, "budget_nats": budget, "anchor": anchor}
                # None where a setting means nothing to the anchor.
                cell = [row for row in rows if all(row[key] in (value, None) for key, value in setting.items())]
                if not cell:
                    raise ValueError(f"results hold no row with {setting}; run the default comparison first")
                kl, reward, asks, empty = (sum(row[key] for row in cell) / len(cell) for key in METRICS)
                lines.append(
                    f"| {deployment} | {anchor} | {budget:g} | {kl:.2f} | {reward:.2f} | {asks:.1%} | {empty:.1%} |"
                )
    return "\n".join(lines) + "\n"


def chat_table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of trained policies, and of Bayesian ones that ask at random; replies of all seeds together."""
    lines = [
        "| anchor | budget, nats | charged | KL to the demonstrator, nats | reward | questions | empty replies |",
        "|---|---|---|---|---|---|---|",
    ]
    for budget in sorted({row["budget_nats"] for row in rows}):
        for anchor, phase in (("bayesian", "after"), ("bayesian", "asking"), ("cautious-minimax", "after")):
            setting = {"budget_nats": budget, "anchor": anchor, "phase": phase}
            cell = [row for row in rows if all(row[key] == value for key, value in setting.items())]
            if not cell:
                raise ValueError(f"results hold no row with {setting}; run the preset chat-tiny first")
            charge, kl, reward = (
                sum(row[key] for row in cell) / len(cell) for key in ("charge_nats", "kl_demonstrator_nats", "reward")
            )
            asks = sum(row["asks"] for row in cell) / sum(row["decisions"] for row in cell)
            empty, replies = (sum(row[key] for row in cell) for key in ("empty_replies", "replies"))
            low, high = wilson_interval(empty, replies)
            name = f"{anchor}, made to ask" if phase == "asking" else anchor
            lines.append(
                f"| {name} | {budget:g} | {charge:.2f} | {kl:.2f} | {reward:.2f} | {asks:.1%} | "
                f"{empty / replies:.1%} ({100 * low:.1f} to {100 * high:.1f}) |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite a block of README.md, and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "dialogue-acts" / "results.json")
    parser.add_argument("--chats", type=Path, nargs="?", const=ROOT / "runs" / "chat-tiny" / "results.json")
    chosen = parser.parse_args()
    if chosen.chats is not None:
        rewrite("chats", chat_table(read(chosen.chats)))
        return
    rows = read(chosen.results)
    picture = io.BytesIO()
    headline(rows).savefig(picture, dpi=160, format="png", metadata={"Software": None})
    figures = ROOT / "docs" / "figures"
    figures.mkdir(exist_ok=True)
    write_bytes(figures / "headline.png", picture.getvalue())
    image = "![Budget against the true KL to the demonstrator, by anchor](docs/figures/headline.png)\n"
    rewrite("results", f"{table(rows)}\n{image}")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a comparison."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def rewrite(name: str, block: str) -> None:
    """Put ``block`` between the two markers of that name."""
    readme, begin, end = ROOT / "README.md", f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = readme.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"README.md must hold the markers {begin.strip()} and {end}; put them back")
    write_text(readme, f"{before}{begin}{block}{end}{after}")
    print(f"wrote the {name} of README.md")


if __name__ == "__main__":
    main()
