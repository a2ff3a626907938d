"""The same knee in another grid measures nearly the same: turned by 5 degrees, shifted by half a voxel, resampled."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from test_knee import measured, real_masks, values

from nnunetv2_anomaly.simulation.phantom import draw_phantom, phantom_image

PLATES = ("MT", "LT", "MF", "LF", "P")
#: limits of the coefficient of variation, root mean square over changes and knees
THICKNESS, LESIONS = 0.015, 0.03


def changed(image):
    """The label map in other grids, each label interpolated linearly."""

    def resampled(source, like, transform=None):
        return sitk.Resample(source, like, transform or sitk.Transform(), sitk.sitkLabelLinear, 0)

    middle = image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()])
    for angles in ((5, 0, 0), (0, 5, 0), (0, 0, 5)):
        yield resampled(image, image, sitk.Euler3DTransform(middle, *map(math.radians, angles)))
    # A little less than half a voxel: halfway the means of two labels are equal, and the background would always win.
    yield resampled(image, image, sitk.TranslationTransform(3, [0.49 * step for step in image.GetSpacing()]))
    size = [math.ceil(n * step / 0.5) for n, step in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    fine = sitk.Image(size, image.GetPixelID())
    fine.SetSpacing((0.5,) * 3)
    fine.SetOrigin(image.GetOrigin())
    fine.SetDirection(image.GetDirection())
    yield resampled(resampled(image, fine), image)


def variation(pairs):
    """Root mean square of SD / mean of pairs."""
    pairs = np.array(pairs)
    return math.sqrt(((pairs.std(axis=1, ddof=1) / pairs.mean(axis=1)) ** 2).mean())


def phantom():
    parameters = draw_phantom(np.random.default_rng(0), side="right", lesion_share=1.0)
    return phantom_image(parameters, size=(220, 220, 110), spacing_mm=(0.63, 0.63, 1.0))


# A phantom's femoral cartilage thins out to nothing, so that half a voxel decides on its bare share.
@pytest.mark.exhaustive
@pytest.mark.parametrize(("knee", "quantities"), [("phantom", ("ThCcAB",)), ("real", ("ThCcAB", "ThCtAB"))])
def test_measures_repeat(knee, quantities):
    if knee == "real" and not real_masks():
        pytest.skip("the real segmentations are not beside this checkout")
    image = phantom() if knee == "phantom" else sitk.ReadImage(str(real_masks()[2]))
    first = measured(image, thickness=True)
    large = [lesion for lesion in first.lesions if lesion["volume_mm3"] > 100]
    thickness, lesions = {}, []
    for other in changed(image):
        found = measured(other, thickness=True)
        again = values(found)
        for key, value in values(first).items():
            if key[1] in PLATES and key[2] in quantities:
                thickness.setdefault(key, []).append((value, again[key]))
        for lesion in large:
            own = [row["volume_mm3"] for row in found.lesions if row["bone"] == lesion["bone"]]
            lesions.append((lesion["volume_mm3"], min(own, key=lambda volume: abs(volume - lesion["volume_mm3"]))))
    assert {key[1] for key in thickness} == set(PLATES)
    assert {key: variation(pairs) for key, pairs in thickness.items() if variation(pairs) > THICKNESS} == {}
    assert lesions
    assert variation(lesions) <= LESIONS
