"""Rewards of replies: against the networks called by hand, one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import logging

from cautious_imitation.environments.chat_rewards import classifier_reward, score_replies, vader_reward
from tests.tiny_folders import tiny_tokenizer, write_folder

TEXTS = ["hello there, how are you?", "I am fine", "", "and you, thank you\n\nand you, thank you"]
SST2 = {0: "NEGATIVE", 1: "POSITIVE"}


def classifier(labels: dict[int, str], *, pad: bool = True) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(None)
    tokenizer.pad_token = "<|endoftext|>" if pad else None
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer), dim=16, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=32
    )
    config.id2label, config.label2id = labels, {label: number for number, label in labels.items()}
    config.num_labels = len(labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.DistilBertForSequenceClassification(config).eval()
        for parameter in network.parameters():
            parameter.data.mul_(8.0 if parameter.ndim == 2 else 1.0)
    return network, tokenizer


def saved(folder: Path, labels: dict[int, str], **settings: Any) -> tuple[Any, Any]:
    network, tokenizer = classifier(labels, **settings)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    return network, tokenizer


def by_hand(network: Any, tokenizer: Any, text: str, column: int) -> float:
    tokens = torch.tensor([tokenizer(text)["input_ids"][:32]], dtype=torch.long)
    logits = network(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0].tolist()
    odds = np.exp(np.array(logits) - max(logits))
    return float(odds[column] / odds.sum())


@pytest.mark.parametrize(
    ("labels", "column"),
    [
        (SST2, 1),
        ({0: "LABEL_0", 1: "LABEL_1"}, 1),
        ({0: "pos", 1: "neg"}, 0),
        ({0: "negative", 1: "neutral", 2: "positive"}, 2),
    ],
)
@pytest.mark.parametrize("texts_at_once", [1, 3, 64])
def test_a_classifier_pays_what_it_says_of_each_text_alone(
    tmp_path: Path, labels: dict[int, str], column: int, texts_at_once: int
) -> None:
    network, tokenizer = saved(tmp_path, labels)
    texts = [text for text in TEXTS if text]
    rewards = np.asarray(classifier_reward(tmp_path, texts_at_once=texts_at_once)(texts))
    expected = [by_hand(network, tokenizer, text, column) for text in texts]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(rewards, expected, atol=1e-5)


def test_texts_that_are_too_long_are_cut(tmp_path: Path) -> None:
    network, tokenizer = saved(tmp_path, SST2)
    text = "hello there, how are you? " * 20
    np.testing.assert_allclose(
        np.asarray(classifier_reward(str(tmp_path))([text])), [by_hand(network, tokenizer, text, 1)], atol=1e-5
    )


def test_a_pipeline_and_a_named_label() -> None:
    network, tokenizer = classifier({0: "joy", 1: "anger"})
    pipeline = transformers.pipeline("text-classification", model=network, tokenizer=tokenizer)
    joy, anger = (np.asarray(classifier_reward(pipeline, positive=name)(TEXTS[:2])) for name in ("joy", "anger"))
    np.testing.assert_allclose(joy, [by_hand(network, tokenizer, text, 0) for text in TEXTS[:2]], atol=1e-5)
    np.testing.assert_allclose(joy + anger, 1)
    said = pipeline(TEXTS[0], top_k=None)
    assert {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in said} == {
        "joy": joy[0],
        "anger": anger[0],
    }


def test_without_a_padding_token_texts_are_read_alone(tmp_path: Path) -> None:
    network, tokenizer = saved(tmp_path, SST2, pad=False)
    expected = [by_hand(network, tokenizer, text, 1) for text in TEXTS[:2]]
    np.testing.assert_allclose(np.asarray(classifier_reward(tmp_path)(TEXTS[:2])), expected, atol=1e-5)


@pytest.mark.parametrize("pad", [True, False])
def test_a_text_without_tokens_is_worth_a_half(pad: bool) -> None:
    network, tokenizer = classifier(SST2, pad=pad)
    pipeline = transformers.pipeline("text-classification", model=network, tokenizer=tokenizer)
    rewards = np.asarray(classifier_reward(pipeline)(["", TEXTS[0], ""]))
    np.testing.assert_allclose(rewards, [0.5, by_hand(network, tokenizer, TEXTS[0], 1), 0.5], atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "positive", "words"),
    [
        ({0: "joy", 1: "anger"}, None, r"one positive label, got 'joy', 'anger'; say which it is with positive="),
        ({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, None, "one positive label"),
        ({0: "score"}, None, "two labels or more, got 'score'"),
        (SST2, "GOOD", "one of the classifier's labels, 'NEGATIVE', 'POSITIVE', got 'GOOD'"),
    ],
)
def test_without_a_positive_label_there_is_no_reward(labels: dict[int, str], positive: str | None, words: str) -> None:
    network, tokenizer = classifier(labels)
    pipeline = transformers.pipeline("text-classification", model=network, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=words):
        classifier_reward(pipeline, positive=positive)


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="id or folder of a sequence classifier, or a pipeline, got int"):
        classifier_reward(3)
    with pytest.raises(ValueError, match="texts_at_once must be at least 1, got 0"):
        classifier_reward(tmp_path, texts_at_once=0)
    with pytest.raises(OSError, match="no folder here that holds one"):
        classifier_reward(tmp_path / "nowhere")


def test_a_model_without_a_trained_classifier_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path)
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with pytest.raises(ValueError, match=r"must hold a trained classifier, got a model without score\.weight"):
            classifier_reward(tmp_path)
    finally:
        logging.set_verbosity(level)


def test_vader_is_its_compound_in_the_unit_interval() -> None:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    texts = ["Great, thanks!", "I hate this", "The report is due on Monday.", ""]
    values = np.asarray(vader_reward()(texts))
    np.testing.assert_allclose(2 * values - 1, [analyzer.polarity_scores(text)["compound"] for text in texts])
    assert values[0] > 0.5 > values[1]
    assert values[3] == 0.5


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_a_reward_outside_the_unit_interval_names_the_reply(value: float) -> None:
    long = "a" * 100
    with pytest.raises(ValueError, match=rf"in \[0, 1\], got {value:g} for the reply 'a{{60}}\.\.\.'; scale") as caught:
        score_replies(lambda texts: [0.5, value], ["fine", long])
    assert long not in str(caught.value)


@pytest.mark.parametrize("returned", [[0.5], 0.5, [[0.5], [0.5]], ["a", "b"], [None, None]])
def test_a_reward_is_one_number_a_text(returned: Any) -> None:
    with pytest.raises(ValueError, match="one number a text, 2 in all"):
        score_replies(lambda texts: returned, ["a", "b"])


def test_rewards_of_no_replies_are_not_computed() -> None:
    assert score_replies(lambda texts: [][1], []).tolist() == []
    assert score_replies(lambda texts: torch.tensor([0.0, 1.0]), ["a", "b"]).tolist() == [0, 1]
