"""Several processes that train one policy, as ``accelerate launch`` or ``torchrun`` start them; or one, alone."""

from __future__ import annotations

from collections.abc import Iterable
from os import environ
from typing import TypeVar

import torch
from torch import distributed

Tensor = torch.Tensor
_T = TypeVar("_T")


def begin_processes() -> None:
    """Join the processes that were started together, if a launcher started several; a GPU each where there are any."""
    if int(environ.get("WORLD_SIZE", "1")) <= 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environ.get("LOCAL_RANK", "0")))
    # Numbers about episodes are on the host wherever the weights are.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def end_processes() -> None:
    """Leave them, so that none waits for this one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def n_processes() -> int:
    """How many there are; 1 without a launcher."""
    return distributed.get_world_size() if _several() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if _several() else 0


def summed(values: Tensor) -> Tensor:
    """The sum of every process's ``values``, which have one shape."""
    if not _several():
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total


def gathered(values: Tensor) -> Tensor:
    """Every process's ``values [n, ...]`` one after the other, in the order of their ranks; n may differ."""
    if not _several():
        return values
    counts = torch.zeros(n_processes(), dtype=torch.long, device=values.device)
    counts[rank()] = len(values)
    counts = summed(counts)
    begin = int(counts[: rank()].sum())
    together = values.new_zeros((int(counts.sum()), *values.shape[1:]))
    together[begin : begin + len(values)] = values
    return summed(together)


def gathered_objects(values: list[_T]) -> list[_T]:
    """Every process's ``values``, one after the other, in the order of their ranks."""
    if not _several():
        return values
    found: list[list[_T]] = [[] for _ in range(n_processes())]
    distributed.all_gather_object(found, values)
    return [value for part in found for value in part]


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Put the sum of every process's gradients in the place of each; one that has none counts as zero."""
    if not _several():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
