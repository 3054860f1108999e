"""``python -m cautious_imitation`` is the command line."""

from __future__ import annotations

from cautious_imitation.cli import main

if __name__ == "__main__":
    main()
