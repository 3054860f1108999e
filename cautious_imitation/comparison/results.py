"""The results of a comparison: rows that programs read, and a report that people read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from cautious_imitation.atomic_files import write_text
from cautious_imitation.comparison.cells import Row
from cautious_imitation.comparison.run_folder import RESULTS, SETTINGS
from cautious_imitation.report import write_report

SCHEMA = 1
EPISODES = "episodes.json"
REPORT = "report.html"
FILES = (RESULTS, EPISODES, SETTINGS, REPORT)


@dataclass(frozen=True)
class Comparison:
    """Results of a comparison.

    Attributes:
        rows: one flat dict a cell, in the order of the grid; keys as in ``results.json``. ``pandas.DataFrame(rows)``
            makes a table of them.
        episodes: one sampled episode of each main anchor at one setting.
        settings: what was compared, with the provenance of the data.
    """

    rows: list[Row]
    episodes: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """``{"schema": 1, "rows": [...]}``, as in ``results.json``: a line a row."""
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in self.rows)
        return f'{{"schema": {SCHEMA}, "rows": [\n{rows}\n]}}\n'

    def save(self, folder: str | PathLike[str]) -> dict[str, Path]:
        """Write ``results.json``, ``episodes.json``, ``settings.json`` and ``report.html``; returns paths by name.

        Raises:
            ValueError: if a row breaks the contract of the report; nothing is written then.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_report(folder / REPORT, self.rows, self.episodes, self.settings)
        write_text(folder / RESULTS, self.to_json())
        write_text(folder / EPISODES, json.dumps(self.episodes, allow_nan=False) + "\n")
        write_text(folder / SETTINGS, json.dumps(self.settings, indent=1) + "\n")
        return {name: folder / name for name in FILES}

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Comparison:
        """Read what ``save`` wrote. Episodes and settings may be missing, so ``results.json`` alone will do.

        ``Comparison.load(folder).save(folder)`` draws the report again.

        Raises:
            FileNotFoundError: if ``folder`` holds no ``results.json``.
            ValueError: if it is not JSON or has another schema.
        """
        folder = Path(folder)
        path = folder / RESULTS
        if not path.exists():
            raise FileNotFoundError(f"no {RESULTS} in {folder}; run the comparison to its end first")
        found = _json(path)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("rows"), list):
            raise ValueError(f"{path} must hold schema {SCHEMA} with rows; run the comparison again")
        beside = [_json(folder / name) if (folder / name).exists() else empty for name, empty in _BESIDE]
        return cls(found["rows"], *beside)


_BESIDE: tuple[tuple[str, Any], ...] = ((EPISODES, []), (SETTINGS, {}))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); run the comparison again") from None
