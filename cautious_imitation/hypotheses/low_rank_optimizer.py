"""Maximum likelihood for K low-rank adapters at once: loss, gradients, random start values and the pull towards them.

Gradients are written out by hand: the softmax of a minibatch is made in one buffer that stays in the processor's
cache, one member at a time, and nothing as wide as the vocabulary is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cautious_imitation.hypotheses.logit_adapters import LogitAdapters
from cautious_imitation.hypotheses.low_rank_tokens import FrozenLogits, LearnedTokens

Tensor = torch.Tensor

_SHRINKAGE = 0.1
"""Added to the variance of features in each direction, as a multiple of the mean variance."""


@dataclass(frozen=True)
class TrainingSettings:
    """How adapters are trained.

    Attributes:
        n_heads: K.
        rank: r.
        n_blocks: into how many blocks of whole sequences, with about as many tokens each, demonstrations are taken.
        epochs: tokens trained on, as a multiple of the tokens learned.
        learning_rate: of Adam, in prior standard deviations a step.
        prior_scale: standard deviation of the logit changes, in nats, that a head starts with at a typical context.
        bias_scale: prior standard deviation of each token's own change, in nats; it starts at 0.
        batch_tokens: tokens a minibatch.
        seed: of start values, resamples and minibatches.

    Raises:
        ValueError: if one of them is out of its range.
    """

    n_heads: int = 8
    rank: int = 8
    n_blocks: int = 8
    epochs: float = 2.0
    learning_rate: float = 0.01
    prior_scale: float = 1.0
    bias_scale: float = 1.0
    batch_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, int):
                least = 0 if field.name == "seed" else 1
                if type(value) is not int or value < least:
                    raise ValueError(f"{field.name} must be an integer of at least {least}, got {value!r}")
            elif not (0 <= value < math.inf) or (value == 0 and field.name != "epochs"):
                wanted = "at least 0" if field.name == "epochs" else "above 0"
                raise ValueError(f"{field.name} must be finite and {wanted}, got {value!r}")


class LowRankOptimizer:
    """Parameters, their start values and their optimiser.

    Parameters are in units of their prior standard deviations, and read features that were centred and whitened by
    those of the first block. So one learning rate and one pull towards the start fit all, and a head's start values,
    which are what heads disagree by where nothing was learned, change logits the more the further a context is from
    those seen: by the square root of its leverage.
    """

    def __init__(
        self, settings: TrainingSettings, base: FrozenLogits, data: LearnedTokens, first: slice, n_sequences: int
    ) -> None:
        self.settings, self.base, self.data = settings, base, data
        self.log_weights: NDArray[np.float64] | None = None
        like = data.features
        self.centre, self.whitening = _whitening(like[first])
        rng = np.random.default_rng([settings.seed, 0])
        drawn = rng.poisson(1.0, size=(n_sequences, settings.n_heads))
        self.resample = torch.from_numpy(drawn).to(like.device, like.dtype)
        down = rng.standard_normal((settings.n_heads, settings.rank, like.shape[1]))
        up = rng.standard_normal((settings.n_heads, base.width, settings.rank + 1))
        up[..., -1] = 0.0
        self.start = [torch.from_numpy(values).to(like.device, like.dtype) for values in (down, up)]
        self.parameters = [values.clone() for values in self.start]
        self.scales = like.new_full((settings.rank + 1,), settings.prior_scale / math.sqrt(settings.rank))
        self.scales[-1] = settings.bias_scale
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate)

    def steps(self, block: slice) -> int:
        """Steps that a block takes."""
        n_tokens: int = block.stop - block.start
        return math.ceil(self.settings.epochs * n_tokens / self.settings.batch_tokens)

    def minibatches(self, blocks: list[slice], number: int) -> Iterator[Tensor]:
        """Indices of tokens: those of the new block in shuffled passes, as many earlier ones at random."""
        block, size = blocks[number], self.settings.batch_tokens
        rng = np.random.default_rng([self.settings.seed, 1 + number])
        n_new = size if number == 0 else size - size // 2
        waiting = np.empty(0, dtype=np.int64)
        for _ in range(self.steps(block)):
            while len(waiting) < n_new:
                waiting = np.concatenate([waiting, rng.permutation(np.arange(block.start, block.stop))])
            earlier = rng.integers(0, block.start, size=size - n_new) if number else waiting[:0]
            yield torch.from_numpy(np.concatenate([waiting[:n_new], earlier])).to(self.data.tokens.device)
            waiting = waiting[n_new:]

    @torch.no_grad()
    def step(self, chosen: Tensor, n_seen: int) -> Tensor:
        """One step of Adam on tokens ``chosen [n]``; the mean loss before it, in nats a token."""
        down, up = self.parameters
        weights = self.resample[self.data.sequences[chosen]].T
        losses, down_gradient, up_gradient = loss_and_gradients(
            *self._inputs(chosen), self.data.places[chosen], weights, down, up * self.scales
        )
        loss = (losses.mean() - self.data.within[chosen].mean()).detach()
        if not bool(loss.isfinite()):
            raise ValueError(
                f"learning_rate must let training converge, got {self.settings.learning_rate}, with which it diverged; "
                "choose a smaller one"
            )
        for values, start, gradient in zip(
            self.parameters, self.start, (down_gradient, up_gradient * self.scales), strict=True
        ):
            # A Gaussian prior around the start values counts once for all tokens seen, so the mean loss has its share.
            values.grad = gradient.add_(values - start, alpha=1 / n_seen)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def log_likelihoods(self, block: slice) -> NDArray[np.float64]:
        """Log-probability of each token of ``block`` under each head as it is: ``[n, K]`` in nats."""
        down, up = self.parameters
        up = up * self.scales
        found = []
        for start in range(block.start, block.stop, self.settings.batch_tokens):
            chosen = torch.arange(
                start, min(start + self.settings.batch_tokens, block.stop), device=self.data.tokens.device
            )
            x, base = self._inputs(chosen)
            low = (x @ down.flatten(0, 1).T).reshape(len(x), *down.shape[:2])
            for_all = []
            for k in range(len(down)):
                logits = torch.addmm(base, torch.cat([low[:, k], torch.ones_like(x[:, :1])], dim=1), up[k].T)
                picked = logits.gather(1, self.data.places[chosen][:, None])[:, 0]
                for_all.append(picked - logits.logsumexp(-1) + self.data.within[chosen])
            found.append(torch.stack(for_all, dim=1))
        log_likelihoods: NDArray[np.float64] = torch.cat(found).cpu().double().numpy()
        return log_likelihoods

    def adapters(self) -> LogitAdapters:
        """The heads as they are, with centring and whitening folded into them."""
        down, up = self.parameters[0] @ self.whitening.T, self.parameters[1] * self.scales
        bias = up[..., -1] - (up[..., :-1] @ (down @ self.centre)[..., None])[..., 0]
        return LogitAdapters(self.base.support, down, up[..., :-1].contiguous(), bias)

    def state(self, log_weights: NDArray[np.float64]) -> dict[str, Tensor]:
        """All that changes."""
        state = {"log_weights": torch.from_numpy(log_weights.copy())}
        for name, values in zip(("down", "up"), self.parameters, strict=True):
            known = {"value": values, **self.optimizer.state.get(values, {})}
            state |= {f"{name}.{key}": tensor.detach().cpu() for key, tensor in known.items()}
        return state

    def resume(self, number: int, state: dict[str, Tensor] | None) -> int:
        """Go on from block ``number``, of which ``state`` is left; the block to do next."""
        if state is None:
            return 0
        self.log_weights = state["log_weights"].numpy()
        for name, values in zip(("down", "up"), self.parameters, strict=True):
            values.copy_(state[f"{name}.value"])
            moments: dict[str, Any] = {
                key.removeprefix(f"{name}."): tensor if key.endswith(".step") else tensor.to(values.device)
                for key, tensor in state.items()
                if key.startswith(f"{name}.") and not key.endswith(".value")
            }
            if moments:
                self.optimizer.state[values] = moments
        return number + 1

    def _inputs(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened features ``[n, d]`` and the frozen log-probabilities ``[n, W]`` of tokens ``chosen [n]``."""
        features = self.data.features[chosen]
        base = self.base.normalised(features, self.data.log_rest[chosen], self.data.log_total[chosen])
        return (features - self.centre) @ self.whitening, base


