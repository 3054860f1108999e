"""Results of a chat experiment that never ran: transcripts drawn by a seed, and rows, curves and verdicts that fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cautious_imitation.intervals import wilson_interval

ANCHORS = ("bayesian", "cautious-pointwise", "cautious-minimax")
WORDS = (" well", " the", " report", " is", " good", ",", " you", " can", " write", " it", "\n", "\n\n", "  and", " so")
STUDENT = (" thanks", " I", " love", " that", " no", ".", " really", "!")
END = "<|end|>"
OPENING = ("Student", ":", " help", " me", " please", END, "\n", "Teacher", ":")
HEADERS = {True: ("\n", "Teacher", ":"), False: ("\n", "Student", ":")}

SILENT = {"bayesian": 0.45, "cautious-pointwise": 0.03, "cautious-minimax": 0.05}
ASKS = {"bayesian": 0.0, "cautious-pointwise": 0.2, "cautious-minimax": 0.012}
DRIFT = {"bayesian": 2.2, "cautious-pointwise": 0.5, "cautious-minimax": 0.7}


@dataclass
class Results:
    """What a run folder holds, in the shape of its files."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    transcripts: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As ``write_chat_report`` takes them after the path."""
        return self.rows, self.curves, self.transcripts, self.verdicts, self.settings


def results(
    seed: int = 0,
    *,
    anchors: tuple[str, ...] = ANCHORS,
    budgets: tuple[float, ...] = (5.0, 15.0),
    n_seeds: int = 2,
    n_episodes: int = 12,
    length: int = 120,
    phases: tuple[str, ...] = ("before", "after", "longer", "transfer"),
    demonstrator_known: bool = True,
    silences: bool = True,
    replies: bool = True,
    judged: bool = True,
    kept: int | None = None,
) -> Results:
    """A run with one policy for every anchor, budget, seed and phase.

    Args:
        silences: whether teachers ever reply with nothing.
        replies: whether any reply is finished.
        kept: how many transcripts a policy are in ``transcripts.json``; None for all.
    """
    rng = np.random.default_rng(seed)
    found = Results(settings={"config": {"budgets": list(budgets)}, "model": "small", "device": "cpu"})
    for anchor in anchors:
        for budget in budgets:
            for number in range(n_seeds):
                for phase in phases:
                    long = length * 2 if phase in ("longer", "transfer") else length
                    tag = {"anchor": anchor, "phase": phase, "budget_nats": budget, "seed": number, "length": long}
                    scripts = [
                        tag | {"episode": one} | script(rng, tag, demonstrator_known, silences, replies)
                        for one in range(n_episodes)
                    ]
                    found.rows.append(row(tag, scripts))
                    found.transcripts += scripts[:kept]
                found.curves.append(curve(rng, anchor, budget, number, length, demonstrator_known))
    if judged:
        found.verdicts = verdicts(rng, found.transcripts)
    return found


def script(
    rng: np.random.Generator, tag: dict[str, Any], demonstrator_known: bool, silences: bool, replies: bool
) -> dict[str, Any]:
    """One transcript without its ``tag``."""
    anchor, budget = tag["anchor"], tag["budget_nats"]
    trained = tag["phase"] != "before"
    silent = SILENT[anchor] * rng.uniform(0.3, 1.7) * (trained or 0.1) if silences else 0.0
    out: dict[str, Any] = {"pieces": list(OPENING), "actors": ["environment"] * len(OPENING)}
    out |= {"turns": [-1] * len(OPENING), "charges": [0.0] * len(OPENING), "rewards": [0.0] * len(OPENING)}
    speakers: list[dict[str, Any]] = []
    questions: list[int] = []
    n_empty = 0

    def put(piece: str, actor: str, turn: int, charge: float = 0.0, reward: float = 0.0) -> bool:
        if len(out["pieces"]) == tag["length"]:
            return False
        for key, value in (("pieces", piece), ("actors", actor), ("turns", turn), ("charges", charge)):
            out[key].append(value)
        out["rewards"].append(reward)
        return True

    while len(out["pieces"]) < tag["length"]:
        turn, teacher = len(speakers), len(speakers) % 2 == 0
        begin = len(out["pieces"])
        if teacher:
            empty = bool(turn) and rng.random() < silent
            words = [] if empty else [str(rng.choice(WORDS)) for _ in range(rng.integers(3, 12))]
            if not empty and rng.random() < 0.6:
                words = [" you", " can", " write", *words[:6]]
            if not replies:
                words = [" on"] * tag["length"]
            n_empty += empty
            answer, actor = 0, "imitator"
            for word in [*words, END]:
                charge = 0.0
                if not answer and rng.random() < (ASKS[anchor] if not empty else 0.0):
                    answer, actor = int(rng.integers(1, 4)), str(rng.choice(["demonstrator", "oracle"]))
                    questions.append(len(out["pieces"]))
                    charge = float(rng.gamma(0.3, 0.05))
                elif not answer:
                    actor = "imitator"
                    scale = 0.9 * 0.6**n_empty if empty else 0.03 * budget
                    charge = float(rng.gamma(0.5, scale)) * trained
                if not put(word, actor, turn, charge):
                    questions[:] = [place for place in questions if place < tag["length"]]
                    break
                answer = max(0, answer - 1)
        else:
            words = [str(rng.choice(STUDENT)) for _ in range(rng.integers(4, 9))]
            for word in words:
                put(word, "environment", turn)
            put(END, "environment", turn, reward=float(rng.uniform(0.2, 0.7) + 0.2 * trained))
        end = len(out["pieces"])
        finished = end > begin and out["pieces"][-1] == END
        said = "".join(out["pieces"][begin : end - finished])
        if end > begin:
            speakers.append(
                {"is_teacher": teacher, "begin": begin, "end": end, "finished": finished, "text": said.strip()}
                | {"empty": not said.strip()}
            )
        for word in HEADERS[not teacher] if finished else ():
            put(word, "environment", len(speakers))
    # A hard budget: charges of an episode never come to more.
    total = math.fsum(out["charges"])
    out["charges"] = [charge * min(1.0, budget / total) if total else 0.0 for charge in out["charges"]]
    kl = [charge * DRIFT[anchor] * float(rng.uniform(0.8, 1.2)) for charge in out["charges"]]
    kl_known = kl if demonstrator_known else None
    return out | {
        "speakers": speakers,
        "questions": questions,
        "kl_demonstrator": kl_known,
        "given": len(OPENING),
    }


