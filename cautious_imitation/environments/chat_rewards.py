"""What a student's reply is worth, in [0, 1]: how pleased it sounds, by a lexicon or by a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Reward: TypeAlias = Callable[[list[str]], ArrayLike]
"""From the texts of replies to a number in [0, 1] each. Replies that end at the same time come together."""

_SHOWN = 60


def vader_reward() -> Reward:
    """VADER's compound sentiment, from -1 to 1, mapped to [0, 1]; a reply without words is worth 0.5.

    A lexicon with rules: quick, and nothing to download.

    Source: Hutto and Gilbert 2014.

    >>> [round(value, 2) for value in vader_reward()(["I love it, thank you!", "This is terrible.", ""])]
    [0.9, 0.26, 0.5]
    """
    # Only those who use it load its lexicon.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda texts: [(analyzer.polarity_scores(text)["compound"] + 1) / 2 for text in texts]


def classifier_reward(
    classifier: Any, *, positive: str | None = None, texts_at_once: int = 64, device: Any = None
) -> Reward:
    """The probability that a sequence classifier of Transformers gives to the positive label.

    Args:
        classifier: the id of a classifier on the Hugging Face hub, such as
            ``"distilbert/distilbert-base-uncased-finetuned-sst-2-english"``, the folder of one, or a pipeline.
        positive: the label's name. None: the one called positive, or pos, in any case, or ``LABEL_1`` of two.
        texts_at_once: how many are read in one forward pass.
        device: where it computes, such as "cuda". None: the CPU; a pipeline stays where it is.

    Texts longer than the classifier's window are cut at its end; one without any token is worth 0.5. The numbers are
    the classifier's own, whatever a pipeline would do with them.

    Raises:
        OSError: if there is no such folder, or the hub cannot be reached.
        ValueError: if it has no such label, or is no classifier that was trained.
    """
    if texts_at_once < 1:
        raise ValueError(f"texts_at_once must be at least 1, got {texts_at_once}")
    # Only those who use it load these.
    import torch

    network, tokenizer = _loaded(classifier) if isinstance(classifier, (str, PathLike)) else _parts(classifier)
    column = _positive_label(network.config, positive)
    network = network.eval() if device is None else network.eval().to(device)
    window = min(int(tokenizer.model_max_length), int(getattr(network.config, "max_position_embeddings", 2**31)))
    # Without a padding token, texts of different lengths cannot be told from padding.
    step = texts_at_once if tokenizer.pad_token_id is not None else 1

    @torch.no_grad()
    def reward(texts: list[str]) -> NDArray[np.float64]:
        scores = np.full(len(texts), 0.5)
        read = [place for place, text in enumerate(texts) if tokenizer(text)["input_ids"]]
        for begin in range(0, len(read), step):
            places = read[begin : begin + step]
            some = [texts[place] for place in places]
            batch = tokenizer(some, padding=step > 1, truncation=True, max_length=window, return_tensors="pt")
            logits = network(**batch.to(network.device)).logits
            scores[places] = logits.double().softmax(-1)[:, column].cpu().numpy()
        return scores

    return reward


def score_replies(reward: Reward, texts: Sequence[str]) -> NDArray[np.float64]:
    """What ``reward`` pays for each of ``texts``, checked: ``[N]``.

    Raises:
        ValueError: if there is not one number a text, or one is outside [0, 1]; it names the text and the number.

    >>> score_replies(lambda texts: [len(text) / 10 for text in texts], ["yes", "certainly not"])
    Traceback (most recent call last):
    ValueError: reward must be in [0, 1], got 1.3 for the reply 'certainly not'; scale what it returns
    """
    if not texts:
        return np.empty(0)
    values = np.asarray(reward(list(texts)))
    if values.shape != (len(texts),) or not (np.issubdtype(values.dtype, np.number) or values.dtype == np.bool_):
        raise ValueError(
            f"reward must return one number a text, {len(texts)} in all, got {values.dtype} of shape "
            f"{list(values.shape)}; it is called with a list of texts"
        )
    numbers = values.astype(np.float64)
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers <= 1)))
    if len(wrong):
        text = texts[wrong[0]]
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
        raise ValueError(
            f"reward must be in [0, 1], got {numbers[wrong[0]]:g} for the reply {shown!r}; scale what it returns"
        )
    return numbers


def _loaded(source: str | PathLike[str]) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        network, info = AutoModelForSequenceClassification.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise OSError(
            f"classifier {str(source)!r} is no folder here that holds one, and could not be fetched from the Hugging "
            "Face hub; check the name, the network and your access to it"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"classifier {str(source)!r} must hold a trained classifier, got a model without {missing[0]}; its scores "
            "would be random"
        )
    return network, tokenizer


def _parts(pipeline: Any) -> tuple[Any, Any]:
    network, tokenizer = getattr(pipeline, "model", None), getattr(pipeline, "tokenizer", None)
    if tokenizer is None or not hasattr(getattr(network, "config", None), "id2label"):
        raise ValueError(
            f"classifier must be the id or folder of a sequence classifier, or a pipeline, got "
            f"{type(pipeline).__name__}; pass any other function from texts to numbers as the reward itself"
        )
    return network, tokenizer


def _positive_label(config: Any, positive: str | None) -> int:
    labels = {int(number): str(label) for number, label in config.id2label.items()}
    known = ", ".join(map(repr, labels.values()))
    if len(labels) < 2:
        raise ValueError(f"classifier must have two labels or more, got {known}; pass a function as the reward itself")
    if positive is not None:
        wanted = [number for number, label in labels.items() if label == positive]
        if len(wanted) != 1:
            raise ValueError(f"positive must be one of the classifier's labels, {known}, got {positive!r}")
        return wanted[0]
    wanted = [number for number, label in labels.items() if label.lower() in ("positive", "pos")]
    if not wanted and [labels[number].upper() for number in sorted(labels)] == ["LABEL_0", "LABEL_1"]:
        wanted = [1]
    if len(wanted) != 1:
        raise ValueError(f"classifier must have one positive label, got {known}; say which it is with positive=...")
    return wanted[0]
