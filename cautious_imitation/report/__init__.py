"""What people look at: ``report.html`` and its figures, drawn from the rows of a comparison.

Takes plain rows (one dict a cell of the grid), so that a report can be drawn again from ``results.json`` alone; that of
a chat experiment from the files of its run.
"""

from __future__ import annotations

from cautious_imitation.report.chat_page import write_chat_report
from cautious_imitation.report.page import write_report

__all__ = ["write_chat_report", "write_report"]
