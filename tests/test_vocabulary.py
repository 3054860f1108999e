"""Symbols as people write them: what is written is read again, and what cannot be written is refused with a remedy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cautious_imitation.demonstrations import Message
from cautious_imitation.dialogue_labels import N_DIALOGUE_SYMBOLS
from cautious_imitation.language.chats import chat_context
from cautious_imitation.language.small_gpt import shipped_tokenizer
from cautious_imitation.oracles.vocabulary import Vocabulary, as_vocabulary, is_part_of_a_character
from tests.tiny_folders import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ALPHABETS = {
    "names": Vocabulary.names(["end of turn", "greeting", "Greeting", "question?"]),
    "characters": Vocabulary.names("abc ,\n"),
    "acts": Vocabulary.dialogue_acts(),
    "numbers": Vocabulary.numbers(),
}


@pytest.mark.parametrize("name", ALPHABETS)
@given(symbols=st.lists(st.integers(0, 3), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(name: str, symbols: list[int]) -> None:
    vocabulary = ALPHABETS[name]
    assert vocabulary.symbols(vocabulary.text(symbols)) == tuple(symbols)
    assert vocabulary.reply([0], vocabulary.text(symbols)) == tuple(symbols)
    assert vocabulary.said([0], symbols) == (vocabulary.text(symbols), True)
    assert [vocabulary.symbols(vocabulary.label(symbol)) for symbol in symbols] == [(symbol,) for symbol in symbols]
    assert vocabulary.messages(symbols) == ()


@given(text=st.text(st.sampled_from(" \nabehlo.?!:'äß日🙂"), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_texts_are_written_in_tokens(text: str) -> None:
    vocabulary = Vocabulary.tokenizer(TOKENIZER)
    tokens = vocabulary.symbols(text)
    assert vocabulary.text(tokens) == text
    labels = [vocabulary.label(token) for token in tokens]
    if not any(is_part_of_a_character(label) for label in labels):
        assert "".join(labels) == text


def test_names() -> None:
    vocabulary = Vocabulary.names(["end of turn", "greeting"])
    assert vocabulary.text((1, 0)) == "greeting, end of turn"
    assert vocabulary.symbols(" Greeting ,end of turn,") == (1, 0)
    assert Vocabulary.names("ab").text([0, 1, 1]) == "abb"
    assert len([ALPHABETS["acts"].label(symbol) for symbol in range(N_DIALOGUE_SYMBOLS)]) == 18
    # Names that differ by capitals alone are taken literally.
    assert ALPHABETS["names"].symbols("Greeting, greeting") == (2, 1)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "names",
            "greting",
            r"text does not name a symbol with 'greting'; did you mean 'greeting'\?; names are: end of",
        ),
        ("names", "", r"text does not name a symbol, got ''; names are"),
        ("names", "GREETING", "text does not name a symbol with 'GREETING'"),
        ("characters", "abx", "text does not name a symbol with 'x'"),
        ("numbers", "one", r"text does not consist of numbers, got 'one'"),
        ("numbers", "-1", r"text does not consist of numbers, got '-1'"),
        ("numbers", " ", r"text does not consist of numbers"),
    ],
)
def test_texts_that_are_no_symbols(name: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ALPHABETS[name].symbols(text)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "a name a symbol, got none"),
        (["left", ""], "strings that are not empty, got ''"),
        (["left", 3], "strings that are not empty, got 3"),
        (["left", "right", "left"], "names must differ, got 'left' twice"),
        (["left, then right", "right"], "no comma.*got 'left, then right'"),
        (["left ", "right"], "no blanks around them, got 'left '"),
    ],
)
def test_unusable_names(names: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Vocabulary.names(names)


def test_symbols_without_a_name() -> None:
    with pytest.raises(ValueError, match=r"symbol must be in 0..3, which have names, got 4"):
        ALPHABETS["names"].text([0, 4])
    with pytest.raises(ValueError, match=r"symbol must be in 0..3, which have names, got -1"):
        ALPHABETS["names"].label(-1)
    with pytest.raises(ValueError, match=r"token >= 0, got -2"):
        Vocabulary.tokenizer(TOKENIZER).text([1, -2])


def test_labels_of_tokens() -> None:
    vocabulary = Vocabulary.tokenizer(TOKENIZER)
    (first, *rest) = vocabulary.symbols("日")
    assert [vocabulary.label(token) for token in (first, *rest)] == ["<0xE6>", "<0x97>", "<0xA5>"]
    assert is_part_of_a_character(vocabulary.label(first))
    assert vocabulary.label(vocabulary.symbols(" you")[0]).startswith(" ")
    assert vocabulary.label(2) == "<|im_end|>"
    # Networks may have more tokens than their tokenizer.
    assert vocabulary.label(len(TOKENIZER) + 7) == f"<token {len(TOKENIZER) + 7}>"


def test_words_are_without_special_tokens() -> None:
    vocabulary = Vocabulary.tokenizer(TOKENIZER)
    tokens = vocabulary.symbols("<|im_start|>hello<|im_end|>")
    assert vocabulary.text(tokens) == "<|im_start|>hello<|im_end|>"
    assert vocabulary.words(tokens) == "hello"


def word_tokenizer() -> Any:
    """One that knows two words, begins words with a mark instead of a blank, and drops what it does not split."""
    tokenizer = Tokenizer(models.WordLevel({"▁left": 0, "▁right": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    from tokenizers import decoders

    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_texts_that_are_no_tokens() -> None:
    with pytest.raises(ValueError, match="text does not come to any token of this tokenizer, got ''"):
        Vocabulary.tokenizer(TOKENIZER).symbols("")
    vocabulary = Vocabulary.tokenizer(word_tokenizer())
    assert vocabulary.symbols("left right") == (0, 1)
    assert vocabulary.label(1) == " right"
    for write in (vocabulary.symbols, lambda text: vocabulary.reply([0], text)):
        with pytest.raises(ValueError, match="text does not consist of what this tokenizer knows, got 'left up'"):
            write("left up")


def test_conversations() -> None:
    tokenizer = shipped_tokenizer()
    vocabulary = Vocabulary.tokenizer(tokenizer)
    said = [Message(role="user", content="hi"), Message(role="assistant", content="you")]
    context = [*chat_context(tokenizer, said[:1]), *vocabulary.symbols("you")]
    assert vocabulary.messages(context) == tuple(said)
    assert vocabulary.messages(context[1:]) == ()
    assert vocabulary.conversation(context[1:]) is None
    assert vocabulary.conversation(chat_context(tokenizer, [])) == ()
    ending = tokenizer.convert_tokens_to_ids("<|end|>")
    assert vocabulary.reply(context, " too") == (*vocabulary.symbols(" too"), ending)
    assert vocabulary.reply(context, "") == (ending,)
    assert vocabulary.said(context, [*vocabulary.symbols(" too"), ending]) == (" too", True)


def test_what_stands_for_a_vocabulary() -> None:
    assert as_vocabulary(None) is None
    assert as_vocabulary(ALPHABETS["names"]) is ALPHABETS["names"]
    listed, written = as_vocabulary(("left", "right")), as_vocabulary(TOKENIZER)
    assert listed is not None
    assert written is not None
    assert listed.symbols("right") == (1,)
    assert written.text(written.symbols("hello")) == "hello"
    for value in ("left", 3, {"left": 0}):
        with pytest.raises(ValueError, match="vocabulary must be a Vocabulary, a list of names, a tokenizer or None"):
            as_vocabulary(value)
