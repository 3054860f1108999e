"""Train the shipped language models, cautious_imitation/data/small_gpt: a known demonstrator and an ensemble.

    python baselines/build_small_gpt.py   about half an hour; run it again after an interruption to go on

A small GPT is trained on the chats of the package chitchat-dataset (in the dev extra) that have two senders; whoever
writes first is the agent. Rounded to float16 it *is* the demonstrator, so what it would say is known exactly. Chats are
sampled from it, both roles, and every member of the ensemble is trained on its own bootstrap resample of them: the
members have seen the demonstrator's chats, never the real ones.

Everything follows from the seed. The same bytes can only be expected from the same machine, version of torch and number
of threads, since floating-point sums depend on them. Checkpoints and sampled chats stay in the work folder.

One thread is the default: these models are so small that a second one gains little, and where other programs need the
cores two threads spend most of their time waiting for each other.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from cautious_imitation.atomic_files import write_bytes, write_text

SHIPPED = Path(__file__).parents[1] / "cautious_imitation" / "data" / "small_gpt"
WORK = Path(__file__).parents[1] / "runs" / "small-gpt"
SPECIALS = ("<|pad|>", "<|start|>", "<|assistant|>", "<|user|>", "<|end|>")
PAD, START, ASSISTANT, USER, END = range(len(SPECIALS))
VOCABULARY = 2_048
CONTEXT = 512
HELD_OUT_EVERY = 10
"""Chats 0, 10, 20, ... are held out from the training of the demonstrator and of the tokenizer."""
MEMBERS = 5
IGNORED = -100

TEMPLATE = (
    "{{ '<|start|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['assistant', 'user'] %}"
    "{{ raise_exception(\"messages must have the role 'assistant' or 'user', got '\" + message['role'] + "
    "\"'; this model knows no others, so put what it should know into a user's message\") }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Chat: TypeAlias = list[dict[str, str]]
Tokens: TypeAlias = list[int]


@dataclass(frozen=True)
class Recipe:
    """A model's size and how it is trained: ``passes`` over the tokens, in batches of ``batch_tokens`` at most."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    window: int
    passes: float
    batch_tokens: int
    peak_rate: float = 3e-3
    warmup_steps: int = 60
    weight_decay: float = 0.1


DEMONSTRATOR = Recipe(hidden=128, layers=4, heads=4, intermediate=352, window=CONTEXT, passes=1.0, batch_tokens=2_048)
# They see fewer tokens, so their batches are smaller and their steps as many.
MEMBER = Recipe(hidden=96, layers=3, heads=4, intermediate=256, window=CONTEXT, passes=0.75, batch_tokens=1_024)


def real_chats() -> list[Chat]:
    """Every chat with two senders; turns alternate, and the first one is the assistant's."""
    source = json.loads((files("chitchat_dataset") / "dataset.json").read_text(encoding="utf-8"))
    chats = []
    for chat in source.values():
        messages = [message for turn in chat["messages"] for message in turn]
        if len({message["sender"] for message in messages}) == 2:
            first = messages[0]["sender"]
            turns = groupby(messages, key=lambda message: message["sender"])
            chats.append(
                [
                    {
                        "role": "assistant" if sender == first else "user",
                        "content": "\n".join(message["text"] for message in turn),
                    }
                    for sender, turn in turns
                ]
            )
    return chats


def split(chats: list[Chat]) -> tuple[list[Chat], list[Chat]]:
    """Chats to train on, and the fixed tenth that is held out."""
    held_out = chats[::HELD_OUT_EVERY]
    return [chat for index, chat in enumerate(chats) if index % HELD_OUT_EVERY], held_out


def train_tokenizer(chats: list[Chat]) -> Tokenizer:
    """Byte-level BPE: 5 special tokens, 256 bytes, and the merges that fill the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((message["content"] for chat in chats for message in chat), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert [tokenizer.token_to_id(token) for token in SPECIALS] == [PAD, START, ASSISTANT, USER, END]
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """A folder that ``AutoTokenizer.from_pretrained`` reads, whichever release of transformers that is."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
    # Not save_pretrained: its name of the class changes between releases, and older ones cannot read the newer name.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[START],
        "eos_token": SPECIALS[END],
        "pad_token": SPECIALS[PAD],
        "additional_special_tokens": [SPECIALS[ASSISTANT], SPECIALS[USER]],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "chat_template": TEMPLATE,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")


