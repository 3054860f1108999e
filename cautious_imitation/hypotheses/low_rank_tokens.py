"""What training low-rank adapters needs to know about every learned token: what the frozen network says about it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from rich.progress import Progress

from cautious_imitation.hypotheses.logit_adapters import places_in
from cautious_imitation.hypotheses.low_rank_checkpoints import Checkpoints
from cautious_imitation.language.demonstration_features import DemonstrationFeatures
from cautious_imitation.language.model import LanguageModel

Tensor = torch.Tensor

_LOGITS_AT_ONCE = 1 << 22


class FrozenLogits:
    """The frozen network's logits on the support, with all other tokens as one more: W = S + 1 of them."""

    def __init__(self, model: LanguageModel, support: Tensor) -> None:
        self.model, self.support = model, support
        self.width = len(support) + 1
        rows = model.head.weight[support].to(model.dtype)
        # A row of zeros makes room for the rest without copying the others.
        self._weight = torch.cat([rows, torch.zeros_like(rows[:1])])
        bias = getattr(model.head, "bias", None)
        self._bias = None if bias is None else torch.cat([bias[support], bias.new_zeros(1)]).to(model.dtype)

    def rest(self, features: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """What takes the whole vocabulary, ``[n]`` each.

        ``log_rest`` is the log-sum of exp of the logits off the support, ``log_total`` that of all logits, and
        ``within`` the log-probability of the token given that it is off the support; 0 if it is on it.
        """
        places = places_in(self.support, tokens)
        outside = places == len(self.support)
        parts: dict[str, list[Tensor]] = {"log_rest": [], "log_total": [], "within": []}
        at_once = max(1, _LOGITS_AT_ONCE // self.model.n_symbols)
        for start in range(0, len(tokens), at_once):
            part = slice(start, start + at_once)
            logits = self.model.logits(features[part])
            picked = logits.gather(1, tokens[part, None])[:, 0]
            log_support = logits.index_select(-1, self.support).logsumexp(-1)
            log_rest = logits.index_fill_(-1, self.support, -torch.inf).logsumexp(-1)
            parts["log_rest"].append(log_rest)
            parts["log_total"].append(torch.logaddexp(log_support, log_rest))
            parts["within"].append(torch.where(outside[part], picked - log_rest, 0.0))
        return {name: torch.cat(found) for name, found in parts.items()}

    def normalised(self, features: Tensor, log_rest: Tensor, log_total: Tensor) -> Tensor:
        """Log-probabilities ``[n, W]`` of the supported tokens and of the rest, up to the rounding of the network."""
        base = torch.nn.functional.linear(features[:, : self.model.head_width], self._weight, self._bias)
        base[:, -1] = log_rest
        return base.sub_(log_total[:, None])


@dataclass(frozen=True, eq=False)
class LearnedTokens:
    """Learned tokens: ``features [N, d]``, and ``[N]`` each of tokens, sequences, places and what ``rest`` says."""

    features: Tensor
    tokens: Tensor
    sequences: Tensor
    places: Tensor
    log_rest: Tensor
    log_total: Tensor
    within: Tensor

    @classmethod
    def read(
        cls,
        base: FrozenLogits,
        read: DemonstrationFeatures,
        blocks: list[slice],
        checkpoints: Checkpoints,
        progress: bool,
    ) -> LearnedTokens:
        """Find out about tokens that were ``read``, in ``blocks``, or take it from ``checkpoints``."""
        found = []
        with Progress() if progress else nullcontext() as bar:
            task = None if bar is None else bar.add_task("probabilities off the support", total=len(blocks))
            for number, block in enumerate(blocks):
                known = checkpoints.rest(number)
                if known is None:
                    known = base.rest(read.features[block], read.tokens[block])
                    checkpoints.write_rest(number, known)
                found.append({name: values.to(base.model.device) for name, values in known.items()})
                if bar is not None and task is not None:
                    bar.advance(task)
        joined = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        places = places_in(base.support, read.tokens)
        return cls(read.features, read.tokens, read.sequences.to(read.tokens.device), places, **joined)
