import math

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_anomaly.demo.comparison import compare_label, compare_models, mean_and_count, same_geometry
from nnunetv2_anomaly.errors import UserError


def mask(*voxels, shape=(6, 7, 8), spacing=(1.0, 1.0, 2.0)):
    array = np.zeros(shape, np.uint8)
    for voxel in voxels:
        array[voxel] = 1
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    return image


def test_dice_and_distance_of_two_shifted_voxels_on_anisotropic_spacing():
    dsc, distance, islands = compare_label(mask((1, 1, 1), (2, 1, 1)), mask((2, 1, 1), (3, 1, 1)))
    assert dsc == pytest.approx(0.5)
    assert distance == pytest.approx(2.0)  # one slice of 2 mm
    assert islands == 0


def test_a_stray_voxel_is_an_island_and_sets_the_distance():
    _, distance, islands = compare_label(mask((1, 1, 1)), mask((1, 1, 1), (1, 1, 5)))
    assert distance == pytest.approx(4.0)
    assert islands == 1


@pytest.mark.parametrize(
    ("reference", "prediction", "dsc"), [(mask(), mask(), math.nan), (mask((1, 1, 1)), mask(), 0.0)]
)
def test_missing_labels_have_no_distance_and_no_islands(reference, prediction, dsc):
    found = compare_label(reference, prediction)
    assert found[0] == pytest.approx(dsc, nan_ok=True)
    assert math.isnan(found[1])
    assert math.isnan(found[2])


def test_undefined_values_are_counted_not_hidden():
    assert mean_and_count([1.0, math.nan, 3.0]) == (2.0, 2, 1)


@pytest.fixture
def folders(tmp_path):
    for name in ("reference", "naive"):
        (tmp_path / name).mkdir()
    sitk.WriteImage(mask((1, 1, 1)), str(tmp_path / "reference" / "a.nii.gz"))
    return tmp_path


def test_missing_prediction_is_an_error(folders):
    with pytest.raises(UserError, match=r"a\.nii\.gz does not exist"):
        compare_models(folders / "reference", {"naive": folders / "naive"}, {"background": 0, "bone": 1}, [])


def test_prediction_on_another_grid_is_an_error(folders):
    sitk.WriteImage(mask((1, 1, 1), spacing=(1.0, 1.0, 1.0)), str(folders / "naive" / "a.nii.gz"))
    with pytest.raises(UserError, match="expected one geometry"):
        compare_models(folders / "reference", {"naive": folders / "naive"}, {"background": 0, "bone": 1}, [])


def test_every_case_label_and_model_has_a_row(folders):
    sitk.WriteImage(mask((1, 1, 1)), str(folders / "naive" / "a.nii.gz"))
    rows = compare_models(
        folders / "reference",
        {"naive": folders / "naive", "aware": folders / "naive"},
        {"background": 0, "bone": 1, "cartilage": 2},
        ["a"],
    )
    assert [(row.model, row.label) for row in rows] == [
        ("naive", "bone"),
        ("naive", "cartilage"),
        ("aware", "bone"),
        ("aware", "cartilage"),
    ]
    assert all(row.has_lesion for row in rows)
    assert rows[0].dsc == 1.0


def test_geometry_differs_by_origin():
    shifted = mask((1, 1, 1))
    shifted.SetOrigin((0.0, 0.0, 5.0))
    assert same_geometry(mask(), mask())
    assert not same_geometry(mask(), shifted)
