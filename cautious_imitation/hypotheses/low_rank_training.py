"""Training of low-rank logit adapters on demonstrations, block by block: each is first predicted, then learned."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from os import PathLike

import numpy as np
import torch
from rich.progress import Progress

from cautious_imitation.demonstrations import Demonstrations, Evidence
from cautious_imitation.hypotheses.logit_adapters import LogitAdapters, check_support
from cautious_imitation.hypotheses.low_rank_checkpoints import Checkpoints, demonstrations_digest
from cautious_imitation.hypotheses.low_rank_optimizer import LowRankOptimizer, TrainingSettings
from cautious_imitation.hypotheses.low_rank_tokens import FrozenLogits, LearnedTokens
from cautious_imitation.hypotheses.posterior import Posterior
from cautious_imitation.language.demonstration_features import model_digest, read_demonstrations
from cautious_imitation.language.model import LanguageModel

Tensor = torch.Tensor


def train_adapters(
    model: LanguageModel,
    demonstrations: Demonstrations,
    posterior: Posterior,
    settings: TrainingSettings,
    *,
    support: Tensor | None = None,
    evidence: Evidence = "demonstrator",
    cache: str | PathLike[str] | None = None,
    progress: bool = False,
) -> tuple[LogitAdapters, Posterior]:
    """Train K adapters and weigh them; see ``LowRankHeads.train``, which describes arguments and errors.

    Args:
        model: the frozen network.
        demonstrations: sequences of its tokens.
        posterior: over ``settings.n_heads`` members, before learning.
        settings: how to train.
        support: ``[S]`` tokens in rising order; None for ``default_support``.
        evidence: whose tokens are learned.
        cache: folder for features and checkpoints.
        progress: show a progress bar.

    Returns:
        The adapters after the last block, and the posterior.
    """
    support = default_support(model, demonstrations) if support is None else check_support(support, model.n_symbols)
    read = read_demonstrations(model, demonstrations, evidence=evidence, cache=cache, progress=progress)
    described = {
        **asdict(settings),
        "evidence": evidence,
        "temperature": posterior.temperature,
        "switching_rate": posterior.switching_rate,
        "log_prior": posterior.log_prior.tolist(),
        "support": support.tolist(),
        "model": model_digest(model),
        "demonstrations": demonstrations_digest(demonstrations),
    }
    checkpoints = Checkpoints(cache, described)
    blocks = _blocks(read.sequences, settings.n_blocks)
    base = FrozenLogits(model, support.to(model.device))
    data = LearnedTokens.read(base, read, blocks, checkpoints, progress)
    training = LowRankOptimizer(settings, base, data, blocks[0], len(demonstrations))
    first = training.resume(*checkpoints.latest())
    if training.log_weights is not None:
        posterior = replace(posterior, log_weights=training.log_weights)
    with Progress() if progress else nullcontext() as bar:
        for number in range(first, len(blocks)):
            posterior = posterior.learned(
                training.log_likelihoods(blocks[number]), data.tokens[blocks[number]].cpu().numpy()
            )
            train_block(training, blocks, number, bar)
            checkpoints.write(number, training.state(posterior.log_weights))
    return training.adapters(), posterior


def default_support(model: LanguageModel, demonstrations: Demonstrations) -> Tensor:
    """Tokens that occur in the demonstrations, whoever said them, and the special ones: ``[S]`` in rising order."""
    special = list(getattr(model.tokenizer, "all_special_ids", None) or [])
    config = model.network.config
    for found in (model.start_token, getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)):
        special += found if isinstance(found, list) else [] if found is None else [found]
    tokens = np.unique(np.concatenate([*demonstrations.sequences, np.array(special, dtype=np.int64)]))
    return torch.from_numpy(tokens[tokens < model.n_symbols])


def train_block(training: LowRankOptimizer, blocks: list[slice], number: int, bar: Progress | None) -> None:
    """Train on block ``number``, half of each minibatch being from the blocks before it."""
    steps = training.steps(blocks[number])
    task = None if bar is None else bar.add_task(f"block {number + 1} of {len(blocks)}", total=steps)
    for step, chosen in enumerate(training.minibatches(blocks, number), start=1):
        loss = training.step(chosen, blocks[number].stop)
        if bar is not None and task is not None and (step % 10 == 0 or step == steps):
            said = f"block {number + 1} of {len(blocks)}, {float(loss):.3f} nats/token"
            bar.update(task, completed=step, description=said)


def _blocks(sequences: Tensor, n_blocks: int) -> list[slice]:
    """Cut tokens, given the sequence of each, into at most ``n_blocks`` parts of whole sequences, about equal."""
    _, counts = np.unique(sequences.cpu().numpy(), return_counts=True)
    ends = counts.cumsum()
    part = (ends - counts) * n_blocks // ends[-1]
    stops = [int(ends[part == number][-1]) for number in np.unique(part)]
    return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]
