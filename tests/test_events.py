"""Events: which token makes which event, where replies begin, and what came before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cautious_imitation.hypotheses.events import EmptyReplies, Events


class Fixed(Events):
    """Events of one kind throughout, for checks of the partition."""

    def after(self, rows):
        return np.zeros(len(rows), dtype=np.int64), np.zeros((len(rows), 0), dtype=np.int64)

    def along(self, sequence, positions):
        return self.after(positions)


def reference(events: EmptyReplies, row: Sequence[int]) -> tuple[int, list[int]]:
    """Kind and history after ``row``, token by token."""
    suffix, row = list(events.start_suffix), list(row)
    history = [events.n_events] * events.depth
    for t in range(len(row)):
        if t >= len(suffix) and row[t - len(suffix) : t] == suffix:
            event = 0 if row[t] in events.end_tokens else 2 if row[t] in events.blank_tokens else 1
            history.append(event)
    return int(len(row) >= len(suffix) and row[-len(suffix) :] == suffix), history[len(history) - events.depth :]


kinds_of_events = st.builds(
    lambda suffix, blanks, memory: EmptyReplies(4, [0], suffix, blank_tokens=blanks, memory=memory),
    st.lists(st.integers(0, 5), min_size=1, max_size=2),
    st.sampled_from([(), (2,)]),
    st.integers(0, 3),
)
rows_of_tokens = st.lists(st.integers(0, 5), max_size=9)


@given(events=kinds_of_events, rows=st.lists(rows_of_tokens, max_size=5))
def test_replies_begin_after_the_opening(events, rows):
    kinds, histories = events.after([torch.tensor(row, dtype=torch.long) for row in rows])
    assert histories.shape == (len(rows), events.depth)
    assert list(zip(kinds.tolist(), histories.tolist(), strict=True)) == [reference(events, row) for row in rows]


@given(events=kinds_of_events, sequence=rows_of_tokens, data=st.data())
def test_a_sequence_in_one_pass_is_its_beginnings_one_by_one(events, sequence, data):
    positions = sorted(data.draw(st.sets(st.integers(0, len(sequence)))))
    kinds, histories = events.along(np.array(sequence, dtype=np.int64), np.array(positions, dtype=np.int64))
    expected = [reference(events, sequence[:t]) for t in positions]
    assert list(zip(kinds.tolist(), histories.tolist(), strict=True)) == expected


def test_what_is_empty():
    events = EmptyReplies(5, [4, 1], [7], blank_tokens=[3])
    assert events.partition.tolist() == [[1] * 5, [1, 0, 1, 2, 0]]
    assert (events.n_events, events.n_kinds, events.depth, events.n_history_symbols) == (3, 2, 0, 4)
    assert events.is_open.tolist() == [False, True]
    assert EmptyReplies(**events.settings()).settings() == events.settings()


@pytest.mark.parametrize("partition", [[[0, 0, 1]], [[0, 1, 2], [1, 1, 1]], [[2, 2, 2]]])
def test_all_events_are_possible_or_one_is(partition):
    n_events = 2 if partition == [[0, 0, 1]] else 3
    events = Fixed(partition, n_events)
    assert events.is_open.tolist() == [len(set(row)) > 1 for row in partition]


def test_a_partition_that_breaks_the_rule_is_refused():
    with pytest.raises(ValueError, match=r"partition must give every event .* got 2 of 3 events at kind 1"):
        Fixed([[0, 1, 2], [0, 1, 1]], 3)
    with pytest.raises(ValueError, match=r"partition must hold events in 0..1, got 0..2"):
        Fixed([[0, 1, 2]], 2)
    with pytest.raises(ValueError, match=r"partition must be integers \[n_kinds, V\], got shape \(2,\)"):
        Fixed([0, 1], 2)
    with pytest.raises(ValueError, match="partition must be integers"):
        Fixed([[0.0, 1.0]], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"end_tokens": [4]}, r"end_tokens must be in 0..3, the actions, got 4"),
        ({"end_tokens": [-1]}, r"end_tokens must be in 0..3, the actions, got -1"),
        ({"end_tokens": []}, "end_tokens must hold at least one action"),
        ({"end_tokens": [0, 1], "blank_tokens": [2, 3]}, "must leave an action that says something, got all 4"),
        ({"blank_tokens": [5]}, r"blank_tokens must be in 0..3"),
        ({"blank_tokens": [0, 1]}, r"blank_tokens must not be end_tokens too, got \[0\]"),
        ({"start_suffix": []}, "start_suffix must hold at least one token"),
        ({"start_suffix": [-2]}, "start_suffix must be at least 0, got -2"),
        ({"memory": -1}, "memory must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EmptyReplies(**{"n_symbols": 4, "end_tokens": [0], "start_suffix": [5], **arguments})


WORDS = ["<|end|>", "<|eos|>", "<|im|>", "user", "assistant", "Hello", "Good", "day", "Ċ", "Ġ"]
CHATML = (
    "{% for m in messages %}{{ '<|im|>' + m['role'] + '\n' + m['content'] + '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im|>assistant\n' }}{% endif %}"
)


def tokenizer_with(template: str | None, eos: str | None = "<|eos|>") -> PreTrainedTokenizerFast:
    """A tokenizer of a few words and all bytes, with the chat template given."""
    bytes_ = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter not in WORDS]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*WORDS, *sorted(bytes_)])}, unk_token="day"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=eos)
    found.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|im|>"]})
    found.chat_template = template
    return found


def test_tokens_are_found_in_the_chat_template():
    tokenizer = tokenizer_with(CHATML)
    events = EmptyReplies.for_tokenizer(tokenizer, memory=2)
    index = {word: i for i, word in enumerate(WORDS)}
    assert events.end_tokens == (index["<|end|>"], index["<|eos|>"])
    assert events.start_suffix == (index["<|im|>"], index["assistant"], index["Ċ"])
    assert {index["Ċ"], index["Ġ"]} <= set(events.blank_tokens)
    assert not {index["<|im|>"], index["Hello"]} & set(events.blank_tokens)
    assert (events.n_symbols, events.depth) == (len(tokenizer), 2)
    chat = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert events.after([tokens, tokens[:-1]])[0].tolist() == [1, 0]
    assert EmptyReplies.for_tokenizer(tokenizer, n_symbols=9, blanks=False).blank_tokens == ()


def test_without_special_token_the_end_of_sequence_ends_a_reply():
    template = CHATML.replace("+ '<|end|>' + '\n'", "+ '\n'")
    assert EmptyReplies.for_tokenizer(tokenizer_with(template)).end_tokens == (WORDS.index("<|eos|>"),)
    with pytest.raises(ValueError, match="tokenizer must have a special token that ends a reply, got none"):
        EmptyReplies.for_tokenizer(tokenizer_with(template, eos=None))


def test_tokenizers_without_opening_are_refused():
    with pytest.raises(ValueError, match=r"tokenizer must have a chat template, got .* without; pass end_tokens"):
        EmptyReplies.for_tokenizer(tokenizer_with(None))
    with pytest.raises(ValueError, match="whose add_generation_prompt adds tokens at the end"):
        EmptyReplies.for_tokenizer(tokenizer_with(CHATML.replace("add_generation_prompt", "false")))
