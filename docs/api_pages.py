"""Gives every module of the package its page, so that no list of modules is kept by hand."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = "cautious_imitation"


def modules(root: Path) -> list[str]:
    """Dotted names of the package's modules below it, folders before what they hold; ``__main__`` has no page.

    >>> "types" in modules(Path("cautious_imitation"))
    True
    """
    names = []
    for path in sorted((root).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(name for name in names if name and name != "__main__")


def page(module: str) -> str:
    """The page's address, one for a module.

    >>> page("hypotheses.finite")
    'api/hypotheses/finite.md'
    """
    return f"api/{module.replace('.', '/')}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages to the navigation, folders as sections."""
    root = Path(config.config_file_path).parent
    sections: dict[str, list[dict[str, str]]] = {}
    for module in modules(root / PACKAGE):
        folder, _, _ = module.rpartition(".")
        holds_others = (root / PACKAGE / module.replace(".", "/")).is_dir()
        sections.setdefault(module if holds_others else folder, []).append({module: page(module)})
    top = sections.pop("", [])
    config.nav = [*(config.nav or []), {"API": [*top, *({name: pages} for name, pages in sections.items())]}]
    config.watch.append(str(root / PACKAGE))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages themselves."""
    for module in modules(Path(config.config_file_path).parent / PACKAGE):
        text = f"---\ntitle: {module}\n---\n\n::: {PACKAGE}.{module}\n"
        files.append(File.generated(config, page(module), content=text))
    return files
