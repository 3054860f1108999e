"""Random language models that are small and computed in double precision, so that references can be exact."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.recent_context import RecentContext


def tiny_network(
    vocabulary: int = 4, seed: int = 0, *, width: int = 6, layers: int = 1, scale: float = 20.0, window: int = 64
) -> Any:
    """A small Llama with random weights, in float64; ``scale`` makes its predictions differ from uniform."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=1,
        max_position_embeddings=window,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    network = LlamaForCausalLM(config).double()
    torch.set_rng_state(state)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale if parameter.ndim == 2 else 1.0)
    return network


def tiny_model(
    vocabulary: int = 4,
    seed: int = 0,
    *,
    n_symbols: int | None = 3,
    start_token: int | None = 3,
    recent: RecentContext | None = None,
    **settings: Any,
) -> LanguageModel:
    """A ``LanguageModel`` of it: by default three actions, and a fourth token that is context only."""
    network = tiny_network(vocabulary, seed, **settings)
    return LanguageModel(network, n_symbols=n_symbols, start_token=start_token, recent=recent)
