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
    """The label map in other grids, by linear interpolation of each label.

    Halfway between voxels a Gaussian decides: the means of two labels are equal there, and the background would win.
    """

    def resampled(source, like, transform=None, by=sitk.sitkLabelLinear):
        return sitk.Resample(source, like, transform or sitk.Transform(), by, 0)

    middle = image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()])
    for angles in ((5, 0, 0), (0, 5, 0), (0, 0, 5)):
        yield resampled(image, image, sitk.Euler3DTransform(middle, *map(math.radians, angles)))
    half = sitk.TranslationTransform(3, [step / 2 for step in image.GetSpacing()])
    yield resampled(image, image, half, by=sitk.sitkLabelGaussian)
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


def phantoms():
    parameters = draw_phantom(np.random.default_rng(0), side="right", lesion_share=1.0)
    return [phantom_image(parameters, size=(220, 220, 110), spacing_mm=(0.63, 0.63, 1.0))]


@pytest.mark.exhaustive
@pytest.mark.parametrize("knees", ["phantom", "real"])
def test_measures_repeat(knees):
    if knees == "real" and not real_masks():
        pytest.skip("the real segmentations are not beside this checkout")
    images = phantoms() if knees == "phantom" else [sitk.ReadImage(str(real_masks()[2]))]
    thickness = {plate: [] for plate in PLATES}
    lesions = []
    for image in images:
        first = measured(image, thickness=True)
        of_first = {region: value for (_, region, quantity), value in values(first).items() if quantity == "ThCtAB"}
        large = [lesion for lesion in first.lesions if lesion["volume_mm3"] > 100]
        for other in changed(image):
            found = measured(other, thickness=True)
            again = {region: value for (_, region, quantity), value in values(found).items() if quantity == "ThCtAB"}
            for plate in PLATES:
                thickness[plate].append((of_first[plate], again[plate]))
            for lesion in large:
                own = [of["volume_mm3"] for of in found.lesions if of["bone"] == lesion["bone"]]
                lesions.append((lesion["volume_mm3"], min(own, key=lambda of: abs(of - lesion["volume_mm3"]))))
    assert {plate: variation(pairs) for plate, pairs in thickness.items() if variation(pairs) > THICKNESS} == {}
    assert lesions
    assert variation(lesions) <= LESIONS
