"""What measuring a knee takes, beside plain ways, in one run: ``python -m benchmarks.measuring --labels FOLDER``.

One thread, in turn for each knee: lesions and volumes, and the plain way, which counts and labels the whole image label
by label, without places; thickness of all plates, and the plain way, which sends a ray both ways from every bone vertex
near cartilage through the whole cartilage (vtk's OBB tree) and takes the distance of two hits; the whole command, with
pages and maps. Without --labels phantoms of the OAI's size are drawn. Printed are medians, quartiles, ratios, and the
largest memory of a process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cc3d
import numpy as np
import SimpleITK as sitk
from scipy.spatial import cKDTree

from benchmarks.timing import label_maps, shown, timed
from nnunetv2_anomaly.images.dataset_description import read_dataset_description
from nnunetv2_anomaly.images.segmentations import Segmentation, SegmentationFiles
from nnunetv2_anomaly.labels import LABELS
from nnunetv2_anomaly.measurements.case import Options, measured
from nnunetv2_anomaly.measurements.meshes import Mesh, load_vtk, polydata_of

#: what is timed
PLAIN, BY_PLACE, WITH_THICKNESS, RAYS, COMMAND = (
    "lesions and volumes, plainly", "lesions and volumes by place", "the same with thickness", "thickness, plain rays",
    "the command, with pages and maps",
)  # fmt: skip
#: of the plain rays, mm
_RAY_MM, _BACK_MM = 20.0, 5.0


def count_plainly(segmentation: Segmentation) -> None:
    """Volumes of all labels and components of lesions, in the whole image."""
    for name, value in LABELS.items():
        mask = segmentation.voxels == value
        mask.sum()
        if "lesion" in name:
            np.bincount(cc3d.connected_components(mask, connectivity=26).ravel())


def trace_plainly(bone: Mesh, cartilage: Mesh) -> None:
    """Thickness at bone vertices near cartilage: along the normal, between exactly two hits."""
    vtk = load_vtk()
    tree = vtk.vtkOBBTree()
    tree.SetDataSet(polydata_of(cartilage))
    tree.BuildLocator()
    near = cKDTree(cartilage.vertices).query(bone.vertices, distance_upper_bound=3.0)[0] < np.inf
    normals = bone.normals()
    for vertex, normal in zip(bone.vertices[near], normals[near], strict=True):
        hits = vtk.vtkPoints()
        tree.IntersectWithLine(vertex - _BACK_MM * normal, vertex + _RAY_MM * normal, hits, None)
        if hits.GetNumberOfPoints() == 2:
            np.linalg.norm(np.subtract(hits.GetPoint(0), hits.GetPoint(1)))


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, help="folder of label maps with labels 0 to 9 (default: a phantom)")
    parser.add_argument("--cases", type=int, default=3)
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, one process and thread, vtk {load_vtk().VTK_VERSION}")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        knees = folder / "knees"
        knees.mkdir()
        for number, file in enumerate(label_maps(args.labels, folder, args.cases)):
            (knees / f"knee{number}.nii.gz").symlink_to(file.resolve())
        (knees / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
        dataset = read_dataset_description(knees / "dataset.json")
        light = Options(side="right")
        whole = Options(side="right", quantities=(*light.quantities, "thickness"))
        for file in sorted(knees.glob("*.nii.gz")):
            segmentation = SegmentationFiles(".nii.gz").read(file)
            kept = measured(segmentation, file.name, dataset, whole, {})[1].cartilages.values()

            def take(way: str, function: Callable[..., object], *arguments: object) -> None:
                seconds.setdefault(way, []).append(timed(function, *arguments))

            take(PLAIN, count_plainly, segmentation)
            take(BY_PLACE, measured, segmentation, file.name, dataset, light, {})
            take(WITH_THICKNESS, measured, segmentation, file.name, dataset, whole, {})
            take(RAYS, lambda maps: [trace_plainly(of.plate.bone, of.plate.cartilage) for of in maps], kept)
            own = folder / f"one_{file.name}"
            own.mkdir()
            (own / file.name).symlink_to(file.resolve())
            (own / "dataset.json").symlink_to(knees / "dataset.json")
            words = ["-m", "nnunetv2_anomaly.command_line.main", "measure", "-np", "1", "--side", "right"]
            command = [sys.executable, *words, "-i", str(own), "-o", str(folder / f"out_{file.name}")]
            take(COMMAND, lambda words: subprocess.run(words, check=True, capture_output=True), command)
    print(f"{len(seconds[PLAIN])} knees of {segmentation.voxels.shape} voxels, in turn:")
    for way, own_seconds in seconds.items():
        print(f"  {way:34} {shown(own_seconds)}")
    middle = {way: float(np.median(of)) for way, of in seconds.items()}
    thickness = middle[WITH_THICKNESS] - middle[BY_PLACE]
    ratio = middle[RAYS] / thickness
    print(f"  thickness alone, the difference    {thickness:.2f} s; plain rays take {ratio:.1f} times it")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"  memory of the command              {peak:.0f} MiB at most")


if __name__ == "__main__":
    main()
