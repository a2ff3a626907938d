"""A DESS-like image of a knee from its label map: contrast, texture, lesions, partial volume, bias field, noise.

The levels (unitless, 0 to 1) follow the mean DESS image of 103 knees without osteoarthritis: marrow about 0.19,
femoral cartilage about 0.63, tibial cartilage about 0.55. Lesions are drawn so that brightness alone finds them
only in part: their signal overlaps that of red marrow, vessels and growth plate scars, which are normal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_anomaly.labels import BONES, CARTILAGES, LESIONS
from nnunetv2_anomaly.simulation.phantom import LESION_OF_BONE, draw_blob_shape, turned_blob
from nnunetv2_anomaly.simulation.resampling import resample_linear
from nnunetv2_anomaly.simulation.soft_tissue import Layout, gaussian_noise, sigmoid, soft_tissue

#: signal of pure tissues, unitless; partial volume and the cortex lower what is measured to the levels above
MARROW = 0.185
CARTILAGE_SIGNAL: dict[int, float] = {2: 0.70, 4: 0.64, 6: 0.67}
CORTEX = 0.05

#: signal that a lesion adds to the marrow, range of the draw, unitless
LESION_CONTRAST = (0.07, 0.16)

#: standard deviation of the noise of each of the two receiver channels, unitless
NOISE = 0.015

#: bones and lesions are drawn in their box with so much around it
_MARGIN_MM = 4.0
#: signal that red marrow adds in the metaphysis and shaft, range of the draw per bone, unitless
RED_MARROW = (0.03, 0.08)

#: half-axes of a stress lesion, range of the draw in mm
_STRESS_RADII_MM = {1: (12.0, 20.0), 3: (12.0, 20.0), 5: (6.0, 9.0)}
_TO_CARTILAGE = float(np.mean(list(CARTILAGE_SIGNAL.values()))) - MARROW
#: kind of stress lesions -> signal that they add, range of the draw: the usual one, 0.6 to 1 of the way from marrow to
#: cartilage, and as far towards the cortex
STRESS: dict[str, tuple[float, float]] = {
    "large": LESION_CONTRAST,
    "bright": (0.6 * _TO_CARTILAGE, _TO_CARTILAGE),
    "dark": (CORTEX - MARROW, 0.6 * (CORTEX - MARROW)),
}


@dataclasses.dataclass(frozen=True)
class SimulatedImage:
    """A simulated image and what is abnormal in it."""

    image: NDArray[np.float32]  # (Z, Y, X), in [0, 1], unitless
    anomalies: NDArray[np.uint8]  # (Z, Y, X), 0 or the lesion label 7, 8, 9 of the bone, extra lesions included


def dess_like_image(
    labels: NDArray,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    extra_lesions: float = 0.0,
    stress: str | None = None,
) -> SimulatedImage:
    """Simulate a water-excited DESS image of a label map.

    Args:
        labels: (Z, Y, X), values 0 to 9 of ``nnunetv2_anomaly.labels.LABELS``; z to superior, y to anterior, x across
            the slices.
        spacing_mm: distance of voxels, same order (z, y, x); textures keep their size in mm.
        rng: source of all randomness; the same state gives the same image.
        extra_lesions: mean of the Poisson-distributed number of lesions in image and truth, not in the label map.
        stress: kind of ``STRESS``: puts one lesion into every bone, larger than any other, which may cross the bone's
            border; it is in the truth, whole, under its bone's lesion label, and in no label map.
    """
    labels, spacing = np.asarray(labels, np.uint8), tuple(float(s) for s in spacing_mm)
    layout = Layout(labels, spacing)
    anomalies = np.where(np.isin(labels, LESIONS), labels, 0).astype(np.uint8)
    for _ in range(rng.poisson(extra_lesions)):
        _add_lesion(anomalies, labels, layout, rng)

    image = resample_linear(soft_tissue(layout, rng), layout.grid, layout.image_grid)
    image *= 1.0 + 0.10 * gaussian_noise(rng, labels.shape, spacing, (4.0, 0.8, 0.8))
    for label in CARTILAGES:
        present = labels == label
        if present.any():
            level = CARTILAGE_SIGNAL[label] * rng.uniform(0.93, 1.07)
            image[present] = level * (1.0 + 0.12 * layout.sample_noise(rng, 2.5)[present])
    _draw_bones(image, labels, anomalies, spacing, rng)
    if stress is not None:
        # Of random numbers of its own: the rest of the knee is as it is without.
        _draw_stress(image, anomalies, layout, stress, rng.spawn(1)[0])
    # The scanner's point spread: a good half of a voxel, so that a voxel holds a bit of its neighbours.
    ndimage.gaussian_filter(image, 0.45, output=image, truncate=3.0)
    bias = layout.sample_noise(rng, 45.0)
    image *= 1.0 + 0.15 * (bias - bias.mean())
    return SimulatedImage(image=_rician(image, rng), anomalies=anomalies)


def _rician(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Magnitude of a complex signal with Gaussian noise in both channels: noise never makes it negative."""
    real = image + NOISE * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = NOISE * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.hypot(real, imaginary, out=real), 0.0, 1.0, out=real)


