"""How rarely likelihood-ratio sets of context trees would let a policy ask, were their prediction the best there is.

    python baselines/proven_asks.py [--number 10000] [--seeds 20] [--horizon 64]

The sets of ``ContextTree(plausible="anytime")`` are likelihood ratios with a running prediction in the numerator. No
prediction is better, on average, than the demonstrator's own probabilities, which nobody has. So sets with these show
what is left to be gained by predicting better: once with the risk shared between contexts as the library does, and once
with all of it at every context, which covers one context with probability 1 - delta but not all of them. Policies are
optimised exactly, within 2 nats an episode at 0.05 of reward a question, under minimax caution, in the world of
docs/frontier.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np
from frontier import ASK_PRICE, BUDGET, CLASSES, DEPLOYMENTS, USUAL, blank, chosen, demonstrations, mean
from rich.console import Console
from rich.progress import track

from cautious_imitation import Demonstrations, ExpectedBudget, Regularizer
from cautious_imitation.divergences import kl
from cautious_imitation.environments import dialogue_acts as acts
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.exact import ExactSolver
from cautious_imitation.finetuning.metrics import evaluate
from cautious_imitation.hypotheses.tree_kernels import FIRST_SHARES
from cautious_imitation.plausible_sets import PlausibleSet

ANYTIME = CLASSES[-1]
DELTA = USUAL[ANYTIME.name]
RULES = {
    "library": "the library's set",
    "known": "the demonstrator's own probabilities, risk shared",
    "known, one context": "the same, all the risk at every context",
}


def places(chats: Demonstrations, contexts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Which context of a demonstrated action each of ``contexts [S, D]`` was, counted from 1; 0 if it was none."""
    seen: dict[tuple[int, ...], int] = {}
    for sequence, learned in zip(chats.sequences, chats.learned(), strict=True):
        said = [*start.tolist(), *sequence.tolist()]
        for t in np.flatnonzero(learned):
            seen.setdefault(tuple(said[t : t + len(start)]), len(seen) + 1)
    return np.array([seen.get(tuple(context.tolist()), 0) for context in contexts])


def sets(chats: Demonstrations, world: FiniteWorld) -> dict[str, PlausibleSet]:
    """The library's set at the agent's contexts, and those with the demonstrator's own probabilities."""
    contexts, tree = world.contexts[world.agent_turn], blank(ANYTIME).fit(chats)
    plausible = tree.plausible(contexts, DELTA)
    n = tree.path_counts(contexts)[:, -1].sum(axis=-1)
    missed = kl(np.asarray(plausible.log_centres)[:, -1], np.log(world.demonstrator[world.agent_turn]))
    place = places(chats, contexts, world.contexts[world.start])
    shared = 1.5 * np.log(FIRST_SHARES + place) - 0.5 * np.log(FIRST_SHARES) + np.log(2)
    found = {"library": plausible}
    for name, share in (("known", shared), ("known, one context", 0.0)):
        radii = np.array(plausible.radii_nats)
        # n KL(p || theta) <= log 1/delta + log of the ratio between the demonstrator and p itself, n KL(p || tau)
        radii[:, -1] = np.where(n > 0, missed + (share - np.log(DELTA)) / np.maximum(n, 1), np.inf)
        found[name] = replace(plausible, radii_nats=radii)
    return found


def measured(number: int, seed: int, horizon: int) -> list[dict[str, Any]]:
    chats, rows = demonstrations(number, seed), []
    regularizer = Regularizer(ExpectedBudget(BUDGET), ask_price=ASK_PRICE)
    for deployment in DEPLOYMENTS:
        world = acts.dialogue_acts_world(deployment=deployment, horizon=horizon)
        for rule, plausible in sets(chats, world).items():
            metrics = evaluate(world, ExactSolver(1e-5).solve(world, plausible, regularizer), plausible)
            row = {"rule": rule, "deployment": deployment, "seed": seed, "ask_rate": metrics.ask_rate}
            rows.append({**row, "coverage": metrics.coverage, "excess_nats": metrics.excess_nats})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="how rarely likelihood-ratio sets of trees would ask at best")
    parser.add_argument("--number", type=int, default=10_000, help="of demonstrated acts")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=64, help="symbols in an episode")
    asked = parser.parse_args()
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    for seed in track(range(asked.seeds), "solving", console=console):
        rows += measured(asked.number, seed, asked.horizon)
    print(f"n = {asked.number:,}, delta = {DELTA:g}, minimax caution: share of decisions that are questions, %\n")
    print("| running prediction | same | novel |\n|---|---|---|")
    for rule, words in RULES.items():
        cells = (
            mean(100 * row["ask_rate"] for row in chosen(rows, rule=rule, deployment=deployment))
            for deployment in DEPLOYMENTS
        )
        print(f"| {words} | " + " | ".join(f"{centre:.1f} ± {half:.1f}" for centre, half in cells) + " |")
    print(json.dumps({"benchmark": "proven_asks", "rows": rows}))


if __name__ == "__main__":
    main()
