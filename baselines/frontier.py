"""Asking against coverage: every plausible set and class at one budget, from a thousand demonstrated acts on.

    python baselines/frontier.py [--seeds 20] [--numbers N ...] [--out runs/frontier] [--calibrate] [--write]

In the world of real chats, where the demonstrator is known, policies are optimised exactly within 2 nats an episode of
64 symbols, at 0.05 of reward a question, and each is measured: how often it asks, what it earns, how far it is from the
demonstrator, what its charge missed along the way (excess, at most 5 % of the budget is wanted), and at what share of
its decisions the charge bounds every policy (coverage). Intervals are of the mean over seeds (95 %, Student's t).
Beside the sets, at the first level of each class, a Bayesian anchor over the same class that has to ask as often.

``--calibrate`` also runs ``calibrate_alpha`` on each set of demonstrations and measures the true excess at the alpha
that it returns, next to what it expected. ``--write`` puts table and figure into docs. What is solved is kept in
``--out`` at once, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich.console import Console
from rich.progress import track
from scipy.stats import t as student

from cautious_imitation import (
    CautiousImitator,
    ContextTree,
    Demonstrations,
    DirichletTree,
    ExpectedBudget,
    Regularizer,
    calibrate_alpha,
    finetune,
)
from cautious_imitation.atomic_files import write_bytes, write_text
from cautious_imitation.comparison.cells import new_hypotheses
from cautious_imitation.comparison.run import compare
from cautious_imitation.config import CompareConfig
from cautious_imitation.environments import dialogue_acts as acts
from cautious_imitation.intervals import wilson_interval
from cautious_imitation.report.axes import INK, dress

ROOT = Path(__file__).parents[1]
BUDGET, ASK_PRICE, TARGET = 2.0, 0.05, 0.05
NUMBERS = (1_000, 3_000, 10_000, 30_000, 100_000)
DEPLOYMENTS: tuple[acts.Deployment, ...] = ("same", "novel")


@dataclass(frozen=True)
class Class:
    """A hypothesis class with the levels log(1 / alpha) that it is measured at, the usual one first."""

    name: str
    settings: dict[str, str]
    levels: tuple[float, ...]
    bayesian: bool = True


CLASSES = (
    Class("DirichletTree", {"kind": "dirichlet"}, (2.5, 1.0, 2.0, 3.0, 4.0)),
    Class("ContextTree", {"kind": "trees"}, (5.0, 2.0)),
    Class("ContextTree, anytime", {"kind": "trees", "plausible": "anytime"}, (-math.log(0.05),), bayesian=False),
)
USUAL = {one.name: math.exp(-one.levels[0]) for one in CLASSES}
SHOWN = (
    ("DirichletTree", "cautious-minimax", "#0072b2", "o", "-"),
    ("ContextTree", "cautious-minimax", "#d55e00", "s", "-"),
    ("ContextTree", "cautious-pointwise", "#d55e00", "s", ":"),
    ("ContextTree, anytime", "cautious-minimax", "#009e73", "^", "-"),
    ("ContextTree, anytime", "cautious-pointwise", "#009e73", "^", ":"),
    ("DirichletTree", "bayesian-asks-max-prob", "#7a5195", "D", "--"),
)
Row = dict[str, Any]


def measured(one: Class, asked: argparse.Namespace) -> list[Row]:
    """Rows of ``compare`` for one class, with the name of the class."""
    common = {"budgets_nats": [BUDGET], "n_demonstrations": asked.numbers, "seeds": list(range(asked.seeds))}
    common |= {"deployments": list(DEPLOYMENTS), "horizons": [asked.horizon], "ask_prices": [ASK_PRICE]}
    beside = ["cautious-pointwise", *(("bayesian", "bayesian-asks-max-prob") if one.bayesian else ())]
    grids = {
        "minimax": {**common, "anchors": ["cautious-minimax"], "log_inverse_alphas": list(one.levels)},
        "beside": {**common, "anchors": beside, "log_inverse_alphas": list(one.levels[:1])},
    }
    config = CompareConfig.parse({"hypotheses": one.settings, "grids": grids, "tolerance": 1e-5})
    folder = asked.out / one.name.lower().replace(", ", "-")
    return [{**row, "class": one.name} for row in compare(config, folder, asked.jobs, Console(stderr=True)).rows]


def blank(one: Class) -> ContextTree | DirichletTree:
    """The class as ``compare`` makes it, which has learned nothing."""
    return new_hypotheses(CompareConfig.parse({"hypotheses": one.settings, "grids": {"none": {}}}))


def demonstrations(n: int, seed: int) -> Demonstrations:
    """What ``compare`` shows its imitators."""
    return acts.sample_demonstrations(acts.dialogue_acts_world(), n, np.random.default_rng([seed, n]))


def covered(n: int, seed: int) -> list[Row]:
    """Of each class at its usual level: at how many contexts of the world the demonstrator is not in the set."""
    chats, world = demonstrations(n, seed), acts.dialogue_acts_world(deployment="novel")
    contexts = world.contexts[world.agent_turn]
    rows = []
    for one in CLASSES:
        plausible = blank(one).fit(chats).plausible(contexts, USUAL[one.name])
        inside = plausible.covers(np.log(world.demonstrator[world.agent_turn]))
        rows.append({"class": one.name, "uncovered": int((~inside).sum()), "contexts": len(inside)})
    return rows


def of_coverage(rows: list[Row]) -> list[str]:
    """Markdown table of contexts at which a set misses the demonstrator."""
    lines = ["| class | cells with a context that is not covered | contexts covered, % |", "|---|---|---|"]
    for one in CLASSES:
        here = chosen(rows, **{"class": one.name})
        missed = sum(row["uncovered"] > 0 for row in here)
        share, half = mean(100 * (1 - row["uncovered"] / row["contexts"]) for row in here)
        lines.append(f"| {one.name} | {missed} of {len(here)} | {share:.2f} ± {half:.2f} |")
    return lines


def calibrated(n: int, seed: int, out: Path) -> list[Row]:
    """For one set of demonstrations, what calibration chose in each deployment and what that came to."""
    path = out / "calibration" / f"{n}-{seed}.json"
    if path.exists():
        found: list[Row] = json.loads(path.read_text(encoding="utf-8"))
        return found
    chats = demonstrations(n, seed)
    rows = []
    for deployment in DEPLOYMENTS:
        world = acts.dialogue_acts_world(deployment=deployment)
        hypotheses = blank(CLASSES[0])
        choice = calibrate_alpha(
            hypotheses,
            chats,
            world,
            excess_nats=TARGET * BUDGET,
            budget_nats=BUDGET,
            ask_price=ASK_PRICE,
            seed=seed,
            progress=False,
        )
        anchor = CautiousImitator(hypotheses.fit(chats), choice.alpha)
        m = finetune(world, anchor, Regularizer(ExpectedBudget(BUDGET), ask_price=ASK_PRICE)).metrics
        rows.append(
            {"n_demonstrations": n, "seed": seed, "deployment": deployment, "level": -math.log(choice.alpha)}
            | {"reached": choice.reached, "estimated": choice.excess_limit_nats, "excess_nats": m.excess_nats}
            | {"ask_rate": m.ask_rate, "reward": m.reward}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rows) + "\n")
    return rows


def mean(values: Iterable[float]) -> tuple[float, float]:
    """Mean over seeds and half the length of its 95 % interval."""
    x = np.array(list(values))
    half = float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
    return float(x.mean()), half


def numbers(rows: list[Row]) -> list[int]:
    """How many acts were demonstrated, in increasing order."""
    return sorted({row["n_demonstrations"] for row in rows})


def chosen(rows: list[Row], **setting: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in setting.items())]


def short(anchor: str) -> str:
    """A name of an anchor that leaves room for its numbers."""
    return {"bayesian-asks-max-prob": "bayesian, asks"}.get(anchor, anchor.removeprefix("cautious-"))


def table(rows: list[Row], n: int) -> list[str]:
    """Markdown table of every set at ``n`` demonstrated acts."""
    lines = [
        "| | class, anchor | log 1/alpha | asks, % | excess, nats | coverage, % | reward | KL, nats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for deployment in DEPLOYMENTS:
        for one in CLASSES:
            here = chosen(rows, deployment=deployment, n_demonstrations=n, **{"class": one.name})
            for anchor, alpha in dict.fromkeys((row["anchor"], row["alpha"]) for row in here):
                cell = [row for row in here if (row["anchor"], row["alpha"]) == (anchor, alpha)]
                level = "" if alpha is None else f"{-math.log(alpha):.3g}"
                columns = [
                    "{:.{d}f} ± {:.{d}f}".format(*mean(scale * row[key] for row in cell), d=digits)
                    for key, scale, digits in (
                        ("ask_rate", 100, 1),
                        ("excess_nats", 1, 3),
                        ("coverage", 100, 0),
                        ("reward", 1, 2),
                        ("kl_demonstrator_nats", 1, 2),
                    )
                ]
                lines.append(f"| {deployment} | {one.name}, {short(anchor)} | {level} | " + " | ".join(columns) + " |")
    return lines


def by_number(rows: list[Row]) -> list[str]:
    """Markdown table of the usual set of each class by the number of demonstrated acts: asks and excess."""
    counts = numbers(rows)
    lines = [
        "| | class, anchor | " + " | ".join(f"{n:,}" for n in counts) + " |",
        "|---" * (2 + len(counts)) + "|",
    ]
    for deployment in DEPLOYMENTS:
        for one in CLASSES:
            for anchor in ("cautious-minimax", "cautious-pointwise"):
                cells = []
                for n in counts:
                    here = chosen(rows, deployment=deployment, anchor=anchor, n_demonstrations=n, **{"class": one.name})
                    here = [row for row in here if math.isclose(row["alpha"], USUAL[one.name])]
                    asks, excess = (mean(row[key] for row in here)[0] for key in ("ask_rate", "excess_nats"))
                    cells.append(f"{asks:.1%}, {excess:.3f}")
                lines.append(f"| {deployment} | {one.name}, {short(anchor)} | " + " | ".join(cells) + " |")
    return lines


def of_calibration(rows: list[Row]) -> list[str]:
    """Markdown table of what calibration chose, and in how many seeds the target was kept."""
    lines = [
        "| | n | within the target | log 1/alpha | expected at most | true excess | asks, % | reached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for deployment in DEPLOYMENTS:
        for n in numbers(rows):
            cell = chosen(rows, deployment=deployment, n_demonstrations=n)
            kept = sum(row["excess_nats"] <= TARGET * BUDGET for row in cell)
            low, high = wilson_interval(kept, len(cell))
            estimated, excess, level = (mean(row[key] for row in cell) for key in ("estimated", "excess_nats", "level"))
            asks, reached = mean(100 * row["ask_rate"] for row in cell), sum(row["reached"] for row in cell)
            share = f"{kept} of {len(cell)} ({low:.0%} to {high:.0%})"
            lines.append(
                f"| {deployment} | {n:,} | {share} | {level[0]:.2f} ± {level[1]:.2f} | {estimated[0]:.3f} "
                f"| {excess[0]:.3f} ± {excess[1]:.3f} | {asks[0]:.1f} ± {asks[1]:.1f} | {reached} |"
            )
    return lines


def figure(rows: list[Row]) -> Figure:
    """Asks and excess by the number of demonstrated acts, means over seeds with their intervals."""
    counts = numbers(rows)
    drawn = Figure(figsize=(10, 7), layout="constrained")
    axes = drawn.subplots(2, 2, sharex=True)
    for column, deployment in enumerate(DEPLOYMENTS):
        for line, (key, label) in enumerate(
            (("ask_rate", "share of decisions asked"), ("excess_nats", "excess, nats"))
        ):
            ax = axes[line][column]
            for k, (name, anchor, colour, marker, style) in enumerate(SHOWN):
                points = []
                for n in counts:
                    cell = chosen(rows, deployment=deployment, anchor=anchor, n_demonstrations=n, **{"class": name})
                    cell = [row for row in cell if math.isclose(row["alpha"], USUAL[name])]
                    points.append(mean(row[key] for row in cell))
                y, half = np.array(points).T
                x = np.array(counts) * 1.03 ** (k - len(SHOWN) / 2)
                what = "Bayesian, asks as often" if anchor.startswith("bayesian") else f"{name}, {anchor[9:]}"
                ax.errorbar(x, y, half, color=colour, marker=marker, ls=style, lw=1.4, ms=5, capsize=2, label=what)
            if key == "excess_nats":
                ax.axhline(TARGET * BUDGET, color=INK, lw=1, ls=(0, (4, 3)))
                ax.text(counts[-1], TARGET * BUDGET, " 5 % of the budget", va="bottom", ha="right", color=INK)
                ax.set_yscale("symlog", linthresh=TARGET * BUDGET)
                ax.yaxis.set_major_locator(FixedLocator([0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]))
                ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                ax.set_ylim(bottom=-0.01)
                ax.set_xlabel("demonstrated acts")
            else:
                ax.set_ylim(0, 1)
                ax.set_title(f"{deployment} deployment")
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            ax.xaxis.set_minor_locator(NullLocator())
            if column == 0:
                ax.set_ylabel(label)
            dress(ax)
    axes[0][1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, labelcolor=INK, fontsize=9)
    return drawn


def summary(rows: list[Row]) -> list[Row]:
    """Means over seeds of each set at its usual level."""
    found = []
    for row in rows:
        if row["seed"] == 0 and row["alpha"] is not None and math.isclose(row["alpha"], USUAL[row["class"]]):
            setting = {key: row[key] for key in ("class", "anchor", "deployment", "n_demonstrations", "alpha")}
            cell = chosen(rows, **setting)
            keys = ("ask_rate", "excess_nats", "coverage", "reward", "kl_demonstrator_nats")
            found.append({**setting, **{key: mean(r[key] for r in cell)[0] for key in keys}})
    return found


def replaced(text: str, name: str, lines: list[str]) -> str:
    """``text`` with what stands between the two markers ``name`` replaced."""
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    _, _, after = rest.partition(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- /{name} -->{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="asking against coverage, for every plausible set and class")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--numbers", type=int, nargs="+", default=list(NUMBERS), help="of demonstrated acts")
    parser.add_argument("--horizon", type=int, default=64, help="symbols in an episode")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "frontier")
    parser.add_argument("--jobs", type=int, default=None, help="default: one a core")
    parser.add_argument("--calibrate", action="store_true", help="calibrate alpha on each set of demonstrations too")
    parser.add_argument("--write", action="store_true", help="put table and figure into docs")
    arguments = parser.parse_args()
    rows = [row for one in CLASSES for row in measured(one, arguments)]
    todo = [(n, seed) for n in arguments.numbers for seed in range(arguments.seeds)]
    coverage = [row for n, seed in todo for row in covered(n, seed)]
    shown = 10_000 if 10_000 in arguments.numbers else arguments.numbers[-1]
    tables = {"frontier": table(rows, shown), "by-number": by_number(rows), "coverage": of_coverage(coverage)}
    if arguments.calibrate:
        work = Parallel(n_jobs=arguments.jobs or -1, prefer="threads", return_as="generator")(
            delayed(calibrated)(n, seed, arguments.out) for n, seed in todo
        )
        console = Console(stderr=True)
        calibrations = [row for found in track(work, "calibrating", len(todo), console=console) for row in found]
        tables["calibration"] = of_calibration(calibrations)
    drawn = figure(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    drawn.savefig(arguments.out / "frontier.png", dpi=150)
    for lines in tables.values():
        print("\n".join(lines) + "\n")
    print(f"{arguments.out / 'frontier.png'}  the figure")
    if arguments.write:
        page = ROOT / "docs" / "frontier.md"
        text = page.read_text(encoding="utf-8")
        for name, lines in tables.items():
            text = replaced(text, name, lines)
        write_text(page, text)
        write_bytes(ROOT / "docs" / "figures" / "frontier.png", (arguments.out / "frontier.png").read_bytes())
        print(f"{page.relative_to(ROOT)} and docs/figures/frontier.png  rewritten")
    print(json.dumps({"benchmark": "frontier", "target": TARGET * BUDGET, "rows": summary(rows), "coverage": coverage}))


if __name__ == "__main__":
    main()
