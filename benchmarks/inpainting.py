"""What filling a slice by LaMa takes, and what of it is the Fourier transform: ``python -m benchmarks.inpainting``.

Generators of lama-fourier and big-lama with one channel, untrained, on the CPU, on slices of 320 and 448 voxels along
both axes; medians and quartiles of several slices, one after the other.
"""

from __future__ import annotations

import argparse
import platform
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import shown, timed
from nnunetv2_anomaly.detectors.lama_bml.networks import Generator, GeneratorShape

#: name -> residual blocks
GENERATORS = {"lama-fourier": 9, "big-lama": 18}
SIZES = (320, 448)


def fourier_share(network: Generator, image: torch.Tensor, hole: torch.Tensor) -> float:
    """Share of the processor's time that the transforms and their inverses take, in [0, 1]."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        network.inpaint(image, hole)
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(time for name, time in times.items() if "fft" in name) / sum(times.values())


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=5, metavar="N", help="of each size (default: 5)")
    number = parser.parse_args(argv).slices
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| generator | slice | seconds a slice | of it Fourier transforms [%] |\n|---|---|---|---|")
    for name, blocks in GENERATORS.items():
        network = Generator(1, GeneratorShape(blocks=blocks)).eval()
        for size in SIZES:
            image, hole = torch.rand(1, 1, size, size), torch.zeros(1, 1, size, size)
            hole[..., size // 4 : size // 2, size // 4 : size // 2] = 1
            network.inpaint(image, hole)
            seconds = [timed(network.inpaint, image, hole) for _ in range(number)]
            print(f"| {name} | {size} | {shown(seconds)} | {100 * fourier_share(network, image, hole):.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
