"""What a newcomer waits for: the default comparison from nothing, once more, and importing the package.

    python baselines/compare_speed.py [--repeats N] [--kernel-cache FOLDER] [arguments of cautious-imitation compare]

Runs ``cautious-imitation compare`` twice in processes of their own, each with an empty folder for its results: first
with an empty cache of compiled kernels, as after installation (or with what FOLDER holds), then with the cache that
the first run left. Prints wall time, how many cores it kept busy, and the largest memory of the process, which is all
of it: cells are solved by threads.

Then imports the package in new processes: by itself, and with every public name. Prints the median time and the
packages that come along; torch must not be one. Needs a POSIX system, for the memory of a child process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

TARGET_SECONDS = 60.0
TARGET_BYTES = 2e9
TARGET_IMPORT_SECONDS = 1.0
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024

IMPORT = """
import json, sys
from time import perf_counter
began = perf_counter()
{statement}
seconds = perf_counter() - began
packages = {{name for name, module in sys.modules.items() if hasattr(module, "__path__") and not name.startswith("_")}}
others = {{name.split(".")[0] for name in packages}} - set(sys.stdlib_module_names) - {{"cautious_imitation"}}
print(json.dumps([seconds, sorted(others)]))
"""


@dataclass(frozen=True)
class Comparing:
    """One run of the comparison."""

    kernels: str
    seconds: float
    cores: float
    peak_bytes: float
    target_seconds: float | None = None
    target_bytes: float = TARGET_BYTES


@dataclass(frozen=True)
class Importing:
    """One way of importing the package."""

    statement: str
    seconds: float
    packages: tuple[str, ...]
    target_seconds: float | None = None


def compare(kernels: str, cache: Path, arguments: Sequence[str], target_seconds: float | None = None) -> Comparing:
    """Run the comparison in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        command = [sys.executable, "-m", "cautious_imitation", "compare", "--out", folder, *arguments]
        began = perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "NUMBA_CACHE_DIR": str(cache)}
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            sys.exit(f"{' '.join(command)} ended with status {process.returncode}:\n{output.read().decode()}")
    cores = (usage.ru_utime + usage.ru_stime) / seconds
    return Comparing(kernels, seconds, cores, float(usage.ru_maxrss * MAXRSS_UNIT), target_seconds)


def importing(statement: str, repeats: int, target_seconds: float | None = None) -> Importing:
    """Import in new processes; the first one fills the disk's cache and does not count."""
    found = []
    for _ in range(repeats + 1):
        command = [sys.executable, "-c", IMPORT.format(statement=statement)]
        found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    return Importing(statement, median(seconds for seconds, _ in found[1:]), tuple(found[0][1]), target_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="wall time and memory of compare, and the time of importing")
    parser.add_argument("--repeats", type=int, default=5, help="imports that count")
    parser.add_argument("--kernel-cache", type=Path, help="compiled kernels to begin with; default none")
    arguments, passed_on = parser.parse_known_args()
    print(f"cautious-imitation compare {' '.join(passed_on)}".rstrip())
    print(f"{'kernels':18}{'seconds':>9}{'target':>8}{'cores':>7}{'peak GB':>9}{'target':>8}")
    compared = []
    with tempfile.TemporaryDirectory() as empty:
        cache = arguments.kernel_cache or Path(empty)
        first = "compiled now" if arguments.kernel_cache is None else "in the cache given"
        for kernels, target in ((first, TARGET_SECONDS), ("compiled before", None)):
            run = compare(kernels, cache, passed_on, target)
            compared.append(run)
            print(
                f"{run.kernels:18}{run.seconds:9.1f}{'' if target is None else f'{target:.0f}':>8}{run.cores:7.2f}"
                f"{run.peak_bytes / 1e9:9.2f}{run.target_bytes / 1e9:8.0f}"
            )
    imported = [
        importing("import cautious_imitation", arguments.repeats, TARGET_IMPORT_SECONDS),
        importing("from cautious_imitation import *", arguments.repeats),
    ]
    print(f"{'median of ' + str(arguments.repeats):34}{'seconds':>9}{'target':>8}  packages that come along")
    for way in imported:
        target_text = "" if way.target_seconds is None else f"{way.target_seconds:.0f}"
        print(f"{way.statement:34}{way.seconds:9.3f}{target_text:>8}  {', '.join(way.packages) or 'none'}")
    figures = {"compare": [asdict(run) for run in compared], "import": [asdict(way) for way in imported]}
    print(json.dumps({"benchmark": "compare_speed", **figures}))


if __name__ == "__main__":
    main()
