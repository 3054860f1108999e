"""The models that come with the library, and the chats that they speak."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.small_gpt import sample_chats, shipped_tokenizer, small_gpt, small_gpt_ensemble
from tests.tiny_folders import tiny_llama

START, ASSISTANT, USER, END = 1, 2, 3, 4


@pytest.fixture(scope="module")
def demonstrator() -> LanguageModel:
    return small_gpt(dtype="float64")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_demonstrator(demonstrator: LanguageModel) -> None:
    assert demonstrator.n_symbols == len(demonstrator.tokenizer) == 2048
    assert (demonstrator.start_token, demonstrator.max_length) == (START, 512)
    assert demonstrator.tokenizer.convert_ids_to_tokens([1, 2, 3, 4]) == [
        "<|start|>",
        "<|assistant|>",
        "<|user|>",
        "<|end|>",
    ]
    assert small_gpt().network.dtype == torch.float32


def test_the_ensemble() -> None:
    members = small_gpt_ensemble()
    assert len(members) == 5
    context = [START, ASSISTANT]
    predictions = [member.log_probs(member.read(context).features) for member in members]
    first = small_gpt("member-0")
    torch.testing.assert_close(first.log_probs(first.read(context).features), predictions[0], rtol=0, atol=0)
    assert all(not torch.equal(predictions[0], other) for other in predictions[1:])


def test_names() -> None:
    with pytest.raises(ValueError, match=r"name must be one of demonstrator, member-0, .*got 'student'"):
        small_gpt("student")


def test_chats_are_what_the_model_says_without_a_cache(demonstrator: LanguageModel) -> None:
    n_chats, length = 4, 24
    found = sample_chats(demonstrator, n_chats * length, generator(), max_length=length, chats_at_once=n_chats)
    tokens = torch.tensor([[START, ASSISTANT]] * n_chats)
    source = generator()
    while tokens.shape[1] < length:
        with torch.no_grad():
            logits = demonstrator.network(input_ids=tokens).logits[:, -1]
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1, generator=source)], 1)
    for chat, expected in zip(found.sequences, tokens.numpy(), strict=False):
        np.testing.assert_array_equal(chat, expected[: len(chat)])
        assert len(chat) == length or chat[-1] == START
    assert sum(len(chat) for chat in found.sequences[:-1]) < n_chats * length


def test_the_agents_tokens_follow_its_role(demonstrator: LanguageModel) -> None:
    found = sample_chats(demonstrator, 1500, generator(1), max_length=100)
    assert sum(len(chat) for chat in found.sequences) >= 1500
    endings = set()
    for chat, mask in zip(found.sequences, found.learned(), strict=True):
        assert chat[:2].tolist() == [START, ASSISTANT]
        speaking = False
        for token, ours in zip(chat, mask, strict=True):
            assert ours == speaking
            if token in (START, ASSISTANT, USER, END):
                speaking = token == ASSISTANT
            endings.add(int(token) if ours else -1)
    assert END in endings


def test_one_seed_one_set_of_chats() -> None:
    network = tiny_llama(2048)
    model = LanguageModel(network, shipped_tokenizer())
    one, same, other = (sample_chats(model, 300, generator(seed), max_length=20) for seed in (0, 0, 1))
    for chat, again in zip(one.sequences, same.sequences, strict=True):
        np.testing.assert_array_equal(chat, again)
    assert any(not np.array_equal(chat, another) for chat, another in zip(one.sequences, other.sequences, strict=False))


def test_arguments_out_of_range() -> None:
    model = LanguageModel(tiny_llama(2048), shipped_tokenizer())
    with pytest.raises(ValueError, match=r"max_length must be in 3\.\.128, .*got 129"):
        sample_chats(model, 10, generator(), max_length=129)
    with pytest.raises(ValueError, match="n_tokens must be at least 1, got 0"):
        sample_chats(model, 0, generator())
    with pytest.raises(ValueError, match="chats_at_once must be at least 1, got 0"):
        sample_chats(model, 1, generator(), chats_at_once=0)
    with pytest.raises(ValueError, match=r"model must have a tokenizer with the token '<\|start\|>'"):
        sample_chats(LanguageModel(tiny_llama(30)), 10, generator())
