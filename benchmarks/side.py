"""How often the side of a knee is found in its label map: ``python -m benchmarks.side -i LABEL_MAPS``.

Every label map is taken as it is, mirrored, turned by 5 and 10 degrees about each axis, cut by a tenth and a fifth of
its breadth on either side, and without the cartilages or one bone. Printed is, for each, how many sides are found,
how many of them are wrong, and the range of the scores. The true side is that of the file name's word RIGHT or LEFT, or
``--side`` for all. ``--phantoms N`` does the same with simulated knees, which are nearly symmetric.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_anomaly.conversion.side import side_from_labels, side_from_text
from nnunetv2_anomaly.images.grids import oriented
from nnunetv2_anomaly.images.label_maps import read_label_map
from nnunetv2_anomaly.labels import LABELS
from nnunetv2_anomaly.simulation.phantom import draw_phantom, render_label_map
from nnunetv2_anomaly.simulation.simulate import label_files

_OTHER = {"right": "left", "left": "right"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-i", "--labels", type=Path, help="folder of label maps, values 0 to 9")
    parser.add_argument("--side", choices=tuple(_OTHER), default="right", help="of names that give none")
    parser.add_argument("--phantoms", type=int, default=0, metavar="N", help="simulated knees instead of files")
    args = parser.parse_args()
    found: dict[str, list[tuple[str | None, str, float]]] = {}
    for labels, spacing_mm, side in _knees(args):
        for name, (changed, names) in _variants(labels, spacing_mm).items():
            evidence = side_from_labels(changed, spacing_mm, names)
            true = _OTHER[side] if name == "mirrored" else side
            found.setdefault(name, []).append((evidence.side, true, evidence.score))
    for name, results in found.items():
        known = sum(side is not None for side, _, _ in results)
        wrong = sum(side not in (None, true) for side, true, _ in results)
        scores = [score for _, _, score in results]
        print(
            f"{name:28} found {known:3d} of {len(results):3d}, wrong {wrong}, "
            f"scores {min(scores):+.2f} to {max(scores):+.2f}"
        )


def _knees(args: argparse.Namespace) -> Iterator[tuple[NDArray[np.uint8], tuple[float, float, float], str]]:
    """Label map (Z, Y, X), spacing in mm and true side of each knee."""
    for seed in range(args.phantoms):
        phantom = draw_phantom(np.random.default_rng(seed))
        spacing_mm = (1.45, 1.45, 1.4)
        yield render_label_map(phantom, shape=(96, 96, 80), spacing_mm=spacing_mm), spacing_mm, phantom.side
    for file in label_files(args.labels).values() if args.labels else ():
        image = oriented(read_label_map(file, LABELS))
        spacing_mm = np.array(image.GetSpacing()[::-1])
        steps = np.maximum(1, np.round(1.45 / spacing_mm)).astype(int)
        labels = sitk.GetArrayFromImage(image)[tuple(slice(None, None, step) for step in steps)]
        yield labels, tuple((spacing_mm * steps).tolist()), side_from_text(file.name) or args.side


def _variants(
    labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float]
) -> dict[str, tuple[NDArray[np.uint8], Mapping[str, int]]]:
    """What is made of one label map: name -> (labels, names of the labels)."""
    variants = {"as it is": labels, "mirrored": labels[:, :, ::-1]}
    for axis, about in enumerate("xyz"):
        for degrees in (-10, -5, 5, 10):
            variants[f"turned by {degrees:+d} about {about}"] = _turned(labels, spacing_mm, axis, degrees)
    width = labels.shape[2]
    for share in (0.1, 0.2):
        cut = round(share * width)
        variants[f"cut by {share:g} at the left"] = labels[:, :, cut:]
        variants[f"cut by {share:g} at the right"] = labels[:, :, : width - cut]
    for gone in (("femoral_bone", "femoral_cartilage"), ("tibial_bone", "tibial_cartilage"), ("femoral_cartilage",)):
        variants[f"without {' and '.join(gone)}"] = np.where(np.isin(labels, [LABELS[n] for n in gone]), 0, labels)
    return {name: (changed, LABELS) for name, changed in variants.items()}


def _turned(
    labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float], axis: int, degrees: float
) -> NDArray[np.uint8]:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing_mm[::-1])
    turn = sitk.Euler3DTransform()
    turn.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    turn.SetRotation(*(float(np.deg2rad(degrees)) if a == axis else 0.0 for a in range(3)))
    return sitk.GetArrayFromImage(sitk.Resample(image, image, turn, sitk.sitkNearestNeighbor, 0))


if __name__ == "__main__":
    main()
