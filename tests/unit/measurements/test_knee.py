"""Places and measures of a knee: the same however its voxels are turned, and what was put in is found."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from places import SHARED
from scipy import ndimage

from nnunetv2_anomaly.label_roles import label_roles
from nnunetv2_anomaly.labels import LABELS
from nnunetv2_anomaly.measurements.bones import Options, Structures, bones_of
from nnunetv2_anomaly.measurements.cartilage import AREA_GRADES
from nnunetv2_anomaly.measurements.frame import Space
from nnunetv2_anomaly.measurements.knee import measure_knee
from nnunetv2_anomaly.measurements.marrow_lesions import SIZE_GRADES
from nnunetv2_anomaly.measurements.regions import PLACES, Conventions, moaks_grade
from nnunetv2_anomaly.simulation.phantom import draw_phantom, phantom_image

STRUCTURES = Structures.of({name: (value,) for name, value in LABELS.items() if value}, label_roles(LABELS))
LESIONS = {"femoral_bone": 7, "tibial_bone": 8, "patellar_bone": 9}


def phantom():
    image = phantom_image(draw_phantom(np.random.default_rng(0)), size=(96, 96, 64), spacing_mm=(1.45, 1.45, 1.75))
    return image


def real_masks():
    return sorted((SHARED / "data" / "oai_zib_uq").glob("*.nii.gz"))


@pytest.fixture(scope="module", params=["phantom", pytest.param("real", marks=pytest.mark.exhaustive)])
def knee(request):
    """A right knee: a procedural one, and a real one at half the resolution."""
    if request.param == "phantom":
        return phantom()
    if not real_masks():
        pytest.skip("the real segmentations are not beside this checkout")
    return sitk.ReadImage(str(real_masks()[1]))[::2, ::2, ::2]


def healthy(image):
    return sitk.ChangeLabel(image, {7.0: 1.0, 8.0: 3.0, 9.0: 5.0})


def measured(image, side="right", **options):
    labels = sitk.GetArrayFromImage(image)
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    return measure_knee(labels, image.GetOrigin(), steps[:, ::-1], STRUCTURES, side, *taken(**options))


def taken(*, thickness=False, earlier=None, **options):
    """Options as ``measure_knee`` takes them."""
    quantities = ("thickness",) if thickness else ()
    return Options(**options, quantities=quantities), earlier or {}


def values(found):
    return {(row["structure"], row["region"], row["quantity"]): row["value"] for row in found.rows}


def mirrored(image):
    """The knee of the other side: mirrored in the patient, in place."""
    direction = np.diag([-1.0, 1.0, 1.0]) @ np.array(image.GetDirection()).reshape(3, 3)
    other = sitk.Image(image)
    other.SetDirection(direction.ravel().tolist())
    other.SetOrigin((-image.GetOrigin()[0], *image.GetOrigin()[1:]))
    return other


def turned(image, degrees, axis):
    """The same voxels in a patient who lies turned."""
    transform = sitk.VersorTransform([float(of) for of in axis], math.radians(degrees))
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    other = sitk.Image(image)
    other.SetDirection((matrix @ np.array(image.GetDirection()).reshape(3, 3)).ravel().tolist())
    other.SetOrigin((matrix @ np.array(image.GetOrigin())).tolist())
    return other


@pytest.mark.parametrize("change", ["mirrored", "axes", "flipped"])
def test_numbers_do_not_hang_on_side_and_order_of_axes(knee, change):
    expected = values(measured(knee))
    if change == "mirrored":
        found = values(measured(mirrored(knee), "left"))
    elif change == "axes":
        found = values(measured(sitk.PermuteAxes(knee, [2, 0, 1])))
    else:
        found = values(measured(sitk.Flip(knee, [True, False, True])))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=5.0, nan_ok=True), key


@pytest.mark.parametrize(("degrees", "axis"), [(10, (1, 0, 0)), (10, (0, 1, 0)), (10, (0, 0, 1))])
def test_places_turn_with_a_turned_knee(knee, degrees, axis):
    expected, found = values(measured(knee)), values(measured(turned(knee, degrees, axis)))
    for kind in ("femoral_bone", "tibial_bone", "patellar_bone"):
        whole = expected[kind, "all", "volume"]
        for key, value in expected.items():
            if key[0] == kind and key[2] == "volume":
                assert found[key] == pytest.approx(value, abs=0.02 * whole), key


@pytest.mark.parametrize("pose", ["right", "left", "oblique", "another order of axes"])
def test_lesion_of_known_volume_is_found_in_each_of_the_15_places(knee, centres, pose):
    image = healthy(knee)
    labels = sitk.GetArrayFromImage(image)
    voxel = math.prod(image.GetSpacing())
    places = {name: bone for bone, kind in zip(LESIONS, PLACES, strict=True) for name in PLACES[kind]}
    assert len(places) == 15
    volumes = {}
    for place, bone in places.items():
        box = tuple(slice(c - 1, c + 2) for c in centres[place])
        inside = labels[box] == {"femoral_bone": 1, "tibial_bone": 3, "patellar_bone": 5}[bone]
        labels[box][inside] = LESIONS[bone]
        volumes[place] = inside.sum() * voxel
    made = sitk.GetImageFromArray(labels)
    made.CopyInformation(image)
    if pose == "left":
        made = mirrored(made)
    elif pose == "oblique":
        made = turned(made, 12, (1, 0.5, 0.3))
    elif pose == "another order of axes":
        made = sitk.PermuteAxes(made, [1, 2, 0])
    found = measured(made, "left" if pose == "left" else "right")
    # The knee's own axes are found in the turned one to a voxel or so: a small lesion may reach across a border.
    where = {}
    for lesion in found.lesions:
        shares = {name.removeprefix("share_"): of for name, of in lesion.items() if name.startswith("share_")}
        where[max(shares, key=shares.get)] = lesion
        assert sum(shares.values()) == pytest.approx(1)
    assert set(where) == set(places)
    for place, bone in places.items():
        assert where[place]["bone"] == bone
        assert where[place]["volume_mm3"] == pytest.approx(volumes[place], rel=1e-6)
    sums = values(found)
    for bone in LESIONS:
        own = [name for name, of in places.items() if of == bone]
        by_place = [sums[bone, name, "lesion_volume"] for name in own] + [sums.get((bone, "shaft", "lesion_volume"), 0)]
        assert sum(by_place) == pytest.approx(sums[bone, "all", "lesion_volume"])
        assert sums[bone, "all", "lesion_count"] == len(own)
        assert all(sums[bone, name, "moaks_size_grade"] >= 1 for name in own)


@pytest.fixture(scope="module")
def centres(knee):
    """Place -> a voxel well inside it."""
    image = healthy(knee)
    assert not measured(image).lesions
    return {place: deepest(own, image.GetSize()[::-1]) for place, own in places_of(image).items()}


def places_of(image):
    """Place -> indices of its voxels."""
    labels = sitk.GetArrayFromImage(image)
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    space = Space.of(image.GetOrigin(), steps[:, ::-1], "right")
    boxes = ndimage.find_objects(labels)
    found = {}
    for bone in bones_of(labels, boxes, space, STRUCTURES, "right", Conventions()):
        for name, own in bone.regions.items():
            found[name] = bone.indices[own]
    return found


def deepest(indices, shape):
    """A voxel well inside a place."""
    mask = np.zeros(shape, bool)
    mask[tuple(indices.T)] = True
    return np.unravel_index(int(np.argmax(ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1])), shape)


@pytest.mark.parametrize(
    ("limits", "share", "grade"),
    [
        *((SIZE_GRADES, *of) for of in ((0.0, 0), (0.01, 1), (0.32, 1), (0.34, 2), (0.66, 2), (0.67, 3), (1.0, 3))),
        *((AREA_GRADES, *of) for of in ((0.0, 0), (0.09, 1), (0.1, 2), (0.75, 2), (0.76, 3))),
    ],
)
def test_grades_by_hand(limits, share, grade):
    assert moaks_grade(share, limits) == grade


def test_an_unknown_side_flags_what_is_medial_and_keeps_the_rest(knee):
    found = measured(knee, None)
    for row in found.rows:
        assert bool(row["flag"]) == math.isnan(row["value"]) or row["flag"] == "absent"
    flags = {row["region"]: row["flag"] for row in found.rows if row["quantity"] == "volume"}
    assert flags["femur_medial_central"] == "side unknown"
    assert flags["all"] == ""


def test_lesions_of_two_bones_across_the_joint_are_kissing(knee):
    image = healthy(knee)
    labels = sitk.GetArrayFromImage(image)
    distance = {of: np.argwhere(labels == of) for of in (1, 3)}
    lateral = distance[3][:, 2]
    near = distance[3][np.abs(lateral - np.median(lateral)) < 3]
    low = near[np.argmax(near @ np.array([1, 0, 0]))]
    femur = distance[1][np.argmin(((distance[1] - low) ** 2).sum(axis=1))]
    labels[tuple(low)], labels[tuple(femur)] = 8, 7
    made = sitk.GetImageFromArray(labels)
    made.CopyInformation(image)
    apart = np.linalg.norm((low - femur) * np.array(image.GetSpacing()[::-1]))
    assert [row["kissing"] for row in measured(made, kissing_mm=apart + 0.1).lesions] == [True, True]
    assert [row["kissing"] for row in measured(made, kissing_mm=apart - 0.1).lesions] == [False, False]


def structures_of(labels, roles=None):
    values = {name: tuple(np.atleast_1d(value)) for name, value in labels.items() if name != "background"}
    return Structures.of(values, label_roles(values, roles))


def with_lesion(knee):
    """A knee with one lesion of 27 voxels in the femur, of its volume."""
    image = healthy(knee)
    labels = sitk.GetArrayFromImage(image)
    centre = deepest(np.argwhere(labels == 1), labels.shape)
    labels[tuple(slice(c - 1, c + 2) for c in centre)] = 7
    made = sitk.GetImageFromArray(labels)
    made.CopyInformation(image)
    return made, 27 * math.prod(image.GetSpacing())


@pytest.mark.parametrize("regions", [False, True], ids=["one label for all bones", "regions"])
def test_lesions_whose_label_names_no_bone_are_in_the_bone_that_they_touch(knee, regions):
    image, volume = with_lesion(knee)
    labels = {"femur": 1, "femoral_cartilage": 2, "tibia": 3, "tibial_cartilage": 4, "patella": 5, "BML": 7}
    if regions:
        labels |= {"femur": (1, 7), "tibia": (3, 8), "BML": (7, 8, 9)}
    found = measure(image, structures_of(labels))
    (lesion,) = found.lesions
    assert (lesion["bone"], lesion["label"]) == ("femur", "BML")
    assert lesion["volume_mm3"] == pytest.approx(volume)
    before = measure(healthy(knee), structures_of({**labels, "femur": 1, "tibia": 3}))
    assert values(found)["femur", "all", "volume"] == pytest.approx(values(before)["femur", "all", "volume"])
    assert values(found)["tibia", "all", "lesion_volume"] == 0


def measure(image, structures, side="right", **options):
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    labels = sitk.GetArrayFromImage(image)
    return measure_knee(labels, image.GetOrigin(), steps[:, ::-1], structures, side, *taken(**options))


def test_lesion_of_cartilage_is_none_of_a_bone(knee):
    image, volume = with_lesion(knee)
    found = measure(image, structures_of({"femur": 1, "femoral_cartilage": 2, "cartilage_lesion": 7}))
    assert not found.lesions
    assert values(found)["cartilage_lesion", "all", "volume"] == pytest.approx(volume)


@pytest.mark.parametrize("side", ["right", "left"])
def test_compartments_by_name_tell_the_side_and_have_their_own_rows(knee, side):
    image = healthy(knee if side == "right" else mirrored(knee))
    labels = sitk.GetArrayFromImage(image)
    cartilage = np.argwhere(labels == 4)
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    left = cartilage @ steps[:, ::-1][0]  # to the patient's left, which is medial in a right knee
    medial = left > np.median(left) if side == "right" else left < np.median(left)
    labels[tuple(cartilage[medial].T)] = 10
    made = sitk.GetImageFromArray(labels)
    made.CopyInformation(image)
    names = {"femur": 1, "femoral_cartilage": 2, "tibia": 3, "tibia_cartilage_lateral": 4, "tibia_cartilage_medial": 10}
    found = measure(made, structures_of(names), side=None)
    assert not any(row["flag"] == "side unknown" for row in found.rows)
    rows = {row["region"]: row["structure"] for row in found.rows if row["quantity"] == "VC"}
    assert rows["cMT"] == rows["MT"] == "tibia_cartilage_medial"
    assert rows["cLT"] == "tibia_cartilage_lateral"
    sizes = values(found)
    assert sizes["tibia_cartilage_medial", "MT", "VC"] == pytest.approx(
        sizes["tibia_cartilage_medial", "all", "volume"]
    )


def test_a_bone_that_a_knee_lacks_is_absent_with_its_lesions(knee):
    without = sitk.ChangeLabel(knee, {5.0: 0, 6.0: 0, 9.0: 0})
    rows = [row for row in measured(without).rows if row["structure"] == "patellar_bone"]
    assert {row["flag"] for row in rows} == {"absent"}
    assert {"lesion_count", "lesion_volume", "moaks_size_grade"} <= {row["quantity"] for row in rows}
    assert list(values(measured(without))) == list(values(measured(without)))


def test_places_to_the_side_are_not_said_where_the_side_is_unknown(knee):
    image, _ = with_lesion(knee)
    (lesion,) = measured(image, None).lesions
    assert math.isnan(lesion["lateral_mm"])
    assert not math.isnan(lesion["superior_mm"])


def test_one_plate_of_tibial_cartilage_is_not_cut_into_two(knee):
    image = healthy(knee)
    labels = sitk.GetArrayFromImage(image)
    bone = measured(image).bones["tibial_bone"]
    cartilage = np.argwhere(labels == 4)
    lateral = bone.landmarks.frame.coordinates(bone.space.points(cartilage))[:, 0] > 0
    labels[tuple(cartilage[lateral].T)] = 0
    made = sitk.GetImageFromArray(labels)
    made.CopyInformation(image)
    rows = [row for row in measured(made).rows if row["structure"] == "tibial_cartilage" and row["quantity"] == "VC"]
    assert {row["flag"] for row in rows} == {"no two plates of tibial cartilage"}
    assert all(math.isnan(row["value"]) for row in rows)


def test_regions_beside_single_labels_keep_their_meaning(knee):
    image, volume = with_lesion(knee)
    names = {"femoral_bone": 1, "femoral_cartilage": 2, "tibial_bone": 3, "femoral_lesion": 7}
    alone = values(measure(image, structures_of(names)))
    beside = measure(image, structures_of({**names, "whole_femur": (1, 7), "all_lesions": (7,)}))
    whole = alone["femoral_bone", "all", "volume"]
    assert values(beside)["whole_femur", "all", "volume"] == pytest.approx(whole)
    assert values(beside)["femoral_bone", "all", "volume"] == pytest.approx(whole)
    (lesion,) = beside.lesions
    assert (lesion["label"], lesion["bone"]) == ("femoral_lesion", "femoral_bone")
    assert lesion["volume_mm3"] == pytest.approx(volume)


def test_cartilage_of_a_bone_that_is_absent_is_flagged(knee):
    rows = measured(sitk.ChangeLabel(healthy(knee), {3.0: 0.0})).rows
    of_plates = [row for row in rows if row["structure"] == "tibial_cartilage" and row["quantity"] == "VC"]
    assert {row["region"] for row in of_plates} >= {"MT", "LT", "cMT"}
    assert {row["flag"] for row in of_plates} == {"its bone is absent"}
