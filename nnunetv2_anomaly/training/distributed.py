"""Several GPUs: who is who, and who goes first. Ranks are those of torch.distributed, over all machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed as dist


def rank() -> int:
    """This process's rank; 0 where there is only one process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(value: Any) -> list[Any]:
    """Every rank's value, in the order of the ranks. A collective call."""
    values: list[Any] = [value]
    if world_size() > 1:
        values = [None] * world_size()
        dist.all_gather_object(values, value)
    return values


class Queue:
    """Lets rank 0 do something before the others do it, however long it takes."""

    def __init__(self) -> None:
        self._group: Any = None  # dist.ProcessGroup, once it is there

    @contextmanager
    def rank_0_first(self) -> Iterator[None]:
        """What follows is done by rank 0 first: for what is read where it exists and made where it does not.

        A collective call: all ranks must come here.
        """
        if world_size() > 1 and self._group is None:
            # A wait in nnU-Net's own group would be given up, and training with it, after NCCL's ten minutes.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        if rank() != 0:
            dist.barrier(self._group)
        yield
        if world_size() > 1 and rank() == 0:
            dist.barrier(self._group)
