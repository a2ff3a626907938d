"""Left or right: words, anatomy, and what happens when sources conflict."""

import numpy as np
import pytest
import SimpleITK as sitk
from places import REAL_MAPS

from nnunetv2_anomaly.conversion import side
from nnunetv2_anomaly.conversion.asymmetries import TYPICAL_OF_RIGHT
from nnunetv2_anomaly.conversion.side import SideEvidence, agreed_side, side_from_labels, side_from_text
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images import grids
from nnunetv2_anomaly.labels import LABELS
from nnunetv2_anomaly.simulation.phantom import draw_phantom, render_label_map

SPACING_MM = (2.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def knee():
    """A right knee of simple shapes, (Z, Y, X) on a grid of 2 mm: lateral is where x is large."""
    z, y, x = (2.0 * axis + 1.0 for axis in np.ogrid[:70, :60, :56])
    x, y = x - 56.0, y - 60.0
    labels = np.zeros((70, 60, 56), np.uint8)

    def put(name, inside):
        labels[inside & (labels == 0)] = LABELS[name]

    # Tibia: the medial plateau is longer, the shaft in the middle, the tuberosity in front of it and lateral.
    put("tibial_bone", ((x / 37) ** 2 + (y / np.where(x < 0, 25, 21)) ** 2 < 1) & (z > 32) & (z < 54))
    put("tibial_bone", (abs(x) < 20) & (abs(y) < 16) & (z <= 32))
    put("tibial_bone", (abs(x - 7) < 8) & (y >= 16) & (y < 22) & (z <= 32))
    put("tibial_cartilage", (abs(x + 20) < 12) & (abs(y) < 22) & (z >= 54) & (z < 57))
    put("tibial_cartilage", (abs(x - 20) < 14) & (abs(y) < 18) & (z >= 54) & (z < 57))
    # Femur: the shaft stands lateral on the condyles, so does the trochlea, and its lateral facet is higher.
    put("femoral_bone", (x / 38) ** 2 + (y / 28) ** 2 + ((z - 81) / 20) ** 4 < 1)
    put("femoral_bone", (abs(x - 5) < 26) & (abs(y - 6) < 18) & (z >= 98))
    outer = (x / 38) ** 2 + (y / 32) ** 2 + ((z - 81) / 23) ** 4 < 1
    put("femoral_cartilage", outer & (z < 67))
    put("femoral_cartilage", outer & (y > 10) & (x > -14) & (x < 34) & (z < np.where(x > 0, 94, 88)))
    return labels


def mirrored(labels):
    return labels[:, :, ::-1]


def asymmetries(labels, spacing_mm):
    sampled, axes, distance_mm = side._sample(labels, np.array(spacing_mm))
    femoral, tibial = side._bones(sampled, axes, LABELS, distance_mm)
    return femoral | tibial


def without(labels, *names):
    return np.where(np.isin(labels, [LABELS[name] for name in names]), 0, labels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SAG_3D_DESS_RIGHT", "right"),
        ("SAG_3D_DESS_LEFT", "left"),
        ("sag 3d dess left", "left"),
        ("9001104_00m_SAG_3D_DESS_RIGHT.nii.gz", "right"),
        ("RIGHT2", "right"),
        ("SAG_3D_DESS", None),
        ("", None),
        ("COR_T1_RIGHT_and_LEFT", None),
        ("brightness_cleft", None),
        ("SAG_RT", None),
        ("LT_knee", None),
    ],
)
def test_only_the_whole_words_right_and_left_name_a_side(text, expected):
    assert side_from_text(text) == expected


def test_a_right_knee_is_told_from_its_mirror_image(knee):
    assert side_from_labels(knee, SPACING_MM, LABELS).side == "right"
    assert side_from_labels(mirrored(knee), SPACING_MM, LABELS).side == "left"


@pytest.mark.parametrize("width", [56, 55])
@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (2.0, 2.0, 1.9), (1.9, 2.1, 2.0)])
def test_mirroring_negates_the_score(knee, width, spacing_mm):
    knee = knee[:, :, :width]
    score = side_from_labels(knee, spacing_mm, LABELS).score
    assert score > side.LEAST_SCORE
    assert side_from_labels(mirrored(knee), spacing_mm, LABELS).score == -score


def test_mirroring_negates_the_score_where_voxels_are_skipped(knee):
    fine = knee.repeat(4, axis=0).repeat(4, axis=1).repeat(3, axis=2)
    spacing_mm = (0.5, 0.5, 2 / 3)
    score = side_from_labels(fine, spacing_mm, LABELS).score
    assert score > side.LEAST_SCORE
    assert side_from_labels(mirrored(fine), spacing_mm, LABELS).score == -score


