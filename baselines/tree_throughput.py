"""How many symbols a second context trees take online: predict, then learn, one symbol after another.

    python baselines/tree_throughput.py [--symbols N] [--wide-symbols N] [--bayesml-symbols N] [--repeats N]

The text is what people wrote in the chats of the package chitchat-dataset (in the dev extra), one message a line. Two
alphabets: its bits, with trees of depth 16, and its characters as 105 classes (95 printable ones, the new line and some
that never occur), with trees of depth 4. What is timed:

- ``ContextTree``, kt and profile leaves: the mixture, the plausible minimum at log(1/alpha) = 5 and the update, with
  full vectors of log-probabilities, the whole text as one sequence, taken in blocks of 4,096 symbols.
- ``bayesml.contexttree``: the same mixture and update, without a minimum, on the beginning of the same text. Its trees
  are smaller there, so the ratio flatters it. The last column is the difference of the two log-losses there.
- ``vlmc``: its best tree of the whole text in one batch, no predictions; for information only.

Medians of runs that take turns, on one thread, after a first run to compile. "cpu" is the share of the wall time that
the processor worked on it: well below 1, the machine had other things to do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from math import exp
from statistics import median
from time import perf_counter, process_time

import numpy as np
from bayesml import contexttree
from numpy.typing import NDArray
from vlmc import VLMC

from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.tree_settings import Leaf

ALPHA = exp(-5)
BLOCK = 1 << 12
FIRST_CLASS = 22


@dataclass(frozen=True)
class Alphabet:
    """A text as symbols, the trees' depth, and the symbols a second to reach by leaf."""

    name: str
    text: NDArray[np.int64]
    n_symbols: int
    depth: int
    targets: dict[Leaf, float]


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    alphabet: str
    what: str
    symbols: int
    symbols_per_second: float
    cpu_share: float
    target: float | None = None
    times_bayesml: float | None = None
    log_loss_difference_nats: float | None = None


def characters() -> NDArray[np.uint8]:
    """What people wrote in the chats, as ASCII codes."""
    chats = json.loads((files("chitchat_dataset") / "dataset.json").read_text(encoding="utf-8")).values()
    messages = (message["text"] for chat in chats for turn in chat["messages"] for message in turn)
    return np.frombuffer("\n".join(messages).encode("ascii", "replace"), dtype=np.uint8)


def alphabets(symbols: int, wide_symbols: int) -> list[Alphabet]:
    """The beginning of the text as bits and as classes of characters."""
    text = characters()
    bits = np.unpackbits(text[: symbols // 8 + 1])[:symbols].astype(np.int64)
    classes = np.maximum(text[:wide_symbols].astype(np.int64) - FIRST_CLASS, 0)
    return [
        Alphabet("binary, D = 16", bits, 2, 16, {"kt": 1.5e6, "profile": 0.75e6}),
        Alphabet("V = 105, D = 4", classes, 105, 4, {"kt": 0.5e6, "profile": 0.25e6}),
    ]


def online(alphabet: Alphabet, text: NDArray[np.int64], leaf: Leaf) -> ContextTree:
    """Predict and learn every symbol of ``text`` in turn."""
    v = alphabet.n_symbols
    tree = ContextTree(v, alphabet.depth, n_context_symbols=v, start_symbol=0, leaf=leaf)
    for start in range(0, len(text), BLOCK):
        tree.prequential(text[start : start + BLOCK], ALPHA, context=text[max(start - alphabet.depth, 0) : start])
    return tree


def online_with_bayesml(alphabet: Alphabet, text: NDArray[np.int64]) -> float:
    """The same model learned by bayesml; returns its cumulative log-loss in nats."""
    v, depth = alphabet.n_symbols, alphabet.depth
    model = contexttree.LearnModel(c_k=v, c_d_max=depth, h0_g=1 / v)
    padded = np.concatenate([np.zeros(depth, dtype=np.int64), text])
    probabilities = [model.pred_and_update(padded[i : i + depth + 1])[symbol] for i, symbol in enumerate(text)]
    return -float(np.log(probabilities).sum())


def best_tree_with_vlmc(alphabet: Alphabet) -> None:
    v = alphabet.n_symbols
    VLMC(alphabet_size=v, max_depth=alphabet.depth, beta=(v - 1) / v).fit([alphabet.text])


def rates(runs: dict[str, tuple[int, Callable[[], object]]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median symbols a second of each run, and its share of a processor.

    The runs take turns, so that a busy moment hits all of them.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (_, run) in runs.items():
            wall, cpu = perf_counter(), process_time()
            run()
            seconds[name].append((perf_counter() - wall, process_time() - cpu))
    medians = {name: (median(wall for wall, _ in s), median(cpu for _, cpu in s)) for name, s in seconds.items()}
    return {name: (runs[name][0] / wall, cpu / wall) for name, (wall, cpu) in medians.items()}


def measure(alphabet: Alphabet, bayesml_symbols: int, repeats: int) -> list[Figure]:
    """All figures of one alphabet."""
    beginning = alphabet.text[:bayesml_symbols]
    difference = abs(online(alphabet, beginning, "kt").log_loss_nats - online_with_bayesml(alphabet, beginning))
    online(alphabet, beginning, "profile")
    size, name = len(alphabet.text), alphabet.name
    rate = rates(
        {
            "kt": (size, lambda: online(alphabet, alphabet.text, "kt")),
            "profile": (size, lambda: online(alphabet, alphabet.text, "profile")),
            "bayesml": (len(beginning), lambda: online_with_bayesml(alphabet, beginning)),
            "vlmc": (size, lambda: best_tree_with_vlmc(alphabet)),
        },
        repeats,
    )
    ours = [
        Figure(name, f"ContextTree {leaf}", size, *rate[leaf], target, rate[leaf][0] / rate["bayesml"][0])
        for leaf, target in alphabet.targets.items()
    ]
    return [
        replace(ours[0], log_loss_difference_nats=difference),
        *ours[1:],
        Figure(name, "bayesml", len(beginning), *rate["bayesml"]),
        Figure(name, "vlmc (batch)", size, *rate["vlmc"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="symbols a second of context trees, online")
    parser.add_argument("--symbols", type=int, default=2_000_000, help="bits of text")
    parser.add_argument("--wide-symbols", type=int, default=300_000, help="characters of text")
    parser.add_argument("--bayesml-symbols", type=int, default=3_000, help="symbols of either kind for bayesml")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"median of {arguments.repeats}, one thread")
    print(f"{'':38}{'symbols':>10}{'symbols/s':>12}{'target':>12}{'cpu':>6}{'x bayesml':>11}{'log-loss differs':>19}")
    figures = []
    for alphabet in alphabets(arguments.symbols, arguments.wide_symbols):
        for figure in measure(alphabet, arguments.bayesml_symbols, arguments.repeats):
            figures.append(figure)
            target = "" if figure.target is None else f"{figure.target:,.0f}"
            times = "" if figure.times_bayesml is None else f"{figure.times_bayesml:.0f}"
            differs = figure.log_loss_difference_nats
            print(
                f"{figure.alphabet:16}{figure.what:22}{figure.symbols:10,}{figure.symbols_per_second:12,.0f}"
                f"{target:>12}{figure.cpu_share:6.2f}{times:>11}{'' if differs is None else f'{differs:.1e} nats':>19}"
            )
    print(json.dumps({"benchmark": "tree_throughput", "rows": [asdict(figure) for figure in figures]}))


if __name__ == "__main__":
    main()
