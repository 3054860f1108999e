"""The three kinds of member that a finite class takes: tables, functions and torch modules, behind one interface."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from cautious_imitation.types import Array

Hypothesis: TypeAlias = NDArray[Any] | Callable[[Array], Array]
"""A table of log-probabilities, a function of the context, or a torch module."""

_MASS_TOLERANCE = 1e-6
_CAUSAL_TOLERANCE = 1e-3


class Member(ABC):
    """One hypothesis: what it predicts, and how probable it finds what was done.

    Attributes:
        name: how errors call it, ``members[0]`` for instance.
        n_symbols: V.
    """

    def __init__(self, name: str, n_symbols: int) -> None:
        self.name = name
        self.n_symbols = n_symbols

    @abstractmethod
    def predict(self, context: Array) -> Array:
        """Log-probabilities ``[..., V]`` in nats at ``context [..., L]``, oldest symbol first."""

    @abstractmethod
    def log_likelihoods(self, sequence: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-probability in nats of ``sequence[t]`` after ``sequence[:t]``, each t of ``positions [N]``: ``[N]``."""

    def _checked(self, log_probs: Array, shape: tuple[int, ...]) -> Array:
        """``log_probs`` if they have the ``shape`` and sum to one in each row."""
        if tuple(getattr(log_probs, "shape", ())) != shape:
            raise ValueError(
                f"{self.name} must return log-probabilities of shape {shape}, "
                f"got {getattr(log_probs, 'shape', log_probs)!r}"
            )
        xp = array_namespace(log_probs)
        with np.errstate(over="ignore"):
            totals = xp.sum(xp.exp(log_probs), axis=-1)
        worst = xp.max(xp.abs(totals - 1))
        if not bool(worst <= _MASS_TOLERANCE):  # "not <=" holds for NaN too
            raise ValueError(
                f"{self.name} must give log-probabilities whose exp sums to one in every row, got a row off by "
                f"{worst.item():.3g}; take np.log of probabilities, normalised in float64 if there are many symbols"
            )
        return log_probs


