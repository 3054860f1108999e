"""The two base policies: a Bayesian imitator and a cautious one, thin recipes over the same engine."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from inspect import signature
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from array_api_compat import array_namespace

from cautious_imitation.atomic_files import write_text
from cautious_imitation.demonstrations import Demonstrations, Evidence, sequence_digests
from cautious_imitation.hypotheses import load_hypotheses
from cautious_imitation.hypotheses.base import Hypotheses, check_alpha
from cautious_imitation.oracles.function import Answerer, as_oracle
from cautious_imitation.oracles.protocol import (
    Act,
    Answer,
    Decline,
    HelpNeeded,
    Oracle,
    OracleError,
    Query,
    check_answers,
)
from cautious_imitation.oracles.vocabulary import Vocabulary, as_vocabulary
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.questions import answered_by, build_queries, in_actions, some_contexts
from cautious_imitation.sampling import draw, on_host
from cautious_imitation.types import Action, Actor, Array, Prediction, mass_tolerance

Caution: TypeAlias = Literal["pointwise", "minimax"]
AfterDecline: TypeAlias = Literal["stop", "act"]
"""What follows when nobody answers: nothing, or the imitator acts on its own, as it does when it does not ask."""

_SCHEMA = 1


class BasePolicy(ABC):
    """A policy in its role as anchor: it predicts, and it charges other policies for leaving it.

    A context is a sequence of symbols, oldest first, shape ``[L]``, or ``[B, L]`` for a batch; all logs are natural.
    """

    n_symbols: int

    @abstractmethod
    def predict(self, context: Array) -> Prediction:
        """Log-probabilities ``[..., V]`` of the actions and ``[...]`` of asking, at ``context [..., L]``."""

    @abstractmethod
    def references(self, context: Array) -> PlausibleSet:
        """The distributions that a policy is charged against, at ``context [..., L]``."""

    def charge(self, context: Array, log_pi: Array) -> Array:
        """Largest KL(pi || nu) over the references, in nats, shape ``[...]``; ``log_pi`` is ``[..., V]``.

        Infinite where the policy uses an action that a reference gives probability 0.
        """
        return self.references(context).worst_kl(log_pi)


class _Imitator(BasePolicy):
    """What both imitators share: a hypothesis class, an evidence rule, an oracle, acting and learning."""

    default_evidence: ClassVar[Evidence]
    learned_digests: frozenset[str] = frozenset()
    """Of the sequences that ``fit`` has learned from, see ``sequence_digests``."""

    def __init__(
        self,
        hypotheses: Hypotheses,
        *,
        oracle: Answerer | None = None,
        evidence: Evidence | None = None,
        vocabulary: Any = None,
    ) -> None:
        evidence = self.default_evidence if evidence is None else evidence
        if evidence not in get_args(Evidence):
            raise ValueError(f"evidence must be one of {', '.join(get_args(Evidence))}, got {evidence!r}")
        self.hypotheses = hypotheses
        self.oracle = oracle
        self.evidence: Evidence = evidence
        self.n_symbols = hypotheses.n_symbols
        tokenizer = getattr(getattr(hypotheses, "model", None), "tokenizer", None)
        if vocabulary is None and hasattr(tokenizer, "decode"):
            vocabulary = tokenizer
        self.vocabulary: Vocabulary | None = as_vocabulary(vocabulary)

    @property
    def oracle(self) -> Oracle | None:
        """Who answers questions; whatever ``as_oracle`` takes may be assigned."""
        return self._oracle

    @oracle.setter
    def oracle(self, answerer: Answerer | None) -> None:
        self._oracle = None if answerer is None else as_oracle(answerer)

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        demonstrations: str | PathLike[str] | Demonstrations | Iterable[Any],
        hypotheses: Literal["gaussian", "low_rank", "ensemble"] = "gaussian",
        **settings: Any,
    ) -> Any:
        """An imitator of whoever speaks as the agent in recorded chats, from a pretrained language model.

        Args:
            model: id on the Hugging Face hub, folder, ``.gguf`` file or loaded network, see ``load_language_model``;
                for ``"ensemble"`` a list of these, or one with ``adapters=[...]``, folders of LoRA adapters.
            demonstrations: a JSONL file of chats or a list of chats, as for ``tokenized_chats``, or ``Demonstrations``
                of the model's tokens.
            hypotheses: the class, see ``GaussianHead``, ``LowRankHeads`` and ``LanguageModels``.
            **settings: of the imitator (``alpha``, ``caution``, ``oracle``, ``evidence``), of ``build_hypotheses``
                (``device``, ``dtype``, ``cache``, ``progress``, ``seed`` and more), and of the class of hypotheses.

        Raises:
            FileNotFoundError, OSError, TypeError, ValueError: as the imitator itself and ``build_hypotheses``. Wrong
                settings are told before anything is loaded.
        """
        from cautious_imitation.hypotheses.pretrained import build_hypotheses

        own = {name: settings.pop(name) for name in signature(cls).parameters if name in settings}
        evidence = cls(_NOTHING, **own).evidence
        return cls(build_hypotheses(hypotheses, model, demonstrations, evidence=evidence, **settings), **own)

    def fit(self, demonstrations: Demonstrations | Iterable[Array]) -> Any:
        """Learn from recorded behaviour under the evidence rule; returns self."""
        demonstrations = demonstrations if isinstance(demonstrations, Demonstrations) else list(demonstrations)
        self.hypotheses.fit(demonstrations, evidence=self.evidence)
        sequences = demonstrations.sequences if isinstance(demonstrations, Demonstrations) else demonstrations
        self.learned_digests |= frozenset(sequence_digests(sequences).values())
        return self

    def act(
        self, context: Array, rng: np.random.Generator, *, after_decline: AfterDecline = "stop"
    ) -> Action | list[Action]:
        """Act as the imitator does: sample an action, or ask the oracle with the ask probability.

        Args:
            context: ``[L]`` symbols, or ``[B, L]`` for a batch, or what else the hypotheses take as a context. All
                questions of a batch are asked together.
            rng: source of randomness.
            after_decline: what follows if the oracle declines: ``"stop"`` raises ``HelpNeeded``; ``"act"`` samples the
                action from the prediction, given that it acts.

        Returns:
            The action and who chose it; a list of ``B`` of them for a batch. Nothing is learned: pass the action to
            ``observe``.

        Raises:
            HelpNeeded: if the imitator asks and there is no oracle, the oracle cannot answer now, or it declines;
                carries the questions.
            OracleError: if an answer is not one action.
        """
        check_after_decline(after_decline)
        prediction = self.predict(context)
        single = prediction.log_ask.ndim == 0
        log_ask = on_host(prediction.log_ask).reshape(-1)
        drawn = draw(prediction, rng.random(len(log_ask)))
        symbols, actors = drawn.symbols.tolist(), [Actor.IMITATOR] * len(log_ask)
        asking = np.flatnonzero(drawn.asks).tolist()
        if asking:
            contexts = some_contexts(_as_batch(context, single), asking)
            queries = self.questions(contexts, np.exp(log_ask[asking]))
            for i, query, answer in zip(asking, queries, self.ask(queries), strict=True):
                if isinstance(answer, Act):
                    symbols[i], actors[i] = _only_action(answer, query), answered_by(answer)
                elif after_decline == "stop" or symbols[i] == self.n_symbols:
                    raise HelpNeeded(query, _declined(answer, symbols[i] < self.n_symbols))
        actions = [Action(symbol, actor) for symbol, actor in zip(symbols, actors, strict=True)]
        return actions[0] if single else actions

    def questions(
        self, contexts: Any, ask_probabilities: Array, names: Sequence[dict[str, Any]] | None = None
    ) -> list[Query]:
        """What is asked at each of n contexts; see ``build_queries``."""
        level = getattr(self, "alpha", 1.0)
        return build_queries(self.hypotheses, level, contexts, ask_probabilities, self.vocabulary, names)

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """The oracle's answers to ``queries`` in actions; words are read by the vocabulary.

        Raises:
            HelpNeeded: if nobody is there to answer, or some questions cannot be answered now.
            OracleError: if an answer is none.
        """
        if not queries:
            return []
        if self.oracle is None:
            raise HelpNeeded(queries)
        answers = check_answers(self.oracle.ask(queries), queries)
        return [in_actions(answer, query, self.vocabulary) for answer, query in zip(answers, queries, strict=True)]

    def observe(self, context: Array, action: Array, actor: Actor | str) -> None:
        """Tell the imitator what was done at ``context``, and by whom; it learns if its evidence rule says so.

        Args:
            context: ``[L]`` symbols, or ``[B, L]`` for a batch.
            action: the symbol, or ``[B]`` of them.
            actor: who chose it. The environment's symbols are never evidence.
        """
        actor = Actor(actor)
        if actor is Actor.DEMONSTRATOR or (actor is Actor.IMITATOR and self.evidence == "all"):
            self.hypotheses.update(context, action)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the imitator to ``folder``: ``imitator.json`` and the hypotheses beside it. The oracle is not saved."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.hypotheses.save(folder / "hypotheses")
        settings = {"schema": _SCHEMA, "imitator": type(self).__name__, "hypotheses": type(self.hypotheses).__name__}
        settings |= {**self._settings(), "learned_digests": sorted(self.learned_digests)}
        write_text(folder / "imitator.json", json.dumps(settings, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | PathLike[str], oracle: Answerer | None = None, model: Any = None) -> Any:
        """Read what ``save`` wrote.

        Args:
            folder: where it was written.
            oracle: answers questions.
            model: the language model, or models, that the hypotheses read with, which are not saved: loaded ones, or
                where to load them from.

        Raises:
            FileNotFoundError: if ``folder`` holds no saved imitator.
            ValueError: if it holds another kind of imitator, another version of the format, or hypotheses of another
                model.
        """
        path = Path(folder) / "imitator.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("schema", None) != _SCHEMA:
            raise ValueError(f"{path} has another schema than {_SCHEMA}; fit and save the imitator again")
        kind = settings.pop("imitator")
        if kind != cls.__name__:
            raise ValueError(f"{path} holds a {kind}, not a {cls.__name__}; use {kind}.load")
        model = None if model is None else _loaded(model)
        hypotheses = load_hypotheses(settings.pop("hypotheses"), Path(folder) / "hypotheses", model)
        learned = settings.pop("learned_digests", ())
        imitator = cls(hypotheses, oracle=oracle, **settings)
        imitator.learned_digests = frozenset(learned)
        return imitator

    def _settings(self) -> dict[str, Any]:
        return {"evidence": self.evidence}


def check_after_decline(after_decline: AfterDecline) -> None:
    """Raise ``ValueError`` unless it is one of the two."""
    if after_decline not in get_args(AfterDecline):
        raise ValueError(f'after_decline must be "stop" or "act", got {after_decline!r}')


_NOTHING: Any = SimpleNamespace(n_symbols=0, default_alpha=1.0)
"""Stands for hypotheses where only an imitator's own settings are to be checked."""


