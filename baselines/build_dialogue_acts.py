"""Re-create the shipped conversations, cautious_imitation/data/dialogue_acts.jsonl.bz2, bit for bit.

    python baselines/build_dialogue_acts.py           write the file
    python baselines/build_dialogue_acts.py --check   compare only; exit status 1 if it differs

Takes the chats of the package chitchat-dataset (in the dev extra) that have two senders and six turns or more, labels
every message with its dialogue act, and writes one letter a symbol: capitals for the first speaker, small letters for
the second. bz2 rather than gzip: smaller here, no time stamp, and one implementation that all platforms share.
"""

from __future__ import annotations

import bz2
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import typer

from cautious_imitation.atomic_files import write_bytes
from cautious_imitation.dialogue_labels import ACTS, label_turn

SHIPPED = Path(__file__).parents[1] / "cautious_imitation" / "data" / "dialogue_acts.jsonl.bz2"
ALPHABET = "EGFLAQPNSegflaqpns"
MIN_TURNS = 6


def chosen_chats() -> Iterator[list[tuple[int, list[str]]]]:
    """Turns (speaker, texts) of each chat that is kept; speaker 0 is whoever writes first."""
    source = json.loads((files("chitchat_dataset") / "dataset.json").read_text(encoding="utf-8"))
    for chat in source.values():
        turns = chat["messages"]
        senders = {message["sender"] for turn in turns for message in turn}
        if len(turns) >= MIN_TURNS and len(senders) == 2:
            first = turns[0][0]["sender"]
            yield [(int(turn[0]["sender"] != first), [message["text"] for message in turn]) for turn in turns]


def act_sequence(turns: list[tuple[int, list[str]]]) -> list[int]:
    """Symbols of a chat, speaker * 9 + act."""
    return [symbol for speaker, texts in turns for symbol in label_turn(texts, speaker)]


def header(sequences: list[list[int]]) -> dict[str, Any]:
    """What the first line of the file says about the rest."""
    by_speaker = [0, 0]
    for sequence in sequences:
        for symbol in sequence:
            by_speaker[symbol // len(ACTS)] += 1
    return {
        "schema": 1,
        "source": f"chitchat-dataset {version('chitchat-dataset')}, https://github.com/BYU-PCCL/chitchat-dataset",
        "license": "MIT, Copyright (c) 2019 Perception, Control and Cognition Lab; notice in README.md",
        "labels": f"cautious_imitation.dialogue_labels with vaderSentiment {version('vaderSentiment')}",
        "acts": ACTS,
        "alphabet": ALPHABET,
        "n_chats": len(sequences),
        "n_symbols_by_speaker": by_speaker,
    }


def pack(sequences: list[list[int]]) -> bytes:
    """The file's bytes: a JSON header, then one JSON string of letters a chat."""
    lines = [header(sequences), *("".join(ALPHABET[symbol] for symbol in sequence) for sequence in sequences)]
    return bz2.compress("".join(json.dumps(line) + "\n" for line in lines).encode("ascii"), 9)


def main(check: bool = False) -> None:
    """Write the shipped conversations, or compare them with what would be written."""
    packed = pack([act_sequence(turns) for turns in chosen_chats()])
    if not check:
        write_bytes(SHIPPED, packed)
        print(f"wrote {SHIPPED}: {len(packed)} bytes")
    elif packed != SHIPPED.read_bytes():
        sys.exit(
            f"{SHIPPED} differs from what the sources give; compare the versions in its first line with those "
            "installed, or run again without --check"
        )
    else:
        print(f"{SHIPPED} is what the sources give: {len(packed)} bytes")


if __name__ == "__main__":
    typer.run(main)
