"""Where a bone of one visit lies at another: rigid registration of label maps."""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, map_coordinates
from scipy.spatial import cKDTree

from nnunetv2_anomaly.measurements.bones import Bone
from nnunetv2_anomaly.measurements.frame import Motion, Space, thinned

#: edge of the voxels that are compared, mm
_STEP_MM = 1.2
#: distances from a surface count up to this, mm
_FAR_MM = 6.0
#: only places so near to the earlier bone's surface are compared, mm
_BAND_MM = 4.0
#: a surface of fewer cubes of 2.5 mm has no pose
_LEAST_POINTS = 20
#: and so near to its joint: farther away are the ends where images cut a bone
_JOINT_MM = 25.0


def register(later: Bone, earlier: Bone) -> Motion:
    """The rigid motion that brings a bone of the later visit to where it lay at the earlier one.

    Least squares of the distances from both surfaces (SimpleITK), from the motion that brings the bones' axes together,
    or the middles of joints where one has none.

    Args: both in the coordinates of ``Space``, mm.
    Returns: the motion from the later to the earlier visit; its residual is the mean distance of the later joint
        surface from the earlier bone after it, less the mean distance of the earlier joint surface itself, mm.
    """
    fixed, fixed_space = _distances(earlier)
    moving, _ = _distances(later)
    by_interface = all(len(of.interface.points_mm) > 0 for of in (earlier, later))
    joints = [_joint(of, by_interface) for of in (earlier, later)]
    compared = _compared(fixed, fixed_space, joints[0])
    if min(map(len, joints)) < _LEAST_POINTS or not sitk.GetArrayViewFromImage(compared).any():
        return Motion(np.eye(3), np.zeros(3), math.inf)
    start = _start(later, earlier, joints)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricFixedMask(compared)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-4, numberOfIterations=200, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    method.SetNumberOfThreads(1)  # sums in one order, so that the same maps give the same motion
    method.Execute(fixed, moving)
    # It takes places of the earlier visit to the later one; what is wanted is the way back.
    inverse = start.GetInverse()
    back = np.array([inverse.TransformPoint(point) for point in np.vstack([np.zeros(3), np.eye(3)]).tolist()])
    motion = Motion((back[1:] - back[0]).T, back[0])
    apart = _at(fixed, fixed_space, motion.of(joints[1])) - _at(fixed, fixed_space, joints[0]).mean()
    return Motion(motion.rotation, motion.translation_mm, float(np.abs(apart).mean()))


def _start(later: Bone, earlier: Bone, joints: list[NDArray[np.float64]]) -> sitk.Euler3DTransform:
    """Takes places of the earlier visit to the later one, roughly."""
    start = sitk.Euler3DTransform()
    middles = [of.mean(axis=0) for of in joints]
    if earlier.landmarks is not None and later.landmarks is not None:
        frames = [of.landmarks.frame for of in (earlier, later)]
        middles = [frame.origin_mm for frame in frames]
        start.SetMatrix((frames[1].axes.T @ frames[0].axes).ravel().tolist(), 1e-6)
    start.SetCenter(middles[0].tolist())
    start.SetTranslation((middles[1] - middles[0]).tolist())
    return start


def _joint(bone: Bone, by_interface: bool) -> NDArray[np.float64]:
    """The bone's side of the joint: its interface with cartilage, or else all of its surface, (N, 3) mm."""
    if by_interface:
        return thinned(bone.interface.points_mm)
    mask, space = bone.mask
    return thinned(space.points(np.argwhere(mask & ~binary_erosion(mask))))


def _distances(bone: Bone) -> tuple[sitk.Image, Space]:
    """Signed distance from a bone's surface, mm, below 0 within, in the coordinates of ``Space``."""
    mask, space = bone.mask
    margin = np.ceil(_FAR_MM / space.spacing_mm).astype(int)
    padded, space = np.pad(mask, [(of, of) for of in margin]), space.part(-margin)
    image = sitk.GetImageFromArray(padded.astype(np.float32))
    image.SetSpacing(space.spacing_mm[::-1].tolist())
    image.SetOrigin(space.origin_mm.tolist())
    image.SetDirection((space.steps_mm / space.spacing_mm)[:, ::-1].ravel().tolist())
    shrink = np.maximum(1, np.round(_STEP_MM / space.spacing_mm)).astype(int)
    coarse = sitk.BinShrink(image, shrink[::-1].tolist())
    far = sitk.SignedMaurerDistanceMap(coarse > 0.5, squaredDistance=False, useImageSpacing=True)
    steps = space.steps_mm * shrink
    start = np.array(coarse.GetOrigin())
    return sitk.Cast(sitk.Clamp(far, sitk.sitkFloat32, -_FAR_MM, _FAR_MM), sitk.sitkFloat32), Space(start, steps)


def _compared(distances: sitk.Image, space: Space, joint: NDArray[np.float64]) -> sitk.Image:
    """Mask of the places that are compared."""
    values = sitk.GetArrayViewFromImage(distances)
    band = np.argwhere(np.abs(values) < _BAND_MM)
    near, _ = cKDTree(joint).query(space.points(band), distance_upper_bound=_JOINT_MM)
    mask = np.zeros(values.shape, np.uint8)
    mask[tuple(band[np.isfinite(near)].T)] = 1
    image = sitk.GetImageFromArray(mask)
    image.CopyInformation(distances)
    return image


def _at(distances: sitk.Image, space: Space, points_mm: NDArray) -> NDArray[np.float64]:
    """Distances at places, (N, 3) mm -> (N,) mm."""
    indices = np.linalg.solve(space.steps_mm, (points_mm - space.origin_mm).T)
    found: NDArray[np.float64] = map_coordinates(
        sitk.GetArrayViewFromImage(distances), indices, order=1, mode="nearest"
    )
    return found