def test_asymmetries_are_the_millimetres_that_were_built(knee):
    found = asymmetries(knee, SPACING_MM)
    assert set(found) == set(TYPICAL_OF_RIGHT)
    assert found["femoral_shaft_lateral_mm"] == pytest.approx(5, abs=1)
    assert found["trochlea_lateral_mm"] == pytest.approx(10, abs=3)
    assert found["trochlea_higher_mm"] == pytest.approx(3, abs=1)
    assert found["tibial_tuberosity_lateral_mm"] == pytest.approx(7, abs=1)
    assert found["tibial_plateau_shorter_mm"] == pytest.approx((25 - 21) / 2, abs=0.3)  # an ellipse has half its axis
    assert found["tibial_cartilage_rounder"] == pytest.approx(np.log((22 / 12) / (18 / 14)), abs=0.05)


@pytest.mark.parametrize("moved_mm", [1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (1.9, 2.1, 2.0)])
def test_points_that_move_a_little_change_the_asymmetries_as_little(knee, monkeypatch, moved_mm, spacing_mm):
    built = asymmetries(knee, spacing_mm)
    exact = side._points
    for seed in range(5):
        random = np.random.default_rng(seed)

        def moved(*arguments, random=random):
            points = exact(*arguments)
            return points + random.uniform(-moved_mm, moved_mm, points.shape)

        with monkeypatch.context() as patch:
            patch.setattr(side, "_points", moved)
            assert asymmetries(knee, spacing_mm) == pytest.approx(built, rel=0, abs=2 * moved_mm)


@pytest.mark.parametrize("missing", [("tibial_bone", "tibial_cartilage"), ("femoral_bone", "femoral_cartilage")])
def test_one_bone_with_its_cartilage_is_enough(knee, missing):
    labels = without(knee, *missing)
    names = {name: value for name, value in LABELS.items() if name not in missing}
    assert side_from_labels(labels, SPACING_MM, names).side == "right"
    assert side_from_labels(mirrored(labels), SPACING_MM, names).side == "left"


@pytest.mark.parametrize(
    "kept",
    [
        (),
        ("femoral_bone",),
        ("femoral_cartilage",),
        ("tibial_bone",),
        ("tibial_cartilage",),
        ("femoral_bone", "tibial_bone"),
        ("femoral_cartilage", "tibial_cartilage"),
    ],
)
def test_too_few_labels_tell_no_side(knee, kept):
    names = {name: LABELS[name] for name in kept}
    assert side_from_labels(knee, SPACING_MM, names).side is None
    labels = without(knee, *(set(LABELS) - set(kept)))
    assert side_from_labels(labels, SPACING_MM, LABELS).side is None


def test_bones_that_contradict_each_other_tell_no_side(knee):
    tibia = np.isin(knee, (3, 4))
    labels = np.where(tibia, knee, 0) + mirrored(np.where(tibia, 0, knee))
    assert side_from_labels(labels, SPACING_MM, LABELS).side is None


def test_lesions_count_as_their_bone(knee):
    labels = knee.copy()
    labels[:, ::3][labels[:, ::3] == LABELS["femoral_bone"]] = LABELS["femoral_lesion"]
    labels[:, ::3][labels[:, ::3] == LABELS["tibial_bone"]] = LABELS["tibial_lesion"]
    assert side_from_labels(labels, SPACING_MM, LABELS) == side_from_labels(knee, SPACING_MM, LABELS)


@pytest.mark.parametrize(("seed", "true_side"), [(seed, ("right", "left")[seed % 2]) for seed in range(6)])
def test_a_phantom_is_never_told_the_wrong_side(seed, true_side):
    phantom = draw_phantom(np.random.default_rng(seed), side=true_side)
    for shape, spacing_mm in (((64, 64, 56), (2.0, 2.0, 2.0)), ((24, 32, 28), (5.0, 4.4, 4.0))):
        labels = render_label_map(phantom, shape=shape, spacing_mm=spacing_mm)
        assert side_from_labels(labels, spacing_mm, LABELS).side in (true_side, None)


def test_a_symmetric_knee_has_no_side(knee):
    labels = knee.copy()
    labels[:, :, :28] = mirrored(labels)[:, :, :28]
    evidence = side_from_labels(labels, SPACING_MM, LABELS)
    assert evidence.side is None
    assert evidence.score == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("shape", [(24, 32, 28), (70, 60, 56), (1, 40, 40), (2, 2, 2), (40, 40, 1), (0, 4, 4)])
