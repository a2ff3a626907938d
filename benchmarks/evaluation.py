"""What surface metrics and clean-up of a case cost, ours beside the plain way and other libraries, in one run.

    python -m benchmarks.evaluation --labels folder/of/label/maps
    python -m benchmarks.evaluation --size 160 384 384

Reference: a knee's label map, read from a folder of NIfTI files or, without one, of a phantom. Prediction: the same,
its surfaces displaced smoothly, without and with 30 stray blobs; and, on request, another knee. Every way measures the
six labels of bones and cartilages, in turn with the others, one thread, each time in a fresh process that has warmed up
on a small map. Printed are, as Markdown, medians and spread in seconds, ratios of the medians, the memory that a way
needs beyond its two arrays, and how far its values are from plain scipy's on the whole volume. A library that is not
installed is told and left out; values that a way does not have are left empty. MONAI and MedPy are called once for each
metric, as their users do, and so measure the distances several times.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import cKDTree

from nnunetv2_anomaly.labels import BONES, CARTILAGES
from nnunetv2_anomaly.measurements import evaluate_case
from nnunetv2_anomaly.postprocessing import remove_distant_components
from nnunetv2_anomaly.simulation.phantom import OAI_SIZE, draw_phantom, render_label_map

LABELS = tuple(sorted(BONES + CARTILAGES))
METRICS = ("dsc", "asd_mm", "hd_mm", "hd95_mm", "hd95_max_directed_mm")
MAX_DISTANCE_VOXELS = 50
_CROSS = ndimage.generate_binary_structure(3, 1)
_CUBE = ndimage.generate_binary_structure(3, 3)

#: label -> its values of ``METRICS``, NaN for one that the way does not have
Values = dict[int, tuple[float, ...]]


# Ways to measure: (reference, prediction, spacing_mm) -> values.


def ours(reference, prediction, spacing) -> Values:
    found = evaluate_case(reference, prediction, spacing, LABELS)
    return {label: tuple(found[label][name] for name in METRICS) for label in LABELS}


def plain(reference, prediction, spacing) -> Values:
    return {label: _of_masks(reference == label, prediction == label, spacing, _by_transform) for label in LABELS}


def joint_box(reference, prediction, spacing) -> Values:
    return {label: _of_masks(*_cropped(reference, prediction, label), spacing, _by_transform) for label in LABELS}


def edt_library(reference, prediction, spacing) -> Values:
    return {label: _of_masks(*_cropped(reference, prediction, label), spacing, _by_edt) for label in LABELS}


def tree(reference, prediction, spacing) -> Values:
    return {label: _of_masks(*_cropped(reference, prediction, label), spacing, _by_tree) for label in LABELS}


def monai(reference, prediction, spacing) -> Values:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance

    torch.set_num_threads(1)
    # One channel a label, as MONAI wants it: (1, 6, Z, Y, X).
    maps = [torch.from_numpy(np.stack([array == label for label in LABELS])[None]) for array in (prediction, reference)]
    options = {"include_background": True, "spacing": list(spacing)}
    columns = (
        compute_dice(*maps),
        compute_average_surface_distance(*maps, symmetric=True, **options),
        compute_hausdorff_distance(*maps, **options),
        torch.full((1, len(LABELS)), math.nan),
        compute_hausdorff_distance(*maps, percentile=95, **options),
    )
    return {label: tuple(float(c[0, index]) for c in columns) for index, label in enumerate(LABELS)}


def medpy(reference, prediction, spacing) -> Values:
    from medpy.metric import binary

    values = {}
    for label in LABELS:
        masks = prediction == label, reference == label
        distances = [measure(*masks, voxelspacing=spacing) for measure in (binary.assd, binary.hd, binary.hd95)]
        values[label] = (binary.dc(*masks), *map(float, distances), math.nan)
    return values


def deepmind(reference, prediction, spacing) -> Values:
    from surface_distance import metrics

    values = {}
    for label in LABELS:
        masks = reference == label, prediction == label
        found = metrics.compute_surface_distances(*masks, spacing)
        both = [metrics.compute_average_surface_distance(found)[i] for i in (0, 1)]
        values[label] = (
            metrics.compute_dice_coefficient(*masks),
            # The mean of the two directions, the nearest that it has to a pooled one.
            float(np.mean(both)),
            float(metrics.compute_robust_hausdorff(found, 100)),
            math.nan,
            float(metrics.compute_robust_hausdorff(found, 95)),
        )
    return values


def _of_masks(reference, prediction, spacing, directed: Callable) -> tuple[float, ...]:
    boundaries = [mask & ~ndimage.binary_erosion(mask, _CROSS, border_value=0) for mask in (reference, prediction)]
    forth, back = directed(*boundaries, spacing), directed(*boundaries[::-1], spacing)
    pooled = np.concatenate([forth, back])
    return (
        2 * np.count_nonzero(reference & prediction) / (np.count_nonzero(reference) + np.count_nonzero(prediction)),
        float(pooled.mean()),
        float(pooled.max()),
        float(np.percentile(pooled, 95)),
        float(max(np.percentile(forth, 95), np.percentile(back, 95))),
    )


def _by_transform(of, to, spacing):
    return ndimage.distance_transform_edt(~to, sampling=spacing)[of]


def _by_edt(of, to, spacing):
    import edt

    return edt.edt(~to, anisotropy=spacing, parallel=1)[of]


def _by_tree(of, to, spacing):
    return cKDTree(np.argwhere(to) * spacing).query(np.argwhere(of) * spacing)[0]


def _cropped(reference, prediction, label) -> tuple[np.ndarray, np.ndarray]:
    masks = reference == label, prediction == label
    both = masks[0] | masks[1]
    box = []
    for axis in range(3):
        occupied = np.flatnonzero(both.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(occupied[0], occupied[-1] + 1))
    return masks[0][tuple(box)], masks[1][tuple(box)]


# Ways to clean up: (reference, prediction, spacing_mm) -> the cleaned prediction.


def ours_clean(_, prediction, __) -> np.ndarray:
    return remove_distant_components(prediction, LABELS, MAX_DISTANCE_VOXELS)


def plain_clean(_, prediction, __) -> np.ndarray:
    cleaned = prediction.copy()
    for label in LABELS:
        components, number = ndimage.label(prediction == label, _CUBE)
        if number > 1:
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            away = ndimage.distance_transform_edt(components != np.argmax(sizes))
            nearest = ndimage.minimum(away, components, range(number + 1))
            cleaned[(np.asarray(nearest) > MAX_DISTANCE_VOXELS)[components] & (components > 0)] = 0
    return cleaned


@dataclass(frozen=True)
class Way:
    """One way to do a task: what the table calls it, its function, and the module that it needs."""

    title: str
    run: Callable
    needs: str = "scipy"
    package: str = "scipy"


MEASURING = {
    "plain": Way("plain scipy, whole volume", plain),
    "box": Way("scipy in each label's joint box", joint_box),
    "tree": Way("scipy's KD-tree per label, joint box", tree),
    "edt": Way("edt library, joint box", edt_library, "edt", "edt"),
    "monai": Way("MONAI", monai, "monai", "monai"),
    "medpy": Way("MedPy", medpy, "medpy", "MedPy"),
    "deepmind": Way("DeepMind surface-distance", deepmind, "surface_distance", "surface-distance"),
    "ours": Way("**ours**", ours),
}
CLEANING = {"plain": Way("plain scipy, whole volume", plain_clean), "ours": Way("**ours**", ours_clean)}


@dataclass(frozen=True)
class Run:
    """One measurement."""

    seconds: float
    extra_mib: float
    result: Values | np.ndarray


def measured(way: Way, folder: Path, prediction: str, spacing: tuple[float, ...]) -> Run:
    """In a process of its own: read the arrays, warm up on a part, measure."""
    maps = [np.load(folder / f"{name}.npy") for name in ("reference", prediction)]
    # Slabs of all labels, a voxel apart in prediction and reference: imports and first calls are done.
    slabs = np.zeros((4 * len(LABELS), 8, 8), np.uint8)
    slabs[:, 2:6, 2:6] = np.repeat(LABELS, 4)[:, None, None]
    way.run(slabs, np.roll(slabs, 1, axis=1), spacing)
    before = _restart_peak_memory()
    start = perf_counter()
    result = way.run(*maps, spacing)
    seconds = perf_counter() - start
    return Run(seconds, _memory_mib("VmHWM") - before, result)


def _memory_mib(field: str) -> float:
    """A line of what Linux tells of this process; NaN elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), math.nan)