def loss_and_gradients(
    x: Tensor, base: Tensor, places: Tensor, weights: Tensor, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighed cross-entropy of low-rank logits, and its gradients, for K members in one buffer.

    Member k's logits are ``base + [x @ down[k].T, 1] @ up[k].T``; its loss is the mean over the minibatch of
    ``weights[k]`` times the cross-entropy at ``places``.

    Args:
        x: ``[n, d]``.
        base: ``[n, W]``, not above 0 so that exp cannot overflow unless changes are huge.
        places: ``[n]`` long, in 0..W-1, what was chosen.
        weights: ``[K, n]``.
        down: ``[K, r, d]``.
        up: ``[K, W, r + 1]``; the last column is added as it is.

    Returns:
        ``(losses [K, n] in nats, without weights; gradient of down; gradient of up)``.
    """
    n, rank = len(x), down.shape[1]
    low = (x @ down.flatten(0, 1).T).reshape(n, len(down), rank).transpose(0, 1)
    ones = torch.ones_like(x[:, :1])
    losses, down_gradient, up_gradient = torch.empty_like(weights), torch.empty_like(down), torch.empty_like(up)
    softmax, places = torch.empty_like(base), places[:, None]
    for k in range(len(down)):
        inner = torch.cat([low[k], ones], dim=1)
        outer = up[k].T.contiguous()
        torch.addmm(base, inner, outer, out=softmax)
        chosen = softmax.gather(1, places)
        torch.exp(softmax, out=softmax)
        totals = softmax.sum(-1)
        losses[k] = totals.log() - chosen[:, 0]
        # Softmax times its total, less the total where the chosen token is: the total is divided out of the factors.
        softmax.scatter_(1, places, softmax.gather(1, places) - totals[:, None])
        factors = (weights[k] / (totals * n))[:, None]
        up_gradient[k] = ((inner * factors).T @ softmax).T
        down_gradient[k] = ((outer[:rank] @ softmax.T).T * factors).T @ x
    return losses, down_gradient, up_gradient


def _whitening(features: Tensor) -> tuple[Tensor, Tensor]:
    """Centre ``[d]`` and matrix ``[d, d]`` for features ``[n, d]``: those whitened have mean square length 1.

    Directions that vary little stay shorter than others, since a few features do not tell how little they vary.
    """
    values = features.double()
    centre = values.mean(0)
    centred = values - centre
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(values))
    variances = variances.clamp(min=0)
    shrunk = variances + _SHRINKAGE * variances.mean()
    if not float(shrunk[-1]) > 0:
        # A single context in the first block: nothing to tell directions apart by.
        shrunk = torch.ones_like(shrunk)
        variances = shrunk
    length = (variances / shrunk).sum().sqrt()
    matrix = (directions * shrunk.rsqrt()) @ directions.T / length
    return centre.to(features), matrix.to(features)
