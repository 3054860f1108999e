"""Events governed by counts, actions within an event by a language model: the answer to loops of empty replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cautious_imitation.atomic_files import write_text
from cautious_imitation.demonstrations import Demonstrations, Evidence
from cautious_imitation.hypotheses import _HOME
from cautious_imitation.hypotheses.base import Hypotheses, check_alpha
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.event_set import EventPart, EventSet, SingleAction, as_torch, in_order, joined
from cautious_imitation.hypotheses.events import EmptyReplies, Events
from cautious_imitation.hypotheses.feature_hypotheses import FeatureHypotheses
from cautious_imitation.language.demonstration_features import read_demonstrations
from cautious_imitation.language.model import Reader, Reading
from cautious_imitation.types import Array

Tensor = torch.Tensor
_T = TypeVar("_T")

_SCHEMA = 1
_MASKS_AT_ONCE = 1 << 26
"""Booleans that say which actions were possible, one a learned token and action, while learning."""


class EventRefined(Hypotheses):
    """Hypotheses nu(a) = nu_tree(e(a)) c(a | e(a)): a context tree says which event, a language model what within it.

    A language model that reads its own empty replies expects more of them, whatever its weights: in-context learning
    has decided before any head is consulted. Here a token's event is predicted from what the demonstrator did, counted,
    and the language model is only asked for probabilities given the event. If the demonstrator was never seen to reply
    with nothing, the first empty reply and the hundredth are as dear.

    The plausible set is the product of the parts' sets, each at level ``alpha / 2``. It misses the demonstrator only if
    one of them misses its part of it, so whoever has each of them cover at level a with probability 1 - c a has the
    product cover with probability 1 - c alpha. (Trees are proven to with ``plausible="anytime"``, c = 1, and with no
    other rule.) It is a little larger than the class: which language model is plausible may differ between events. So
    the minimum is exact for the class, and the worst KL as well if at most one event of those possible at a context has
    several actions; otherwise it is an upper bound.

    Args:
        language: the language part, over all actions; it learns conditional probabilities.
        events: maps contexts and actions to events.
        tree: the event part; default ``ContextTree(events.n_events, events.depth)``, profile leaves.

    Raises:
        ValueError: if alphabets disagree.

    >>> import transformers
    >>> from cautious_imitation.hypotheses.language_models import LanguageModels
    >>> from cautious_imitation.language.model import LanguageModel
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> model = LanguageModel(transformers.LlamaForCausalLM(config), n_symbols=4)
    >>> events = EmptyReplies(n_symbols=4, end_tokens=[0], start_suffix=[5])
    >>> hypotheses = EventRefined(LanguageModels([model]), events).fit([[5, 1, 2, 0], [5, 3, 0]])
    >>> hypotheses.plausible_min([5, 0, 5, 0, 5], alpha=0.05).exp()[0]  # an empty reply
    tensor(0.)

    Source: Cohen, Hutter, Bengio, Russell 2024, section 3, for the loop; the chain rule for the rest.
    """

    def __init__(self, language: FeatureHypotheses, events: Events, tree: ContextTree | None = None) -> None:
        if events.n_symbols != language.n_symbols:
            raise ValueError(
                f"events must divide the {language.n_symbols} actions of the language part, got events of "
                f"{events.n_symbols}; pass them n_symbols={language.n_symbols}"
            )
        if tree is None:
            tree = ContextTree(events.n_events, events.depth, n_context_symbols=events.n_history_symbols)
        if tree.n_symbols != events.n_events:
            raise ValueError(f"tree must predict the {events.n_events} events, got one with {tree.n_symbols} symbols")
        if events.depth and tree.n_context_symbols < events.n_history_symbols:
            raise ValueError(
                f"tree must take histories of {events.n_history_symbols} symbols, got n_context_symbols="
                f"{tree.n_context_symbols}"
            )
        self.language, self.events, self.tree = language, events, tree
        self.model: Reader = language.model
        self.n_symbols = language.n_symbols
        partition = torch.from_numpy(events.partition.copy()).to(self.model.device)
        self._members = torch.stack([partition == event for event in range(events.n_events)], dim=1)
        """Which actions make which event at which kind: ``[n_kinds, n_events, V]``."""
        self._sizes = self._members.sum(-1).cpu().numpy()
        self._possible = [members[members.any(-1)] for members in self._members]

    def mixture(self, context: Array | Reading) -> Tensor:
        """Posterior mixture at ``context``: the tree's over events times the language part's given the event.

        Returns:
            ``[..., V]`` log-probabilities in nats.
        """
        reading, groups = self._grouped(context)
        pieces = []
        for group in groups:
            within = group.within(self.language.mixture_from, torch.zeros(()))
            if group.histories is None:
                pieces.append(within[0])
            else:
                log_events = as_torch(self.tree.mixture(group.histories), self.model.device, self.model.dtype)
                pieces.append(joined(log_events, within, group.members))
        return in_order(pieces, [group.rows for group in groups], tuple(reading.features.shape[:-1]))

    def plausible(self, context: Array | Reading, alpha: float) -> Any:
        """The plausible set at ``context``, an ``EventSet``: the product of the parts' sets at level ``alpha / 2``.

        Raises:
            ValueError: if ``alpha`` is outside (0, 1].
        """
        level = check_alpha(alpha) / 2
        reading, groups = self._grouped(context)
        parts = []
        for group in groups:
            tree = None if group.histories is None else self.tree.plausible(group.histories, level)
            within = group.within(partial(self.language.plausible_from, alpha=level), SingleAction())
            parts.append(EventPart(group.rows, group.members, tree, tuple(within)))
        return EventSet(tuple(parts), tuple(reading.features.shape[:-1]), self.model.dtype)

    def update(self, context: Array | Reading, symbol: Array) -> None:
        """Learn that the demonstrator did ``symbol`` at ``context`` (``[L]`` and an int, or ``[B, L]`` and ``[B]``).

        Raises:
            ValueError: if shapes disagree or a symbol is outside the alphabet; nothing is learned then.
        """
        reading = self.model.read(context)
        shape = tuple(reading.features.shape[:-1])
        symbols = self.language._checked_symbols(symbol)
        if symbols.shape != shape:
            raise ValueError(f"symbol must have shape {shape} to go with context, got {tuple(symbols.shape)}")
        self._learn(_flat(reading), symbols.reshape(-1), *self.events.after(reading.rows))

    def fit(
        self,
        demonstrations: Demonstrations | Iterable[Array],
        *,
        evidence: Evidence = "demonstrator",
        cache: str | PathLike[str] | None = None,
        progress: bool = False,
    ) -> EventRefined:
        """Learn from whole sequences of tokens, in order; returns self.

        Args:
            demonstrations: with the actor of every token; or plain sequences, of which every token below ``n_symbols``
                is learned.
            evidence: whose actions are learned.
            cache: folder for the features, see ``read_demonstrations``.
            progress: show a progress bar.

        Raises:
            ValueError: as ``read_demonstrations``; nothing is learned then.
        """
        if not isinstance(demonstrations, Demonstrations):
            demonstrations = Demonstrations.from_symbols(demonstrations, self.n_symbols)
        read = read_demonstrations(self.model, demonstrations, evidence=evidence, cache=cache, progress=progress)
        found = [
            self.events.along(sequence, np.flatnonzero(learned))
            for sequence, learned in zip(demonstrations.sequences, demonstrations.learned(evidence), strict=True)
        ]
        kinds, histories = (np.concatenate(values) for values in zip(*found, strict=True))
        self._learn(read.features, read.tokens, kinds, histories)
        return self

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``event_refined.json`` and the parts, in ``tree`` and ``language``, into ``folder``.

        Events of a class of your own are not written: pass them to ``load`` again.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tree.save(folder / "tree")
        self.language.save(folder / "language")
        document = {
            "schema": _SCHEMA,
            "language": type(self.language).__name__,
            "empty_replies": self.events.settings() if type(self.events) is EmptyReplies else None,
        }
        write_text(folder / "event_refined.json", json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        model: Reader,
        *,
        language: FeatureHypotheses | None = None,
        events: Events | None = None,
    ) -> EventRefined:
        """Read what ``save`` wrote.

        Args:
            folder: where it was written.
            model: what the language part reads with; it is not saved.
            language: the language part, if its class is your own; load it from ``folder / "language"``.
            events: the events, if their class is your own.

        Raises:
            FileNotFoundError: if ``folder`` holds no saved class.
            ValueError: if it was written by another version of the format, or a part of your own is missing.
        """
        folder = Path(folder)
        path = folder / "event_refined.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("schema") != _SCHEMA:
            raise ValueError(f"{path} has another schema than {_SCHEMA}; fit and save it again")
        if events is None:
            if document["empty_replies"] is None:
                raise ValueError(f"events must be given, got None: {path} was saved with events that no file can hold")
            events = EmptyReplies(**document["empty_replies"])
        if language is None:
            kind = document["language"]
            if kind not in _HOME:
                raise ValueError(
                    f"language must be given, got None: it is a {kind}, which is not of this library; load it from "
                    f"{folder / 'language'}"
                )
            found: Any = getattr(import_module(f"cautious_imitation.hypotheses.{_HOME[kind]}"), kind)
            language = found.load(folder / "language", model)
        return cls(language, events, ContextTree.load(folder / "tree"))

    def _learn(self, features: Tensor, symbols: Tensor, kinds: NDArray[np.int64], histories: NDArray[np.int64]) -> None:
        """Learn ``symbols [N]`` at ``features [N, d]``, in their order."""
        events = self.events.partition[kinds, symbols.cpu().numpy()]
        is_open = self.events.is_open[kinds]
        # Given an event of one action, that action is certain: the language part has nothing to learn from it.
        several = np.flatnonzero(~is_open | (self._sizes[kinds, events] > 1))
        masks, which = self._members.flatten(0, 1), kinds * self.events.n_events + events
        step = max(1, _MASKS_AT_ONCE // self.n_symbols)
        for start in range(0, len(several), step):
            chosen = several[start : start + step]
            rows = torch.from_numpy(chosen).to(self.model.device)
            given = masks[torch.from_numpy(which[chosen]).to(masks.device)] if is_open[chosen].any() else None
            self.language.learn_from(features[rows], symbols[rows], given)
        self.tree.update(histories[is_open], events[is_open])

    def _grouped(self, context: Array | Reading) -> tuple[Reading, list[_Group]]:
        """``context`` as read, and its contexts by their kind: at least one group, empty if there is no context."""
        reading = self.model.read(context)
        features = _flat(reading)
        kinds, histories = self.events.after(reading.rows)
        if len(kinds) != len(features):
            raise ValueError(f"context must have as many rows as features, got {len(kinds)} and {len(features)}")
        groups = []
        for kind in np.unique(kinds) if len(kinds) else [0]:
            chosen = np.flatnonzero(kinds == kind)
            rows = torch.from_numpy(chosen).to(self.model.device)
            known = histories[chosen] if self.events.is_open[kind] else None
            groups.append(_Group(rows, features[rows], known, self._possible[kind], self._sizes[kind] == 1))
        return reading, groups


@dataclass(frozen=True, eq=False)
class _Group:
    """Contexts of one kind: ``rows [n]`` says which.

    ``features [n, d]``; ``histories [n, depth]``, None where nothing is decided; ``members [E, V]``, the actions of
    each possible event; ``single [n_events]``, whether an event has only one.
    """

    rows: Tensor
    features: Tensor
    histories: NDArray[np.int64] | None
    members: Tensor
    single: NDArray[np.bool_]

    def within(self, ask: Callable[..., _T], certain: _T) -> list[_T]:
        """What the language part, asked by ``ask``, says given each event; ``certain`` given one of a single action."""
        if self.histories is None:
            return [ask(self.features)]
        return [
            certain if single else ask(self.features, given=member)
            for member, single in zip(self.members, self.single, strict=True)
        ]


def _flat(reading: Reading) -> Tensor:
    return reading.features.reshape(-1, reading.features.shape[-1])
