"""One chat experiment: a base model, what was learned from demonstrations, and the policies that are trained on it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cautious_imitation.atomic_files import write_text
from cautious_imitation.chat_config import ChatAnchor, ChatConfig, demonstrations_path
from cautious_imitation.comparison.chat_judges import check_judge
from cautious_imitation.comparison.chat_records import Record, records_of, row_of
from cautious_imitation.comparison.chat_sources import load_base, load_demonstrations, opening_and_names
from cautious_imitation.demonstrations import read_chats
from cautious_imitation.environments.chat import ChatEnv
from cautious_imitation.environments.chat_rewards import Reward, classifier_reward, vader_reward
from cautious_imitation.finetuning.chat_evaluation import PlayedChat, evaluate_chats
from cautious_imitation.finetuning.chat_policy import AsksAtRandom, ChatCritic, ChatPolicy
from cautious_imitation.finetuning.chat_rollouts import ChatRollouts
from cautious_imitation.finetuning.chat_training import ChatTraining, Point, Schedule
from cautious_imitation.finetuning.ppo import PPO, PPOSettings
from cautious_imitation.finetuning.processes import gathered_objects, n_processes, rank
from cautious_imitation.finetuning.training_state import read_training, write_training
from cautious_imitation.hypotheses.event_refined import EventRefined
from cautious_imitation.hypotheses.events import EmptyReplies
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.hypotheses.pretrained import build_hypotheses
from cautious_imitation.imitators import BasePolicy, BayesianImitator, CautiousImitator
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.oracles.language_model import LanguageModelOracle

_PPO = ("clip", "epochs", "minibatch", "entropy", "max_gradient_norm", "actor_rate", "critic_rate", "trace")

BEFORE, AFTER, ASKING, TRANSFER, LONGER = "before", "after", "asking", "transfer", "longer"
_POLICY, _IMITATOR = "policy.safetensors", "imitator"


@dataclass(frozen=True)
class ChatCell:
    """One policy: what it is held close to, how many nats it may spend in an episode, and the seed of its training."""

    anchor: ChatAnchor
    budget_nats: float
    seed: int

    @property
    def name(self) -> str:
        """Unique among the cells of an experiment; good for a folder."""
        return f"{self.anchor}-{str(self.budget_nats).removesuffix('.0')}-{self.seed}"


def chat_cells(config: ChatConfig) -> Iterator[ChatCell]:
    """Every combination, each once: seed by seed, so that a run that is cut short has something of everything."""
    seen = set()
    for seed in config.seeds:
        for budget in config.budgets_nats:
            for anchor in config.anchors:
                cell = ChatCell(anchor, budget, seed)
                if cell not in seen:
                    seen.add(cell)
                    yield cell


class ChatExperiment:
    """What the cells of a comparison share.

    Args:
        config: settings.
        folder: where what was learned from demonstrations is kept; learned anew where it is not there yet.
    """

    def __init__(self, config: ChatConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    @cached_property
    def base(self) -> LanguageModel:
        """The base model."""
        reads = self.config.imitator.settings.get("reads", "last")
        templated = not isinstance(self.config.episodes.opening, str)
        return load_base(self.config.language, recent=reads != "last", templated=templated)

    @cached_property
    def demonstrator(self) -> LanguageModel | None:
        """Whoever is imitated, where it is known."""
        settings, language = self.config.demonstrations, self.config.language
        if settings.demonstrator is None:
            return None
        if settings.demonstrator == language.source:
            return self.base
        return load_base(language.model_copy(update={"source": settings.demonstrator, "four_bit": False}))

    def check(self) -> None:
        """Raise now what would come up in the middle otherwise; nothing is written.

        Raises:
            OSError: if a model is not here, and the hub cannot be reached.
            ValueError: if models, demonstrations, opening, lengths, reward or judge are unusable.
        """
        check_judge(self.config)
        path = demonstrations_path(self.config)
        if path is not None:
            # A wrong path is told before a large model is loaded.
            next(read_chats(path), None)
        budget, imitator = self.config.budgets_nats[0], self.config.imitator
        self.env(budget).close()
        try:
            self.env(budget, self.longer_length).close()
        except ValueError as error:
            raise ValueError(f"episodes.longer_length, which is twice episodes.length by default: {error}") from error
        if imitator.events:
            reply_events(self.base, self.config.episodes.teacher, imitator.memory)
        if imitator.hypotheses == "gaussian":
            self._gaussian_head()
        if not (self.folder / _IMITATOR / "imitator.json").exists():
            _ = self.learned

    @property
    def longer_length(self) -> int:
        """Tokens of the longer episodes."""
        return self.config.episodes.longer_length or 2 * self.config.episodes.length

    @property
    def reference(self) -> LanguageModel:
        """What automatic judges go by: the demonstrator where it is known, else the base model."""
        return self.demonstrator or self.base

    @cached_property
    def learned(self) -> Any:
        """The demonstrations, in the base model's tokens."""
        return load_demonstrations(self.config, self.base, self.demonstrator)

    @cached_property
    def hypotheses(self) -> Any:
        """The class that both imitators share, with what it has learned."""
        kept = self.folder / _IMITATOR
        if (kept / "imitator.json").exists():
            return BayesianImitator.load(kept, model=self.base).hypotheses
        imitator, learned = self.config.imitator, self.learned
        if imitator.hypotheses == "gaussian":
            hypotheses = self._gaussian_head()
        else:
            with _named_settings():
                hypotheses = build_hypotheses("low_rank", self.base, learned, progress=False, **imitator.settings)
        if imitator.events:
            events = reply_events(self.base, self.config.episodes.teacher, imitator.memory)
            hypotheses = EventRefined(hypotheses, events).fit(learned)
        elif imitator.hypotheses == "gaussian":
            hypotheses = hypotheses.fit(learned)
        if rank() == 0:
            BayesianImitator(hypotheses, evidence="demonstrator").save(kept)
        return hypotheses

    def _gaussian_head(self) -> Any:
        with _named_settings():
            return GaussianHead(self.base, **self.config.imitator.settings)

    def anchor(self, name: ChatAnchor) -> BasePolicy:
        """An imitator; all of them have learned from the demonstrator alone."""
        if name == "bayesian":
            return BayesianImitator(self.hypotheses, evidence="demonstrator")
        caution: Any = name.removeprefix("cautious-")
        return CautiousImitator(self.hypotheses, math.exp(-self.config.imitator.log_inverse_alpha), caution)

    @cached_property
    def reward(self) -> Reward:
        """What a student's reply is worth."""
        settings = self.config.episodes
        if settings.reward == "vader":
            return vader_reward()
        try:
            return classifier_reward(settings.reward, positive=settings.positive, device=self.config.language.device)
        except ValueError as error:
            named = f"episodes.reward={settings.reward!r} with episodes.positive={settings.positive!r}"
            raise ValueError(f"{named}: {error}") from error

    def env(self, budget_nats: float, length: int | None = None) -> ChatEnv:
        """The chats that are played together in this process; of the shorter length, if none is given."""
        settings, answering = self.config.episodes, self.demonstrator or self.base
        opening, teacher, student = opening_and_names(self.config, self.base.tokenizer)
        # Without a demonstrator somebody has to answer; what the base model says is help, and no evidence.
        oracle = LanguageModelOracle(
            answering,
            max_new_tokens=settings.answer_tokens,
            seed=0,
            stop_tokens=_end_tokens(self.base),
            rows_at_once=settings.parallel,
            is_demonstrator=self.demonstrator is not None,
        )
        if settings.parallel % n_processes():
            raise ValueError(
                f"episodes.parallel must be a multiple of the {n_processes()} processes, got {settings.parallel}"
            )
        return ChatEnv(
            self.base,
            opening,
            num_envs=settings.parallel // n_processes(),
            length=settings.length if length is None else length,
            budget_nats=budget_nats,
            reward=self.reward,
            teacher=teacher,
            student=student,
            temperature=settings.temperature,
            hidden_layers=settings.hidden_layers,
            oracle=oracle,
            ask_price=settings.ask_price,
            steps="token",
        )

    def training(self, cell: ChatCell) -> ChatTraining:
        """The training of a cell, from its beginning."""
        training, episodes = self.config.training, self.config.episodes
        schedule = Schedule(
            cell.budget_nats,
            ramp=training.ramp_updates,
            full=training.full_updates,
            longer=training.longer_updates,
            length=episodes.length,
            longer_length=self.longer_length,
        )
        env = self.env(cell.budget_nats)
        torch.manual_seed(cell.seed)
        policy = ChatPolicy(env, self.anchor(cell.anchor), cell.budget_nats)
        critic = ChatCritic(env, cell.budget_nats)
        settings = PPOSettings(**{name: getattr(training, name) for name in _PPO})
        ppo = PPO(
            policy,
            critic,
            ChatRollouts(env, cell.budget_nats),
            settings,
            seed=cell.seed,
            rows_at_once=training.rows_at_once,
        )
        return ChatTraining(
            ppo, schedule, self.folder / "cells" / cell.name, checkpoint_every=training.checkpoint_every
        )

    def solve(self, cell: ChatCell, told: Callable[[Point], None] | None = None) -> Record:
        """Train a cell and look at it before, after and in longer episodes; whatever is there already is taken up.

        Args:
            cell: which one.
            told: called with every point of its curve.

        Returns:
            ``{"rows": [...], "curve": {...}, "transcripts": [...]}``, as the files of a comparison hold them.

        Raises:
            ValueError: if what an earlier run left of the cell is damaged; the message says what to remove.
            OSError: if something cannot be written; what was written before stays.
        """
        training, kept = self.training(cell), self.folder / "cells" / cell.name
        try:
            training.resume()
        except ValueError as error:
            raise ValueError(f"{error}; or {_anew(kept)}") from error
        schedule, settings = training.schedule, self.config.training
        learned = settings.ramp_updates + settings.full_updates
        stages = [
            (BEFORE, 0, schedule.length),
            (AFTER, learned, schedule.length),
            (TRANSFER, learned, schedule.longer_length),
        ]
        if settings.longer_updates:
            stages.append((LONGER, schedule.updates, schedule.longer_length))
        found = []
        for phase, n_updates, length in stages:
            path = kept / f"{phase}.json"
            if not path.exists():
                if training.ppo.n_updates > n_updates:
                    raise ValueError(
                        f"{path} is missing, and the checkpoint beside it has been trained further, for "
                        f"{training.ppo.n_updates} updates rather than {n_updates}; {_anew(kept)}"
                    )
                training.run(until=n_updates, told=told)
                if phase == AFTER and rank() == 0:
                    write_training(path.with_name(_POLICY), {"policy": training.ppo.policy}, {"cell": cell.name})
                looked = self._looked_at(training, cell, phase, length)
                if rank() == 0:
                    write_text(path, json.dumps(looked, allow_nan=False) + "\n")
                found.append(looked)
            else:
                found.append(_read(path))
        # Where all was looked at but the checkpoint is gone, the curve is found once more.
        training.run(told=told)
        return {
            "rows": [one["row"] for one in found],
            "transcripts": [script for one in found for script in one["transcripts"]],
            "curve": {
                "anchor": cell.anchor,
                "budget_nats": cell.budget_nats,
                "seed": cell.seed,
                "points": training.points,
            },
        }

    def asking(self, cell: ChatCell, ask_rate: float) -> Record:
        """The row of a trained policy that asks besides, at random, on ``ask_rate`` of its decisions."""
        path = self.folder / "cells" / cell.name / f"{ASKING}.json"
        if not path.exists():
            training = self.training(cell)
            read_training(path.with_name(_POLICY), {"policy": training.ppo.policy}, {"cell": cell.name})
            training.ppo.n_updates = self.config.training.ramp_updates + self.config.training.full_updates
            policy = AsksAtRandom(training.ppo.policy, ask_rate)
            looked = self._looked_at(training, cell, ASKING, self.config.episodes.length, policy)
            if rank() == 0:
                write_text(path, json.dumps(looked, allow_nan=False) + "\n")
        row: Record = _read(path)["row"]
        return row

    def _looked_at(
        self, training: ChatTraining, cell: ChatCell, phase: str, length: int, policy: torch.nn.Module | None = None
    ) -> Record:
        training.prepare(cell.budget_nats, length)
        began = time.perf_counter()
        ppo: Any = training.ppo
        chats: list[PlayedChat] = gathered_objects(
            evaluate_chats(
                ppo.policy if policy is None else policy,
                ppo.critic,
                ppo.episodes,
                self.config.evaluation.episodes,
                demonstrator=self.demonstrator,
                seed=cell.seed,
            )
        )
        name = {
            "anchor": cell.anchor,
            "phase": phase,
            "budget_nats": cell.budget_nats,
            "seed": cell.seed,
            "length": length,
        }
        row = row_of(name, chats, self.base.tokenizer, updates=ppo.n_updates, seconds=training.seconds)
        kept = records_of(name, chats[: self.config.evaluation.kept], self.base.tokenizer)
        return {"row": {**row, "evaluation_seconds": time.perf_counter() - began}, "transcripts": kept}


