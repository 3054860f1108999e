"""What people look at: ``report.html`` and its figures, drawn from the rows of a comparison.

Takes plain rows (one dict a cell of the grid), so that a report can be drawn again from ``results.json`` alone.
"""

from __future__ import annotations




