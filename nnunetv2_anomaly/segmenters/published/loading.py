"""Every case once an epoch, in an order that can be continued."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

#: of the permutations; the same for every run, so that two runs see the cases in one order
_SEED = 1234


def case_at(position: int, num_cases: int) -> int:
    """Which case comes at a place of an endless sequence, in which every ``num_cases`` in a row are all of them.

    Args: position: from 0. num_cases: at least 1.
    """
    turn, place = divmod(position, num_cases)
    return int(np.random.default_rng([_SEED, turn]).permutation(num_cases)[place])


class EveryCaseOnceLoader(nnUNetDataLoader):
    """nnU-Net's loader, going through the cases in permutations instead of drawing them.

    Worker k of n makes the batches k, k + n, k + 2n, ... counted from ``first_batch``. An augmenter that asks its
    workers in turn, as batchgenerators' MultiThreadedAugmenter does, so delivers them in order.
    """

    def __init__(
        self,
        *arguments: Any,
        first_batch: int = 0,
        num_workers: int = 1,
        rank: int = 0,
        world_size: int = 1,
        **keywords: Any,
    ) -> None:
        """Build the loader.

        Args:
            arguments, keywords: as nnU-Net's loader.
            first_batch: where the sequence begins, in batches of this rank.
            num_workers: processes that share a rank's batches.
            rank, world_size: of distributed training; the ranks take the sequence's batches in turn.
        """
        super().__init__(*arguments, **keywords)
        self._next_batch = first_batch
        self._num_workers = num_workers
        self._rank, self._world_size = rank, world_size
        self._begun = False

    def get_indices(self) -> list[str]:
        """The identifiers of the next batch's cases."""
        if not self._begun:  # only in the worker is its number known
            self._next_batch += self.thread_id
            self._begun = True
            if multiprocessing.parent_process() is not None:
                # A forked process has none of its parent's threads, and torch would wait for them for ever.
                torch.set_num_threads(1)
        first = (self._next_batch * self._world_size + self._rank) * self.batch_size
        self._next_batch += self._num_workers
        return [self.indices[case_at(first + k, len(self.indices))] for k in range(self.batch_size)]
