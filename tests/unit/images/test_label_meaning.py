"""Label maps whose values stand for something else are recognised by their shapes; those of knees are not refused."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from places import REAL_MAPS, SHARED
from scipy import ndimage

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.grids import oriented
from nnunetv2_anomaly.images.label_meaning import check_label_meaning, contradictions
from nnunetv2_anomaly.labels import LABELS, OAIZIB_CM_LABELS
from nnunetv2_anomaly.simulation.phantom import draw_phantom, render_label_map
from nnunetv2_anomaly.simulation.simulate import simulate_folder

SPACING_MM = (2.2, 2.2, 2.2)
real_maps = pytest.mark.skipif(not REAL_MAPS.is_dir(), reason="the masks of OAI ZIB-UQ are not on this machine")
#: other programs' tables: value of femur, femoral cartilage, tibia, tibial cartilage, patella, patellar cartilage
FOREIGN = {
    "cartilages first": (4, 1, 5, 2, 6, 3),
    "bones first": (1, 4, 2, 5, 3, 6),
    "tibia first": (3, 4, 1, 2, 5, 6),
    "tibia's cartilage as femur's": (1, 4, 3, 2, 5, 6),
    "cartilage as bone": (2, 1, 4, 3, 6, 5),
    "femur's cartilage as bone": (2, 1, 3, 4, 5, 6),
    "patella first": (3, 4, 5, 6, 1, 2),
    "lesions' values": (1, 7, 3, 8, 5, 9),
    "bones as lesions": (7, 2, 8, 4, 9, 6),
    "bones last": (5, 1, 6, 2, 7, 3),
}


@pytest.fixture(scope="module")
def knee():
    return render_label_map(
        draw_phantom(np.random.default_rng(4), lesion_share=1.0), shape=(64, 68, 56), spacing_mm=SPACING_MM
    )


def renamed(labels, values):
    """The six structures with other values; lesions become bone."""
    table = np.zeros(256, np.uint8)
    table[[1, 2, 3, 4, 5, 6]], table[[7, 8, 9]] = values, (values[0], values[2], values[4])
    return table[labels]


def told(labels, spacing_mm=SPACING_MM, names=LABELS):
    return "; ".join(contradictions(labels, spacing_mm, names))


def test_a_knee_is_what_its_labels_say(knee):
    assert told(knee) == ""
    assert told(np.where(knee > 4, 0, knee)) == ""


def plausible(knee):
    """What knees may be like all the same: name -> labels."""
    z, y, x = np.indices(knee.shape)
    bone = {
        part: np.isin(knee, values) for part, values in {"femur": (1, 7), "tibia": (3, 8), "patella": (5, 9)}.items()
    }
    at_femur = np.argwhere(ndimage.binary_dilation(knee == 2) & bone["femur"])
    near = ((np.indices(knee.shape).T - at_femur[len(at_femur) // 2]) ** 2).sum(axis=-1).T * 2.2**2 <= 20**2
    plateau = bone["tibia"] & (z > np.nonzero(bone["tibia"])[0].max() - 4)
    depth, height, width = knee.shape
    return {
        "a femoral lesion of 20 mm": np.where(near & bone["femur"], 7, knee),
        "a lesion of the whole plateau": np.where(plateau, 8, knee),
        "a lesion under all cartilage": np.where(ndimage.binary_dilation(knee == 4) & bone["tibia"], 8, knee),
        "a patella all lesion": np.where(bone["patella"], 9, knee),
        "bent": ndimage.rotate(knee, -20, axes=(0, 1), order=0),
        "nothing in the lowest third": np.where(z < depth // 3, 0, knee),
        "nothing in the posterior two thirds": np.where(y < height * 2 // 3, 0, knee),
        "nothing in two lateral thirds": np.where(x < width * 2 // 3, 0, knee),
    }


def test_knees_that_are_unusual_or_labelled_in_part_pass(knee):
    for name, labels in plausible(knee).items():
        assert told(labels) == "", name
    assert told(knee, np.array(SPACING_MM) * 0.6) == ""


@pytest.mark.parametrize("table", FOREIGN)
def test_foreign_tables_are_recognised(knee, table):
    assert told(renamed(knee, FOREIGN[table]))
    if 3 not in FOREIGN[table][4:]:  # else nothing of the four is a bone, and there is nothing to compare
        assert told(renamed(np.where(np.isin(knee, (5, 6, 9)), 0, knee), FOREIGN[table]))


def test_every_witness_is_named(knee):
    found = told(renamed(knee, FOREIGN["tibia first"]))
    assert "femoral_bone lies" in found
    assert "mm below tibial_bone (expected above)" in found
    assert "femoral_cartilage lies" in found
    found = told(renamed(knee, FOREIGN["cartilage as bone"]))
    for part in ("femoral", "tibial"):
        assert f"{part}_bone is" in found
        assert f"{part}_cartilage is" in found
    with pytest.raises(
        UserError, match=r"a\.nii: its labels have not the shapes .*tibial_bone is .* mm deep .* 1 femoral_b"
    ):
        check_label_meaning(renamed(knee, FOREIGN["cartilages first"]), SPACING_MM, LABELS, "a.nii")


def test_depths_are_millimetres():
    """A plate of 6 x 40 x 40 mm at 2 mm: its inner voxels lie 4 mm from the outside."""
    labels = np.zeros((30, 40, 40), np.uint8)
    labels[10:13, 5:25, 5:25] = LABELS["tibial_bone"]
    labels[[0, -1], [0, -1], [0, -1]] = LABELS["femoral_bone"]  # elsewhere the labels go on
    assert told(labels, (2.0, 2.0, 2.0)) == "tibial_bone is 4.0 mm deep (expected 9 or more)"
    assert told(labels, (4.0, 2.0, 2.0)) == ""
    assert told(labels[11:], (2.0, 2.0, 2.0)) == ""  # cut off: it may go on


def test_compartments_are_cartilage_and_other_labels_are_recognised(knee):
    four = np.where(knee > 4, 0, knee)
    left = np.arange(four.shape[2]) < four.shape[2] / 2
    apart = np.where((four == 4) & left, 5, four)
    assert told(apart, names=OAIZIB_CM_LABELS) == ""
    assert "patellar_bone is" in told(apart)  # the lateral compartment's value is the patella's in the other table
    assert "tibial_cartilage is" in told(np.where(knee > 5, 0, knee), names=OAIZIB_CM_LABELS)


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        pytest.param((48, 48, 40), (2.9, 2.9, 2.8), marks=pytest.mark.exhaustive),
        ((24, 32, 24), (5.8, 4.4, 4.7)),
    ],
)
def test_coarse_phantoms_pass(shape, spacing_mm):
    for seed in range(12):
        phantom = draw_phantom(np.random.default_rng(seed), lesion_share=1.0)
        assert told(render_label_map(phantom, shape=shape, spacing_mm=spacing_mm), spacing_mm) == ""


@pytest.mark.parametrize(
    "labels", [np.zeros((1, 1, 1)), np.ones((2, 2, 2)), np.eye(20)[None] * 3, np.full((20, 20, 20), 8)]
)
def test_next_to_nothing_and_volumes_without_a_surface_are_not_judged(labels):
    assert told(labels.astype(np.uint8), (1.0, 1.0, 0.5)) == ""


@real_maps
def test_real_knees_pass_whole_coarse_cut_and_without_labels():
    files = sorted(REAL_MAPS.glob("*.nii.gz"))
    assert len(files) == 20
    for file in files[::4]:
        image = oriented(sitk.ReadImage(str(file)))
        labels, spacing = sitk.GetArrayFromImage(image)[::2, ::2], np.array(image.GetSpacing()[::-1]) * (2, 2, 1)
        depth, height, width = labels.shape
        middle = int(np.median(np.nonzero(labels == 4)[0]))
        cases = {
            "whole": labels,
            "joint line": labels[middle - 14 : middle + 14],
            "half the breadth": labels[:, :, width // 2 :],
            "no patella": np.where(np.isin(labels, (5, 6, 9)), 0, labels),
            "half the patella": labels[:, : int(0.8 * height)],
            "top": labels[depth // 2 :],
        } | {f"{name} alone": np.where(labels == LABELS[name], labels, 0) for name in list(LABELS)[1:7]}
        for name, case in cases.items():
            assert contradictions(case, spacing, LABELS) == [], f"{file.name[:7]}, {name}"
        for step in (2, 3, 5):  # 1.4 to 3.6 mm
            steps = spacing * step
            assert contradictions(labels[::step, ::step, ::step], steps, LABELS) == [], f"{file.name[:7]}, {steps} mm"


@real_maps
@pytest.mark.exhaustive
def test_no_permutation_of_a_real_knees_values_passes():
    image = oriented(sitk.ReadImage(str(sorted(REAL_MAPS.glob("*.nii.gz"))[0])))
    labels = sitk.GetArrayFromImage(image)[::6, ::6, ::3]
    spacing = np.array(image.GetSpacing()[::-1]) * (6, 6, 3)
    passed = [
        values
        for values in itertools.permutations(range(1, 7))
        if not contradictions(renamed(labels, values), spacing, LABELS)
    ]
    assert passed == [(1, 2, 3, 4, 5, 6)]


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="the scripts that write these inputs are not at hand")
def test_foreign_map_of_the_shared_script_is_not_simulated(tmp_path):
    simulate_folder(tmp_path / "sim", num_phantoms=1, spacing_mm=(2.8, 2.9, 2.9), num_processes=1)
    script = SHARED / "cases" / "tables_and_labels.py"
    subprocess.run([sys.executable, script, tmp_path / "out", tmp_path / "sim"], check=True, timeout=120)
    with pytest.raises(UserError, match=r"foreign/knee\.nii\.gz: its labels have not the shapes .*femoral_bone is"):
        simulate_folder(tmp_path / "o", labels_folder=tmp_path / "out" / "foreign", num_processes=1)


def test_foreign_map_is_not_simulated(knee, tmp_path):
    image = sitk.GetImageFromArray(renamed(np.where(knee > 4, 0, knee), (5, 1, 6, 2, 0, 0)))
    image.SetSpacing(SPACING_MM)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    (tmp_path / "foreign").mkdir()
    sitk.WriteImage(image, str(tmp_path / "foreign" / "knee.nii.gz"))
    with pytest.raises(UserError, match=r"femoral_bone is .* mm deep .*expected 1 femoral_bone, 2 femoral_cartilage"):
        simulate_folder(tmp_path / "o", labels_folder=tmp_path / "foreign", num_processes=1)
    assert not list((tmp_path / "o").rglob("*.nii.gz"))
