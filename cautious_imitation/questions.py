"""Questions as an imitator asks them: with the conversation so far, and what may come next and how plausibly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from cautious_imitation.hypotheses.base import Hypotheses
from cautious_imitation.oracles.protocol import Act, Answer, Decline, PlausibleAction, Query
from cautious_imitation.oracles.vocabulary import Vocabulary
from cautious_imitation.sampling import on_host
from cautious_imitation.types import Actor, Array

N_LISTED = 20
"""So many plausible actions a question lists, the likeliest."""


def build_queries(
    hypotheses: Hypotheses,
    alpha: float,
    contexts: Any,
    ask_probabilities: Array,
    vocabulary: Vocabulary | None = None,
    names: Sequence[dict[str, Any]] | None = None,
) -> list[Query]:
    """A question for each of ``n`` contexts.

    Args:
        hypotheses: what is plausible, and how likely it is.
        alpha: plausibility level in (0, 1].
        contexts: n of them: ``[n, L]`` symbols, a list of ``[L]`` symbols, or a ``Reading``.
        ask_probabilities: ``[n]``, how probable it was to ask.
        vocabulary: how symbols are written; None if nobody knows.
        names: ``id``, ``asker`` and ``episode`` of each; None leaves them open.
    """
    rows = context_rows(contexts)
    if not rows:
        return []
    mixture, plausible = hypotheses.mixture(contexts), hypotheses.plausible(contexts, alpha)
    listed = _largest(mixture, N_LISTED)
    chances = [_gathered(values, listed) for values in (plausible.minimum(), mixture, plausible.maximum())]
    queries = []
    for i, (row, ask) in enumerate(zip(rows, on_host(ask_probabilities).reshape(-1), strict=True)):
        context = tuple(int(symbol) for symbol in on_host(row))
        actions = [
            PlausibleAction(
                int(a), float(low), float(mean), float(high), vocabulary.label(int(a)) if vocabulary else None
            )
            for a, low, mean, high in zip(listed[i], *(values[i] for values in chances), strict=True)
        ]
        queries.append(
            Query(
                context,
                hypotheses.n_symbols,
                float(ask),
                tuple(actions),
                vocabulary.text(context) if vocabulary and context else None,
                vocabulary.messages(context) if vocabulary else (),
                **(names[i] if names is not None else {}),
            )
        )
    return queries


def in_actions(answer: Answer, query: Query, vocabulary: Vocabulary | None) -> Answer:
    """The answer in actions: a reply in words is read by the vocabulary, and ends its turn.

    Words that cannot be written in the imitator's symbols are no answer: they become a decline that says so.

    Args:
        answer: as it came.
        query: what it answers.
        vocabulary: how symbols are written.
    """
    if isinstance(answer, Decline) or answer.text is None:
        return answer
    if vocabulary is None:
        return Decline(
            f"the answer {answer.text[:200]!r} is in words, and the imitator has no vocabulary; pass vocabulary=names"
        )
    try:
        actions = vocabulary.reply(query.context, answer.text)
    except ValueError as error:
        return Decline(str(error))
    outside = next((action for action in actions if not 0 <= action < query.n_actions), None)
    if outside is not None or not actions:
        what = "no action at all" if outside is None else f"action {outside}, outside of 0..{query.n_actions - 1}"
        return Decline(f"the answer {answer.text[:200]!r} comes to {what}")
    return Act(actions, evidence=answer.evidence, independent=answer.independent)


def answered_by(answer: Act) -> Actor:
    """Whose action an answer counts as: the demonstrator's only if it may be learned from."""
    return Actor.DEMONSTRATOR if answer.evidence else Actor.ORACLE


def context_rows(contexts: Any) -> Sequence[Any]:
    """Contexts one by one: of an array ``[n, L]``, of a list of ``[L]``, or of a ``Reading``."""
    return contexts.rows if hasattr(contexts, "rows") else list(contexts)


def some_contexts(contexts: Any, which: Sequence[int]) -> Any:
    """Those of n contexts, as the same kind of thing."""
    # A reading by what it has, so that classes that read with no language model load no torch.
    if hasattr(contexts, "rows"):
        features = contexts.features.reshape(-1, contexts.features.shape[-1])
        return type(contexts)([contexts.rows[i] for i in which], features[list(which)])
    return contexts[list(which)] if hasattr(contexts, "reshape") else [contexts[i] for i in which]


def _largest(values: Array, n: int) -> np.ndarray:
    """Where the n largest of each row are, ``[rows, n]``, the largest first."""
    if hasattr(values, "topk"):
        return on_host(values.topk(min(n, values.shape[-1])).indices)
    return np.argsort(-values, axis=-1, kind="stable")[:, :n]


def _gathered(log_probs: Array, places: np.ndarray) -> np.ndarray:
    xp = array_namespace(log_probs)
    on_device = xp.asarray(places, device=log_probs.device)
    return np.exp(on_host(xp.take_along_axis(log_probs, on_device, axis=-1)).astype(np.float64))
