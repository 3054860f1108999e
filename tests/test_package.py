"""The package's front door: its public names, its version, and the pages that describe them."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import cautious_imitation

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", cautious_imitation.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(cautious_imitation, name)
    assert value.__name__ == name
    assert value.__module__ == f"cautious_imitation.{cautious_imitation._HOME[name]}"
    assert value.__doc__


@pytest.mark.parametrize("name", cautious_imitation.__all__)
def test_no_public_name_is_also_a_module(name: str) -> None:
    """Importing such a module would put it in the place of the public name."""
    spec = find_spec(f"cautious_imitation.{name}")
    assert spec is None or spec.origin is None, f"rename the module {spec.name}: it hides cautious_imitation.{name}"


def test_type_checkers_see_the_names_that_run() -> None:
    tree = ast.parse(Path(cautious_imitation.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module.removeprefix("cautious_imitation.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == cautious_imitation._HOME
    assert cautious_imitation.__all__ == sorted(seen)
    assert set(cautious_imitation.__all__) <= set(dir(cautious_imitation))


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Imitator'.*BayesianImitator"):
        _ = cautious_imitation.Imitator  # type: ignore[attr-defined]


def test_the_version_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{cautious_imitation.__version__}]" in changelog


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target and not target.startswith(("mailto:", "/", "api/", "../api/")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
