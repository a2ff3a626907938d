"""Whether the values of a knee's label map can mean what a table of names says, judged by shapes and places.

Another program's label map may hold the values of ours by chance. On 21 real knees (OAI ZIB-UQ and a mean one), sampled
1.45 to 4 mm apart, bones are 9.2 to 23.8 mm deep and cartilages 2.0 to 4.0 mm; 91 % or more of the femoral and tibial
cartilage is nearer to its own bone than to another, 61 % of the patellar one; 54 % or more of what surrounds a lesion,
be it the whole plateau, is its bone or cartilage; of what surrounds femoral cartilage at most 44 % is bone; the femur
lies 44 mm above the tibia, its cartilage 5.8 mm above the tibial one; patella and patellar cartilage lie 26 mm in front
of the other bones, and 13 mm where the knee is small, bent or labelled in part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_anomaly.errors import UserError

#: a bone is deeper than this, a cartilage less deep than that (or than two and a half voxels, if these are large)
LEAST_BONE_MM, MOST_CARTILAGE_MM = 5.0, 8.0
#: smaller shares of a cartilage nearest to its own bone, and of a lesion's surroundings in it, are contradictions
LEAST_NEAREST, LEAST_IN_BONE = 1 / 3, 0.5
#: the middle of patella and patellar cartilage lies in front of the other bones' by more than this
LEAST_IN_FRONT_MM = 8.0
#: less of a structure is not judged (stray voxels, a patella of which the field of view has an edge), nor a lesion of
#: fewer sampled voxels, of which all are rim
_LEAST_MM3, _LEAST_LESION_VOXELS = 500.0, 30
#: distance of the voxels looked at
_SAMPLING_MM = 1.45


def check_label_meaning(labels: NDArray, spacing_mm: Sequence[float], names: Mapping[str, int], place: object) -> None:
    """Check that the shapes in a label map can be what their names say. Args: as ``contradictions``; place: its file.

    Raises: UserError with all contradictions.
    """
    if found := contradictions(labels, spacing_mm, names):
        known = ", ".join(f"{value} {name}" for name, value in names.items() if value)
        advice = f"expected {known}; give its labels these values, and check that its header gives the true axes"
        fault = f"its labels have not the shapes of what their values stand for: {'; '.join(found)}"
        raise UserError(f"{place}: {fault}; {advice}")


def contradictions(labels: NDArray, spacing_mm: Sequence[float], names: Mapping[str, int]) -> list[str]:
    """What in the shapes and places of labels speaks against their names.

    Args: labels: (Z, Y, X), z to superior, y to anterior: "RAS" of SimpleITK, as numpy. spacing_mm: same order. names:
        label name -> value, as ``nnunetv2_anomaly.labels.LABELS``; compartments of a cartilage are taken together.
        What is missing, or less than half a millilitre, is not judged.
    Returns: a clause each, in millimetres and shares; empty where nothing does.
    """
    steps = np.maximum(1, np.round(_SAMPLING_MM / np.array(spacing_mm))).astype(int)
    labels, spacing = labels[:: steps[0], :: steps[1], :: steps[2]], np.array(spacing_mm) * steps
    # Where all labels end together, the field of view does, or somebody's labelling: that is no surface.
    labels = labels[next(iter(ndimage.find_objects((labels > 0).astype(np.uint8))), ...)]
    healthy, cartilages, lesions = (
        {part: _mask(labels, f"{part}_{kind}", names) for part in ("femoral", "tibial", "patellar")}
        for kind in ("bone", "cartilage", "lesion")
    )
    smallest = _LEAST_MM3 / spacing.prod()
    bones = {part: mask | lesions[part] for part, mask in healthy.items() if mask.sum() >= smallest}
    cartilages = {part: mask for part, mask in cartilages.items() if mask.sum() >= smallest}
    found = _by_depth(bones, cartilages, spacing) + _by_nearness(bones, cartilages, spacing)
    for part, lesion in lesions.items():
        around = ndimage.binary_dilation(lesion) & ~lesion
        judged = lesion.sum() >= max(smallest, _LEAST_LESION_VOXELS) and around.any()
        own = healthy[part] | _mask(labels, f"{part}_cartilage", names)
        whole = part == "patellar" and lesion.sum() > healthy[part].sum()  # a patella may be all lesion
        if judged and not whole and (share := own[around].mean()) < LEAST_IN_BONE:
            found.append(f"{share:.0%} of what surrounds {part}_lesion is {part}_bone or its cartilage (expected most)")
    for kind, masks in (("bone", bones), ("cartilage", cartilages)):
        middle = {part: np.median(np.argwhere(mask), axis=0) * spacing for part, mask in masks.items()}
        if {"femoral", "tibial"} <= middle.keys() and (above := middle["femoral"][0] - middle["tibial"][0]) <= 0:
            found.append(f"femoral_{kind} lies {-above:.0f} mm below tibial_{kind} (expected above)")
        for part, bone in bones.items() if "patellar" in middle else ():
            ahead = middle["patellar"][1] - np.median(np.nonzero(bone)[1]) * spacing[1]
            # Of a bone that is cut off behind, the middle lies too far in front.
            if part != "patellar" and ahead <= LEAST_IN_FRONT_MM and not _cut(bone, 1)[0]:
                found.append(f"patellar_{kind} lies {ahead:.0f} mm in front of {part}_bone (expected 26 or more)")
    return found


def _mask(labels: NDArray, ending: str, names: Mapping[str, int]) -> NDArray[np.bool_]:
    return np.isin(labels, [value for name, value in names.items() if name.endswith(ending)])


def _by_depth(bones: Mapping[str, NDArray], cartilages: Mapping[str, NDArray], spacing: NDArray) -> list[str]:
    """Depth: how far the innermost voxel is from the structure's surface; a border of the volume is no surface."""
    found = []
    for kind, masks in (("bone", bones), ("cartilage", cartilages)):
        for part, mask in masks.items():
            box = ndimage.find_objects(mask.astype(np.uint8))[0]
            inside = [slice(max(0, s.start - 1), s.stop + 1) for s in box]
            depth = float(ndimage.distance_transform_edt(mask[tuple(inside)], sampling=spacing).max())
            cut = any(end for axis in range(3) for end in _cut(mask, axis))
            if kind == "bone" and depth < LEAST_BONE_MM and not cut:
                found.append(f"{part}_bone is {depth:.1f} mm deep (expected 9 or more)")
            if kind == "cartilage" and depth > max(MOST_CARTILAGE_MM, 2.5 * spacing.max()):
                found.append(f"{part}_cartilage is {depth:.1f} mm deep (expected 4 or less)")
    return found


def _cut(mask: NDArray[np.bool_], axis: int) -> tuple[bool, bool]:
    """Whether a structure goes on beyond the first and the last plane: a third of its largest section is there."""
    areas = mask.sum(axis=tuple({0, 1, 2} - {axis}))
    return areas[0] >= areas.max() / 3, areas[-1] >= areas.max() / 3


def _by_nearness(bones: Mapping[str, NDArray], cartilages: Mapping[str, NDArray], spacing: NDArray) -> list[str]:
    """Cartilages that lie on another bone than their own."""
    if not bones:
        return []
    which = np.select(list(bones.values()), range(1, len(bones) + 1))
    places = ndimage.distance_transform_edt(which == 0, spacing, return_distances=False, return_indices=True)
    nearest, found = which[tuple(places)], []
    for number, part in enumerate(bones, start=1):
        if part in cartilages and (share := (nearest[cartilages[part]] == number).mean()) < LEAST_NEAREST:
            found.append(f"{share:.0%} of {part}_cartilage is nearest to {part}_bone (expected most of it)")
    return found