def _loaded(model: Any) -> Any:
    from cautious_imitation.hypotheses.pretrained import read_with

    return read_with(model)


class BayesianImitator(_Imitator):
    """Predicts with the posterior mixture and never asks: the usual base policy.

    Args:
        hypotheses: the class, with its posterior.
        oracle: never asked; accepted so that both imitators are built alike.
        evidence: whose actions are learned from: ``"all"`` (default: its own actions as well, as a language model does
            that conditions on its own output) or ``"demonstrator"``.
        vocabulary: how symbols are written; see ``CautiousImitator``.

    >>> from cautious_imitation.hypotheses.context_tree import ContextTree
    >>> imitator = BayesianImitator(ContextTree(2, depth=1)).fit([[0, 1] * 20])
    >>> imitator.predict([0]).log_probs.argmax()
    np.int64(1)

    Source: Cohen, Hutter, Bengio, Russell 2024, section 3.
    """

    default_evidence = "all"

    def predict(self, context: Array) -> Prediction:
        """Posterior mixture ``[..., V]``; the ask probability is 0."""
        log_probs = self.hypotheses.mixture(context)
        xp = array_namespace(log_probs)
        return Prediction(log_probs, xp.full_like(log_probs[..., 0], -xp.inf))

    def references(self, context: Array) -> PlausibleSet:
        """The mixture alone."""
        return PlausibleSet.points(self.hypotheses.mixture(context)[..., None, :])


