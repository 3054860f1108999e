"""A language model with a LoRA adapter as a policy that pays for each nat, for penalties rather than budgets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy, deepcopy
from importlib.util import find_spec
from itertools import chain
from math import inf, log
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from cautious_imitation.divergences import kl
from cautious_imitation.finetuning.budgeted_mixture import Decision
from cautious_imitation.finetuning.charged_mixture import ChargedBase
from cautious_imitation.finetuning.growing_rows import GrowingRows
from cautious_imitation.finetuning.rollout import Observations
from cautious_imitation.imitators import BasePolicy, CautiousImitator
from cautious_imitation.language.model import LanguageModel, Reading
from cautious_imitation.regularizers import step_charge

Tensor = torch.Tensor


class LoRAPolicy(torch.nn.Module):
    """The base language model with an adapter that is trained, charged exactly for what it does.

    It starts as the base model itself. Its actions cost their KL divergence to the anchor, or the largest to a
    plausible set; nothing limits that, so a price has to: train it with ``Penalty``, ``AdaptivePenalty`` or
    ``Lagrangian``. What the anchor gives no probability costs infinitely much and is never done.

    Under a Bayesian anchor it never asks. Under a cautious one a linear gate on what the output head reads asks with
    probability 1 - q, which costs q times what acting does (accounting ``free`` of ``Regularizer``). At first it asks
    where acting costs infinitely much, as it always will, and elsewhere with the same small probability: at 0 it could
    never learn to ask, since a question that is never drawn teaches nothing.

    The adapter stands on a copy of the base's modules that shares their weights. The base stays as it is, and predicts
    as before. ``parameters`` and ``state_dict`` hold the adapter and the gate, nothing else.

    With gradients each episode among the rows is read once, as far as the last of its rows goes. Without, keys and
    values are kept, so that an episode that has grown is read from where it was, until the adapter changes.

    Args:
        model: the base.
        anchor: an imitator whose hypotheses answer in torch tensors; they may read with ``model``, too.
        rank: r of the adapter.
        alpha: its product is scaled by alpha / r.
        target_modules: which layers it changes, as PEFT takes it.
        ask_offset: sigmoid(-ask_offset) is the probability of asking at first, under a cautious anchor: 1/100.
        seed: of the adapter's random half; the other half is zero.

    Raises:
        ImportError: if the extra ``language`` is not installed.
        ValueError: if a setting is out of range, or no layer of the network is called as ``target_modules`` says.

    >>> from cautious_imitation.hypotheses.language_models import LanguageModels
    >>> from cautious_imitation.imitators import BayesianImitator
    >>> from cautious_imitation.language.small_gpt import small_gpt
    >>> base = small_gpt()
    >>> policy = LoRAPolicy(base, BayesianImitator(LanguageModels([base])), rank=2)
    >>> tokens = torch.tensor([[1, 2, 3]])
    >>> with torch.no_grad():
    ...     decision = policy({"tokens": tokens, "n_tokens": torch.tensor([3]), "episode": torch.tensor([0]),
    ...                        "features": base.read(tokens).features})
    >>> torch.allclose(decision.log_probs, base.log_probs(base.read(tokens).features), atol=1e-4)
    True
    >>> bool(decision.charge_nats.abs() < 1e-4), decision.log_act
    (True, tensor([0.]))

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022).
    """

    gate: torch.nn.Linear | None

    def __init__(
        self,
        model: LanguageModel,
        anchor: BasePolicy,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        target_modules: str | Sequence[str] = "all-linear",
        ask_offset: float = log(99),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rank < 1 or not 0 < alpha < inf:
            raise ValueError(f"rank must be at least 1 and alpha positive and finite, got {rank!r} and {alpha!r}")
        if not abs(ask_offset) < inf:
            raise ValueError(f"ask_offset must be finite, got {ask_offset!r}; a policy that never asks cannot learn to")
        self.anchor, self.ask_offset = anchor, float(ask_offset)
        adapted = copy(model)
        # A mean of recent tokens is for hypotheses; no output head reads it.
        adapted.recent, adapted.n_features = None, model.head_width
        adapted.network = _adapted(model.network, rank, alpha, target_modules, seed)
        adapted.trunk, adapted.head = adapted.network.base_model, adapted.network.get_output_embeddings()
        # No module, so its weights are no parameters of this one.
        self._adapted = adapted
        self.adapter = torch.nn.ParameterDict(
            {
                name.replace(".", "/"): weights
                for name, weights in adapted.network.named_parameters()
                if weights.requires_grad
            }
        )
        self.gate = None
        if isinstance(anchor, CautiousImitator):
            # Such a layer starts at random, from everywhere.
            with torch.random.fork_rng(devices=[]):
                self.gate = torch.nn.Linear(model.head_width, 1, dtype=model.dtype).to(model.device)
            torch.nn.init.zeros_(self.gate.weight)
            torch.nn.init.zeros_(self.gate.bias)
        self._rows: GrowingRows | None = None
        self._read_with: list[int] = []

    def forward(self, observations: Observations) -> Decision:
        """Decide at each of n contexts.

        Args:
            observations: ``tokens [n, L]``, padded on the right; ``n_tokens [n]``, at least 1; ``episode [n]``, which
                one it is of those that are played; ``features [n, d]``, what ``model`` makes of the context. Others
                are not looked at.

        Returns:
            The decision; ``spend_nats`` is what it costs and ``share`` is 1.

        Raises:
            ValueError: if a context is empty or longer than the network's, or the decision is not a number.
        """
        tokens, n_tokens = observations["tokens"].cpu(), observations["n_tokens"].cpu()
        self._check(tokens, n_tokens)
        episodes: list[int] = observations["episode"].tolist()
        if torch.is_grad_enabled() or len(set(episodes)) < len(episodes):
            hidden = self._read_once(tokens, n_tokens, episodes)
        else:
            hidden = self._read_on(tokens, n_tokens, episodes)
        rows = [row[:length] for row, length in zip(tokens, n_tokens.tolist(), strict=True)]
        with torch.no_grad():
            base = ChargedBase.of(self.anchor, Reading(rows, observations["features"]))
        return self._decision(hidden, base)

    def _decision(self, hidden: Tensor, base: ChargedBase) -> Decision:
        model, dtype = self._adapted, base.log_probs.dtype
        logits = model.head(hidden.to(model.head.weight.dtype))[..., : model.n_symbols].to(dtype)
        log_probs = torch.where(base.log_probs > -inf, logits, -inf).log_softmax(-1)
        payable = base.base_nats < inf
        charge = base.base_nats + kl(log_probs, base.log_probs) if base.charge_of is None else base.charge_of(log_probs)
        log_act, log_ask = torch.zeros_like(charge), torch.full_like(charge, -inf)
        if self.gate is not None:
            towards_asking = (self.gate(hidden.to(self.gate.weight.dtype)).squeeze(-1) - self.ask_offset).to(dtype)
            log_act = torch.where(payable, logsigmoid(-towards_asking), -inf)
            log_ask = torch.where(payable, logsigmoid(towards_asking), 0.0)
        charge_nats = step_charge("free", log_act.exp(), charge, log_ask)
        known = (charge_nats + log_act.exp()).detach()
        if not bool(known.isfinite().all()):
            got = float(known[~known.isfinite()][0])
            raise ValueError(
                f"charges and shares must be finite, got {got}; take smaller steps, the adapter may have diverged"
            )
        return Decision(log_probs, log_act, log_ask, charge_nats, charge_nats.detach(), torch.ones_like(charge))

    def _read_once(self, tokens: Tensor, n_tokens: Tensor, episodes: list[int]) -> Tensor:
        """What the head reads after each context ``[n, w]``: a pass over the longest of each episode."""
        self._rows = None
        longest: dict[int, int] = {}
        for row, episode in enumerate(episodes):
            if episode not in longest or n_tokens[row] > n_tokens[longest[episode]]:
                longest[episode] = row
        source = torch.tensor([longest[episode] for episode in episodes])
        beyond = torch.arange(tokens.shape[1]) >= n_tokens[:, None]
        begins_so = ((tokens == tokens[source]) | beyond).all(1)
        # A context that has lost its oldest tokens is the beginning of none.
        source = torch.where(begins_so, source, torch.arange(len(source)))
        read, place = torch.unique(source, return_inverse=True)
        chosen = tokens[read, : int(n_tokens.max())].to(self._adapted.device)
        # No token looks at what stands after it, so padding there needs no mask.
        states = self._adapted.trunk(input_ids=chosen, use_cache=False).last_hidden_state
        here: Tensor = states[place.to(states.device), (n_tokens - 1).to(states.device)]
        return here.to(self._adapted.dtype)

    def _read_on(self, tokens: Tensor, n_tokens: Tensor, episodes: list[int]) -> Tensor:
        """The same, where each episode has grown since it was last read."""
        # Changed in place, a tensor has another version.
        now = [weights._version for weights in self.adapter.values()]
        if self._rows is None or self._read_with != now:
            self._rows, self._read_with = GrowingRows(self._adapted), now
        return self._rows.read(tokens, n_tokens, episodes)

    def _check(self, tokens: Tensor, n_tokens: Tensor) -> None:
        longest, limit = int(n_tokens.max()), self._adapted.max_length
        if int(n_tokens.min()) < 1 or longest > tokens.shape[1]:
            raise ValueError(
                f"n_tokens must be in 1..{tokens.shape[1]}, the columns of tokens, got {int(n_tokens.min())} to "
                f"{longest}"
            )
        if limit is not None and longest > limit:
            raise ValueError(
                f"tokens must fit into the network's context window of {limit}, got {longest}; cut the oldest"
            )


def _adapted(network: Any, rank: int, alpha: float, target_modules: str | Sequence[str], seed: int) -> Any:
    """The same modules anew, on the same weights, with an adapter in between."""
    if find_spec("peft") is None:
        raise ImportError("LoRAPolicy takes the package peft: pip install 'cautious-imitation[language]'")
    from peft import LoraConfig, inject_adapter_in_model

    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)  # type: ignore[arg-type]
    # PEFT starts the adapter with random numbers from everywhere; they are drawn anew, from the seed.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # PEFT finds out how a layer lays out its weights, and asks it for what Transformers is about to rename.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        adapted: Any = inject_adapter_in_model(config, deepcopy(network, shared))
    generator = torch.Generator().manual_seed(seed)
    for name, weights in adapted.named_parameters():
        if not weights.requires_grad:
            continue
        # Steps of training are lost on weights in half.
        weights.data = weights.data.to(torch.promote_types(weights.dtype, torch.float32))
        if ".lora_A." in name:
            bound = weights.shape[1] ** -0.5
            drawn = torch.rand(weights.shape, generator=generator, dtype=torch.float64)
            weights.data.copy_(bound * (2 * drawn - 1))
    return adapted.eval()
