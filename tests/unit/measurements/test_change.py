"""Change between two visits: a known motion, and lesions that grow, split, vanish and come."""

import math
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import ndimage
from test_knee import LESIONS, deepest, healthy, measure, measured, phantom, structures_of, turned, values

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.measurements.bones import Earlier
from nnunetv2_anomaly.measurements.change import (
    Limits,
    Obstacles,
    Pair,
    changed_values,
    kind_of,
    matched_lesions,
    pairs_of,
    read_pairs,
    verdict,
)
from nnunetv2_anomaly.measurements.frame import Motion
from nnunetv2_anomaly.measurements.registration import register
from nnunetv2_anomaly.simulation.phantom import draw_phantom, phantom_image


@pytest.mark.parametrize(
    ("before", "after", "change", "kind"),
    [
        (0, 1, 50, "new"), (1, 0, -50, "gone"), (1, 1, 6, "grown"), (1, 1, -6, "shrunk"), (1, 1, 5, "stable"),
        (1, 2, 0, "split"), (3, 1, 9, "merged"), (2, 2, 0, "split and merged"),
    ],
)  # fmt: skip
def test_what_became_of_lesions_by_hand(before, after, change, kind):
    assert kind_of(before, after, change, stable_mm3=5) == kind


def test_the_most_specific_limit_counts():
    rows = [
        {"structure": "", "region": "", "quantity": "ThCtAB", "limit": 0.3},
        {"structure": "", "region": "cMT", "quantity": "ThCtAB", "limit": 0.2},
        {"structure": "tibial_cartilage", "region": "cMT", "quantity": "ThCtAB", "limit": 0.1},
    ]
    limits = Limits(pd.DataFrame(rows))
    assert limits.of("tibial_cartilage", "cMT", "ThCtAB") == 0.1
    assert limits.of("medial_tibial_cartilage", "cMT", "ThCtAB") == 0.2
    assert limits.of("tibial_cartilage", "pMT", "ThCtAB") == 0.3
    assert math.isnan(limits.of("tibial_cartilage", "pMT", "VC"))
    assert [verdict(change, 0.1) for change in (0.1, -0.11, math.nan)] == ["within", "beyond", ""]
    assert verdict(1.0, math.nan) == ""


def test_visits_follow_one_another_by_number_and_knee():
    visits = [("a", "1", "12m", "left"), ("b", "1", "6m", "left"), ("c", "1", "6m", "right"), ("d", "1", "24m", "left")]
    known = {case: {"subject": of, "visit": visit, "side": side} for case, of, visit, side in visits}
    assert pairs_of(known) == [Pair("b", "a", "1"), Pair("a", "d", "1")]
    assert pairs_of({"a": {"subject": "1"}, "b": {"subject": "1"}}) == []
    named = {visit: {"subject": "1", "visit": visit} for visit in ("24m", "Baseline", "12m")}
    assert pairs_of(named) == [Pair("Baseline", "12m", "1"), Pair("12m", "24m", "1")]
    with pytest.raises(UserError, match="the visits follow-up, 12m of subject 1 have no order"):
        pairs_of({visit: {"subject": "1", "visit": visit} for visit in ("follow-up", "12m")})
    with pytest.raises(UserError, match="has two cases of visit 12m for a knee of unknown side"):
        pairs_of({case: {"subject": "1", "visit": visit} for case, visit in (("a", "12m"), ("b", "12m"), ("c", "6m"))})
    assert pairs_of({case: {"subject": "1", "visit": "12m"} for case in "ab"}) == []  # both knees of one visit


def test_tables_that_cannot_be(tmp_path):
    (tmp_path / "pairs.csv").write_text("first,second\na,b\n")
    with pytest.raises(UserError, match="lacks the column after, before"):
        read_pairs(tmp_path / "pairs.csv")
    (tmp_path / "pairs.csv").write_text("before,after\na,a\n")
    with pytest.raises(UserError, match="pairs a with itself"):
        read_pairs(tmp_path / "pairs.csv")
    (tmp_path / "limits.csv").write_text("quantity,limit\nVC,1\nVC,2\n")
    with pytest.raises(UserError, match="have VC twice"):
        Limits.read(tmp_path / "limits.csv")
    (tmp_path / "limits.csv").write_text('quantity,limit\nVC,"1,5"\n')
    with pytest.raises(UserError, match="has the limit 1,5; expected a number"):
        Limits.read(tmp_path / "limits.csv")
    (tmp_path / "limits.csv").write_text("quantity,limit\nVC,-1\n")
    with pytest.raises(UserError, match="limit that is not a number of at least 0"):
        Limits.read(tmp_path / "limits.csv")


def with_lesions(image, boxes):
    """A knee with cubes of lesions in its bones. Args: boxes: (bone, centre, half edges in voxels)."""
    labels = sitk.GetArrayFromImage(image)
    for bone, centre, half in boxes:
        cube = tuple(slice(c - h, c + h + 1) for c, h in zip(centre, half, strict=True))
        labels[cube][labels[cube] == {"femoral_bone": 1, "tibial_bone": 3, "patellar_bone": 5}[bone]] = LESIONS[bone]
    made = sitk.GetImageFromArray(labels)
    made.CopyInformation(image)
    return made


