"""What makes a file of version n one of version n + 1. Never changed once released, only added to."""

from __future__ import annotations

APPLICATION = 0x43_49_51_4C
"""Marks the file as ours ("CIQL"), so that somebody else's database is not written to by mistake."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE queries (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        asker TEXT NOT NULL,
        episode INTEGER,
        query TEXT NOT NULL,
        posted_at REAL NOT NULL,
        deadline REAL,
        status TEXT NOT NULL DEFAULT 'open'
            CHECK (status IN ('open', 'claimed', 'answered', 'declined', 'expired')),
        claimed_by TEXT,
        claimed_at REAL,
        lease_until REAL,
        answer TEXT,
        answered_by TEXT,
        answered_at REAL,
        seconds REAL,
        taken_at REAL,
        CHECK ((answer IS NULL) = (status NOT IN ('answered', 'declined')))
    ) STRICT;
    CREATE INDEX queries_by_status ON queries (status, seq);
    CREATE INDEX queries_by_asker ON queries (asker, episode, status);
    CREATE INDEX queries_by_deadline ON queries (deadline)
        WHERE deadline IS NOT NULL AND status IN ('open', 'claimed');
    """,
    """
    CREATE TABLE judgements (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        pair TEXT NOT NULL,
        posted_at REAL NOT NULL,
        verdict TEXT CHECK (verdict IN ('first', 'second', 'tie')),
        judged_by TEXT,
        judged_at REAL,
        seconds REAL,
        claimed_by TEXT,
        claimed_at REAL,
        lease_until REAL
    ) STRICT;
    CREATE INDEX judgements_by_verdict ON judgements (verdict, seq);
    """,
    # Sums by which questions and answers that the disk has changed are known; older rows have none. And an index that
    # does not change with each claim and answer, which are a third quicker for it.
    """
    ALTER TABLE queries ADD COLUMN query_sum INTEGER;
    ALTER TABLE queries ADD COLUMN answer_sum INTEGER;
    DROP INDEX queries_by_asker;
    CREATE INDEX queries_by_asker ON queries (asker);
    """,
)
"""Each a script of statements; the version of a file is how many of them it has seen."""
