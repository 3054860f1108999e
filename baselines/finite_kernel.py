"""How close the minimum over K rows of V log-probabilities comes to merely reading them.

    python baselines/finite_kernel.py [K] [V] [--repeats N]

Prints medians for float32 rows on one thread, and their ratio to the fastest way of reading every row once. "Warm"
repeats the call on the same rows, which stay in the processor's cache if they fit; "cold" runs through another array
before each call, as a language model does between two predictions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from cautious_imitation.hypotheses.wide_minimum import wide_minimum

OTHER_MEGABYTES = 128


@njit(nogil=True, fastmath={"reassoc"})
def compiled_sum(rows: NDArray[np.float32]) -> np.float32:
    """Sum of all entries, as fast as a compiler makes it."""
    total = np.float32(0)
    for k in range(rows.shape[0]):
        for v in range(rows.shape[1]):
            total += rows[k, v]
    return total


def numpy_way(rows: NDArray[np.float32]) -> Any:
    minimum = rows.min(axis=0)
    return minimum, np.log1p(-np.exp(minimum).sum())


def torch_way(rows: torch.Tensor) -> Any:
    minimum = rows.amin(0)
    return minimum, (-minimum.exp().sum()).log1p()


def seconds(call: Callable[[], Any], repeats: int, other: NDArray[np.float32] | None) -> float:
    """Median time of ``call``, after one run to compile; ``other`` is read before each run."""
    call()
    times = []
    for _ in range(repeats):
        if other is not None:
            other.max()
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="minimum over K rows and ask mass against reading the rows once")
    parser.add_argument("K", type=int, nargs="?", default=8)
    parser.add_argument("V", type=int, nargs="?", default=50_000)
    parser.add_argument("--repeats", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logits = 3 * np.random.default_rng(0).normal(size=(arguments.K, arguments.V))
    rows = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    tensor = torch.from_numpy(rows)
    reading: dict[str, Callable[[], Any]] = {
        "read once: numpy max": rows.max,
        "read once: numba sum": lambda: compiled_sum(rows),
    }
    computing: dict[str, Callable[[], Any]] = {
        "minimum + ask: wide_minimum": lambda: wide_minimum(rows),
        "minimum + ask: numpy": lambda: numpy_way(rows),
        "minimum + ask: torch eager": lambda: torch_way(tensor),
    }
    other = np.zeros(OTHER_MEGABYTES * 2**18, dtype=np.float32)
    print(f"K = {arguments.K}, V = {arguments.V}, float32, one thread, median of {arguments.repeats}")
    print(f"{'':30}{'warm us':>10}{'ratio':>8}{'cold us':>10}{'ratio':>8}")
    warm, cold = (
        {name: seconds(call, repeats, through) for name, call in {**reading, **computing}.items()}
        for repeats, through in ((arguments.repeats, None), (max(1, arguments.repeats // 10), other))
    )
    warm_read, cold_read = (min(times[name] for name in reading) for times in (warm, cold))
    for name in warm:
        print(
            f"{name:30}{warm[name] * 1e6:10.1f}{warm[name] / warm_read:8.2f}"
            f"{cold[name] * 1e6:10.1f}{cold[name] / cold_read:8.2f}"
        )


if __name__ == "__main__":
    main()
