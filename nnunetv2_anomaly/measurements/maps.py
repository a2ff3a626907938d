"""Maps of cartilage thickness: flattened, in the image's voxels, and on surfaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.stats import binned_statistic_2d

from nnunetv2_anomaly.files import written_beside
from nnunetv2_anomaly.images.files import write_image
from nnunetv2_anomaly.measurements.cartilage import CartilageMap
from nnunetv2_anomaly.measurements.frame import Frame
from nnunetv2_anomaly.measurements.meshes import Mesh, load_vtk, polydata_of
from nnunetv2_anomaly.measurements.regions import FEMUR, PATELLA, SUBREGIONS, TIBIA
from nnunetv2_anomaly.reporting.drawing import own_style

#: of colour scales, mm
SCALE_MM = (0.0, 5.0)
COLOURS = "viridis"
#: kind of bone -> what its rows are
_ROWS = {
    FEMUR: "angle, 0 inferior, > 0 anterior [degrees]",
    TIBIA: "posterior to anterior [mm]",
    PATELLA: "inferior to superior [mm]",
}


@dataclass(frozen=True)
class FlatMap:
    """Thickness laid out on a plane.

    Rows of the femur are degrees around the axis of its condyles: 0 inferior, above 0 anterior; those of the tibia run
    from posterior to anterior, those of the patella from inferior to superior, in mm. Columns run from medial to
    lateral, in left knees as in right ones.
    """

    values_mm: NDArray[np.float64]  # (rows, columns), NaN where nothing was measured
    is_bare: NDArray[np.bool_]  # (rows, columns): bone without the cartilage that should cover it, and none measured
    first: tuple[float, float]  # lower edge of the first row and column: degrees or mm, mm
    step: tuple[float, float]
    row_name: str  # with their unit
    in_degrees: bool


def flattened(maps: Sequence[CartilageMap]) -> list[FlatMap]:
    """The maps of one bone, of one or of several segmentations, in the same bins: those of the first one's axes.

    A bin is one degree, or the largest spacing in a slice, by the distance of slices; it has the mean thickness of the
    vertices in it.

    Args: maps: at least one, of a bone with landmarks, on the same side and in the same position of the patient.
    """
    first = maps[0]
    spacing = np.sort(first.bone.space.spacing_mm)
    kind = first.bone.kind
    in_degrees = kind == FEMUR
    step = (1.0 if in_degrees else float(spacing[1]), float(spacing[2]))
    places = [(of.points_mm, of.plate.bone.vertices[of.plate.denuded]) for of in maps]
    bins = [[_bins(points, first.bone.landmarks.frame, step, kind) for points in pair] for pair in places]
    every = np.concatenate([own for pair in bins for own in pair])
    low, high = every.min(axis=0), every.max(axis=0)
    if in_degrees:
        low[0], high[0] = -180, 179
    edges = [np.arange(first, last + 2) - 0.5 for first, last in zip(low, high, strict=True)]
    start = (float(low[0]) * step[0], float(low[1]) * step[1])
    found = []
    for of, (measured, bare) in zip(maps, bins, strict=True):
        values = binned_statistic_2d(*measured.T, of.thickness_mm, "mean", bins=edges).statistic
        is_bare = np.zeros(values.shape, bool)
        is_bare[tuple((bare - low).T)] = True
        found.append(FlatMap(values, is_bare & np.isnan(values), start, step, _ROWS[kind or TIBIA], in_degrees))
    return found


def _bins(points: NDArray, frame: Frame, step: tuple[float, float], kind: str | None) -> NDArray[np.int64]:
    """(N, 3) mm -> (N, 2), row and column."""
    lateral, anterior, superior = frame.coordinates(points).T
    row = superior if kind == PATELLA else anterior
    if kind == FEMUR:
        row = np.clip(np.degrees(np.arctan2(anterior, -superior)), -180, 179.999)
    return np.floor(np.stack([row / step[0], lateral / step[1]], axis=1)).astype(np.int64)


@dataclass(frozen=True)
class ThicknessDifference:
    """Thickness of one map less that of another, bin by bin where both have one."""

    values_mm: NDArray[np.float64]  # (rows, columns)
    coverage: float  # share of the bins with either that have both
    mean_mm: float
    sd_mm: float


def difference(of: FlatMap, reference: FlatMap) -> ThicknessDifference:
    """``of`` less ``reference``, which are of the same bins. Without a bin in both the numbers are NaN."""
    values = of.values_mm - reference.values_mm
    either = ~(np.isnan(of.values_mm) & np.isnan(reference.values_mm))
    both = values[~np.isnan(values)]
    mean, sd = (float(both.mean()), float(both.std())) if both.size else (math.nan, math.nan)
    return ThicknessDifference(values, both.size / int(either.sum()) if either.any() else math.nan, mean, sd)


def thickness_volume(maps: Sequence[CartilageMap], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Thickness at the bone voxels that touch cartilage, of the nearest vertex; NaN elsewhere.

    Returns: (Z, Y, X), mm.
    """
    volume = np.full(shape, np.nan, np.float32)
    for of in maps:
        if len(of.measured):
            reach = 2 * float(of.bone.space.spacing_mm.max())
            distance, nearest = cKDTree(of.points_mm).query(of.bone.interface.points_mm, distance_upper_bound=reach)
            there = np.isfinite(distance)
            volume[tuple(of.bone.interface.indices[there].T)] = of.thickness_mm[nearest[there]]
    return volume