@pytest.fixture(scope="module")
def two_visits():
    """Earlier and later measurements of a phantom that moved rigidly; what each lesion did, by its bone."""
    image = healthy(phantom())
    labels = sitk.GetArrayFromImage(image)
    deep = {
        bone: np.array(deepest(np.argwhere(labels == of), labels.shape))
        for bone, of in zip(LESIONS, (1, 3, 5), strict=True)
    }
    femur, tibia, patella = deep.values()
    along = np.array([0, 0, 1])
    shift = 9 * along
    before = [
        ("femoral_bone", femur, (2, 2, 2)),  # grows
        ("tibial_bone", tibia, (1, 1, 4)),  # splits
        ("tibial_bone", tibia + shift, (1, 1, 1)),  # vanishes
        ("patellar_bone", patella, (1, 1, 1)),  # stays
    ]
    after = [
        ("femoral_bone", femur, (3, 3, 3)),
        ("femoral_bone", femur + shift, (1, 1, 1)),  # is new
        ("tibial_bone", tibia - 3 * along, (1, 1, 1)),
        ("tibial_bone", tibia + 3 * along, (1, 1, 1)),
        ("patellar_bone", patella, (1, 1, 1)),
    ]
    moved = turned(with_lesions(image, after), 9, (0.2, 1, 0.4))
    moved.SetOrigin(np.add(moved.GetOrigin(), (6.0, -5.0, 8.0)).tolist())
    earlier = measured(with_lesions(image, before), thickness=True)
    plain = measured(moved)
    motions = {name: register(plain.bones[name], of) for name, of in earlier.bones.items()}
    there = {name: Earlier(earlier.bones[name].landmarks, motion) for name, motion in motions.items()}
    return earlier, measured(moved, thickness=True, earlier=there), motions


def seen(visits, refused=MappingProxyType({})):
    return Obstacles.of(visits[0], visits[1], refused)


def test_bones_come_back_to_where_they_were(two_visits):
    earlier, later, motions = two_visits
    for name, of in earlier.bones.items():
        assert motions[name].residual_mm < 0.5
        np.testing.assert_allclose(motions[name].rotation @ motions[name].rotation.T, np.eye(3), atol=1e-6)
        # The voxels are the same ones: registered, each lies where it lay.
        places = [bone.space.points(bone.indices[::97]) for bone in (of, later.bones[name])]
        assert np.linalg.norm(places[0] - places[1], axis=1).max() < 0.3, name


def test_every_lesion_is_followed(two_visits):
    rows = matched_lesions(*two_visits[:2], seen(two_visits), Limits(), stable_percent=10)
    found = sorted((row["bone"], row["kind"]) for row in rows)
    assert found == [
        ("femoral_bone", "grown"), ("femoral_bone", "new"), ("patellar_bone", "stable"), ("tibial_bone", "gone"),
        ("tibial_bone", "split"),
    ]  # fmt: skip
    (grown,) = (row for row in rows if row["kind"] == "grown")
    assert grown["change_percent"] == pytest.approx(100 * (343 - 125) / 125)
    assert {row["verdict"] for row in rows} == {""}
    limits = Limits(pd.DataFrame([{"region": "lesion", "quantity": "lesion_volume", "limit": 1e9}]))
    judged = matched_lesions(*two_visits[:2], seen(two_visits), limits, stable_percent=10)
    assert {row["verdict"] for row in judged} == {"within"}
    assert "grown" not in {row["kind"] for row in judged}


def test_values_are_taken_in_the_earlier_visits_regions(two_visits):
    earlier, later, _ = two_visits
    rows = {
        (r["structure"], r["region"], r["quantity"]): r
        for r in changed_values(earlier, later, seen(two_visits), Limits())
    }
    for key, row in rows.items():
        if key[2] in ("volume", "VC"):  # nothing but lesions has changed
            assert row["after"] == pytest.approx(row["before"], rel=0.03, abs=40), key
        if key[2] == "ThCtAB":
            assert row["change"] == pytest.approx(0, abs=0.1), key
    of_lesions = rows["femoral_bone", "all", "lesion_volume"]
    assert of_lesions["change"] == pytest.approx(of_lesions["after"] - of_lesions["before"])
    assert of_lesions["change"] > 0
    assert rows["tibial_bone", "all", "lesion_count"]["change"] == 0  # two before, two after


