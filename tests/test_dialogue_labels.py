"""The act classifier: its rules one by one, their order, and laws that hold for any text."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cautious_imitation.dialogue_labels import (
    ACKNOWLEDGEMENT,
    ACTS,
    END_OF_TURN,
    FAREWELL,
    LAUGH,
    N_DIALOGUE_SYMBOLS,
    QUESTION,
    STATEMENT,
    label,
    label_turn,
)

ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126))


def test_acts_are_named_in_the_order_of_the_symbols():
    assert ACTS == (
        "end of turn",
        "greeting",
        "farewell",
        "laugh",
        "acknowledgement",
        "question",
        "positive",
        "negative",
        "statement",
    )
    assert (END_OF_TURN, N_DIALOGUE_SYMBOLS) == (0, 18)


@pytest.mark.parametrize(
    ("text", "act"),
    [
        ("Hi", "greeting"),
        ("hey how are you?", "greeting"),
        ("Hi, it is so nice to meet you", "positive"),
        ("history is my subject", "statement"),
        ("ok I have gtg", "farewell"),
        ("Goodnight!", "farewell"),
        ("good night", "farewell"),
        ("hello and goodbye", "greeting"),
        ("what do you say, bye or see ya?", "farewell"),
        ("the byelaw of the town", "statement"),
        ("lollll", "laugh"),
        ("*hahahah*", "laugh"),
        ("LOL!!", "laugh"),
        ("haha?", "laugh"),
        ("haha that is what they said", "positive"),
        ("lol same", "acknowledgement"),
        ("Really?", "question"),
        ("I hate it, do you?", "question"),
        ("yeah", "acknowledgement"),
        ("love it", "acknowledgement"),
        ("", "acknowledgement"),
        ("I love this song so much", "positive"),
        ("that was a terrible, awful day", "negative"),
        ("the train leaves at nine", "statement"),
    ],
)
def test_first_rule_that_fits_decides(text: str, act: str):
    assert ACTS[label(text)] == act


@given(st.text())
def test_any_text_has_an_act_other_than_end_of_turn(text: str):
    assert END_OF_TURN < label(text) < len(ACTS)


@given(ascii_text)
def test_case_and_surrounding_white_space_do_not_matter(text: str):
    assert label(text) == label(f"\n {text.upper()}\t")


@given(ascii_text)
def test_question_mark_makes_a_question_unless_an_earlier_rule_fits(text: str):
    before = label(text)
    after = label(text + " ?")
    assert after == QUESTION or after in range(1, LAUGH + 1)
    if before in (FAREWELL, LAUGH):
        assert after == before


@given(st.lists(st.sampled_from(["table", "nine", "street", "walked"]), max_size=8))
def test_neutral_words_split_at_two_words(words: list[str]):
    assert label(" ".join(words)) == (ACKNOWLEDGEMENT if len(words) <= 2 else STATEMENT)


@given(st.lists(st.text(max_size=20), max_size=4))
def test_turn_is_its_messages_and_an_end_shifted_by_speaker(texts: list[str]):
    agent = label_turn(texts, speaker=0)
    assert agent == [label(text) for text in texts] + [END_OF_TURN]
    assert label_turn(texts, speaker=1) == [symbol + len(ACTS) for symbol in agent]


def test_unknown_speaker():
    with pytest.raises(ValueError, match=r"speaker must be 0 .*, got 2"):
        label_turn(["hi"], speaker=2)


def test_sentiment_is_loaded_at_the_first_message_that_needs_it():
    script = (
        "import sys; from cautious_imitation.dialogue_labels import label\n"
        "label('hi'); assert 'vaderSentiment' not in sys.modules\n"
        "label('I love this song'); assert 'vaderSentiment' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