def _draw_bones(
    image: NDArray, labels: NDArray, anomalies: NDArray, spacing: Sequence[float], rng: np.random.Generator
) -> None:
    """Fill the bones, in place: marrow with its normal bright structures, lesions, the dark cortical rim."""
    bone = np.isin(labels, BONES + LESIONS)
    if not bone.any():
        return
    box = _padded_box(ndimage.find_objects(bone.astype(np.uint8))[0], bone.shape, spacing)
    bone, labels, anomalies, view = bone[box], labels[box], anomalies[box], image[box]
    marrow = np.full(bone.shape, MARROW, np.float32)
    marrow += 0.015 * gaussian_noise(rng, bone.shape, spacing, (14.0, 10.0, 10.0))
    # Trabeculae run along the bone; on coarse grids they average out, as in a scanner.
    marrow += 0.02 * gaussian_noise(rng, bone.shape, spacing, (0.9, 0.3, 0.3))
    # Red marrow: away from the joint it brightens the whole marrow, so that healthy metaphysis is as bright as many a
    # lesion near the joint; patches of several mm lie anywhere, more strongly there.
    metaphysis = _metaphysis_share(labels, spacing)
    marrow += np.float32(rng.uniform(*RED_MARROW)) * metaphysis
    islands = np.clip(gaussian_noise(rng, bone.shape, spacing, (4.5, 3.5, 3.5)) - 0.8, 0.0, 1.6)
    marrow += islands * (0.05 + 0.05 * metaphysis)
    _draw_scars(marrow, labels, spacing, rng)
    _draw_vessels(marrow, bone, spacing, rng)
    lesion_share = _draw_lesions(marrow, anomalies, spacing, rng)
    # The cortex lies within the bone label: where a blurred bone is no longer whole, there is its rim.
    sigmas = [max(0.7 / s, 0.7) for s in spacing]
    solidity = ndimage.gaussian_filter(bone.astype(np.float32), sigmas, truncate=3.0)
    # Lesions that reach the joint have eaten into the cortex: most of the rim is lost there.
    solidity = np.maximum(np.clip((solidity - 0.5) * 2.2, 0.0, 1.0), 0.7 * lesion_share)
    view[bone] = np.maximum(((marrow - CORTEX) * solidity + CORTEX)[bone], 0.0)