def _restart_peak_memory() -> float:
    """Let the peak start from now; what it is now, in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    return _memory_mib("VmRSS")


def in_fresh_process(*arguments) -> Run:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, *arguments).result()


def displaced(labels: np.ndarray, spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """A label map with surfaces that lie elsewhere by 0.5 mm (standard deviation), smoothly over about 5 mm."""
    indices = []
    for axis, step in enumerate(spacing):
        coarse = [math.ceil(size * s / 4) for size, s in zip(labels.shape, spacing, strict=True)]
        field = ndimage.gaussian_filter(random.normal(size=coarse), 1.2)
        field = ndimage.zoom(field / field.std(), [n / c for n, c in zip(labels.shape, coarse, strict=True)], order=1)
        own = np.arange(labels.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        indices.append(np.clip(np.rint(own + 0.5 / step * field), 0, labels.shape[axis] - 1).astype(np.int16))
    return labels[tuple(indices)]


def with_strays(labels: np.ndarray, spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """A label map with 30 balls of 0.5 to 2.5 mm radius, anywhere, of any label."""
    result = labels.copy()
    for _ in range(30):
        radius = random.uniform(0.5, 2.5)
        reach = [math.ceil(radius / s) for s in spacing]
        corner = [random.integers(0, n - 2 * r) for n, r in zip(labels.shape, reach, strict=True)]
        ball = sum(((np.ogrid[tuple(slice(-r, r + 1) for r in reach)][a]) * s) ** 2 for a, s in enumerate(spacing))
        box = tuple(slice(c, c + n) for c, n in zip(corner, ball.shape, strict=True))
        result[box][ball <= radius**2] = random.choice(LABELS)
    return result


def knees(folder: Path | None, size: Sequence[int]) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """Two label maps (z, y, x) and their spacing."""
    if folder is None:
        spacing = tuple(extent / n for extent, n in zip((140.0, 140.0, 112.0), size[::-1], strict=True))
        parameters = [draw_phantom(np.random.default_rng(seed)) for seed in (0, 1)]
        found = [render_label_map(p, shape=size[::-1], spacing_mm=spacing) for p in parameters]
        if any(set(LABELS) - set(np.unique(array)) for array in found):
            raise SystemExit(f"phantoms of {' x '.join(map(str, size))} voxels do not hold all of {LABELS}; give more")
        return found, spacing
    files = sorted([*folder.glob("*.nii.gz"), *folder.glob("*.nii")])
    found, spacing = [], None
    for file in files:
        image = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(image).astype(np.uint8)
        if set(LABELS) <= set(np.unique(array)) and (not found or array.shape == found[0].shape):
            spacing = spacing or tuple(round(s, 4) for s in image.GetSpacing()[::-1])
            found.append(array)
            if len(found) == 2:
                return found, spacing
    raise SystemExit(f"{len(found)} of {len(files)} label maps hold all of {LABELS}; expected two of one shape")


def available(ways: dict[str, Way], chosen: Sequence[str] | None) -> dict[str, Way]:
    result = {}
    for name, way in ways.items():
        if importlib.util.find_spec(way.needs) is None:
            print(f"{way.package} is not installed: left out")
        elif chosen is None or name in chosen or name in ("plain", "ours"):
            result[name] = way
    return result


def measure(task: str, ways: dict[str, Way], folder: Path, prediction: str, spacing, repeats: int) -> None:
    """Measure all ways in turn, and print a table."""
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            runs[name].append(in_fresh_process(way, folder, prediction, spacing))
    medians = {name: float(np.median([run.seconds for run in of])) for name, of in runs.items()}
    measuring = ways["ours"].run is ours
    off = " | ".join(f"{name} off" for name in METRICS) if measuring else "voxels that differ"
    print(f"\n{task}\n\n| way | seconds | plain / way | way / ours | extra memory | {off} |")
    print("|---|" + "---|" * (4 + (len(METRICS) if measuring else 1)))
    for name, way in ways.items():
        seconds = [run.seconds for run in runs[name]]
        memory = f"{max(run.extra_mib for run in runs[name]):.0f} MiB"
        cells = [
            way.title,
            f"{medians[name]:.3g} ({min(seconds):.3g} to {max(seconds):.3g})",
            f"{medians['plain'] / medians[name]:.1f}",
            f"{medians[name] / medians['ours']:.1f}",
            memory,
            *deviations(runs[name][0].result, runs["plain"][0].result),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def deviations(result: Values | np.ndarray, expected: Values | np.ndarray) -> list[str]:
    """The largest absolute difference of each metric over the labels, or how many voxels differ."""
    if isinstance(result, np.ndarray):
        return [str(int((result != expected).sum()))]
    differences = np.array([np.subtract(result[label], expected[label]) for label in LABELS])
    return ["" if np.isnan(column).all() else f"{np.nanmax(np.abs(column)):.1g}" for column in differences.T]


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, metavar="FOLDER", help="label maps as NIfTI (default: phantoms)")
    parser.add_argument("--size", type=int, nargs=3, default=OAI_SIZE, metavar=("X", "Y", "Z"), help="of phantoms")
    parser.add_argument("--repeats", type=int, default=3, help="of every way")
    parser.add_argument("--ways", nargs="+", choices=[*MEASURING], help="beside plain and ours (default: all)")
    parser.add_argument("--another_knee", action="store_true", help="measure another knee as prediction too")
    args = parser.parse_args()
    # One thread everywhere; processes inherit it before they import anything.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    packages = ["numpy", "scipy", "connected-components-3d", *{way.package for way in MEASURING.values()} - {"scipy"}]
    versions = [
        f"{package} {importlib.metadata.version(package)}"
        for package in sorted(packages, key=str.lower)
        if any(importlib.metadata.distributions(name=package))
    ]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(versions)}")
    (reference, other), spacing = knees(args.labels, args.size)
    print(f"{'x'.join(map(str, reference.shape))} voxels (z, y, x) of {spacing} mm; {args.repeats} rounds")
    random = np.random.default_rng(0)
    predictions = {"without strays": displaced(reference, spacing, random)}
    predictions["with 30 strays"] = with_strays(predictions["without strays"], spacing, random)
    if args.another_knee:
        predictions["another knee"] = other
    measuring, cleaning = available(MEASURING, args.ways), CLEANING
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "reference.npy", reference)
        for kind, prediction in predictions.items():
            np.save(folder / "prediction.npy", prediction)
            arguments = (folder, "prediction", spacing, args.repeats)
            measure(f"Surface metrics of {len(LABELS)} labels, prediction {kind}:", measuring, *arguments)
            measure(f"Clean-up of {len(LABELS)} labels, prediction {kind}:", cleaning, *arguments)


if __name__ == "__main__":
    main()