def test_thinner_cartilage_is_found_in_its_subregion():
    """Cartilage worn by a voxel over the medial tibia, by the same bones."""
    parameters = draw_phantom(np.random.default_rng(0), lesion_share=0)
    image = phantom_image(parameters, size=(150, 150, 76), spacing_mm=(0.92, 0.92, 1.5))
    labels = sitk.GetArrayFromImage(image)
    earlier = measured(image, thickness=True)
    bone = earlier.bones["tibial_bone"]
    cartilage = np.argwhere(labels == 4)
    medial = bone.landmarks.frame.coordinates(bone.space.points(cartilage))[:, 0] < 0
    beside = np.isin(labels, (0, 2))
    surface = ndimage.binary_dilation(beside, ndimage.generate_binary_structure(3, 1)) & (labels == 4)
    worn = cartilage[medial]
    worn = worn[surface[tuple(worn.T)]]
    labels[tuple(worn.T)] = 0
    later_image = sitk.GetImageFromArray(labels)
    later_image.CopyInformation(image)
    still = Motion(np.eye(3), np.zeros(3))
    there = {name: Earlier(of.landmarks, still) for name, of in earlier.bones.items()}
    later = measured(later_image, thickness=True, earlier=there)
    old, new = values(earlier), values(later)
    key = ("tibial_cartilage", "MT", "ThCtAB")
    assert new[key] - old[key] < -0.4
    key = ("tibial_cartilage", "LT", "ThCtAB")
    assert new[key] - old[key] == pytest.approx(0, abs=0.03)


def test_a_bone_that_was_not_registered_is_compared_as_a_whole_alone(two_visits):
    earlier, later, _ = two_visits
    rows = changed_values(earlier, later, seen(two_visits, {"tibial_bone": "registration refused"}), Limits())
    of_bone = [row for row in rows if row["structure"] == "tibial_bone"]
    whole = [row for row in of_bone if row["region"] == "all"]
    assert all(not math.isnan(row["change"]) for row in whole)
    assert all(math.isnan(row["change"]) and row["flag"] for row in of_bone if row["region"] != "all")


def compared(before, after, structures=None):
    """Lesion matches and changes of two images of one knee."""
    take = measured if structures is None else (lambda image, **options: measure(image, structures, **options))
    earlier, plain = take(before), take(after)
    there, refused = {}, {}
    for name in earlier.bones.keys() & plain.bones.keys():
        motion = register(plain.bones[name], earlier.bones[name])
        if motion.residual_mm <= 1:
            there[name] = Earlier(earlier.bones[name].landmarks, motion)
        else:
            refused[name] = "refused"
    later = take(after, earlier=there)
    obstacles = Obstacles.of(earlier, later, refused)
    values_of = changed_values(earlier, later, obstacles, Limits())
    rows = {(row["structure"], row["region"], row["quantity"]): row for row in values_of}
    return matched_lesions(earlier, later, obstacles, Limits(), 10), rows


def test_bones_without_cartilage_are_followed_by_their_surfaces():
    parameters = draw_phantom(np.random.default_rng(1), side="right", lesion_share=1.0)
    image = phantom_image(parameters, size=(96, 96, 64), spacing_mm=(1.45, 1.45, 1.75))
    image = sitk.ChangeLabel(image, {2.0: 0, 4.0: 0, 6.0: 0})
    names = {"femoral_bone": 1, "tibial_bone": 3, "patellar_bone": 5, "femoral_lesion": 7, "tibial_lesion": 8}
    matches, _ = compared(image, turned(image, 5, (1, 0, 0)), structures_of({**names, "patellar_lesion": 9}))
    assert matches
    assert {row["kind"] for row in matches} == {"stable"}


def test_what_another_image_does_not_show_is_not_compared():
    """The later image ends above a lesion of the femur's shaft, and has no patella."""
    image = healthy(phantom())
    labels = sitk.GetArrayFromImage(image)
    femur = np.argwhere(labels == 1)
    high = femur[femur[:, 0] == femur[:, 0].max() - 2]
    inner = high[np.argmin(((high - high.mean(axis=0)) ** 2).sum(axis=1))]
    patella = deepest(np.argwhere(labels == 5), labels.shape)
    before = with_lesions(image, [("femoral_bone", inner, (1, 2, 2)), ("patellar_bone", patella, (1, 1, 1))])
    later = sitk.ChangeLabel(before, {5.0: 0, 6.0: 0, 9.0: 0})[:, :, : int(inner[0]) - 1]
    matches, rows = compared(before, later)
    assert {row["bone"] for row in matches} == {"femoral_bone", "patellar_bone"}
    assert {row["kind"] for row in matches} == {"not compared"}
    assert all(np.isnan(row["change_mm3"]) for row in matches)
    of_lesions = rows["femoral_bone", "all", "lesion_volume"]
    assert np.isnan(of_lesions["change"])
    assert "a lesion lies outside the other image" in of_lesions["flag"]
    assert "an image ends at the bone" in rows["femoral_bone", "all", "volume"]["flag"]
    assert np.isnan(rows["patellar_bone", "all", "volume"]["change"])
    for row in rows.values():
        assert row["flag"] or not np.isnan(row["change"]), row


def test_a_bone_too_small_to_register_is_refused():
    image = healthy(phantom())
    labels = sitk.GetArrayFromImage(image)
    centre = deepest(np.argwhere(labels == 5), labels.shape)
    labels[np.isin(labels, (5, 6))] = 0
    labels[centre] = 5
    small = sitk.GetImageFromArray(labels)
    small.CopyInformation(image)
    bones = measured(small).bones
    assert math.isinf(register(bones["patellar_bone"], bones["patellar_bone"]).residual_mm)