def test_noise_and_tiny_volumes_have_no_side(shape):
    labels = np.random.default_rng(0).integers(0, 5, shape).astype(np.uint8)
    for spacing_mm in (SPACING_MM, (0.3, 0.3, 0.3)):
        assert side_from_labels(labels, spacing_mm, LABELS).side is None
        assert side_from_labels(np.zeros_like(labels), spacing_mm, LABELS).side is None


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_joint_of_no_adult_size_has_no_side(knee, factor):
    assert side_from_labels(knee, [s * factor for s in SPACING_MM], LABELS).side is None


@pytest.mark.parametrize("gone", [slice(0, 25), slice(31, None)])
def test_half_a_joint_has_no_side_whether_cropped_or_blanked(knee, gone):
    blanked = knee.copy()
    blanked[:, :, gone] = 0
    assert side_from_labels(blanked, SPACING_MM, LABELS).side is None
    assert side_from_labels(np.delete(knee, gone, axis=2), SPACING_MM, LABELS).side is None


def test_a_knee_upside_down_has_no_side(knee):
    assert side_from_labels(knee[::-1], SPACING_MM, LABELS) == SideEvidence(None, 0.0)


def test_names_of_the_medial_and_lateral_cartilage_decide():
    labels = np.zeros((20, 20, 50), np.uint8)
    labels[8:10, 5:15, 5:15], labels[8:10, 5:15, 27:37] = 4, 5
    names = {"medial_tibial_cartilage": 4, "lateral_tibial_cartilage": 5}
    evidence = side_from_labels(labels, SPACING_MM, names)
    assert (evidence.side, evidence.score) == ("right", pytest.approx(44 / 42))
    assert side_from_labels(mirrored(labels), SPACING_MM, names).side == "left"
    # 22 voxels of 0.5 mm are 11 mm: compartments of no adult knee, whatever their names.
    assert side_from_labels(labels, (2.0, 2.0, 0.5), names) == SideEvidence(None, pytest.approx(11 / 42))


def test_names_without_a_voxel_of_one_compartment_fall_back_to_the_shape(knee):
    names = {name: value for name, value in LABELS.items() if value < 4} | {
        "medial_tibial_cartilage": 4,
        "lateral_tibial_cartilage": 5,
    }
    assert side_from_labels(knee, SPACING_MM, names) == side_from_labels(knee, SPACING_MM, LABELS)


COMPARTMENTS = {name: value for name, value in LABELS.items() if value < 4} | {
    "medial_tibial_cartilage": 4,
    "lateral_tibial_cartilage": 5,
}


def parted(labels, exchanged=False):
    """Tibial cartilage in a medial half, where x is small in a right knee, and a lateral one, or the other way."""
    lateral = np.arange(labels.shape[2]) > np.median(np.nonzero(labels == 4)[2])
    return np.where((labels == 4) & (lateral != exchanged), 5, np.where(labels > 4, 0, labels))


@pytest.mark.parametrize("flip", [lambda labels: labels, mirrored])
def test_names_of_compartments_that_the_shape_contradicts_are_an_error(knee, flip):
    side_found, other = ("right", "left") if flip is not mirrored else ("left", "right")
    assert side_from_labels(flip(parted(knee)), SPACING_MM, COMPARTMENTS).side == side_found
    shape = side_from_labels(flip(knee), SPACING_MM, LABELS).score
    with pytest.raises(UserError) as caught:
        side_from_labels(flip(parted(knee, exchanged=True)), SPACING_MM, COMPARTMENTS)
    assert f"is {other} by the places of medial and lateral tibial cartilage (score" in str(caught.value)
    assert f"and {side_found} by the shape of bones and cartilages (score {shape:+.2f};" in str(caught.value)


def test_a_shape_that_says_little_leaves_the_side_to_the_names():
    for seed in range(6):  # phantoms are nearly symmetric
        true_side = ("right", "left")[seed % 2]
        phantom = draw_phantom(np.random.default_rng(seed), side=true_side)
        labels = parted(render_label_map(phantom, shape=(64, 64, 56), spacing_mm=SPACING_MM), true_side == "left")
        assert side_from_labels(labels, SPACING_MM, COMPARTMENTS).side == true_side


RIGHT, LEFT, UNCLEAR = SideEvidence("right", 0.93), SideEvidence("left", -1.02), SideEvidence(None, 0.21)


