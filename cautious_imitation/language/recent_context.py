"""What the last tokens had in common: a fading mean of a middle layer's hidden states.

The state at one token says what comes next; the mean over the last few dozen says what kind of text this is. A head
that reads both can be unsure of a kind of text that it never learned from, where each single token looks ordinary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Tensor = torch.Tensor

State: TypeAlias = tuple[Tensor, Tensor]
"""Weighted sum of the hidden states so far ``[B, d]``, and of their weights ``[B]``."""

_TOKENS_AT_ONCE = 128


@dataclass(frozen=True)
class RecentContext:
    """A second half of the features: the mean hidden state of the recent tokens, older ones counting less and less.

    Attributes:
        layer: whose output is averaged, as a share of the trunk's depth in (0, 1].
        horizon_tokens: a token t tokens back has weight (1 - 1 / horizon_tokens)^t; at least 1.

    Raises:
        ValueError: if a setting is out of its range.
    """

    layer: float = 2 / 3
    horizon_tokens: float = 64.0

    def __post_init__(self) -> None:
        if not 0 < self.layer <= 1:
            raise ValueError(f"layer must be a share of the depth in (0, 1], got {self.layer!r}; 1 is the last layer")
        if not self.horizon_tokens >= 1:
            raise ValueError(f"horizon_tokens must be at least 1, got {self.horizon_tokens!r}; 1 forgets at once")

    def block(self, trunk: Any) -> Any:
        """The module of ``trunk`` whose output is averaged.

        Raises:
            ValueError: if the trunk has no list of layers.
        """
        depth = getattr(trunk.config, "num_hidden_layers", None)
        for module in trunk.modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
                return module[max(1, round(self.layer * len(module))) - 1]
        raise ValueError(
            f"recent_context needs a trunk with a list of its layers, got {type(trunk).__name__}; pass None"
        )

    def means(self, hidden: Tensor, present: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Fading means of the hidden states of new tokens.

        Args:
            hidden: ``[B, L, d]``, what the layer gave for the new tokens.
            present: ``[B, L]`` booleans, false where padding stands; None if there is none.
            state: what the call before returned, None to begin.

        Returns:
            ``(means [B, L, d], state)``: at each token the mean over it and those before, each hidden state scaled to a
            root mean square of 1 first; zeros where there is no token yet.
        """
        tiny = torch.finfo(hidden.dtype).tiny
        hidden = hidden / hidden.square().mean(-1, keepdim=True).sqrt().clamp(min=tiny)
        counted = hidden.new_ones(hidden.shape[:2]) if present is None else present.to(hidden.dtype)
        if state is None:
            state = (hidden.new_zeros(hidden.shape[0], hidden.shape[2]), hidden.new_zeros(hidden.shape[0]))
        sums, weights = state
        keep = 1 - 1 / self.horizon_tokens
        means = torch.empty_like(hidden)
        for start in range(0, hidden.shape[1], _TOKENS_AT_ONCE):
            part, count = hidden[:, start : start + _TOKENS_AT_ONCE], counted[:, start : start + _TOKENS_AT_ONCE]
            age = torch.arange(part.shape[1], device=hidden.device, dtype=hidden.dtype)
            fading = (keep ** (age[:, None] - age).clamp(min=0)).tril()
            # Padding ages what came before it as well; that cancels, since it ages sum and weight alike.
            left = keep ** (age + 1)
            summed = fading @ (part * count[..., None]) + left[:, None] * sums[:, None]
            weighed = count @ fading.T + left * weights[:, None]
            means[:, start : start + _TOKENS_AT_ONCE] = (
                summed / weighed.clamp(min=torch.finfo(hidden.dtype).tiny)[..., None]
            )
            sums, weights = summed[:, -1], weighed[:, -1]
        return means, (sums, weights)
