"""Regions of a knee: the places of bone that MOAKS grades, and the subregions of cartilage that trials report.

MOAKS: Hunter et al. 2011, 10.1016/j.joca.2011.05.004, with the geometry of WORMS (Peterfy et al. 2004). Cartilage:
Wirth and Eckstein 2008. Coordinates are those of ``frame``: lateral, anterior, superior, mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnunetv2_anomaly.measurements import frame as frames
from nnunetv2_anomaly.measurements.frame import Frame, Space

FEMUR, TIBIA, PATELLA = "femur", "tibia", "patella"
MEDIAL, LATERAL = "medial", "lateral"
SHAFT = "shaft"
_THIRDS = ("anterior", "central", "posterior")
#: the 15 places of MOAKS by bone, and what is deeper
PLACES: Mapping[str, tuple[str, ...]] = {
    FEMUR: tuple(f"femur_{side}_{part}" for side in (MEDIAL, LATERAL) for part in ("trochlea", "central", "posterior")),
    TIBIA: (*(f"tibia_{side}_{part}" for side in (MEDIAL, LATERAL) for part in _THIRDS), "tibia_subspinous"),
    PATELLA: (f"patella_{MEDIAL}", f"patella_{LATERAL}"),
}
#: plates of cartilage -> their subregions: Eckstein's names
SUBREGIONS: Mapping[str, tuple[str, ...]] = {
    **{f"{s}T": tuple(f"{part}{s}T" for part in "ceiap") for s in "ML"},
    **{f"{s}F": (f"a{s}F", f"ec{s}F", f"cc{s}F", f"ic{s}F", f"p{s}F") for s in "ML"},
    "P": ("MP", "LP"),
}


@dataclass(frozen=True)
class Conventions:
    """What readers agree on and labels do not show."""

    depth_mm: float = 20.0  # bone deeper than this below the articular surface is shaft
    weight_bearing: float = 0.6  # of the way from the notch to the rear of a condyle
    tibial_thirds: tuple[float, float] = (1 / 3, 2 / 3)  # of the plateau from its front
    central_share: float = 0.2  # of a tibial plate's area is central


#: the middles of two tibial plates are farther apart: 42 mm as a rule, halves of one plate about 15 mm
_LEAST_APART_MM = 25.0
#: depth is looked at in cubes of this edge
_DEPTH_STEP_MM = 1.5


def moaks_grade(share: float, limits: tuple[float, float]) -> int:
    """MOAKS' grade of a finding by its share of a region, in [0, 1] (Hunter et al. 2011).

    Returns: 0 none, 1 below the first limit, 2 from there, 3 above the second.
    """
    return 0 if share <= 0 else 1 + int(share >= limits[0]) + int(share > limits[1])


class LandmarkError(ValueError):
    """A landmark was not found; the sentence is the flag of what needs it."""


@dataclass(frozen=True)
class Interface:
    """Bone voxels that touch the bone's cartilage, with their places."""

    indices: NDArray[np.intp]  # (N, 3)
    points_mm: NDArray[np.floating]  # (N, 3)
    cartilage: NDArray[np.integer]  # (N,), the label of the cartilage that they touch


def interface_of(bone: NDArray[np.bool_], labels: NDArray, cartilages: set[int], space: Space) -> Interface:
    """The bone's voxels with a face on one of its cartilages. Args: bone, labels: (Z, Y, X)."""
    touched = np.zeros(labels.shape, labels.dtype)
    cartilage = np.where(np.isin(labels, list(cartilages)), labels, 0)
    for axis in range(3):
        ours, theirs, of_bone = (np.moveaxis(of, axis, 0) for of in (touched, cartilage, bone))
        for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:])):
            np.copyto(ours[here], theirs[there], where=(ours[here] == 0) & of_bone[here])
    indices = np.argwhere(touched)
    return Interface(indices, space.points(indices), touched[tuple(indices.T)])


# ------------------------------------------------------------------------- femur


@dataclass(frozen=True)
class FemoralLandmarks:
    """What divides the femur, in its own frame."""

    frame: Frame
    middle_mm: float  # lateral coordinate of the notch and of the groove; what lies on it is medial
    notch_mm: float  # anterior coordinate of the notch
    rear_mm: Mapping[str, float]  # the rearmost interface of each condyle


