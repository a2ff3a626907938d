"""Improved against plain Mask R-CNN on thin cartilage: ``python -m benchmarks.mask_rcnn_rim``.

Drawn slices of 128 x 128 pixels: an ellipse of bone, cartilage 3 to 5 pixels thick around it, noise. Both
networks (backbone small, 32 features) see the same slices in the same order, Adam 1e-3, two slices a step; Dice is that
of held-out slices, all voxels together, of every seed.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter, process_time

import numpy as np
import torch
from numpy.typing import NDArray

from nnunetv2_anomaly.segmenters.mask_rcnn.instances import instances_of
from nnunetv2_anomaly.segmenters.mask_rcnn.network import MaskRCNNSegmenter, MaskRCNNShape

BONE, CARTILAGE = 1, 2
SIZE = 128
HELD_OUT = 40


def drawn_slice(random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Image and labels of a slice, (Y, X); bone is brighter than what surrounds it, cartilage darker."""
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(float)
    middle, radii = SIZE / 2 + random.uniform(-12, 12, 2), random.uniform(24, 38, 2)
    y, x = (rows - middle[0]) / radii[0], (columns - middle[1]) / radii[1]
    distance = (np.hypot(y, x) - 1) * radii.mean()
    labels = np.where(distance < 0, BONE, np.where(distance < random.uniform(3, 5), CARTILAGE, 0))
    image = np.select([labels == BONE, labels == CARTILAGE], [1.5, -1.0], 0.0)
    return (image + random.normal(0, 0.4, image.shape)).astype(np.float32), labels


def trained(improved: bool, seed: int, steps: int) -> tuple[MaskRCNNSegmenter, float, float]:
    """A network after so many steps; seconds that it took by the clock, and of the processor."""
    torch.manual_seed(seed)
    network = MaskRCNNSegmenter(MaskRCNNShape("small", 32, improved, None, True, SIZE, 0.5), 1, 3)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    random = np.random.default_rng(seed)
    start = perf_counter(), process_time()
    for _ in range(steps):
        images, labels = zip(*(drawn_slice(random) for _ in range(2)), strict=True)
        network.targets = [instances_of(of, (BONE, CARTILAGE), 4) for of in labels]
        optimizer.zero_grad()
        sum(network(torch.from_numpy(np.stack(images))[:, None]).values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
    return network.eval(), perf_counter() - start[0], process_time() - start[1]


def dice_of(network: MaskRCNNSegmenter) -> dict[int, float]:
    """Dice of held-out slices by label."""
    random = np.random.default_rng(999)
    both, sizes = np.zeros(3), np.zeros(3)
    for _ in range(HELD_OUT):
        image, labels = drawn_slice(random)
        with torch.inference_mode():
            found = network(torch.from_numpy(image)[None, None]).argmax(dim=1)[0].numpy()
        for value in (BONE, CARTILAGE):
            both[value] += ((found == value) & (labels == value)).sum()
            sizes[value] += (found == value).sum() + (labels == value).sum()
    return {value: float(2 * both[value] / sizes[value]) for value in (BONE, CARTILAGE)}


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each network (default: 3)")
    parser.add_argument("--steps", type=int, default=150, metavar="N", help="of each training (default: 150)")
    options = parser.parse_args(argv)
    print("| network | seed | Dice, bone | Dice, cartilage | s by the clock | s of the processor |")
    print("|---|---|---|---|---|---|", flush=True)
    for seed in range(options.seeds):
        for improved in (False, True):
            network, wall, cpu = trained(improved, seed, options.steps)
            dice = dice_of(network)
            words = f"{'improved' if improved else 'plain'} | {seed} | {dice[BONE]:.3f} | {dice[CARTILAGE]:.3f}"
            print(f"| {words} | {wall:.0f} | {cpu:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