def write_flat(flat: FlatMap, path: Path) -> None:
    """As a NIfTI image: x from medial to lateral in mm, y degrees or mm, values in mm."""
    image = sitk.GetImageFromArray(flat.values_mm.astype(np.float32))
    image.SetSpacing(flat.step[::-1])
    image.SetOrigin([edge + step / 2 for edge, step in zip(flat.first[::-1], flat.step[::-1], strict=True)])
    write_image(image, path)


def write_surface(of: CartilageMap, path: Path) -> None:
    """The cartilage's surface for ParaView, 3D Slicer and the like (VTP), in ITK's world, to the left, posterior, up.

    At its vertices: thickness_mm, NaN where there is none, and subregion, from 1 in the order of Eckstein's names in
    ``SUBREGIONS``, 0 for none.
    """
    vtk = load_vtk()
    mesh, names = of.plate.cartilage, [name for plate in SUBREGIONS.values() for name in plate]
    subregion = np.zeros(len(mesh.vertices), np.int16)
    subregion[of.measured] = [names.index(name) + 1 for name in of.subregion]
    mirrored = np.linalg.det(of.bone.space.to_lps) < 0  # a mirrored surface is turned inside out
    faces = mesh.faces[:, ::-1] if mirrored else mesh.faces
    world = Mesh((mesh.vertices @ of.bone.space.to_lps.T).astype(np.float32), faces)
    writer = vtk.vtkXMLPolyDataWriter()
    writer.SetInputData(polydata_of(world, thickness_mm=of.plate.thickness_mm.astype(np.float32), subregion=subregion))
    with written_beside(path) as temporary:
        writer.SetFileName(str(temporary))
        if not writer.Write():
            raise OSError(f"{path} could not be written")


@own_style
def flat_figure(
    maps: Sequence[tuple[str, FlatMap]],
    title: str = "",
    colours: str = COLOURS,
    limits: tuple[float, float] = SCALE_MM,
    label: str = "thickness [mm]",
) -> Figure:
    """Flattened maps side by side in one colour scale; bare bone is grey. Args: maps: title and map."""
    figure = Figure(figsize=(4.2 * len(maps) + 0.8, 4.8 if title else 4.6), layout="constrained")
    if title:
        figure.suptitle(title.replace("$", r"\$"))
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for axis, (name, flat) in zip(axes, maps, strict=True):
        _show_flat(axis, flat, colours, limits)
        axis.set_title(name, fontsize=10)
    if drawn := [axis.images[-1] for axis in axes if axis.images]:
        figure.colorbar(drawn[-1], ax=list(axes), label=label, fraction=0.03)
    return figure


def _show_flat(axis: Axes, flat: FlatMap, colours: str, limits: tuple[float, float]) -> None:
    """Draw a map's bins, cropped to those that have a value or are bare."""
    known = ~np.isnan(flat.values_mm) | flat.is_bare
    if not known.any():
        axis.set_axis_off()
        return
    (box,) = ndimage.find_objects(known.view(np.uint8))
    (low, high), (left, right) = (
        (first + step * of.start, first + step * of.stop)
        for first, step, of in zip(flat.first, flat.step, box, strict=True)
    )
    view: dict[str, Any] = {"origin": "lower", "interpolation": "nearest", "extent": (left, right, low, high)}
    view["aspect"] = "auto" if flat.in_degrees else "equal"
    axis.imshow(np.where(flat.is_bare[box], 1.0, np.nan), cmap="gray", vmin=0, vmax=1.6, **view)
    axis.imshow(flat.values_mm[box], cmap=colours, vmin=limits[0], vmax=limits[1], **view)
    axis.set(xlabel="medial to lateral [mm]", ylabel=flat.row_name)
