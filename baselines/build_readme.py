"""Write the README's table and figure from the results of a default comparison.

    make compare && .venv/bin/python baselines/build_readme.py [--results runs/dialogue-acts/results.json]

Replaces what stands between the two ``results`` markers in README.md, and docs/figures/headline.png.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

from cautious_imitation.atomic_files import write_bytes, write_text
from cautious_imitation.report.figures import headline

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
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


def main() -> None:
    """Rewrite README.md's block and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "dialogue-acts" / "results.json")
    rows = json.loads(parser.parse_args().results.read_text(encoding="utf-8"))["rows"]
    picture = io.BytesIO()
    headline(rows).savefig(picture, dpi=160, format="png", metadata={"Software": None})
    figures = ROOT / "docs" / "figures"
    figures.mkdir(exist_ok=True)
    write_bytes(figures / "headline.png", picture.getvalue())
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md must hold the markers {BEGIN.strip()} and {END}; put them back")
    image = "![Budget against the true KL to the demonstrator, by anchor](docs/figures/headline.png)\n"
    write_text(readme, f"{before}{BEGIN}{table(rows)}\n{image}{END}{after}")
    print("wrote README.md's results and docs/figures/headline.png")


if __name__ == "__main__":
    main()
