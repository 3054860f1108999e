"""The house plan: which module may import which, how long a module may be, what an import may load.

Written here rather than as an import-linter contract, because the package's public names are lazy: a module that says
``from cautious_imitation import ContextTree`` imports hypotheses.context_tree, and only a check that knows the table
of lazy names sees that. It also says, in one place, where a new module has to be entered.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cautious_imitation

LAYERS: tuple[tuple[str, ...], ...] = (
    ("types", "atomic_files", "divergences", "intervals"),
    ("vector_math", "borrowed_arrays", "ball_kernels", "union_kernels", "batch_kernels", "plausible_sets"),
    ("dialogue_labels", "demonstrations"),
    ("language",),
    ("oracles",),
    ("hypotheses",),
    ("sampling", "questions", "imitators"),
    ("continuations", "generation"),
    ("certificates", "regularizers", "coverage"),
    ("environments",),
    ("run_state", "online"),
    ("finetuning",),
    ("calibration",),
    ("judging",),
    ("report",),
    ("config", "chat_config"),
    ("comparison",),
    ("oracle_commands",),
    ("cli", "__main__"),
)
"""A module imports from the layers above its own line, and within its own as long as no circle closes.

A name stands for the module or for a folder with everything in it.
"""

PACKAGE = "cautious_imitation"
ROOT = Path(cautious_imitation.__file__).parent
MAX_LINES = 400


def modules() -> dict[str, Path]:
    """Every module of the package by its name below the package; a folder's ``__init__`` has the folder's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found[""]
    return found


MODULES = modules()


def layer(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if module.split(".")[0] in names:
            return number
    raise AssertionError(f"{PACKAGE}.{module} has no place: add it to LAYERS in {__file__}")


class RuntimeImports(ast.NodeVisitor):
    """Collects what a module imports when it runs, inside functions too; ``if TYPE_CHECKING:`` does not run."""

    def __init__(self) -> None:
        self.names: list[tuple[int, str]] = []

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names += [(node.lineno, alias.name) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"line {node.lineno}: imports are absolute in this package"
        self.names += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]


def runtime_imports(source: str) -> list[tuple[int, str]]:
    collector = RuntimeImports()
    collector.visit(ast.parse(source))
    return collector.names


def home(name: str) -> str | None:
    """The module of ours that a dotted name comes from: ``""`` for the package itself, None for other packages."""
    if name != PACKAGE and not name.startswith(PACKAGE + "."):
        return None
    below = name[len(PACKAGE) + 1 :]
    while below and below not in MODULES:
        if below in cautious_imitation._HOME:
            return cautious_imitation._HOME[below]
        below = below.rpartition(".")[0]
    return below


def dependencies(module: str) -> Iterator[tuple[int, str]]:
    for line, name in runtime_imports(MODULES[module].read_text(encoding="utf-8")):
        target = home(name)
        if target and target != module:
            yield line, target


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_layers_above_its_own(module: str) -> None:
    for line, target in dependencies(module):
        assert layer(target) <= layer(module), (
            f"{MODULES[module]}:{line} imports {PACKAGE}.{target}, which stands below it; "
            f"move what both need up, or the importing code down (LAYERS in {__file__})"
        )


def test_no_circle_of_imports() -> None:
    # A folder's __init__ gathers what is in the folder, so it does not count as something its modules need.
    graph = {
        module: {target for _, target in dependencies(module) if not module.startswith(target + ".")}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_every_folder_is_a_package() -> None:
    for path in MODULES.values():
        assert (path.parent / "__init__.py").exists(), f"{path.parent} needs an __init__.py that says what it holds"


def test_every_layer_name_is_a_module_once() -> None:
    names = [name for names in LAYERS for name in names]
    assert len(names) == len(set(names))
    for module in MODULES:
        layer(module)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_and_is_a_noun(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{MODULES[module]} has {lines} lines; split it where it changes its subject"
    assert module.split(".")[-1] not in {"utils", "util", "helpers", "common", "misc"}, (
        f"{MODULES[module]}: name the module after what it holds"
    )


@pytest.mark.parametrize("module", MODULES)
def test_the_library_needs_neither_its_tests_nor_its_benchmarks(module: str) -> None:
    for line, name in runtime_imports(MODULES[module].read_text(encoding="utf-8")):
        assert name.split(".")[0] not in {"tests", "baselines", "conftest"}, f"{MODULES[module]}:{line} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_in_their_folder(module: str) -> None:
    for line, name in runtime_imports(MODULES[module].read_text(encoding="utf-8")):
        target, last = home(name), name.split(".")[-1]
        private = last.startswith("_") and not last.startswith("__")
        if target and private:
            assert target.split(".")[0] == module.split(".")[0], f"{MODULES[module]}:{line} imports private {name}"


def loaded_after(statement: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys; {statement}; print('\\n'.join(sys.modules))"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert run.returncode == 0, run.stderr
    return {name.split(".")[0] for name in run.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "matplotlib", "numba", "scipy", "sklearn", "pydantic", "gymnasium"}
    assert not loaded_after(f"import {PACKAGE}") & heavy


def test_public_names_load_without_torch() -> None:
    assert not loaded_after(f"from {PACKAGE} import *") & {"torch", "transformers"}


def test_the_reader_of_imports_reads_what_runs() -> None:
    source = """
import a.b as c
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from never import x
else:
    from always import y
def f():
    from late import z
"""
    assert [name for _, name in runtime_imports(source)] == ["a.b", "typing.TYPE_CHECKING", "always.y", "late.z"]


def test_lazy_names_count_as_their_home() -> None:
    assert home(f"{PACKAGE}.Prediction") == "types"
    assert home(f"{PACKAGE}.types.Prediction") == "types"
    assert home(f"{PACKAGE}.__version__") == ""
    assert home("numpy.random") is None
