"""The shipped language models: a demonstrator that is known exactly, and the ensemble that has seen its chats only."""

from __future__ import annotations

import json
import math
import string
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(str(files("cautious_imitation") / "data" / "small_gpt"))
MEMBERS = [f"member-{index}" for index in range(5)]
MODELS = ["demonstrator", *MEMBERS]
VOCABULARY = 2_048
SPECIALS = {"<|pad|>": 0, "<|start|>": 1, "<|assistant|>": 2, "<|user|>": 3, "<|end|>": 4}
CHAT = [
    {"role": "assistant", "content": "Hi! How are you doing today?"},
    {"role": "user", "content": "hey\nI'm good, just got out of class. how about you?"},
    {"role": "assistant", "content": "I'm doing pretty well thanks\nWhat are you studying?"},
    {"role": "user", "content": "I am a computer science major, so I have a lot of homework haha"},
    {"role": "assistant", "content": "Oh that's cool! Do you like it?"},
    {"role": "user", "content": "yeah it is really fun, but hard. what do you like to do for fun?"},
    {"role": "assistant", "content": "I like to watch movies and play games with my friends"},
]

UNIGRAM_NATS = 5.55
"""Per token of the chat, by the frequencies of the tokens in the real chats that the demonstrator was trained on."""
DEMONSTRATOR_NATS = 2.20
"""Per token of the chat; measured 2.188."""
MEMBER_KL = 0.45
"""KL(demonstrator || member) in nats per token of the chat; measured 0.33 to 0.39."""


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


@cache
def model(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32).eval()


@cache
def chat_tokens() -> Tensor:
    """``[1, T]``."""
    rendered = tokenizer().apply_chat_template(CHAT, tokenize=False)
    return torch.tensor([tokenizer().encode(rendered, add_special_tokens=False)])


@cache
def log_probs(name: str) -> Tensor:
    """Of every token after the first of the chat, given those before: ``[T - 1, V]``, float64."""
    with torch.inference_mode():
        return model(name)(input_ids=chat_tokens()).logits[0, :-1].double().log_softmax(-1)


def kl(name: str, other: str) -> Tensor:
    """At each position of the chat, nats."""
    return (log_probs(name).exp() * (log_probs(name) - log_probs(other))).sum(-1)


def test_size_is_at_most_8_mb() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 8_000_000


def test_vocabulary_and_special_tokens() -> None:
    assert len(tokenizer()) == VOCABULARY
    assert len(set(tokenizer().get_vocab().values())) == VOCABULARY
    assert {token: tokenizer().convert_tokens_to_ids(token) for token in SPECIALS} == SPECIALS
    assert (tokenizer().pad_token, tokenizer().bos_token, tokenizer().eos_token) == ("<|pad|>", "<|start|>", "<|end|>")
    for token, symbol in SPECIALS.items():
        assert tokenizer().encode(f"so{token}so", add_special_tokens=False).count(symbol) == 1


@pytest.mark.parametrize("text", [string.printable, " two  spaces , and\n\nlines ", "don't you think so?"])
def test_text_survives_a_round_trip(text: str) -> None:
    symbols = tokenizer().encode(text, add_special_tokens=False)
    assert min(symbols) >= len(SPECIALS)
    assert tokenizer().decode(symbols) == text


@given(st.text())
def test_any_text_survives_a_round_trip(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text, add_special_tokens=False)) == text


def test_chat_template() -> None:
    rendered = tokenizer().apply_chat_template(CHAT[:2], tokenize=False)
    first, second = (message["content"] for message in CHAT[:2])
    assert rendered == f"<|start|><|assistant|>{first}<|end|><|user|>{second}<|end|>"
    asked = tokenizer().apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert asked == rendered + "<|assistant|>"
    symbols = tokenizer().encode(asked, add_special_tokens=False)
    assert [symbol for symbol in symbols if symbol < len(SPECIALS)] == [1, 2, 4, 3, 4, 2]


def test_chat_template_refuses_other_roles() -> None:
    with pytest.raises(TemplateError, match="role 'assistant' or 'user', got 'system'"):
        tokenizer().apply_chat_template([{"role": "system", "content": "be brief"}, *CHAT], tokenize=False)


@pytest.mark.parametrize("name", MODELS)
def test_stored_numbers_are_the_model(name: str) -> None:
    stored = load_file(FOLDER / name / "model.safetensors")
    parameters = dict(model(name).named_parameters())
    assert stored.keys() == parameters.keys()
    assert {value.dtype for value in stored.values()} == {torch.float16}
    for key, value in parameters.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[key].float())


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_normalised_and_never_zero(name: str) -> None:
    with torch.inference_mode():
        predicted = model(name)(input_ids=chat_tokens()).logits[0].log_softmax(-1)
    assert predicted.shape == (chat_tokens().shape[1], VOCABULARY)
    assert predicted.isfinite().all()
    assert (predicted.double().exp().sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_the_same_predictions(name: str) -> None:
    half = chat_tokens().shape[1] // 2
    padded = torch.cat([chat_tokens(), chat_tokens()])
    padded[1, half:] = SPECIALS["<|pad|>"]
    with torch.inference_mode():
        together = model(name)(input_ids=padded).logits[1, : half - 1].double().log_softmax(-1)
    torch.testing.assert_close(together, log_probs(name)[: half - 1], rtol=0, atol=1e-4)


def test_demonstrator_predicts_chats() -> None:
    chosen = log_probs("demonstrator").gather(-1, chat_tokens()[0, 1:, None])
    nats = -chosen.mean().item()
    assert nats < DEMONSTRATOR_NATS < UNIGRAM_NATS < math.log(VOCABULARY)


def test_demonstrator_begins_as_the_agent() -> None:
    assert log_probs("demonstrator")[0].argmax() == SPECIALS["<|assistant|>"]
    assert log_probs("demonstrator")[0].max().exp() > 0.99


def test_demonstrator_gives_the_turn_to_the_other() -> None:
    symbols = chat_tokens()[0]
    for position in (symbols[:-1] == SPECIALS["<|end|>"]).nonzero()[:, 0]:
        roles = log_probs("demonstrator")[position]
        assert roles.argmax() == symbols[position + 1]


@pytest.mark.parametrize("name", MEMBERS)
def test_members_are_near_the_demonstrator(name: str) -> None:
    divergence = kl("demonstrator", name)
    assert divergence.isfinite().all()
    assert 0.0 < divergence.mean() < MEMBER_KL


def test_members_differ() -> None:
    for name, other in pairwise(MEMBERS):
        assert kl(name, other).mean() > 0.05


@pytest.mark.parametrize("name", MODELS)
def test_sampling_is_plain_unless_asked_otherwise(name: str) -> None:
    settings = json.loads((FOLDER / name / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["do_sample"]
    assert (settings["temperature"], settings["top_k"], settings["top_p"]) == (1.0, 0, 1.0)
    torch.manual_seed(0)
    drawn = model(name).generate(chat_tokens()[:, :2], max_new_tokens=8, num_return_sequences=2)
    assert drawn.shape[0] == 2
    assert drawn.shape[1] <= 10