class CautiousImitator(_Imitator):
    """Gives each action its least plausible probability, and asks with the probability that is left.

    Args:
        hypotheses: the class, with its posterior.
        alpha: plausibility level in (0, 1]; smaller is more cautious. Default: that of the class, see
            ``Hypotheses.default_alpha``; ``calibrate_alpha`` finds one for your data.
        caution: what a fine-tuned policy is charged: ``"minimax"`` (default), the largest KL to any plausible
            hypothesis, or ``"pointwise"``, KL to the plausible minimum, which is never less and bounds the same thing.
        oracle: answers questions: a function from a ``Query`` to an action, or whatever else ``as_oracle`` takes.
            Without one ``act`` raises ``HelpNeeded``.
        evidence: ``"demonstrator"`` (default: only the demonstrator's actions, answers included) or ``"all"``.
        vocabulary: how symbols are written for whoever answers, and words are read: a list of names, a tokenizer or a
            ``Vocabulary``. Default: the language model's tokenizer, if there is one.

    Raises:
        ValueError: if ``alpha``, ``caution`` or ``evidence`` is out of range.

    >>> from cautious_imitation.hypotheses.context_tree import ContextTree
    >>> imitator = CautiousImitator(ContextTree(2, depth=1), alpha=0.01).fit([[0, 1] * 20])
    >>> [round(float(imitator.predict(c).ask_probability), 2) for c in ([0], [2])]
    [0.21, 0.99]

    Source: Cohen, Hutter, Bengio, Russell 2024, section 7; Cohen, Hutter, Nanda 2022; minimax: docs/theory.md.
    """

    default_evidence = "demonstrator"

    def __init__(
        self,
        hypotheses: Hypotheses,
        alpha: float | None = None,
        caution: Caution = "minimax",
        *,
        oracle: Answerer | None = None,
        evidence: Evidence | None = None,
        vocabulary: Any = None,
    ) -> None:
        super().__init__(hypotheses, oracle=oracle, evidence=evidence, vocabulary=vocabulary)
        if caution not in get_args(Caution):
            raise ValueError(f"caution must be one of {', '.join(get_args(Caution))}, got {caution!r}")
        self.alpha = check_alpha(hypotheses.default_alpha if alpha is None else alpha)
        self.caution: Caution = caution

    def predict(self, context: Array) -> Prediction:
        """Plausible minimum ``[..., V]`` and, as the ask probability, the mass that it leaves."""
        log_probs = self.hypotheses.plausible_min(context, self.alpha)
        return Prediction(log_probs, _log_remainder(log_probs))

    def references(self, context: Array) -> PlausibleSet:
        """The plausible minimum alone (pointwise), or every plausible member (minimax)."""
        if self.caution == "minimax":
            return self.hypotheses.plausible(context, self.alpha)
        return PlausibleSet.points(self.hypotheses.plausible_min(context, self.alpha)[..., None, :])

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "alpha": self.alpha, "caution": self.caution}