def encode(tokenizer: Tokenizer, chat: Chat) -> Tokens:
    """Tokens as the chat template gives them, then ``<|start|>`` once more: that is how a model says the chat is over.

    Contents are encoded apart from the special tokens, so that nothing a person wrote can become one.
    """
    tokens = [START]
    for message in chat:
        tokens += [ASSISTANT if message["role"] == "assistant" else USER]
        tokens += tokenizer.encode(message["content"], add_special_tokens=False).ids
        tokens += [END]
    return [*tokens, START]


def windows(chats: list[Tokens], length: int) -> list[Tokens]:
    """Pieces of ``length`` predictions at most, so one token more; the first of a chat begins where the chat does.

    No window spans two chats. A last piece too short to be worth a row is left out.
    """
    return [
        chat[begin : begin + length + 1]
        for chat in chats
        for begin in range(0, len(chat) - 1, length)
        if begin == 0 or len(chat) - begin > 16
    ]


def batches(pieces: list[Tokens], batch_tokens: int, rng: np.random.Generator) -> list[list[Tokens]]:
    """All pieces once, in random order, those of similar length together so that little is padding."""
    lengths = np.array([len(piece) for piece in pieces])
    order = np.argsort(lengths + rng.uniform(0, 16, len(pieces)), kind="stable")
    made: list[list[Tokens]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, int(lengths[index]) - 1)
        if made[-1] and longest * (len(made[-1]) + 1) > batch_tokens:
            made.append([])
            longest = int(lengths[index]) - 1
        made[-1].append(pieces[index])
    return [made[index] for index in rng.permutation(len(made))]


def schedule(pieces: list[Tokens], recipe: Recipe, seed: int) -> list[list[Tokens]]:
    """The batches of a whole training."""
    rng = np.random.default_rng(seed)
    whole: list[list[Tokens]] = []
    for _ in range(math.ceil(recipe.passes)):
        whole += batches(pieces, recipe.batch_tokens, rng)
    return whole[: round(len(whole) * recipe.passes / math.ceil(recipe.passes))]


def tensors(batch: list[Tokens]) -> tuple[Tensor, Tensor]:
    """Inputs and targets ``[rows, longest]``, padded at the end: causal attention keeps that out of the rest."""
    shape = len(batch), max(len(piece) for piece in batch) - 1
    inputs = torch.full(shape, PAD)
    targets = torch.full(shape, IGNORED)
    for row, piece in enumerate(batch):
        inputs[row, : len(piece) - 1] = torch.tensor(piece[:-1])
        targets[row, : len(piece) - 1] = torch.tensor(piece[1:])
    return inputs, targets


def configuration(recipe: Recipe) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        architectures=["LlamaForCausalLM"],
    )


def new_model(recipe: Recipe, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(configuration(recipe))


def log_probs(model: LlamaForCausalLM, inputs: Tensor) -> Tensor:
    """Log-probabilities ``[rows, T, V]`` of the next token."""
    return cast(Tensor, model(input_ids=inputs, use_cache=False).logits.log_softmax(-1))


def rate_at(step: int, n_steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    warmup = min(recipe.warmup_steps, n_steps // 10 + 1)
    if step < warmup:
        return recipe.peak_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, n_steps - warmup)
    return recipe.peak_rate * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, settings: str) -> None:
    """Weights and moments. There is no other state: batches follow from the seed, and no step draws anything."""
    arrays = {}
    for name, parameter in model.named_parameters():
        arrays[f"weight/{name}"] = parameter.detach()
        for key in ("exp_avg", "exp_avg_sq", "step"):
            arrays[f"{key}/{name}"] = optimizer.state[parameter][key]
    write_bytes(path, save(arrays, {"step": str(step), "settings": settings}))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: str) -> int:
    """Restore what ``save_checkpoint`` wrote; the number of steps done."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if metadata["settings"] != settings:
        raise SystemExit(f"{path} was trained with other settings; delete it, or choose another --work folder")
    arrays = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(arrays[f"weight/{name}"])
        optimizer.state[parameter] = {key: arrays[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
    return int(metadata["step"])


@contextmanager
def bar(console: Console, label: str, total: int, done: int) -> Iterator[Progress]:
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        progress.add_task(label, total=total, completed=done, note="")
        yield progress


def train(
    recipe: Recipe, chats: list[Tokens], seed: int, path: Path, label: str, console: Console, save_every: int = 100
) -> LlamaForCausalLM:
    """Train from the checkpoint at ``path`` on, if there is one, and round the weights to float16."""
    todo = schedule(windows(chats, recipe.window), recipe, seed)
    settings = json.dumps({**asdict(recipe), "seed": seed, "steps": len(todo)})
    model = new_model(recipe, seed)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95))
    done = load_checkpoint(path, model, optimizer, settings) if path.exists() else 0
    module: nn.Module = model
    module.train()
    began, n_tokens, recent = time.monotonic(), 0, math.log(VOCABULARY)
    with bar(console, label, len(todo), done) as progress:
        for step in range(done, len(todo)):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, len(todo), recipe)
            inputs, targets = tensors(todo[step])
            logits = model(input_ids=inputs, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recent += 0.05 * (loss.item() - recent)
            n_tokens += int((targets != IGNORED).sum())
            speed = n_tokens / (time.monotonic() - began)
            progress.update(progress.task_ids[0], advance=1, note=f"{recent:.3f} nats, {speed:,.0f} tokens/s")
            if (step + 1) % save_every == 0 or step + 1 == len(todo):
                save_checkpoint(path, model, optimizer, step + 1, settings)
                if not console.is_terminal:
                    console.print(f"{label}: step {step + 1} of {len(todo)}, {recent:.3f} nats, {speed:,.0f} tokens/s")
    module.half().float().eval()
    return model


def write_model(folder: Path, model: LlamaForCausalLM) -> None:
    """A folder that ``AutoModelForCausalLM.from_pretrained`` reads; the head is the embedding, stored once."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    write_bytes(folder / "model.safetensors", save(weights, {"format": "pt"}))
    settings = {key: value for key, value in model.config.to_diff_dict().items() if key != "transformers_version"}
    write_text(folder / "config.json", json.dumps({**settings, "dtype": "float16"}, indent=2, sort_keys=True) + "\n")
    # Whatever is cut off or sharpened in sampling would be another demonstrator than the one whose weights these are.
    plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    ends = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    write_text(folder / "generation_config.json", json.dumps({**plain, **ends}, indent=2, sort_keys=True) + "\n")