def _metaphysis_share(labels: NDArray[np.uint8], spacing: Sequence[float]) -> NDArray[np.float32]:
    """(Z, Y, X) -> 0 in the epiphyses of femur and tibia and in the patella, 1 well away from the joint.

    The joint's end is the lowest slice of the femur and the highest of the tibia (z to superior).
    """
    share = np.zeros(labels.shape, np.float32)
    z = np.arange(labels.shape[0], dtype=np.float32)
    for bone, lesion, upwards in ((1, 7, True), (3, 8, False)):
        mask = np.isin(labels, (bone, lesion))
        slices = np.flatnonzero(mask.any(axis=(1, 2)))
        if slices.size:
            from_joint_mm = ((z - slices[0]) if upwards else (slices[-1] - z)) * spacing[0]
            profile = sigmoid((from_joint_mm - 30.0) / 4.0).astype(np.float32)
            share = np.where(mask, profile[:, None, None], share)
    return share


def _padded_box(box: Sequence[slice], shape: Sequence[int], spacing: Sequence[float]) -> tuple[slice, ...]:
    margins = [int(np.ceil(_MARGIN_MM / s)) for s in spacing]
    return tuple(slice(max(0, b.start - m), min(n, b.stop + m)) for b, n, m in zip(box, shape, margins, strict=True))


def _draw_scars(marrow: NDArray, labels: NDArray, spacing: Sequence[float], rng: np.random.Generator) -> None:
    """Scars of the growth plates of femur and tibia: thin, wavy, broken bright lines across the bone, in place."""
    height = (np.arange(labels.shape[0], dtype=np.float32) * np.float32(spacing[0]))[:, None, None]
    for bone, lesion, side, offset in ((1, 7, 0, 30.0), (3, 8, -1, -25.0)):
        whole = np.isin(labels, (bone, lesion))
        slices = np.flatnonzero(whole.any((1, 2)))
        if not slices.size:
            continue
        waves = 2.0 * gaussian_noise(rng, (1, *labels.shape[1:]), spacing, (1.0, 9.0, 9.0))
        strength = np.clip(0.6 + 0.5 * gaussian_noise(rng, (1, *labels.shape[1:]), spacing, (1.0, 5.0, 5.0)), 0.0, 1.2)
        middle = slices[side] * spacing[0] + offset + rng.normal(0.0, 2.0)
        width = max(0.8, 0.5 * spacing[0])
        scar = 0.12 * 0.8 / width * strength * np.exp(-(((height - middle - waves) / width) ** 2))
        marrow += np.where(whole, scar, 0.0).astype(np.float32)


def _draw_vessels(marrow: NDArray, bone: NDArray, spacing: Sequence[float], rng: np.random.Generator) -> None:
    """Nutrient vessels: bright winding tubes of about 1 mm and 10 to 30 mm length, in place."""
    voxels = np.flatnonzero(bone)
    step = np.array(spacing)
    count = rng.poisson(voxels.size * step.prod() / 12_000.0)
    width = np.maximum(0.6, 0.45 * step)
    reach = np.ceil(2.5 * width / step).astype(int)
    for start in voxels[rng.integers(voxels.size, size=count)]:
        position = np.array(np.unravel_index(start, bone.shape)) * step
        direction = rng.normal(size=3)
        # A tube thinner than a voxel fills a share of it only.
        contrast = rng.uniform(0.08, 0.3) * float(np.prod(0.6 / width)) ** (2 / 3)
        for _ in range(int(rng.uniform(15, 45))):
            direction += 0.35 * rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            position = position + 0.7 * direction
            centre = np.rint(position / step).astype(int)
            if ((centre < 0) | (centre >= bone.shape)).any():
                break
            box = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, reach, strict=True))
            along = zip(box, bone.shape, step, position, width, strict=True)
            squared = sum(np.ix_(*(((np.arange(b.start, min(b.stop, n)) * s - p) / w) ** 2 for b, n, s, p, w in along)))
            tube = np.float32(MARROW + contrast) * np.exp(-0.5 * squared)
            np.maximum(marrow[box], tube, out=marrow[box])


