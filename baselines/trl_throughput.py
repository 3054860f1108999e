"""Tokens a second of RL fine-tuning in a chat: PPO with a hard budget of nats, next to TRL's GRPO and RLOO.

    python baselines/trl_throughput.py [--model smollm2 | FOLDER] [--threads N] [--episodes N] [--length N] [--search]

An update writes episodes, pays them and learns from them; all of that is timed. Both sides have the same base model in
single precision on the CPU, the same opening, as many episodes of as many tokens, VADER's reward, one gradient an epoch
and as many epochs: one, as TRL has it by default, and the eight of ``PPOSettings``. What is compared:

- ``GRPO``, ``RLOO``: of the full model, and of a LoRA adapter of rank 16, with a KL penalty to the base model
  (beta = 0.04). Completions have the length of an episode less the opening: ``min_new_tokens`` keeps them from ending
  early. One group, since all have one prompt. bfloat16, checkpoints, logs and gradient checkpointing are off.
- ``PPO budget``: a ``ChatPolicy`` and its critic. The anchor is the base model, the KL to it exact over the vocabulary,
  and charged to a budget of 8 nats. The base is frozen, so nothing is learned through it. The policy begins where it
  has moved from the base: a budget that does not bind costs little to keep.
- ``PPO LoRA``: a ``LoRAPolicy`` of rank 16 with the same exact KL as a penalty.

They do not do the same work. In TRL every token is the policy's own. Here a student writes as well, so tokens of both
are counted, those of headers among them, and the teacher's next to them. TRL's policies are trained through the whole
network, a budgeted one is not; compare adapter with adapter for that.

"tokens" are those generated a second of wall time, "CPU" those a second of processor time, which is the steadier number
on a machine that has other things to do, if there is one thread (more of them spin while they wait). Medians over
updates; contenders take turns, and the first update of each turn is left out. "writing" ends when TRL asks for rewards,
and here when the last token is written and paid; "learning" is the rest. TRL's log-probabilities of policy and
reference are part of its learning, ours of writing.

``--search`` times GRPO with other settings instead: attention, cache, rows at a time and continuous batching, which
takes no least length, so that it writes less.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
import trl
from chat_material import device_name, said, smollm2
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from cautious_imitation import BayesianImitator
from cautious_imitation.environments.chat import ChatEnv
from cautious_imitation.environments.chat_rewards import vader_reward
from cautious_imitation.finetuning.chat_policy import ChatCritic, ChatPolicy
from cautious_imitation.finetuning.chat_rollouts import ChatRollouts
from cautious_imitation.finetuning.lora_policy import LoRAPolicy
from cautious_imitation.finetuning.ppo import PPO, PPOSettings
from cautious_imitation.finetuning.rollout import Played
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.language.loading import load_language_model
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.small_gpt import small_gpt
from cautious_imitation.regularizers import Penalty

OPENING = [
    said(False, "Hello! I had a long day at school and I am rather tired now."),
    said(True, "I am sorry to hear that. What did you do there?"),
    said(False, "We had a test."),
]
RANK, BETA, BUDGET_NATS = 16, 0.04, 8.0
TARGET = 1.5
MOVED = 0.1
"""Standard deviation of the policy's weights at the beginning."""
SEARCHED: dict[str, dict[str, Any]] = {
    "GRPO": {},
    "GRPO, eager attention": {"attention": "eager"},
    "GRPO, static cache": {"cache_implementation": "static"},
    "GRPO, 16 rows at a time": {"rows": 16},
    "GRPO, 8 rows at a time": {"rows": 8},
    "GRPO, continuous batching": {"use_transformers_continuous_batching": True},
}


@dataclass(frozen=True)
class Size:
    """How much an update writes, and how often."""

    episodes: int
    length: int
    updates: int


@dataclass(frozen=True)
class Update:
    """What an update took, in seconds, and the tokens that were written, the teacher's among them."""

    seconds: float
    cpu_seconds: float
    writing_seconds: float
    tokens: int
    teacher_tokens: int


Contender = Callable[[], list[Update]]
"""Does a few updates, the first of which is a warm-up."""


