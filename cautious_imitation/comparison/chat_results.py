"""The results of a comparison by fine-tuning in chats: files that programs read, and a report that people read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from cautious_imitation.atomic_files import write_text
from cautious_imitation.comparison.chat_records import Record
from cautious_imitation.comparison.results import REPORT
from cautious_imitation.comparison.run_folder import RESULTS, SETTINGS
from cautious_imitation.judging.verdicts import VerdictRecord, read_judgements, write_judgements
from cautious_imitation.report.chat_page import write_chat_report

SCHEMA = 1
CURVES, TRANSCRIPTS, JUDGEMENTS = "curves.json", "transcripts.json", "judgements.json"
FILES = (RESULTS, CURVES, TRANSCRIPTS, JUDGEMENTS, SETTINGS, REPORT)


@dataclass(frozen=True)
class ChatComparison:
    """Results of a comparison in chats.

    Attributes:
        rows: one flat dict a policy that was looked at: an anchor, a budget, a seed, and a phase of its training.
        curves: for each policy ``points``, one an update.
        transcripts: what was said, token by token, with charges.
        judgements: verdicts on pairs of transcripts.
        settings: what was compared, with the provenance of the data.
    """

    rows: list[Record]
    curves: list[Record] = field(default_factory=list)
    transcripts: list[Record] = field(default_factory=list)
    judgements: list[VerdictRecord] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | PathLike[str]) -> dict[str, Path]:
        """Write the files named in ``FILES``, the report among them; returns their paths by name.

        Raises:
            ValueError: if something breaks the contract of the report; nothing is written then.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        verdicts = [record.row() for record in self.judgements if record.verdict != "unread"]
        write_chat_report(folder / REPORT, self.rows, self.curves, self.transcripts, verdicts or None, self.settings)
        write_text(folder / RESULTS, _document("rows", self.rows, experiment="chat"))
        write_text(folder / CURVES, _document("curves", self.curves))
        write_text(folder / TRANSCRIPTS, _document("transcripts", self.transcripts))
        write_judgements(folder / JUDGEMENTS, self.judgements)
        write_text(folder / SETTINGS, json.dumps(self.settings, indent=1) + "\n")
        return {name: folder / name for name in FILES}

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> ChatComparison:
        """Read what ``save`` wrote; all but ``results.json`` may be missing.

        ``ChatComparison.load(folder).save(folder)`` draws the report again.

        Raises:
            FileNotFoundError: if ``folder`` holds no ``results.json``.
            ValueError: if a file is not JSON or has another schema.
        """
        folder = Path(folder)
        if not (folder / RESULTS).exists():
            raise FileNotFoundError(f"no {RESULTS} in {folder}; run the comparison to its end first")
        judged = read_judgements(folder / JUDGEMENTS) if (folder / JUDGEMENTS).exists() else []
        settings = folder / SETTINGS
        return cls(
            _read(folder / RESULTS, "rows"),
            _read(folder / CURVES, "curves"),
            _read(folder / TRANSCRIPTS, "transcripts"),
            judged,
            json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {},
        )


def _document(key: str, records: list[Record], **more: Any) -> str:
    """A JSON object with a line a record."""
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    head = json.dumps({"schema": SCHEMA, **more})[:-1]
    return f'{head}, "{key}": [\n{lines}\n]}}\n'


def _read(path: Path, key: str) -> list[Record]:
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); run the comparison again") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get(key), list):
        raise ValueError(f"{path} must hold schema {SCHEMA} with {key}; run the comparison again")
    listed: list[Record] = found[key]
    return listed
