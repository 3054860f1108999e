"""A finite list of hypotheses and its exact posterior."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import load_file
from scipy.special import logsumexp

from cautious_imitation.atomic_files import write_safetensors, write_text
from cautious_imitation.demonstrations import Demonstrations, Evidence
from cautious_imitation.hypotheses.base import Hypotheses
from cautious_imitation.hypotheses.finite_members import Hypothesis, TableMember, listed_members
from cautious_imitation.hypotheses.posterior import Posterior, Rule
from cautious_imitation.hypotheses.wide_minimum import wide_minimum
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.types import Array

_SCHEMA = 1


class FiniteHypotheses(Hypotheses):
    """A list of K candidates for the demonstrator, weighted by Bayes' rule.

    A member is one of

    - a table: a NumPy array of log-probabilities, ``[V]``, or ``[k, ..., k, V]`` with one axis for each of the last
      symbols that it looks at, the oldest first;
    - a function ``f(context) -> log_probs`` of one context ``[L]``, which returns ``[V]``; with ``batched`` of
      ``[..., L]``, returning ``[..., V]``; NumPy or torch;
    - a torch module from long ``[B, L]`` to logits ``[B, V]``, or ``[B, L, V]`` if it is causal. It is put in
      evaluation mode, and its predictions are torch tensors without gradients.

    Predictions are NumPy arrays or torch tensors as the members give them; members of one class are all of one kind.

    Args:
        members: the K candidates.
        prior: ``[K]`` probabilities that sum to one; default uniform.
        temperature: eta in (0, 1], the power of the likelihood in Bayes' rule; below one learns slower, and forgives
            more where no candidate is right.
        switching_rate: s in [0, 1), the share of weight that flows back to the prior after each learned action ("fixed
            share": the demonstrator may change), w <- (1 - s) w + s prior. Keeps the posterior of a class without the
            demonstrator from collapsing on one member.
        plausible: which members are plausible at level alpha, see ``plausible_members``.
        n_symbols: V; needed if no member is a table.
        start_symbol: fills contexts that are shorter than what a table looks at, and stands in for a module's empty
            context; default none, where such contexts are an error.
        batched: whether functions take a batch of contexts.

    Raises:
        TypeError: if a member is neither table, function nor module.
        ValueError: if an argument is out of its range, or a table is not normalised.

    >>> fair, loaded = np.log([0.5, 0.5]), np.log([0.9, 0.1])
    >>> coin = FiniteHypotheses([fair, loaded]).fit([[0, 0, 1]])
    >>> np.exp(coin.log_weights).round(2)
    array([0.61, 0.39])
    >>> np.exp(coin.plausible_min([], alpha=0.5)).round(2)
    array([0.5, 0.1])

    Source: Cohen, Hutter, Nanda, "Fully General Online Imitation Learning" (JMLR 23, 2022).
    """

    def __init__(
        self,
        members: Sequence[Hypothesis],
        *,
        prior: ArrayLike | None = None,
        temperature: float = 1.0,
        switching_rate: float = 0.0,
        plausible: Rule = "best",
        n_symbols: int | None = None,
        start_symbol: int | None = None,
        batched: bool = False,
    ) -> None:
        if start_symbol is not None and start_symbol < 0:
            raise ValueError(f"start_symbol must be at least 0, got {start_symbol}; symbols count from 0")
        self.start_symbol = start_symbol
        self.batched = batched
        self._members = listed_members(members, n_symbols, start_symbol, batched)
        self.n_symbols = self._members[0].n_symbols
        self.posterior = Posterior.over(
            len(members), prior, temperature=temperature, switching_rate=switching_rate, rule=plausible
        )

    def __len__(self) -> int:
        """K, the number of members."""
        return len(self._members)

    @property
    def log_weights(self) -> NDArray[np.float64]:
        """Log of the posterior weights ``[K]``, in nats; their exp sums to one."""
        return self.posterior.log_weights.copy()

    def plausible_members(self, alpha: float) -> NDArray[np.bool_]:
        """Which members are plausible at level ``alpha``, ``[K]``; see ``Posterior.plausible_members``."""
        return self.posterior.plausible_members(alpha)

    def mixture(self, context: Array) -> Array:
        """Posterior mixture at ``context [..., L]``: ``[..., V]`` log-probabilities in nats."""
        all_weights = self.posterior.log_weights
        weighed = np.flatnonzero(all_weights > -np.inf)
        rows = self._rows(context, weighed)
        xp = array_namespace(rows)
        log_weights = xp.asarray(all_weights[weighed], dtype=rows.dtype, device=rows.device)
        joint = rows + log_weights[:, None]
        return logsumexp(joint, axis=-2) if isinstance(joint, np.ndarray) else joint.logsumexp(-2)

    def plausible(self, context: Array, alpha: float) -> PlausibleSet:
        """All members' predictions at ``context [..., L]`` as single points, with the plausible ones marked.

        Raises:
            ValueError: if ``alpha`` is outside (0, 1].
        """
        members = self.plausible_members(alpha)
        rows = self._rows(context, np.arange(len(self)))
        xp = array_namespace(rows)
        mask = xp.asarray(members, device=rows.device)
        return PlausibleSet.points(rows, xp.asarray(xp.broadcast_to(mask, rows.shape[:-1]), copy=True))

    def plausible_min(self, context: Array, alpha: float) -> Array:
        """Least probability of each action over the plausible members: ``[..., V]`` log-probabilities in nats.

        Members that are not plausible are not asked for a prediction.
        """
        return wide_minimum(self._rows(context, np.flatnonzero(self.plausible_members(alpha))))[0]

    def worst_kl(self, context: Array, log_pi: Array, alpha: float) -> Array:
        """Largest KL(pi || nu) over the plausible members nu, in nats, shape ``[...]``; see ``Hypotheses.worst_kl``.

        Members that are not plausible are not asked for a prediction.
        """
        rows = self._rows(context, np.flatnonzero(self.plausible_members(alpha)))
        return PlausibleSet.points(rows).worst_kl(log_pi)

    def update(self, context: Array, symbol: Array) -> None:
        """Learn that the demonstrator did ``symbol`` at ``context`` (``[L]`` and an int, or ``[B, L]`` and ``[B]``).

        A batch is learned in its order.

        Raises:
            ValueError: if shapes disagree, a symbol is outside the alphabet, or no member of positive weight allows it;
                nothing is learned then.
        """
        context = _array(context)
        symbols = np.asarray(symbol.tolist() if hasattr(symbol, "tolist") else symbol)
        if symbols.shape != tuple(context.shape[:-1]):
            raise ValueError(
                f"symbol must have shape {tuple(context.shape[:-1])} to go with context, got {symbols.shape}"
            )
        symbols = self._checked_symbols(symbols.reshape(-1), "symbol")
        each = np.arange(len(symbols))
        log_likelihoods = np.empty((len(symbols), len(self)))
        for k, member in enumerate(self._members):
            rows = member.predict(context).reshape(len(symbols), self.n_symbols)
            log_likelihoods[:, k] = rows[each, symbols].tolist()
        self.posterior = self.posterior.learned(log_likelihoods, symbols)

    def fit(
        self, demonstrations: Demonstrations | Iterable[Array], *, evidence: Evidence = "demonstrator"
    ) -> FiniteHypotheses:
        """Learn whole sequences in order; contexts do not reach across sequences. Returns self.

        In plain sequences every symbol below ``n_symbols`` is learned; ``Demonstrations`` name the actor instead, and
        ``evidence`` whose actions count.

        Raises:
            ValueError: if a learned symbol is outside the alphabet, or no member of positive weight allows it; nothing
                is learned then.
        """
        if not isinstance(demonstrations, Demonstrations):
            demonstrations = Demonstrations.from_symbols(demonstrations, self.n_symbols)
        posterior = self.posterior
        for sequence, learned in zip(demonstrations.sequences, demonstrations.learned(evidence), strict=True):
            positions = np.flatnonzero(learned)
            symbols = self._checked_symbols(sequence[positions], "sequences")
            log_likelihoods = [member.log_likelihoods(sequence, positions) for member in self._members]
            posterior = posterior.learned(np.stack(log_likelihoods, axis=1), symbols)
        self.posterior = posterior
        return self

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``finite.safetensors`` (weights, prior, tables) and ``finite.json`` into ``folder``.

        Functions and modules are not written: pass them to ``load`` again.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tables = {f"members.{i}": m.table for i, m in enumerate(self._members) if isinstance(m, TableMember)}
        posterior = self.posterior
        arrays = {"log_weights": posterior.log_weights, "log_prior": posterior.log_prior, **tables}
        write_safetensors(folder / "finite.safetensors", arrays)
        settings = {
            "n_symbols": self.n_symbols,
            "temperature": posterior.temperature,
            "switching_rate": posterior.switching_rate,
            "rule": posterior.rule,
            "start_symbol": self.start_symbol,
            "batched": self.batched,
        }
        document = {"schema": _SCHEMA, "n_members": len(self), **settings}
        write_text(folder / "finite.json", json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | PathLike[str], members: Mapping[int, Hypothesis] | None = None) -> FiniteHypotheses:
        """Read what ``save`` wrote.

        Args:
            folder: where it was written.
            members: the functions and modules by their place in the list, which no file can hold.

        Raises:
            FileNotFoundError: if ``folder`` holds no saved class.
            ValueError: if it was written by another version of the format, or ``members`` are not just those missing.
        """
        folder = Path(folder)
        settings = json.loads((folder / "finite.json").read_text(encoding="utf-8"))
        if settings.pop("schema", None) != _SCHEMA:
            raise ValueError(f"{folder / 'finite.json'} has another schema than {_SCHEMA}; fit and save it again")
        settings["plausible"] = settings.pop("rule")
        arrays = load_file(folder / "finite.safetensors")
        indices = range(settings.pop("n_members"))
        missing = {i for i in indices if f"members.{i}" not in arrays}
        given = dict(members or {})
        if set(given) != missing:
            raise ValueError(
                f"members must give the functions and modules at {sorted(missing)}, which are not in {folder}, got "
                f"{sorted(given)}; pass load(folder, members={{index: member}})"
            )
        loaded = cls([given[i] if i in given else arrays[f"members.{i}"] for i in indices], **settings)
        loaded.posterior = replace(loaded.posterior, log_prior=arrays["log_prior"], log_weights=arrays["log_weights"])
        return loaded

    def _rows(self, context: Array, indices: NDArray[np.int64]) -> Array:
        """Predictions of the members at ``indices``: ``[..., len(indices), V]``."""
        context = _array(context)
        rows = [self._members[i].predict(context) for i in indices]
        kinds = {type(row).__module__.partition(".")[0] for row in rows}
        if len(kinds) > 1:
            raise TypeError(
                f"members must all predict with one kind of array, got {' and '.join(sorted(kinds))}; turn tables into "
                "functions that return torch tensors"
            )
        return array_namespace(*rows).stack(rows, axis=-2)

    def _checked_symbols(self, symbols: NDArray[Any], name: str) -> NDArray[np.int64]:
        outside = (symbols < 0) | (symbols >= self.n_symbols)
        if outside.any():
            raise ValueError(f"{name} must hold actions in 0..{self.n_symbols - 1}, got {symbols[outside][0]}")
        if symbols.size and not np.issubdtype(symbols.dtype, np.integer):
            raise ValueError(f"{name} must hold integers, got {symbols.dtype}; actions are 0..{self.n_symbols - 1}")
        return symbols.astype(np.int64)


def _array(context: Array) -> Array:
    """``context`` as it is if it is an array of either kind; lists become NumPy arrays, of integers if empty."""
    if hasattr(context, "ndim"):
        return context
    array = np.asarray(context)
    return array if array.size else array.astype(np.int64)