def _log_remainder(log_probs: Array) -> Array:
    """log(1 - sum of probabilities), ``-inf`` where rounding leaves nothing; more than one is an error."""
    xp = array_namespace(log_probs)
    left = 1 - xp.sum(xp.exp(log_probs), axis=-1)
    if bool(xp.any(left < -mass_tolerance(log_probs))):
        raise ValueError(
            f"probabilities must sum to at most 1, got {1 - float(xp.min(left))}; the class is not normalised"
        )
    positive = left > 0
    return xp.where(positive, xp.log(xp.where(positive, left, xp.ones_like(left))), xp.full_like(left, -xp.inf))


def _as_batch(context: Any, single: bool) -> Any:
    """Contexts ``[n, L]``, or a list of them, or what was read already."""
    if hasattr(context, "rows"):
        return context
    if hasattr(context, "reshape"):
        return context[None] if single else context.reshape(-1, context.shape[-1])
    return [context] if single else context


def _only_action(answer: Act, query: Query) -> int:
    if len(answer.actions) != 1:
        raise OracleError(
            f"oracle must answer with a single action in 0..{query.n_actions - 1} where one is asked for, got "
            f"{answer.actions!r}; generate and Imitation take whole replies"
        )
    return answer.actions[0]


def _declined(decline: Decline, can_act: bool) -> str:
    remedy = 'pass after_decline="act" to go on without' if can_act else "no action is plausible enough to go on"
    return f"the oracle declined ({decline.reason}); {remedy}"