class Clock(TrainerCallback):
    """When an update of TRL begins, asks for rewards and ends; it has ``epochs`` steps."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.updates = epochs, list[Update]()
        self._reward = vader_reward()
        self._began = self._began_cpu = self._written = 0.0
        self._tokens = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.epochs == 0:
            self._began, self._began_cpu = perf_counter(), process_time()

    def paid(self, completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """The reward of each completion, as TRL wants it."""
        self._written, self._tokens = perf_counter(), sum(map(len, completion_ids))
        texts = [completion[0]["content"] for completion in completions]
        paid: list[float] = np.asarray(self._reward(texts), dtype=np.float64).tolist()
        return paid

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.epochs == 0:
            seconds, cpu = perf_counter() - self._began, process_time() - self._began_cpu
            self.updates.append(Update(seconds, cpu, self._written - self._began, self._tokens, self._tokens))


class TimedPPO(PPO):
    """Knows how long it played."""

    played_seconds = 0.0

    def play(self, generator: torch.Generator) -> Played:
        began = perf_counter()
        played = super().play(generator)
        self.played_seconds = perf_counter() - began
        return played


def of_trl(
    folder: Path,
    tokenizer: Any,
    size: Size,
    n_given: int,
    epochs: int,
    *,
    algorithm: str = "GRPO",
    lora: bool = False,
    attention: str = "sdpa",
    rows: int | None = None,
    **settings: Any,
) -> list[Update]:
    """Updates of TRL, with a trainer of their own; ``rows`` are those that learning takes at a time."""
    # Its names are resolved when they are used, which a type checker cannot see.
    peer: Any = trl
    make_config, make_trainer = getattr(peer, f"{algorithm}Config"), getattr(peer, f"{algorithm}Trainer")
    rows, n_new = min(rows or size.episodes, size.episodes), size.length - n_given
    clock = Clock(epochs)
    with TemporaryDirectory() as output:
        config = make_config(
            output_dir=output,
            model_init_kwargs={"dtype": "float32", "attn_implementation": attention},
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=size.episodes // rows,
            num_generations=size.episodes,
            num_iterations=epochs,
            max_steps=epochs * (size.updates + 1),
            max_completion_length=n_new,
            generation_kwargs={"min_new_tokens": n_new},
            beta=BETA,
            **settings,
        )
        trainer = make_trainer(
            model=str(folder),
            reward_funcs=clock.paid,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": OPENING}] * size.episodes),
            processing_class=tokenizer,
            callbacks=[clock],
            peft_config=LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.updates


def of_ppo(model: LanguageModel, size: Size, n_given: int, epochs: int, *, lora: bool) -> list[Update]:
    """Updates of PPO on a chat environment of their own."""
    torch.manual_seed(0)
    anchor = BayesianImitator(GaussianHead(model))
    env = environment(model, size)
    budget = float("inf") if lora else BUDGET_NATS
    budgeted = ChatPolicy(env, anchor, BUDGET_NATS)
    torch.nn.init.normal_(budgeted.head.adjustment.weight, std=MOVED)
    settings = PPOSettings(epochs=epochs, minibatch=size.episodes * size.length)
    trained = TimedPPO(
        LoRAPolicy(model, anchor, rank=RANK) if lora else budgeted,
        ChatCritic(env, budget),
        ChatRollouts(env, budget),
        settings,
        penalty=Penalty(BETA) if lora else None,
        # With fewer, each episode is read several times an epoch.
        rows_at_once=settings.minibatch,
    )
    updates = []
    for _ in range(size.updates + 1):
        began, began_cpu = perf_counter(), process_time()
        report = trained.update()
        seconds, cpu = perf_counter() - began, process_time() - began_cpu
        written = size.episodes * (size.length - n_given)
        updates.append(Update(seconds, cpu, trained.played_seconds, written, report.decisions))
    return updates


def unquantized(network: Any) -> Any:
    """The same network without a note that its weights were read from a quantized file: such a one is not written."""
    if getattr(network.config, "quantization_config", None) is None:
        return network
    config = deepcopy(network.config)
    del config.quantization_config
    plain = type(network)(config)
    plain.load_state_dict(network.state_dict())
    return plain


def environment(model: LanguageModel, size: Size) -> ChatEnv:
    """Chats that begin with the opening, token by token."""
    return ChatEnv(
        model,
        OPENING,
        num_envs=size.episodes,
        length=size.length,
        budget_nats=BUDGET_NATS,
        reward=vader_reward(),
        steps="token",
        temperature=1.0,
    )


def contenders(
    model: LanguageModel, folder: Path, size: Size, n_given: int, epochs: list[int], search: bool
) -> dict[tuple[str, int], Contender]:
    """What is timed, by name and epochs."""

    def trl(n: int, **settings: Any) -> Contender:
        return lambda: of_trl(folder, model.tokenizer, size, n_given, n, **settings)

    if search:
        return {(name, 1): trl(1, **settings) for name, settings in SEARCHED.items()}
    found: dict[tuple[str, int], Contender] = {}
    for n in epochs:
        found["TRL GRPO", n] = trl(n)
        found["TRL RLOO", n] = trl(n, algorithm="RLOO")
        found["PPO budget", n] = lambda n=n: of_ppo(model, size, n_given, n, lora=False)  # type: ignore[misc]
        found["TRL GRPO LoRA", n] = trl(n, lora=True)
        found["PPO LoRA", n] = lambda n=n: of_ppo(model, size, n_given, n, lora=True)  # type: ignore[misc]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="tokens a second of RL fine-tuning, next to TRL")
    parser.add_argument("--model", default="small-gpt", help="small-gpt, smollm2, or a folder")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="tokens of an episode, the opening among them")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, PPOSettings().epochs])
    parser.add_argument("--updates", type=int, default=2, help="that are timed in a turn, after one that is not")
    parser.add_argument("--turns", type=int, default=2, help="of each contender")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--search", action="store_true", help="time other settings of GRPO instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Progress bars over loading and saving, and what Transformers is about to rename, which TRL uses.
    library: Any = logging
    library.disable_progress_bar()
    library.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)
    size = Size(arguments.episodes, arguments.length, arguments.updates)
    if arguments.model == "small-gpt":
        model = small_gpt()
    else:
        source = smollm2() if arguments.model == "smollm2" else arguments.model
        model = load_language_model(source, dtype="float32")
    env = environment(model, size)
    env.reset(seed=0)
    n_given = len(env.reading().rows[0])
    prompt = model.tokenizer.apply_chat_template(OPENING, add_generation_prompt=True, tokenize=True, return_dict=True)
    if len(prompt["input_ids"]) != n_given:
        raise SystemExit(f"the opening must have as many tokens for both, got {len(prompt['input_ids'])} and {n_given}")
    seen: dict[tuple[str, int], list[Update]] = {}
    with TemporaryDirectory() as folder:
        # TRL loads its reference anew from where the model came from.
        unquantized(model.network).save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        chosen = contenders(model, Path(folder), size, n_given, arguments.epochs, arguments.search)
        for _ in range(arguments.turns):
            for key, contender in chosen.items():
                seen.setdefault(key, []).extend(contender()[1:])
    versions = {name: version(name) for name in ("trl", "transformers", "peft", "torch")}
    device = device_name(torch.device("cpu"))
    print(f"{arguments.model} on {device}; " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    print(
        f"{size.episodes} episodes of {size.length} tokens, {n_given} of them given; medians of "
        f"{arguments.turns * size.updates} updates"
    )
    rows = [row(name, epochs, updates) for (name, epochs), updates in seen.items()]
    rated = {(found["what"], found["epochs"]): found for found in rows}
    print(f"{'':27}{'epochs':>7}{'tokens/s':>10}{'teacher/s':>11}{'CPU':>7}{'writing s':>11}{'learning s':>12}")
    for found in rows:
        print(
            f"{found['what']:27}{found['epochs']:7}{found['tokens_per_second']:10.0f}"
            f"{found['teacher_tokens_per_second']:11.0f}{found['tokens_per_cpu_second']:7.0f}"
            f"{found['writing_seconds']:11.2f}{found['learning_seconds']:12.2f}"
        )
    ratios = []
    for ours, theirs in (("PPO budget", "TRL GRPO"), ("PPO budget", "TRL RLOO"), ("PPO LoRA", "TRL GRPO LoRA")):
        for epochs in sorted({number for _, number in rated}):
            if (ours, epochs) in rated:
                wall, teacher, cpu = (
                    rated[ours, epochs][unit] / rated[theirs, epochs][unit]
                    for unit in ("tokens_per_second", "teacher_tokens_per_second", "tokens_per_cpu_second")
                )
                ratios.append({"ours": ours, "theirs": theirs, "epochs": epochs, "tokens": wall, "cpu": cpu})
                print(
                    f"{ours} / {theirs}, {epochs} epochs: {wall:.2f} in tokens, {teacher:.2f} in the teacher's, "
                    f"{cpu:.2f} a CPU second; target {TARGET:.1f}"
                )
    print(
        json.dumps(
            {
                "benchmark": "trl_throughput",
                "device": device,
                "versions": versions,
                "target": TARGET,
                "rows": rows,
                "ratios": ratios,
            }
        )
    )


def row(name: str, epochs: int, updates: list[Update]) -> dict[str, Any]:
    """Medians over updates."""

    def of(value: Callable[[Update], float]) -> float:
        return median(map(value, updates))

    return {
        "what": name,
        "epochs": epochs,
        "tokens_per_second": of(lambda update: update.tokens / update.seconds),
        "teacher_tokens_per_second": of(lambda update: update.teacher_tokens / update.seconds),
        "tokens_per_cpu_second": of(lambda update: update.tokens / update.cpu_seconds),
        "writing_seconds": of(lambda update: update.writing_seconds),
        "learning_seconds": of(lambda update: update.seconds - update.writing_seconds),
        "updates": [asdict(update) for update in updates],
    }


if __name__ == "__main__":
    main()