def _draw_lesions(
    marrow: NDArray[np.float32], anomalies: NDArray[np.uint8], spacing: Sequence[float], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Brighten the lesions, in place: each its own contrast, uneven inside, fading at its border.

    Returns: (Z, Y, X), share of lesion per voxel, in [0, 1].
    """
    shares = np.zeros(anomalies.shape, np.float32)
    components, _ = ndimage.label(anomalies > 0, structure=np.ones((3, 3, 3)))
    for index, found in enumerate(ndimage.find_objects(components), start=1):
        box = _padded_box(found, anomalies.shape, spacing)
        core = components[box] == index
        share = core.astype(np.float32)
        volume_mm3 = share.sum() * np.prod(spacing)
        # The border of a small lesion is narrower, or nothing would be left of it.
        edge_mm = min(1.2, 0.3 * (3.0 * volume_mm3 / (4.0 * np.pi)) ** (1 / 3))
        ndimage.gaussian_filter(share, [edge_mm / s for s in spacing], output=share)
        uneven = 1.0 + 0.3 * gaussian_noise(rng, share.shape, spacing, (2.5, 2.5, 2.5))
        np.maximum(shares[box], share, out=shares[box])
        # The contrast drawn is the mean within the lesion; a small lesion, all border, would be lost otherwise.
        marrow[box] += np.float32(rng.uniform(*LESION_CONTRAST) / share[core].mean()) * share * uneven
    return shares


def _add_lesion(anomalies: NDArray, labels: NDArray, layout: Layout, rng: np.random.Generator) -> None:
    """Put one more lesion into a bone of the truth map, in place; nothing happens where no bone has room."""
    shape = draw_blob_shape(rng)
    shares = {bone: share for bone, share in zip(BONES, (0.45, 0.35, 0.2), strict=True) if bone in layout.labels}
    if not shares:
        return
    bone = int(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
    marrow = layout.labels == bone
    inside = layout.distance(bone, inside=True)
    radius = float(np.mean(shape.radii_mm))
    # Three in four lie under the cartilage, like the phantom's own.
    if rng.random() < 0.75:
        wanted = marrow & (layout.distance(bone + 1) < radius + 2.0) & (inside > 0.3 * radius)
    else:
        wanted = marrow & (inside > radius)
    candidates = np.flatnonzero(wanted if wanted.any() else marrow)
    place = np.unravel_index(candidates[rng.integers(candidates.size)], marrow.shape)
    centre = [g[index] for g, index in zip(layout.grid, place, strict=True)]
    box, inside_blob = shape.inside(centre, layout.image_grid, np.eye(3)[::-1])
    anomalies[box][inside_blob & (labels[box] == bone)] = LESION_OF_BONE[bone]


def _draw_stress(image: NDArray, anomalies: NDArray, layout: Layout, kind: str, rng: np.random.Generator) -> None:
    """Draw one large lesion around a place in every bone, into image and truth, in place."""
    for bone, radii_mm in _STRESS_RADII_MM.items():
        radii = rng.uniform(*radii_mm, 3)
        inside_mm = layout.distance(bone, LESION_OF_BONE[bone], inside=True)
        # Most of it lies in the bone; all of it would leave the border whole.
        places = np.argwhere(inside_mm > min(0.5 * radii.mean(), 0.9 * inside_mm.max()))
        if not len(places):
            continue
        centre = [g[index] for g, index in zip(layout.grid, places[rng.integers(len(places))], strict=True)]
        box, inside = turned_blob(rng, radii.tolist(), 0.35).inside(centre, layout.image_grid, np.eye(3)[::-1])
        share = ndimage.gaussian_filter(inside.astype(np.float32), [1.2 / s for s in layout.image_spacing])
        uneven = 1.0 + 0.3 * gaussian_noise(rng, share.shape, layout.image_spacing, (2.5, 2.5, 2.5))
        image[box] = np.maximum(image[box] + np.float32(rng.uniform(*STRESS[kind])) * share * uneven, 0.0)
        anomalies[box][inside] = LESION_OF_BONE[bone]
