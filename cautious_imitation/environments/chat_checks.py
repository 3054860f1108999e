"""What a ``ChatEnv`` is given, checked before anything begins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cautious_imitation.language.model import LanguageModel


def check_model(model: Any) -> None:
    """Raise unless ``model`` can read and write chats."""
    if not isinstance(model, LanguageModel) or model.tokenizer is None:
        raise ValueError(
            f"model must be a LanguageModel with its tokenizer, got "
            f"{'one without' if isinstance(model, LanguageModel) else type(model).__name__}; see load_language_model"
        )


def check_count(name: str, value: Any, least: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def checked_budget(budget_nats: ArrayLike, n: int) -> NDArray[np.float64]:
    """The budgets of n episodes, ``[n]`` nats, of one for all or one for each."""
    budgets = np.asarray(budget_nats, dtype=np.float64)
    if budgets.shape not in ((), (n,)) or not (budgets >= 0).all():
        raise ValueError(
            f"budget_nats must be at least 0, got {budget_nats!r}; give one number or {n}, infinite sets no limit"
        )
    return np.broadcast_to(budgets, n).copy()