@pytest.mark.parametrize(
    ("description", "table", "anatomy", "expected"),
    [
        (None, None, UNCLEAR, None),
        ("right", None, UNCLEAR, "right"),
        (None, "left", UNCLEAR, "left"),
        (None, None, LEFT, "left"),
        ("right", "right", RIGHT, "right"),
        ("left", "left", UNCLEAR, "left"),
    ],
)
def test_sources_that_agree_give_the_side(description, table, anatomy, expected):
    assert agreed_side(description, table, anatomy) == expected


@pytest.mark.parametrize(
    ("description", "table", "anatomy", "shown"),
    [
        (
            "left",
            None,
            RIGHT,
            ("left by the series", "not given by the subject table", "right by the anatomy", "+0.93"),
        ),
        (None, "right", LEFT, ("not given by the series", "right by the subject", "left by the anatomy", "-1.02")),
        ("left", "right", UNCLEAR, ("left by the series", "right by the subject", "not given by the anatomy", "+0.21")),
        ("right", "right", LEFT, ("right by the series", "right by the subject", "left by the anatomy", "-1.02")),
    ],
)
def test_a_conflict_is_an_error_that_shows_all_three_sources(description, table, anatomy, shown):
    with pytest.raises(UserError) as caught:
        agreed_side(description, table, anatomy)
    sentence = str(caught.value)
    assert all(part in sentence for part in (*shown, "expected one side", "look at the image"))


@pytest.mark.exhaustive
@pytest.mark.skipif(not REAL_MAPS.is_dir(), reason="the published masks of OAI ZIB-UQ are not on this machine")
def test_all_published_masks_are_right_knees_and_their_mirror_images_left_ones():
    scores, typical = [], []
    for file in sorted(REAL_MAPS.glob("*.nii.gz")):
        mask = grids.oriented(sitk.ReadImage(file))
        labels = sitk.GetArrayFromImage(mask)[::4, ::4]
        spacing_mm = np.array(mask.GetSpacing()[::-1]) * (4, 4, 1)
        bones_and_cartilages = {name: LABELS[name] for name in list(LABELS)[1:5]}
        labels = np.where(labels == 7, 1, np.where(labels == 8, 3, np.where(labels > 4, 0, labels)))
        told, opposite = (side_from_labels(m, spacing_mm, bones_and_cartilages) for m in (labels, mirrored(labels)))
        assert (told.side, opposite.side) == ("right", "left"), f"{file.name[:7]}: {told}, mirrored {opposite}"
        assert opposite.score == -told.score
        scores.append(told.score)
        typical.append(asymmetries(labels, spacing_mm))
    assert len(scores) == 20
    assert min(scores) == pytest.approx(0.79, abs=0.02)
    assert max(scores) == pytest.approx(1.18, abs=0.02)
    for name, value in TYPICAL_OF_RIGHT.items():
        assert np.mean([found[name] for found in typical]) == pytest.approx(value, rel=0.05)


@pytest.mark.skipif(not REAL_MAPS.is_dir(), reason="the published masks of OAI ZIB-UQ are not on this machine")
def test_margin_between_right_and_exchanged_compartments_of_real_knees():
    """A shape contradicts from 0.6 on; real ones score 0.79 or more for their own side."""
    for file in sorted(REAL_MAPS.glob("*.nii.gz"))[::4]:
        mask = grids.oriented(sitk.ReadImage(file))
        labels, spacing_mm = sitk.GetArrayFromImage(mask)[::4, ::4], np.array(mask.GetSpacing()[::-1]) * (4, 4, 1)
        assert side_from_labels(labels, spacing_mm, LABELS).score > 0.78 > 0.6 == side.LEAST_SCORE
        assert side_from_labels(parted(labels), spacing_mm, COMPARTMENTS).side == "right"
        assert side_from_labels(mirrored(parted(labels)), spacing_mm, COMPARTMENTS).side == "left"
        with pytest.raises(UserError, match=r"is left by the places of .* and right by the shape"):
            side_from_labels(parted(labels, exchanged=True), spacing_mm, COMPARTMENTS)


@pytest.mark.skipif(not REAL_MAPS.is_dir(), reason="the mean knee of 103 is not on this machine")
def test_mean_knee_with_compartments_of_its_own():
    mask = grids.oriented(sitk.ReadImage(next((REAL_MAPS.parent / "clair_knee_103r").glob("*segmentation*"))))
    labels, spacing_mm = sitk.GetArrayFromImage(mask), mask.GetSpacing()[::-1]
    assert side_from_labels(labels, spacing_mm, COMPARTMENTS).side == "right"
    exchanged = np.choose(labels, [0, 1, 2, 3, 5, 4])
    with pytest.raises(UserError, match="is left by the places of"):
        side_from_labels(exchanged, spacing_mm, COMPARTMENTS)
