"""What a slice takes in prediction by Mask R-CNN, plain and improved, and memory: ``python -m benchmarks.mask_rcnn``.

Untrained networks on the CPU that report so many instances a slice; random slices of 384 pixels, which the network sees
as they are and resized to 1024. Seconds are those of the processor, the least of several calls, which other work on the
machine does not change much. Each network has a process of its own, whose largest memory is what is left of it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import sys
from time import process_time

import torch

from nnunetv2_anomaly.segmenters.mask_rcnn.network import MaskRCNNSegmenter, MaskRCNNShape

SIDE, SIZES, BATCHES = 384, (384, 1024), (1, 4)


def measured(backbone: str, improved: bool, size: int, batch: int, instances: int, calls: int) -> tuple[float, float]:
    """Seconds of the processor a slice, and the process's largest memory in GiB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = MaskRCNNShape(backbone, 256, improved, None, True, size, 0.0)
    network = MaskRCNNSegmenter(shape, 1, 5).eval()
    network.rcnn.roi_heads.detections_per_img = instances
    image, seconds = torch.randn(batch, 1, SIDE, SIDE), []
    with torch.inference_mode():
        for _ in range(calls):
            start = process_time()
            network(image)
            seconds.append(process_time() - start)
    return min(seconds) / batch, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--backbone", default="resnet101", help="of the networks (default: resnet101)")
    add("--instances", type=int, default=8, metavar="N", help="in each slice (default: 8)")
    add("--calls", type=int, default=2, metavar="N", help="of which the fastest counts (default: 2)")
    add("--sizes", type=int, nargs="+", default=[*SIZES], metavar="N", help="pixels (default: 384 1024)")
    add("--batches", type=int, nargs="+", default=[*BATCHES], metavar="N", help="slices at once (default: 1 4)")
    options = parser.parse_args(argv)
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}, {options.backbone}\n")
    print("| network | pixels | slices at once | s a slice | GiB |\n|---|---|---|---|---|", flush=True)
    context = multiprocessing.get_context("spawn")
    for size in options.sizes:
        for improved in (False, True):
            for batch in options.batches:
                with context.Pool(1) as pool:
                    words = (options.backbone, improved, size, batch, options.instances, options.calls)
                    seconds, memory = pool.apply(measured, words)
                name = "improved" if improved else "plain"
                print(f"| {name} | {size} | {batch} | {seconds:.2f} | {memory:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
