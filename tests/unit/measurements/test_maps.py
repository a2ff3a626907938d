"""Maps of thickness: where what was put in is, in left knees as in right ones."""

import nibabel
import numpy as np
import pytest
from test_knee import healthy, measured, mirrored, phantom

from nnunetv2_anomaly.measurements.cartilage import CartilageMap
from nnunetv2_anomaly.measurements.maps import (
    FlatMap,
    difference,
    flat_figure,
    flattened,
    thickness_volume,
    write_flat,
    write_surface,
)
from nnunetv2_anomaly.measurements.meshes import load_vtk
from nnunetv2_anomaly.reporting.drawing import save_figure


@pytest.fixture(scope="module")
def knees():
    """A phantom and its mirror image, measured."""
    image = healthy(phantom())
    return measured(image, thickness=True), measured(mirrored(image), "left", thickness=True)


def test_a_left_knee_has_the_map_of_the_right_one(knees):
    for bone, of in knees[0].cartilages.items():
        right, left = flattened([of])[0], flattened([knees[1].cartilages[bone]])[0]
        assert right.first == pytest.approx(left.first, abs=max(right.step) + 1e-6)
        values = [flat.values_mm[~np.isnan(flat.values_mm)] for flat in (right, left)]
        assert len(values[0]) == pytest.approx(len(values[1]), rel=0.03)
        assert values[0].mean() == pytest.approx(values[1].mean(), abs=0.02)


def test_the_femurs_map_has_a_row_per_degree_and_its_front_above(knees):
    flat = flattened([knees[0].cartilages["femoral_bone"]])[0]
    assert flat.values_mm.shape[0] == 360
    assert flat.first[0] == -180
    rows = np.flatnonzero(~np.isnan(flat.values_mm).all(axis=1)) - 180
    # The trochlea is in front, the condyles reach backwards beneath.
    assert rows.min() < -60
    assert rows.max() > 60
    assert not (np.abs(rows) > 170).any()


def test_the_mean_of_a_bin_is_that_of_its_vertices(knees):
    of: CartilageMap = knees[0].cartilages["tibial_bone"]
    flat = flattened([of])[0]
    lateral, anterior, _ = of.bone.landmarks.frame.coordinates(of.points_mm).T
    row = np.floor(anterior / flat.step[0]).astype(int)
    column = np.floor(lateral / flat.step[1]).astype(int)
    own = (row == row[100]) & (column == column[100])
    place = row[100] - round(flat.first[0] / flat.step[0]), column[100] - round(flat.first[1] / flat.step[1])
    assert flat.values_mm[place] == pytest.approx(of.thickness_mm[own].mean())


def test_difference_of_two_maps_counts_bins_that_both_have():
    nan = np.nan
    first, second = np.array([[1.0, 2.0, nan, nan]]), np.array([[0.5, nan, 3.0, nan]])
    maps = [FlatMap(of, np.isnan(of) & False, (0, 0), (1, 1), "", False) for of in (first, second)]
    found = difference(*maps)
    assert (found.mean_mm, found.sd_mm) == (0.5, 0.0)
    assert found.coverage == pytest.approx(1 / 3)
    nothing = difference(maps[0], FlatMap(np.full((1, 4), nan), maps[0].is_bare, (0, 0), (1, 1), "", False))
    assert nothing.coverage == 0
    assert np.isnan(nothing.mean_mm)


def test_a_map_less_itself_is_nothing_everywhere(knees):
    of = knees[0].cartilages["femoral_bone"]
    found = difference(*flattened([of, of]))
    assert (found.mean_mm, found.sd_mm, found.coverage) == (0, 0, 1)


def test_the_volume_has_thickness_where_bone_touches_cartilage_and_nowhere_else(knees):
    shape = (64, 96, 96)
    maps = list(knees[0].cartilages.values())
    volume = thickness_volume(maps, shape)
    known = ~np.isnan(volume)
    of_interfaces = np.zeros(shape, bool)
    for of in maps:
        of_interfaces[tuple(of.bone.interface.indices.T)] = True
    assert known.sum() > 0.7 * of_interfaces.sum()
    assert not (known & ~of_interfaces).any()
    assert 1 < np.nanmean(volume) < 4


def test_files_can_be_read_again(knees, tmp_path):
    of = knees[1].cartilages["tibial_bone"]
    flat = flattened([of])[0]
    write_flat(flat, tmp_path / "flat.nii.gz")
    image = nibabel.load(tmp_path / "flat.nii.gz")
    np.testing.assert_allclose(np.squeeze(image.get_fdata()).T, flat.values_mm, rtol=1e-6)
    np.testing.assert_allclose(image.header.get_zooms()[:2], flat.step[::-1], rtol=1e-6)
    write_surface(of, tmp_path / "surface.vtp")
    vtk = load_vtk()
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(tmp_path / "surface.vtp"))
    reader.Update()
    made = reader.GetOutput()
    assert made.GetNumberOfPoints() == len(of.plate.cartilage.vertices)
    thickness = made.GetPointData().GetArray("thickness_mm")
    found = np.array([thickness.GetValue(place) for place in of.measured[:20]])
    np.testing.assert_allclose(found, of.thickness_mm[:20], rtol=1e-5)
    # A left knee's lateral side is to the patient's left, in ITK's world above 0.
    lateral = of.plate.cartilage.vertices[0, 0]
    assert made.GetPoint(0)[0] == pytest.approx(lateral, rel=1e-5)
    mass = vtk.vtkMassProperties()
    mass.SetInputData(made)
    assert mass.GetVolume() > 0
    save_figure(flat_figure([("tibia", flat)]), tmp_path / "flat.png")
    assert (tmp_path / "flat.png").stat().st_size > 5000