@torch.inference_mode()
def sample_batch(model: LlamaForCausalLM, n_chats: int, length: int, generator: torch.Generator) -> Tensor:
    """Chats ``[n_chats, length]`` from their beginning, the model speaking both roles; padded once they are over."""
    tokens = torch.full((n_chats, length), PAD)
    tokens[:, 0], tokens[:, 1] = START, ASSISTANT
    cache = DynamicCache()
    fresh, over = tokens[:, :2], torch.zeros(n_chats, dtype=torch.bool)
    for position in range(2, length):
        logits = model(input_ids=fresh, past_key_values=cache, use_cache=True).logits[:, -1]
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        drawn[over] = PAD
        tokens[:, position] = drawn[:, 0]
        over |= drawn[:, 0] == START
        if over.all():
            break
        fresh = drawn
    return tokens


def sample_chats(
    model: LlamaForCausalLM, n_chats: int, length: int, seed: int, folder: Path, label: str, console: Console
) -> list[Tokens]:
    """Chats sampled at temperature 1, one file a batch, so that an interrupted run goes on with the missing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Tokens] = []
    size = 128
    with bar(console, label, -(-n_chats // size), 0) as progress:
        for batch in range(-(-n_chats // size)):
            path = folder / f"{batch:03d}.safetensors"
            if not path.exists():
                generator = torch.Generator().manual_seed(seed * 10_000 + batch)
                drawn = sample_batch(model, min(size, n_chats - batch * size), length, generator)
                write_bytes(path, save({"tokens": drawn.to(torch.int16)}))
            for row in load_file(path)["tokens"].tolist():
                # <|start|> comes again where the chat is over; what follows is padding.
                rows.append(row[: row.index(START, 1) + 1] if START in row[1:] else row)
            progress.update(progress.task_ids[0], advance=1)
    console.print(f"{label}: {len(rows)} chats, {sum(map(len, rows)):,} tokens")
    return rows


@torch.inference_mode()
def nats_per_token(model: LlamaForCausalLM, chats: list[Tokens], window: int) -> float:
    """Mean of -log p of what came, over all tokens of the chats, with at most ``window`` tokens of context."""
    total, count = 0.0, 0
    for batch in batches(windows(chats, window), 4_096, np.random.default_rng(0)):
        inputs, targets = tensors(batch)
        chosen = log_probs(model, inputs).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        total -= chosen[targets != IGNORED].double().sum().item()
        count += int((targets != IGNORED).sum())
    return total / count


@torch.inference_mode()
def divergences(
    tau: LlamaForCausalLM, members: list[LlamaForCausalLM], chats: list[Tokens]
) -> tuple[float, list[float]]:
    """Entropy of ``tau`` and KL(tau || member) of each, per token, at the contexts that the chats visit: exact sums."""
    entropy, kls, count = 0.0, [0.0] * len(members), 0
    for batch in batches(windows(chats, CONTEXT), 4_096, np.random.default_rng(0)):
        inputs, targets = tensors(batch)
        real = targets != IGNORED
        true = log_probs(tau, inputs)[real].double()
        entropy -= (true.exp() * true).sum().item()
        for index, member in enumerate(members):
            kls[index] += (true.exp() * (true - log_probs(member, inputs)[real].double())).sum().item()
        count += len(true)
    return entropy / count, [kl / count for kl in kls]


def unigram_nats(training: list[Tokens], held_out: list[Tokens]) -> float:
    """What the frequencies of the training chats give, with one pseudo-observation a token."""
    counts = np.ones(VOCABULARY)
    for chat in training:
        counts += np.bincount(chat[1:], minlength=VOCABULARY)
    surprise = np.log(counts.sum()) - np.log(counts)
    return float(np.mean(np.concatenate([surprise[chat[1:]] for chat in held_out])))


def resample(chats: list[Tokens], seed: int) -> list[Tokens]:
    """As many chats as there are, drawn with replacement."""
    return [chats[index] for index in np.random.default_rng(seed).integers(0, len(chats), len(chats))]


def build(arguments: argparse.Namespace, console: Console) -> None:
    """All stages, each from what the work folder already has."""
    seed, work, out = arguments.seed, arguments.work, arguments.out
    work.mkdir(parents=True, exist_ok=True)
    training, held_out = split(real_chats())
    tokenizer = train_tokenizer(training)
    write_tokenizer(out / "tokenizer", tokenizer)
    encoded = [encode(tokenizer, chat) for chat in training]
    encoded_held_out = [encode(tokenizer, chat) for chat in held_out]
    n_tokens, n_held_out = sum(map(len, encoded)), sum(map(len, encoded_held_out))
    console.print(f"real chats: {len(training)} of {n_tokens:,} tokens, held out: {len(held_out)} of {n_held_out:,}")

    large = replace(DEMONSTRATOR, passes=arguments.passes)
    tau = train(large, encoded, seed, work / "tau.safetensors", "demonstrator", console)
    write_model(out / "demonstrator", tau)
    figures = {
        "held-out real chats, unigram": unigram_nats(encoded, encoded_held_out),
        "held-out real chats, demonstrator": nats_per_token(tau, encoded_held_out, CONTEXT),
    }

    draw = partial(sample_chats, tau, length=arguments.chat_tokens, console=console)
    demonstrations = draw(
        n_chats=arguments.chats, seed=seed + 1, folder=work / "demonstrations", label="demonstrations"
    )
    fresh = draw(n_chats=256, seed=seed + 2, folder=work / "fresh", label="fresh samples")
    small = replace(MEMBER, passes=arguments.member_passes)
    members = []
    for index in range(MEMBERS):
        own = resample(demonstrations, 1_000 * (seed + 1) + index)
        label, path = f"member {index}", work / f"member-{index}.safetensors"
        members.append(train(small, own, 100 * (seed + 1) + index, path, label, console))
        write_model(out / f"member-{index}", members[-1])

    entropy, kls = divergences(tau, members, fresh)
    figures["fresh samples, demonstrator's entropy"] = entropy
    for index, (member, kl) in enumerate(zip(members, kls, strict=True)):
        figures[f"fresh samples, member {index}"] = nats_per_token(member, fresh, CONTEXT)
        figures[f"fresh samples, KL(demonstrator || member {index})"] = kl
    write_text(work / "figures.json", json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        console.print(f"{value:8.4f} nats per token: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the models")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of checkpoints and sampled chats")
    parser.add_argument(
        "--passes", type=float, default=DEMONSTRATOR.passes, help="of the demonstrator over the real chats"
    )
    parser.add_argument("--member-passes", type=float, default=MEMBER.passes, help="of a member over its resample")
    parser.add_argument("--chats", type=int, default=4_096, help="how many chats are sampled as demonstrations")
    parser.add_argument("--chat-tokens", type=int, default=256, help="longest sampled chat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    build(arguments, console)
    sizes = {path: path.stat().st_size for path in sorted(arguments.out.rglob("*")) if path.is_file()}
    for path, size in sizes.items():
        console.print(f"{size:>10,} {path.relative_to(arguments.out)}")
    console.print(f"{sum(sizes.values()):>10,} bytes in all")


if __name__ == "__main__":
    main()