def row(tag: dict[str, Any], scripts: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of ``results.json`` that ``scripts`` come to."""
    n = len(scripts)
    rewards = np.array([sum(one["rewards"]) for one in scripts])
    charges = np.array([sum(one["charges"]) for one in scripts])
    known = scripts[0]["kl_demonstrator"] is not None
    kl = np.array([sum(one["kl_demonstrator"]) for one in scripts]) if known else None
    decisions = sum(
        actor == "imitator" or place in one["questions"] for one in scripts for place, actor in enumerate(one["actors"])
    )
    asks = sum(len(one["questions"]) for one in scripts)
    replies = [turn for one in scripts for turn in one["speakers"] if turn["is_teacher"] and turn["finished"]]
    n_empty = sum(turn["empty"] for turn in replies)
    low, high = wilson_interval(n_empty, len(replies)) if replies else (None, None)
    return tag | {
        "episodes": n,
        "reward": float(rewards.mean()),
        "reward_se": float(rewards.std(ddof=1) / n**0.5) if n > 1 else None,
        "charge_nats": float(charges.mean()),
        "largest_charge_nats": float(charges.max()),
        "kl_demonstrator_nats": None if kl is None else float(kl.mean()),
        "kl_demonstrator_se": None if kl is None or n == 1 else float(kl.std(ddof=1) / n**0.5),
        "decisions": decisions,
        "asks": asks,
        "ask_rate": asks / decisions if decisions else None,
        "replies": len(replies),
        "empty_replies": n_empty,
        "empty_reply_share": n_empty / len(replies) if replies else None,
        "empty_reply_low": low,
        "empty_reply_high": high,
        "reply_tokens": float(np.mean([turn["end"] - turn["begin"] for turn in replies])) if replies else None,
        "bits_per_token": 3.0 - 0.05 * tag["budget_nats"] if replies else None,
        "distinct_1": 0.3 if replies else None,
        "distinct_2": 0.6 if replies else None,
        "distinct_3": 0.8 if replies else None,
        "updates": 0 if tag["phase"] == "before" else 30,
        "seconds": 12.5,
    }


def curve(
    rng: np.random.Generator, anchor: str, budget: float, seed: int, length: int, demonstrator_known: bool
) -> dict[str, Any]:
    """Thirty updates: ten of each phase of training."""
    points = []
    for update in range(30):
        phase = ("ramp", "full", "longer")[update // 10]
        now = budget * min(1.0, (update + 1) / 10)
        charge = np.sort(now * rng.beta(5, 1, size=5))
        reward = np.sort(3.0 + 0.1 * update + rng.normal(size=5))
        points.append(
            {
                "update": update,
                "phase": phase,
                "budget_nats": now,
                "length": length * (2 if phase == "longer" else 1),
                "reward": reward.tolist(),
                "charge_nats": charge.tolist(),
                "questions": int(rng.integers(0, 50)),
                "ask_rate": ASKS[anchor],
                "empty_reply_share": None if update == 0 else float(rng.uniform(0, 0.5)),
                "price_of_a_nat": float(rng.uniform(0, 1)),
                "entropy_nats": float(rng.uniform(1, 3)),
                "decisions": 700,
                "kl_demonstrator_nats": float(charge.mean()) * DRIFT[anchor] if demonstrator_known else None,
            }
        )
    return {"anchor": anchor, "budget_nats": budget, "seed": seed, "points": points}


def verdicts(rng: np.random.Generator, transcripts: list[dict[str, Any]], n: int = 200) -> list[dict[str, Any]]:
    """Verdicts on pairs drawn from the trained policies; smaller budgets tend to win."""
    trained = [one for one in transcripts if one["phase"] == "after"]
    if not trained:
        return []
    found = []
    for number in range(n):
        sides = [trained[place] for place in rng.integers(len(trained), size=2)]
        first, second = (
            {key: one[key] for key in ("anchor", "phase", "budget_nats", "seed", "length", "episode")} for one in sides
        )
        lead = 0.5 + 0.2 * np.sign(second["budget_nats"] - first["budget_nats"])
        draw = rng.random()
        found.append(
            {
                "question": ("better", "complex")[number % 2],
                "judge": "a judge",
                "first": first,
                "second": second,
                "shown_first": str(rng.choice(["first", "second"])),
                "verdict": "tie" if draw > 0.95 else "first" if draw < 0.95 * lead else "second",
                "said": None if number % 3 else "the first one",
            }
        )
    return found