class TableMember(Member):
    """A Markov table ``[k, ..., k, V]`` of log-probabilities, indexed by the last d symbols, the oldest first.

    Contexts shorter than d are filled with ``start_symbol`` at the old end; without one they are an error.
    """

    def __init__(self, name: str, table: NDArray[Any], start_symbol: int | None) -> None:
        if table.dtype not in (np.float32, np.float64) or table.ndim == 0 or 0 in table.shape:
            raise ValueError(
                f"{name} must be a float32 or float64 array [V] or [k, ..., k, V] of log-probabilities, got "
                f"{table.dtype} {table.shape}; for other kinds of array pass a function of the context"
            )
        if len(set(table.shape[:-1])) > 1:
            raise ValueError(f"{name} must have the same size k for every context symbol, got shape {table.shape}")
        super().__init__(name, table.shape[-1])
        self.order = table.ndim - 1
        if self.order and start_symbol is not None and start_symbol >= len(table):
            raise ValueError(f"start_symbol must be below k = {len(table)} of {name}, got {start_symbol}")
        self.start_symbol = start_symbol
        self.table = self._checked(table, table.shape).copy()
        self.table.setflags(write=False)

    def predict(self, context: Array) -> NDArray[Any]:
        """The row of the last d symbols of ``context [..., L]``."""
        symbols = np.asarray(context)
        lead, length = symbols.shape[:-1], symbols.shape[-1]
        recent = self._padded(symbols[..., max(0, length - self.order) :], self.order - length)
        rows = self.table[tuple(np.moveaxis(recent, -1, 0))]
        return np.broadcast_to(rows, (*lead, self.n_symbols))

    def log_likelihoods(self, sequence: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """One look-up for all ``positions [N]``."""
        missing = self.order - int(positions.min(initial=self.order))
        padded = self._padded(sequence[: int(positions.max(initial=0))], missing)
        windows = padded[positions[:, None] + np.arange(-self.order, 0) + missing]
        found: NDArray[np.float64] = self.table[(*windows.T, sequence[positions])].astype(np.float64)
        return found

    def _padded(self, symbols: NDArray[Any], missing: int) -> NDArray[np.int64]:
        """``symbols [..., L]`` with ``missing`` start symbols put in front; checked against the table's alphabet."""
        if missing > 0:
            if self.start_symbol is None:
                raise ValueError(
                    f"context must hold at least the {self.order} symbols that {self.name} looks at, got "
                    f"{self.order - missing}; pass start_symbol=... to fill short contexts"
                )
            front = np.full((*symbols.shape[:-1], missing), self.start_symbol)
            symbols = np.concatenate([front, symbols], axis=-1)
        if self.order and symbols.size and (symbols.min() < 0 or symbols.max() >= len(self.table)):
            wrong = symbols[(symbols < 0) | (symbols >= len(self.table))][0]
            raise ValueError(
                f"context must hold symbols in 0..{len(self.table) - 1}, the alphabet of {self.name}, got {wrong}"
            )
        if symbols.size and not np.issubdtype(symbols.dtype, np.integer):
            raise ValueError(f"context must hold integers, got {symbols.dtype}; symbols count from 0")
        return symbols.astype(np.int64)


class FunctionMember(Member):
    """A function ``f(context) -> log_probs``: of one context ``[L]`` -> ``[V]``, or of ``[..., L]`` if ``batched``."""

    def __init__(self, name: str, function: Callable[[Array], Array], n_symbols: int, batched: bool) -> None:
        super().__init__(name, n_symbols)
        self.function = function
        self.batched = batched

    def predict(self, context: Array) -> Array:
        """What the function says, checked: ``[..., V]``."""
        lead = tuple(context.shape[:-1])
        if self.batched or not lead:
            return self._checked(self.function(context), (*lead, self.n_symbols))
        rows = [self._checked(self.function(one), (self.n_symbols,)) for one in _flat(context)]
        xp = array_namespace(*rows)
        return xp.reshape(xp.stack(rows), (*lead, self.n_symbols))

    def log_likelihoods(self, sequence: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """One call for each of ``positions [N]``."""
        return np.array([float(self.predict(sequence[:t])[sequence[t]]) for t in positions], dtype=np.float64)


class ModuleMember(Member):
    """A torch module: long ``[B, L]`` -> logits ``[B, V]``, or ``[B, L, V]`` of a causal model. Gradients are off.

    An empty context is given as the start symbol alone; without one it is an error.
    """

    def __init__(self, name: str, module: Any, n_symbols: int, start_symbol: int | None) -> None:
        super().__init__(name, n_symbols)
        self.module = module.eval()
        self.start_symbol = start_symbol
        self._known_causal = False

    def predict(self, context: Array) -> Array:
        """Log-softmax of the last position's logits, ``[..., V]``."""
        logits = self._logits(context)
        last = logits[:, -1] if logits.ndim == 3 else logits
        return self._log_softmax(last).reshape(*context.shape[:-1], self.n_symbols)

    def log_likelihoods(self, sequence: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """One call for all ``positions [N]`` if the module returns logits for each, else one call each."""
        found = np.empty(len(positions))
        later = positions > 0
        found[~later] = [float(self.predict(sequence[:0])[sequence[t]]) for t in positions[~later]]
        if later.any():
            found[later] = self._later_log_likelihoods(sequence, positions[later])
        return found

    def _later_log_likelihoods(self, sequence: NDArray[np.int64], positions: NDArray[np.int64]) -> list[float]:
        logits = self._logits(sequence[None, : positions.max()])
        if logits.ndim == 2:
            return [float(self.predict(sequence[:t])[sequence[t]]) for t in positions]
        rows = self._log_softmax(logits[0, positions - 1])
        if not self._known_causal and len(sequence) > 2:
            self._check_causal(sequence[: positions.max()])
        picked: list[float] = rows[np.arange(len(positions)), sequence[positions]].tolist()
        return picked

    def _check_causal(self, sequence: NDArray[np.int64]) -> None:
        """Logits at a position that depend on later symbols would make every likelihood wrong, unnoticed."""
        middle = (len(sequence) + 1) // 2
        if middle == len(sequence):
            return
        early = self._log_softmax(self._logits(sequence[None])[0, middle - 1]).exp()
        alone = self.predict(sequence[:middle]).exp()
        difference = float((early - alone).abs().max())
        if difference > _CAUSAL_TOLERANCE:
            raise ValueError(
                f"{self.name} must not look ahead when it returns logits [B, L, V]: a probability changes by "
                f"{difference:.3g} with later symbols; use a causal module, or return [B, V] for the last position"
            )
        self._known_causal = True

    def _logits(self, context: Array) -> Any:
        import torch

        tokens = context if isinstance(context, torch.Tensor) else torch.tensor(np.asarray(context))
        batch = _flat(tokens)
        if not batch.shape[-1]:
            if self.start_symbol is None:
                raise ValueError(
                    f"context must hold at least one symbol for {self.name}, got none; pass start_symbol=... to stand "
                    "in for an empty context"
                )
            batch = torch.full((len(batch), 1), self.start_symbol)
        parameter = next(self.module.parameters(), None)
        device = batch.device if parameter is None else parameter.device
        with torch.no_grad():
            logits = self.module(batch.to(device=device, dtype=torch.long))
        wanted = ((len(batch), self.n_symbols), (*batch.shape, self.n_symbols))
        if tuple(getattr(logits, "shape", ())) not in wanted:
            raise ValueError(
                f"{self.name} must return logits of shape {wanted[0]} or {wanted[1]} for contexts "
                f"{tuple(batch.shape)}, got {getattr(logits, 'shape', type(logits).__name__)!r}; "
                "wrap it to return that tensor alone"
            )
        return logits

    def _log_softmax(self, logits: Any) -> Any:
        import torch

        at_least_single = torch.promote_types(logits.dtype, torch.float32)
        log_probs = torch.log_softmax(logits.to(at_least_single), dim=-1)
        if bool(log_probs.isnan().any()):
            raise ValueError(f"{self.name} must return logits without NaN or +inf; -inf stands for probability 0")
        return log_probs


def listed_members(
    members: Sequence[Hypothesis], n_symbols: int | None, start_symbol: int | None, batched: bool
) -> list[Member]:
    """``members`` behind one interface, all over the same alphabet; arguments and errors as in ``FiniteHypotheses``."""
    if not len(members):
        raise ValueError("members must hold at least one hypothesis, got none")
    tables = [member for member in members if isinstance(member, np.ndarray) and member.ndim]
    if n_symbols is None and tables:
        n_symbols = tables[0].shape[-1]
    if n_symbols is None or n_symbols < 1:
        raise ValueError(f"n_symbols must be given, at least 1, where no member is a table, got {n_symbols}; it is V")
    listed: list[Member] = []
    for i, member in enumerate(members):
        name = f"members[{i}]"
        if isinstance(member, np.ndarray):
            listed.append(TableMember(name, member, start_symbol))
        elif _is_module(member):
            listed.append(ModuleMember(name, member, n_symbols, start_symbol))
        elif callable(member):
            listed.append(FunctionMember(name, member, n_symbols, batched))
        else:
            raise TypeError(
                f"{name} must be a NumPy array, a function of the context or a torch module, got "
                f"{type(member).__name__}; np.log(np.asarray(probabilities)) makes a table of probabilities"
            )
        if listed[-1].n_symbols != n_symbols:
            raise ValueError(f"{name} must have {n_symbols} symbols as the others, got {listed[-1].n_symbols}")
    return listed


def _is_module(member: object) -> bool:
    """Whether ``member`` is a torch module, without importing torch for somebody who has none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(member, torch.nn.Module)


def _flat(context: Array) -> Array:
    """``context [..., L]`` as ``[N, L]``, also where L is 0 and reshape could not tell N."""
    return context.reshape(prod(context.shape[:-1]), context.shape[-1])
