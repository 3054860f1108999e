"""Do imitators over a language model ask where the demonstrator is not known, and only there?

    python baselines/help_quality.py [--model SOURCE] [--tokens N] [--texts N] [--out FOLDER]

Demonstrations are real chats (package chitchat-dataset), of which some are held out. Imitators learn from them with
each class of hypotheses; what they say is then compared between held-out chats and texts of kinds that were never
shown:

- languages: conversations in 20 other languages (package chatterbot-corpus);
- code: the source of Python's standard library;
- shuffled: the held-out chats themselves, the words of each shuffled;
- style: the encyclopaedic questions and answers of chatterbot-corpus, in English.

Scores of a reply's tokens, each before the token is seen, averaged over the agent's tokens of a text:

- ask: the probability of asking, at the ``alpha`` at which that is 7 % on average on a part of the held-out chats
  that is not looked at again;
- radius: how far the plausible logits reach, where a class has such a number: the minimax radius to first order;
- charge: what minimax caution charges at that ``alpha`` for doing what the imitator does when it acts, in nats: how
  wide the plausible set is;
- one minus the model's largest probability, its entropy, and the variance of probabilities between members.

AUROC: how often a text of the other kind scores higher than a held-out chat. Then what the i-th empty reply in a row
costs in nats, under each imitator, and how much is asked in the reply after the first.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from chat_material import Chat, device_name, real_chats, said, smollm2
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.hypotheses.event_refined import EventRefined
from cautious_imitation.hypotheses.events import EmptyReplies
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.hypotheses.language_models import LanguageModels
from cautious_imitation.hypotheses.low_rank_heads import LowRankHeads
from cautious_imitation.language.chats import chat_context, tokenized_chats
from cautious_imitation.language.demonstration_features import model_digest, read_demonstrations
from cautious_imitation.language.loading import load_language_model
from cautious_imitation.language.model import LanguageModel, Reader, Reading
from cautious_imitation.language.recent_context import RecentContext
from cautious_imitation.language.small_gpt import shipped_tokenizer, small_gpt, small_gpt_ensemble

KINDS = ("languages", "code", "shuffled", "style")
STYLE = ("ai", "computers", "history", "literature", "psychology", "science", "trivia")
MODULES = (
    *("argparse", "collections", "dataclasses", "http.client", "inspect", "json", "logging", "pathlib", "tarfile"),
    *("typing", "unittest.case", "urllib.request", "zipfile"),
)
CODE_LINES = 6
ASK_RATE = 0.07
EMPTY_REPLIES = 10
TOKENS_AT_ONCE = 256
TAIL = 16
TUNING_TOKENS = 1_000
NOISE = 0.25
CONTEXT = 384
ROUNDING = 1e-6
ENVIRONMENT = int(actor_codes(["environment"])[0])
DEMONSTRATOR = int(actor_codes(["demonstrator"])[0])

Floats = NDArray[np.float64]


def shuffled(chat: Chat, rng: random.Random) -> Chat:
    """The same words in another order, each message as long as it was."""
    words = [word for message in chat for word in message["content"].split()]
    rng.shuffle(words)
    pool = iter(words)
    return [{**m, "content": " ".join(next(pool) for _ in m["content"].split())} for m in chat]


def code(rng: random.Random) -> Chat:
    """A stretch of source code, its lines handed out in turns."""
    lines = inspect.getsource(import_module(rng.choice(MODULES))).splitlines()
    start = rng.randrange(max(1, len(lines) - 16 * CODE_LINES))
    parts = ["\n".join(lines[start + i * CODE_LINES :][:CODE_LINES]) for i in range(16)]
    return [said(bool(i % 2), part) for i, part in enumerate(parts)]


def corpus(languages: list[str], topics: tuple[str, ...], rng: random.Random) -> Iterator[Chat]:
    """Endless chats out of chatterbot-corpus: question and answer pairs of one language in random order."""
    pairs: dict[str, list[Chat]] = {}
    for language in languages:
        for path in sorted((Path(str(files("chatterbot_corpus"))) / "data" / language).glob("*.yml")):
            if not topics or path.stem in topics:
                for talk in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
                    chat = [said(bool(i % 2), str(text)) for i, text in enumerate(talk)]
                    pairs.setdefault(language, []).append(chat if len(chat) % 2 == 0 else chat[:-1])
    names = sorted(pairs)
    while True:
        for name in names:
            yield [message for pair in rng.choices(pairs[name], k=24) for message in pair]


def texts(chats: Iterator[Chat], count: int, length: int, tokenizer: Any) -> Demonstrations:
    """The first ``count`` chats in which the agent says enough, each cut to ``length`` tokens."""
    sequences, actors = [], []
    for chat in chats:
        filled = [message for message in chat if message["content"]]
        if len(filled) < 2:
            continue
        whole = tokenized_chats([{"messages": filled}], tokenizer)
        sequence, actor = whole.sequences[0][:length], whole.actors[0][:length]
        if (actor == DEMONSTRATOR).sum() >= length // 8:
            sequences.append(sequence)
            actors.append(actor)
        if len(sequences) == count:
            break
    return Demonstrations(tuple(sequences), tuple(actors))


def foreign(kind: str, held_out: list[Chat], rng: random.Random) -> Iterator[Chat]:
    """Endless chats of a kind that was never shown."""
    if kind == "shuffled":
        return (shuffled(chat, rng) for chat in held_out)
    if kind == "code":
        return iter(lambda: code(rng), None)
    languages = sorted(path.name for path in (Path(str(files("chatterbot_corpus"))) / "data").iterdir())
    if kind == "style":
        return corpus(["english"], STYLE, rng)
    return corpus([name for name in languages if name not in ("english", "hinglish")], (), rng)


@dataclass(frozen=True)
class Read:
    """Features before each of the agent's tokens, the last tokens before it, and which text it belongs to."""

    features: torch.Tensor
    rows: list[torch.Tensor]
    text: NDArray[np.int64]

    @classmethod
    def of(cls, model: Reader, demonstrations: Demonstrations) -> Read:
        read = read_demonstrations(model, demonstrations, progress=True)
        rows = [
            torch.from_numpy(sequence[max(0, t - TAIL) : t].copy())
            for sequence, learned in zip(demonstrations.sequences, demonstrations.learned(), strict=True)
            for t in np.flatnonzero(learned)
        ]
        return cls(read.features, rows, read.sequences.numpy())

    def thinned(self, count: int) -> Read:
        """About ``count`` of the tokens, evenly spread."""
        kept = slice(None, None, max(1, len(self.rows) // count))
        return Read(self.features[kept], self.rows[kept], self.text[kept])

    def blocks(self) -> Iterator[Reading]:
        """A few tokens at a time, as many as fit beside a vocabulary of predictions."""
        for start in range(0, len(self.rows), TOKENS_AT_ONCE):
            part = slice(start, start + TOKENS_AT_ONCE)
            yield Reading(self.rows[part], self.features[part])

    def by_text(self, scores: Floats) -> Floats:
        """Mean score of each text."""
        return np.array([scores[self.text == text].mean() for text in np.unique(self.text)])


def asked(hypotheses: Any, read: Read, alpha: float) -> Floats:
    """Probability of asking before each token, ``[N]``."""
    minima = (hypotheses.plausible_min(part, alpha) for part in read.blocks())
    return concatenated((1 - log_min.exp().sum(-1)).clamp(min=0) for log_min in minima)


def charged(hypotheses: Any, read: Read, alpha: float) -> Floats:
    """Largest KL to a plausible member of what the imitator does when it acts, before each token, ``[N]`` nats."""
    found = ((part, hypotheses.plausible_min(part, alpha)) for part in read.blocks())
    return concatenated(hypotheses.worst_kl(part, log_min.log_softmax(-1), alpha) for part, log_min in found)


def reached(hypotheses: Any, read: Read, alpha: float) -> Floats:
    """Radius of the plausible set before each token, ``[N]`` logits."""
    return concatenated(hypotheses.radius(part, alpha) for part in read.blocks())


def uncertain(model: LanguageModel, read: Read, kind: str) -> Floats:
    """What the network alone says about its uncertainty before each token, ``[N]``."""
    found = (model.log_probs(part.features) for part in read.blocks())
    if kind == "max-prob":
        return concatenated(1 - log_p.amax(-1).exp() for log_p in found)
    return concatenated(-(log_p.exp() * log_p).sum(-1) for log_p in found)


def disagreeing(heads: LowRankHeads, read: Read) -> Floats:
    """Variance of the members' probabilities before each token, summed over actions, ``[N]``."""
    return concatenated(heads.rows_from(part.features).exp().var(-2).sum(-1) for part in read.blocks())


def concatenated(parts: Iterator[torch.Tensor]) -> Floats:
    return torch.cat([part.double().cpu() for part in parts]).numpy()


def alpha_at(hypotheses: Any, read: Read, rate: float) -> float:
    """The least ``alpha`` that asks at most ``rate`` on average, by bisection in log(1 / alpha)."""
    low, high = 0.0, 30.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if asked(hypotheses, read, np.exp(-middle)).mean() <= rate else (low, middle)
    return float(np.exp(-low))


def auroc(foreign_scores: Floats, own_scores: Floats) -> float:
    """Share of pairs in which the foreign one scores higher, ties counted half."""
    ranks = rankdata(np.concatenate([own_scores, foreign_scores]))[len(own_scores) :]
    n = len(foreign_scores)
    return float((ranks.sum() - n * (n + 1) / 2) / (n * len(own_scores)))


@dataclass(frozen=True)
class Silence:
    """What empty replies cost under one class at one ``alpha``.

    Attributes:
        bayesian_nats: ``[10]`` medians over chats of the mixture's charge for the i-th empty reply in a row.
        cautious_nats: ``[10]``, likewise of the plausible minimum.
        never_cheaper: share of chats in which no empty reply is cheaper than the first, under caution.
        asked_after_one: mean probability of asking in the agent's real next reply, after one empty reply.
    """

    bayesian_nats: list[float]
    cautious_nats: list[float]
    never_cheaper: float
    asked_after_one: float


@dataclass(frozen=True)
class Loops:
    """Chats with empty replies put into them, read once for all classes.

    Attributes:
        openings: what stands before the 1st, 2nd, ... empty reply, a ``Reading`` of 10 a chat.
        replies: the agent's real next reply, after one empty reply.
    """

    openings: list[Reading]
    replies: Read

    @classmethod
    def of(cls, model: Reader, chats: list[Chat]) -> Loops:
        tokenizer, openings, sequences, actors = model.tokenizer, [], [], []
        for chat in chats:
            nothing = [said(True, ""), chat[1]]
            looped = [chat_context(tokenizer, chat[:2] + i * nothing) for i in range(EMPTY_REPLIES)]
            openings.append(model.read([torch.from_numpy(tokens[-CONTEXT:]) for tokens in looped]))
            whole = tokenized_chats([{"messages": chat[:2] + nothing + chat[2:3]}], tokenizer)
            actor = whole.actors[0].copy()
            actor[: len(looped[1])] = ENVIRONMENT
            sequences.append(whole.sequences[0][:CONTEXT])
            actors.append(actor[:CONTEXT])
        return cls(openings, Read.of(model, Demonstrations(tuple(sequences), tuple(actors))))


@dataclass(frozen=True)
class Material:
    """All that is scored, as one reader reads it."""

    tuning: Read
    reads: dict[str, Read]
    loops: Loops

    @classmethod
    def of(
        cls, reader: Reader, tuning: Demonstrations, written: dict[str, Demonstrations], chats: list[Chat], every: int
    ) -> Material:
        reads = {kind: Read.of(reader, texts) for kind, texts in written.items()}
        thinned = {kind: read.thinned(len(read.rows) // every) for kind, read in reads.items()}
        return cls(Read.of(reader, tuning).thinned(TUNING_TOKENS), thinned, Loops.of(reader, chats))


def silence(hypotheses: Any, loops: Loops, alpha: float) -> Silence:
    """What empty replies cost, and what they change."""
    end = EmptyReplies.for_tokenizer(hypotheses.model.tokenizer, hypotheses.n_symbols).end_tokens[0]
    bayesian = np.array([(-hypotheses.mixture(reading)[:, end]).tolist() for reading in loops.openings])
    cautious = np.array([(-hypotheses.plausible_min(reading, alpha)[:, end]).tolist() for reading in loops.openings])
    return Silence(
        np.median(bayesian, axis=0).tolist(),
        np.median(cautious, axis=0).tolist(),
        float((cautious >= cautious[:, :1] - ROUNDING).all(1).mean()),
        float(asked(hypotheses, loops.replies, alpha).mean()),
    )


def classes(model: LanguageModel, shown: Demonstrations, folder: Path, seed: int, names: list[str]) -> dict[str, Any]:
    """The classes of hypotheses that are wanted, fitted to the same demonstrations."""
    events = EmptyReplies.for_tokenizer(model.tokenizer, model.n_symbols)
    makers: dict[str, Callable[[], Any]] = {
        "gaussian": lambda: GaussianHead(model, noise=NOISE).fit(shown, cache=folder, progress=True),
        "gaussian fisher": lambda: GaussianHead(model, covariance="fisher", noise=NOISE).fit(shown, cache=folder),
        "gaussian recent": lambda: GaussianHead(model, reads="recent", noise=NOISE).fit(shown, cache=folder),
        "low rank": lambda: LowRankHeads.train(model, shown, seed=seed, cache=folder, progress=True),
        "events": lambda: EventRefined(GaussianHead(model, reads="recent", noise=NOISE), events).fit(
            shown, cache=folder
        ),
    }
    if model.tokenizer.get_vocab() == shipped_tokenizer().get_vocab():
        makers["ensemble"] = lambda: LanguageModels(small_gpt_ensemble(device=model.device)).fit(shown, progress=True)
    unknown = sorted(set(names) - set(makers))
    if unknown:
        raise SystemExit(f"--classes must be among {', '.join(makers)}, got {', '.join(unknown)}")
    return {name: makers[name]() for name in names or makers}


def main() -> None:
    parser = argparse.ArgumentParser(description="where imitators over a language model ask")
    parser.add_argument("--model", default=None, help="hub id, folder, .gguf file, or small-gpt; default SmolLM2")
    parser.add_argument("--dtype", default=None, help="precision of the weights, such as bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens of demonstrations, both speakers'")
    parser.add_argument("--texts", type=int, default=60, help="texts of each kind")
    parser.add_argument("--length", type=int, default=384, help="tokens of a text")
    parser.add_argument("--cache", type=Path, default=Path("runs/help-quality"), help="keeps what was read")
    parser.add_argument("--classes", default="", help="only these, separated by commas")
    parser.add_argument("--every", type=int, default=6, help="score every so many of the agent's tokens")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = recent_model(arguments.model, arguments.device, arguments.dtype)
    rng = random.Random(arguments.seed)
    chats = real_chats()
    rng.shuffle(chats)
    held_out, others = chats[: 3 * arguments.texts], iter(chats[3 * arguments.texts :])
    n_shown = max(1, arguments.tokens // arguments.length)
    shown = texts(others, n_shown, arguments.length, model.tokenizer)
    names = [name.strip() for name in arguments.classes.split(",") if name.strip()]
    fitted = classes(model, shown, arguments.cache / digest(model, shown), arguments.seed, names)
    own = texts(iter(held_out), 2 * arguments.texts, arguments.length, model.tokenizer)
    half = arguments.texts
    tuning = Demonstrations(own.sequences[half:], own.actors[half:])
    written = {"held out": Demonstrations(own.sequences[:half], own.actors[:half])}
    for kind in KINDS:
        written[kind] = texts(foreign(kind, held_out, rng), half, arguments.length, model.tokenizer)
    openings = [chat for chat in held_out if len(chat) > 2 and all(message["content"] for message in chat[:3])]

    @cache
    def material(reader: Reader) -> Material:
        return Material.of(reader, tuning, written, openings[: half // 3], arguments.every)

    rows, reads = [], material(model).reads
    for name in ("max-prob", "entropy"):
        rows.append(row("network", name, {k: uncertain(model, read, name) for k, read in reads.items()}, reads))
    if "low rank" in fitted:
        variance = {kind: disagreeing(fitted["low rank"], read) for kind, read in reads.items()}
        rows.append(row("low rank", "variance", variance, reads))
    quiet: dict[str, Silence] = {}
    for name, hypotheses in fitted.items():
        found = material(hypotheses.model)
        alpha = alpha_at(hypotheses, found.tuning, ASK_RATE)
        measures = {"ask": asked, "charge": charged} | ({"radius": reached} if hasattr(hypotheses, "radius") else {})
        for score, measure in measures.items():
            scores = {kind: measure(hypotheses, read, alpha) for kind, read in found.reads.items()}
            rows.append(row(name, score, scores, found.reads, alpha))
        quiet[name] = silence(hypotheses, found.loops, alpha)
    on = device_name(model.device)
    show(rows, quiet, f"{on}: {len(shown)} chats, {shown.n_learned()} tokens of the agent's; {half} texts a kind")
    print(json.dumps({"benchmark": "help_quality", "rows": rows, "silence": {k: vars(q) for k, q in quiet.items()}}))


def recent_model(source: str | None, device: str, dtype: str | None) -> LanguageModel:
    """The model to read with; its features hold the recent context too."""
    if source == "small-gpt":
        return small_gpt("member-0", device=device, recent=RecentContext())
    if source is None:
        source = smollm2()
    return load_language_model(source, device=device, dtype=dtype, recent=RecentContext())


def digest(model: LanguageModel, shown: Demonstrations) -> str:
    """Names the folder in which what the model made of just these demonstrations is kept."""
    return sha256(model_digest(model).encode() + b"".join(s.tobytes() for s in shown.sequences)).hexdigest()[:12]


def row(
    name: str, score: str, scores: dict[str, Floats], reads: dict[str, Read], alpha: float | None = None
) -> dict[str, Any]:
    """One line of the table: how well a score tells each kind of text from held-out chats."""
    own = reads["held out"].by_text(scores["held out"])
    found = {kind: auroc(reads[kind].by_text(scores[kind]), own) for kind in KINDS}
    means = {kind: float(values.mean()) for kind, values in scores.items()}
    return {"class": name, "score": score, "alpha": alpha, "auroc": found, "mean": means}


def show(rows: list[dict[str, Any]], quiet: dict[str, Silence], title: str) -> None:
    console = Console(width=120)
    table = Table("class", "score", "alpha", "held out", *KINDS, title=f"AUROC a text, and mean on held-out\n{title}")
    for line in rows:
        alpha = "" if line["alpha"] is None else f"{line['alpha']:.3g}"
        table.add_row(
            line["class"],
            line["score"],
            alpha,
            f"{line['mean']['held out']:.3f}",
            *(f"{line['auroc'][kind]:.3f}" for kind in KINDS),
        )
    console.print(table)
    table = Table("class", "caution", *map(str, range(1, EMPTY_REPLIES + 1)), "never cheaper", "asks after one")
    table.title = "nats of the i-th empty reply, median over chats"
    for name, found in quiet.items():
        table.add_row(name, "bayesian", *(f"{nats:.1f}" for nats in found.bayesian_nats))
        share, rate = f"{found.never_cheaper:.0%}", f"{found.asked_after_one:.1%}"
        table.add_row("", "cautious", *(f"{nats:.1f}" for nats in found.cautious_nats), share, rate)
    console.print(table)


if __name__ == "__main__":
    main()