@contextmanager
def _named_settings() -> Iterator[None]:
    """Errors of what the settings are passed on to, as errors of these."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"imitator.settings: {error}") from error


def _read(path: Path) -> Record:
    """What was found of a phase."""
    try:
        found: Record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {_anew(path.parent)}") from error
    return found


def _anew(kept: Path) -> str:
    return f"remove {kept} to train this policy anew, which leaves the others as they are"


def reply_events(model: LanguageModel, teacher: str | None, memory: int) -> EmptyReplies:
    """Events of replies, by the chat template or, where there is none, by the teacher's name and line breaks."""
    tokenizer: Any = model.tokenizer
    if getattr(tokenizer, "chat_template", None) is not None:
        return EmptyReplies.for_tokenizer(tokenizer, model.n_symbols, memory=memory)
    texts = tokenizer.batch_decode([[token] for token in range(min(model.n_symbols, len(tokenizer)))])
    ends = [token for token, text in enumerate(texts) if "\n" in text]
    blanks = [token for token, text in enumerate(texts) if text and not text.strip() and token not in set(ends)]
    opened = tokenizer(f"{teacher or 'Assistant'}:", add_special_tokens=False)["input_ids"]
    return EmptyReplies(model.n_symbols, ends, opened, blank_tokens=blanks, memory=memory)


def _end_tokens(model: LanguageModel) -> list[int] | None:
    """The tokens that end a reply, where they are special ones."""
    if getattr(model.tokenizer, "chat_template", None) is None:
        return []
    return list(EmptyReplies.for_tokenizer(model.tokenizer, model.n_symbols, blanks=False).end_tokens)
