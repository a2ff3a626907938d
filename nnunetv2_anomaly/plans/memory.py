"""What a training step with batch 1 takes of a GPU's memory.

The step is walked through at its true size with torch's fake tensors: they have shapes, types and storages but no
numbers, so that it takes a second and no memory. Every storage that the step makes is followed from its birth to its
end. The model:

    peak = weights and Adam's two moments (12 bytes a trained parameter, 4 a frozen one)
         + most bytes alive at once in forward, loss and backward: input, what autograd keeps, gradients, whatever
           passes through, the float16 copies of the weights
         + input and output of the largest convolution once more, for cuDNN's workspace
         + 0.5 GiB for the CUDA context.

Mixed precision is walked through under CPU autocast with bfloat16, which is as wide as CUDA's float16 and for these
networks leaves the same in float32. Not seen: temporaries inside an operation, fragmentation of torch's cache, what
torch.compile saves by fusing. It is an estimate: it agrees with a real step on the CPU; no GPU was asked.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
CUDA_CONTEXT_BYTES = GIB // 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated peak of one training step at batch 1, in bytes, and the number of trained parameters."""

    network: str
    parameters: int
    mixed_precision_bytes: int
    float32_bytes: int


@dataclass(frozen=True)
class TrainingStep:
    """A network, its loss of (output, target), and the channels of its input."""

    network: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    in_channels: int


class LiveStorages(TorchDispatchMode):
    """Counts, while it is entered, the bytes of the storages made and not yet let go.

    ``now`` and ``peak`` are in bytes; ``largest_convolution`` is the most that input and output of one convolution
    take together. A storage that several tensors share counts once. Tensors made before do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest_convolution = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        if function in (torch.ops.aten.convolution.default, torch.ops.aten.mkldnn_convolution.default):
            self.largest_convolution = max(self.largest_convolution, args[0].nbytes + result.nbytes)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def let_go(_: weakref.ref) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, let_go)
        self.now += size
        self.peak = max(self.peak, self.now)


def walk_through(step: TrainingStep, patch_size: Sequence[int], *, mixed_precision: bool) -> LiveStorages:
    """Forward, loss and backward of one patch, with its storages counted; inside FakeTensorMode nothing is computed.

    Args: patch_size: voxels per spatial axis.
    """
    step.network.train()
    with LiveStorages() as storages:
        image = torch.zeros(1, step.in_channels, *patch_size)
        target = torch.zeros(1, 1, *patch_size, dtype=torch.int16)  # nnU-Net's type
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
            output = step.network(image)
            loss = step.loss(output, target)
        loss.backward()
    return storages


def estimate(name: str, build: Callable[[], TrainingStep], patch_size: Sequence[int]) -> MemoryEstimate:
    """Peak memory of one training step of one network, with mixed precision and without (see the module's model).

    Args: name: for the table. build: makes the network and its loss. patch_size: voxels per spatial axis.
    """
    peaks = []
    for mixed_precision in (True, False):
        with FakeTensorMode():
            step = build()
            trained = sum(p.numel() for p in step.network.parameters() if p.requires_grad)
            frozen = sum(p.numel() for p in step.network.parameters() if not p.requires_grad)
            storages = walk_through(step, patch_size, mixed_precision=mixed_precision)
        peaks.append(12 * trained + 4 * frozen + storages.peak + storages.largest_convolution + CUDA_CONTEXT_BYTES)
    return MemoryEstimate(name, trained, *peaks)


def describe(estimates: Sequence[MemoryEstimate], capacity_gib: float = 80.0) -> str:
    """The estimates as a table in GiB, and a sentence that names what fits into a GPU of ``capacity_gib``."""
    lines = [f"{'network':10s} {'GiB mixed precision':>20s} {'GiB float32':>12s}"]
    for row in estimates:
        lines.append(f"{row.network:10s} {row.mixed_precision_bytes / GIB:20.1f} {row.float32_bytes / GIB:12.1f}")
    fits = []
    for how, kind in (("with mixed precision", "mixed_precision_bytes"), ("in float32", "float32_bytes")):
        names = [row.network for row in estimates if getattr(row, kind) <= capacity_gib * GIB]
        fits.append(f"{', '.join(names) if 0 < len(names) < len(estimates) else 'all' if names else 'none'} {how}")
    lines.append(f"Estimated to fit into {capacity_gib:g} GiB: {'; '.join(fits)}.")
    return "\n".join(lines)
