"""The anchors side by side: a grid of exactly solved cells, as rows, a table and a report."""

from __future__ import annotations

from cautious_imitation.comparison.results import Comparison
from cautious_imitation.comparison.run import compare

__all__ = ["Comparison", "compare"]