def femoral_landmarks(interface: Interface, bone_points: NDArray, spacing_mm: float) -> FemoralLandmarks:
    """Notch and rear of the condyles.

    The notch is the most anterior of the rearmost interface points over the central half of the sagittal slices.

    Args: bone_points: (N, 3) mm. spacing_mm: largest distance of voxels; no slice is thinner.
    Raises: LandmarkError if the interface is too small, or has no notch between two condyles.
    """
    if len(interface.points_mm) < 200:
        raise LandmarkError("too little interface of femur and cartilage")
    frame = frames.femoral_frame(interface.points_mm, bone_points)
    lateral, anterior, _ = frame.coordinates(interface.points_mm).T
    width = max(1.0, spacing_mm)
    low, high = np.percentile(lateral, (0.5, 99.5))
    bins = np.floor((lateral - low) / width).astype(int)
    count = int(np.floor((high - low) / width)) + 1
    rear = np.full(count, np.nan)
    for number in range(count):
        own = anterior[bins == number]
        if len(own) >= 3:
            rear[number] = np.sort(own)[: max(1, len(own) // 50)].mean()
    central = np.arange(count)[count // 4 : count - count // 4]
    inside = central[~np.isnan(rear[central])]
    if len(inside) < 3:
        raise LandmarkError("no sagittal slice through the middle of the femur's cartilage")
    notch = inside[int(np.argmax(rear[inside]))]
    sides = {MEDIAL: np.arange(count) < notch, LATERAL: np.arange(count) > notch}
    rears, edges = {}, {}
    for side, own in sides.items():
        if not (own & ~np.isnan(rear)).any() or np.nanmin(rear[own]) > rear[notch] - 5:
            raise LandmarkError(f"no {side} condyle behind the femur's notch")
        rears[side] = float(np.nanmin(rear[own]))
        far = np.flatnonzero(own & (np.nan_to_num(rear, nan=np.inf) < (rear[notch] + rears[side]) / 2))
        edges[side] = far.max() if side == MEDIAL else far.min()
    # The deepest slice is anywhere in a flat notch; its middle lies between the condyles.
    middle = low + ((edges[MEDIAL] + edges[LATERAL]) / 2 + 0.5) * width
    return FemoralLandmarks(frame, float(middle), float(rear[notch]), rears)


def femoral_places(coordinates: NDArray, landmarks: FemoralLandmarks, conventions: Conventions) -> NDArray[np.uint8]:
    """Number of the place in ``PLACES``, from 1, of each point, (N, 3) in the femur's frame."""
    lateral, anterior = coordinates[:, 0], coordinates[:, 1]
    found = np.zeros(len(coordinates), np.uint8)
    for number, side in enumerate((MEDIAL, LATERAL)):
        own = lateral <= landmarks.middle_mm if side == MEDIAL else lateral > landmarks.middle_mm
        border = landmarks.notch_mm + conventions.weight_bearing * (landmarks.rear_mm[side] - landmarks.notch_mm)
        part = np.where(anterior > landmarks.notch_mm, 1, np.where(anterior > border, 2, 3))
        found[own] = 3 * number + part[own]
    return found


def femoral_subregions(
    coordinates: NDArray, landmarks: FemoralLandmarks, conventions: Conventions
) -> NDArray[np.object_]:
    """Name of the cartilage subregion of each point, (N, 3) in the femur's frame.

    The central part is cut into mediolateral thirds at each anterior-posterior position.
    """
    places = femoral_places(coordinates, landmarks, conventions)
    lateral, anterior = coordinates[:, 0], coordinates[:, 1]
    found = np.empty(len(coordinates), object)
    for number, letter in enumerate("ML"):
        found[places == 3 * number + 1], found[places == 3 * number + 3] = f"a{letter}F", f"p{letter}F"
        central = places == 3 * number + 2
        step = np.round(anterior[central]).astype(int)
        third = np.zeros(int(central.sum()), int)
        for at in np.unique(step):
            own = step == at
            away = np.abs(lateral[central][own] - landmarks.middle_mm)
            near, far = np.percentile(away, (1, 99))
            third[own] = np.clip((3 * (away - near) / max(far - near, 1e-6)).astype(int), 0, 2)
        found[central] = np.array([f"ic{letter}F", f"cc{letter}F", f"ec{letter}F"], object)[third]
    return found


# ------------------------------------------------------------------------- tibia


@dataclass(frozen=True)
class TibialLandmarks:
    """What divides the tibia, in its own frame."""

    frame: Frame
    inner_mm: Mapping[str, float]  # lateral coordinate of each plate's inner border
    front_mm: Mapping[str, float]  # anterior coordinate of each plate's front
    rear_mm: Mapping[str, float]
    ellipses: Mapping[str, Ellipse]


@dataclass(frozen=True)
class Ellipse:
    """The central part of a plate: (p - centre)' inverse (p - centre) <= 1."""

    centre_mm: NDArray[np.float64]  # (2,), lateral, anterior
    inverse: NDArray[np.float64]  # (2, 2)

    def reach(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """1 on the ellipse, less within: (N, 2) -> (N,)."""
        away = points - self.centre_mm
        return np.sqrt(np.einsum("ni,ij,nj->n", away, self.inverse, away))


def halves_of_plateau(interface: Interface, named: Mapping[str, set[int]]) -> dict[str, NDArray[np.bool_]]:
    """Which interface points are medial, and which lateral.

    Args: named: side -> labels of that plate's cartilage, empty where cartilage is one label.
    Raises: LandmarkError if there are no two plates.
    """
    points = interface.points_mm
    if len(points) < 200:
        raise LandmarkError("too little interface of tibia and cartilage")
    if all(named.values()):
        return {side: np.isin(interface.cartilage, list(labels)) for side, labels in named.items()}
    lateral = points[:, 0]
    border = float(np.mean(np.percentile(lateral, (2, 98))))
    if not 0 < (lateral <= border).sum() < len(lateral):
        raise LandmarkError("no two plates of tibial cartilage")
    for _ in range(20):
        border = (lateral[lateral <= border].mean() + lateral[lateral > border].mean()) / 2
    # Between the plates lies a gap; the border goes where fewest points are.
    near = np.arange(border - 8, border + 8, 0.5)
    border = float(min(near, key=lambda at: (np.abs(lateral - at) < 1.5).sum() + abs(at - border)))
    halves = {MEDIAL: lateral <= border, LATERAL: lateral > border}
    apart = lateral[halves[LATERAL]].mean() - lateral[halves[MEDIAL]].mean()
    if min(half.sum() for half in halves.values()) < 50 or apart < _LEAST_APART_MM:
        raise LandmarkError("no two plates of tibial cartilage")
    return halves


def tibial_landmarks(interface: Interface, named: Mapping[str, set[int]], conventions: Conventions) -> TibialLandmarks:
    """Plates, their borders and their centres. Raises: LandmarkError as ``halves_of_plateau``."""
    halves = halves_of_plateau(interface, named)
    points = {side: interface.points_mm[own] for side, own in halves.items()}
    if min(map(len, points.values())) < 50:
        raise LandmarkError("too little interface of tibia and cartilage in one plate")
    frame = frames.tibial_frame(points[MEDIAL], points[LATERAL])
    inner, front, rear, ellipses = {}, {}, {}, {}
    for side, own in points.items():
        places = frame.coordinates(own)
        inner[side] = float(np.percentile(places[:, 0], 97 if side == MEDIAL else 3))
        rear[side], front[side] = (float(of) for of in np.percentile(places[:, 1], (1, 99)))
        flat = places[:, :2]
        centre = flat.mean(axis=0)
        ellipse = Ellipse(centre, np.linalg.inv(np.cov((flat - centre).T)))
        scale = np.quantile(ellipse.reach(flat), conventions.central_share)
        ellipses[side] = Ellipse(centre, ellipse.inverse / scale**2)
    return TibialLandmarks(frame, inner, front, rear, ellipses)


def tibial_places(coordinates: NDArray, landmarks: TibialLandmarks, conventions: Conventions) -> NDArray[np.uint8]:
    """Number of the place in ``PLACES``, from 1, of each point, (N, 3) in the tibia's frame."""
    lateral, anterior = coordinates[:, 0], coordinates[:, 1]
    found = np.full(len(coordinates), 7, np.uint8)
    for number, side in enumerate((MEDIAL, LATERAL)):
        own = lateral < landmarks.inner_mm[side] if side == MEDIAL else lateral > landmarks.inner_mm[side]
        front, rear = landmarks.front_mm[side], landmarks.rear_mm[side]
        along = (front - anterior) / max(front - rear, 1e-6)
        part = 1 + np.digitize(along, conventions.tibial_thirds)
        found[own] = (3 * number + part)[own]
    return found


def tibial_subregions(coordinates: NDArray, side: str, landmarks: TibialLandmarks) -> NDArray[np.object_]:
    """Name of the cartilage subregion of points of one plate, (N, 3) in the tibia's frame.

    Within the ellipse is central; the rest is divided by the diagonals of the plate.
    """
    letter, ellipse = side[0].upper(), landmarks.ellipses[side]
    flat = coordinates[:, :2]
    sizes, axes = np.linalg.eigh(ellipse.inverse)
    # The symmetric root makes the ellipse a circle without shearing the plate's diagonals.
    away = (flat - ellipse.centre_mm) @ (axes * np.sqrt(sizes)) @ axes.T
    outward = away[:, 0] if side == LATERAL else -away[:, 0]
    across = np.abs(away[:, 0]) > np.abs(away[:, 1])
    names = np.where(across, np.where(outward > 0, "e", "i"), np.where(away[:, 1] > 0, "a", "p"))
    names = np.where(ellipse.reach(flat) <= 1, "c", names)
    return np.array([f"{name}{letter}T" for name in names], object)


# ----------------------------------------------------------------------- patella


@dataclass(frozen=True)
class PatellarLandmarks:
    """What divides the patella, in its own frame."""

    frame: Frame
    ridge_mm: float  # lateral coordinate of the ridge; what lies on it is medial


def patellar_landmarks(
    interface: Interface, bone_points: NDArray, lateral: NDArray | None, spacing_mm: float
) -> PatellarLandmarks:
    """The median ridge: the rearmost interface, slice by slice from below to above.

    Raises: LandmarkError if there is too little interface.
    """
    if len(interface.points_mm) < 50:
        raise LandmarkError("too little interface of patella and cartilage")
    frame = frames.patellar_frame(bone_points, lateral)
    across, anterior, superior = frame.coordinates(interface.points_mm).T
    width = max(1.0, spacing_mm)
    bins = np.floor((superior - superior.min()) / width).astype(int)
    slices = (np.flatnonzero(bins == number) for number in range(int(bins.max()) + 1))
    # The rearmost tenth of each slice.
    rearmost = [own[np.argsort(anterior[own])[: max(1, len(own) // 10)]] for own in slices if len(own) >= 5]
    ridge = [float(np.median(across[own])) for own in rearmost]
    if not ridge:
        raise LandmarkError("no ridge of the patella")
    return PatellarLandmarks(frame, float(np.median(ridge)) + width / 2)


def patellar_places(coordinates: NDArray, landmarks: PatellarLandmarks) -> NDArray[np.uint8]:
    """Number of the place in ``PLACES``, from 1, of each point, (N, 3) in the patella's frame."""
    return np.where(coordinates[:, 0] <= landmarks.ridge_mm, 1, 2).astype(np.uint8)


# ------------------------------------------------------------------------- depth


def is_deep(coordinates: NDArray, interface: NDArray, depth_mm: float) -> NDArray[np.bool_]:
    """Whether points lie deeper below the articular surface than MOAKS grades, to a millimetre.

    Args: coordinates: (N, 3). interface: of bone and cartilage, (M, 3), in the same axes.
    """
    middles, cube = frames.means_of_cubes(coordinates, _DEPTH_STEP_MM)
    distance, _ = cKDTree(frames.thinned(interface)).query(middles, distance_upper_bound=depth_mm)
    return np.isinf(distance)[cube]
