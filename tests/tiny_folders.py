"""Small models and tokenizers as files, in the formats that users bring: a folder of safetensors, and a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = ("hello there, how are you?", "I am fine, thank you\n\nand you", "assistant", "user", "system\n", "Assistant: ")


def tiny_tokenizer(template: str | None = CHATML, *, bos: str | None = None, vocabulary: int = 300) -> Any:
    """A byte-level BPE tokenizer with the three special tokens of ChatML."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=SPECIALS[2], chat_template=template
    )


def tiny_llama(vocabulary: int, *, tied: bool = True, seed: int = 0) -> Any:
    """A Llama of two layers with random weights, in single precision."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=None,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    network = LlamaForCausalLM(config).eval()
    torch.set_rng_state(state)
    return network


def write_folder(folder: Path, *, tied: bool = True, shards: str | None = None, template: str | None = CHATML) -> Any:
    """Write a tiny model with its tokenizer to ``folder``; returns the network."""
    tokenizer = tiny_tokenizer(template)
    network = tiny_llama(len(tokenizer), tied=tied)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    network.save_pretrained(folder, **({} if shards is None else {"max_shard_size": shards}))
    tokenizer.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    return network


def write_gguf(path: Path, *, leave_out: str | None = None) -> Any:
    """Write a tiny model with its tokenizer to one GGUF file; returns the network."""
    import gguf

    tokenizer = tiny_tokenizer()
    network = tiny_llama(len(tokenizer), tied=False)
    config = network.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(10_000.0)
    merges = tokenizer.backend_tokenizer.model
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges(_merges(merges))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    for name, parameter in network.named_parameters():
        array = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            # GGUF keeps the two halves of a rotary pair next to each other, Transformers half a head apart.
            halves = array.reshape(config.num_attention_heads, 2, -1, array.shape[-1])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if name != leave_out:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return network


def _merges(model: Any) -> list[str]:
    import json

    return [" ".join(pair) if isinstance(pair, list) else pair for pair in json.loads(model.__getstate__())["merges"]]
