"""Anomalies pasted into hosts while training."""

import multiprocessing

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.label_roles import LabelRoles
from nnunetv2_anomaly.training import pasting
from nnunetv2_anomaly.training.pasting import (
    LAWS,
    SHAPES,
    Host,
    PasteAnomalies,
    PastedAnomaly,
    is_pasting,
    pasting_of,
    with_pasting,
)

HOST, OTHER, LESION = 1, 2, 3
ROLES = LabelRoles({"lesion": "bone"}, ("bone",))
LABELS = {"background": 0, "bone": HOST, "cartilage": OTHER, "lesion": LESION}


def patch(shape=(24, 30, 36), channels=1):
    """Image (C, ...) around 10 in the host, with a spread of 1, and 0 outside; labels (1, ...) with a lesion within."""
    labels = torch.zeros(shape, dtype=torch.int16)
    inner = tuple(slice(n // 6, n - n // 6) for n in shape)
    labels[inner] = HOST
    labels[tuple(slice(n // 2, n // 2 + 3) for n in shape)] = LESION
    labels[0] = OTHER
    image = torch.randn((channels, *shape), generator=torch.Generator().manual_seed(0))
    image[:, (labels == HOST) | (labels == LESION)] += 10
    return image, labels[None]


def pasted(shape=(24, 30, 36), channels=1, seed=0, spacing=None, **options):
    """The transform's output, and what went in."""
    np.random.seed(seed)
    image, labels = patch(shape, channels)
    transform = PasteAnomalies(spacing or (1.0,) * len(shape), [(HOST, LESION)], **{"probability": 1.0, **options})
    made = transform(image=image.clone(), segmentation=labels.clone())
    return image, labels, made


def test_a_constant_in_a_drawn_bone_changes_its_voxels_and_nothing_else():
    image, labels = patch()
    box = (slice(8, 12), slice(10, 14), slice(12, 16))
    anomaly = PastedAnomaly(box, torch.ones(4, 4, 4), torch.full((1, 4, 4, 4), 25.0), True, 0)
    made = PasteAnomalies((1, 1, 1), [(HOST,)]).apply(
        {"image": image.clone(), "segmentation": labels.clone()}, anomalies=[anomaly]
    )
    assert (made["image"][(0, *box)] == 25).all()
    assert int((made["image"] != image).sum()) == 64
    assert torch.equal(made["segmentation"], labels)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("shape", "spacing", "channels"),
    [((24, 30, 36), (2.0, 0.7, 0.7), 1), ((40, 44), (0.5, 0.8), 3), ((5, 40, 40), (6.0, 1.0, 1.0), 2)],
)
def test_nothing_but_the_host_changes_and_no_label_does(shape, spacing, channels, seed):
    image, labels, made = pasted(shape, channels, seed, spacing)
    changed = (made["image"] != image).any(dim=0)
    assert changed.any()
    assert not changed[(labels[0] != HOST) & (labels[0] != LESION)].any()
    assert torch.equal(made["segmentation"], labels)
    assert torch.isfinite(made["image"]).all()
    assert made["image"].dtype == image.dtype


def test_a_seed_gives_the_same_again_and_another_does_not():
    first, second, other = (pasted(seed=seed)[2]["image"] for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_laws_reach_the_shift_that_was_drawn(law, sign):
    rng = np.random.default_rng(0)
    here, elsewhere = (torch.randn(1, 20, 20, 20, generator=torch.Generator().manual_seed(n)) + 10 for n in (0, 1))
    host = Host(here, elsewhere, *(torch.full((1, 1, 1, 1), value) for value in (10.0, -2.0, 4.0 * sign)))
    places = np.stack(np.meshgrid(*[np.arange(-10, 10.0)] * 3, indexing="ij"))
    shift = float((law(rng, host, places) - here).mean()) * sign
    assert (1.2 if law is pasting.uneven else 2.0) <= shift <= 4.1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axes", [2, 3])
def test_shapes_are_as_large_as_drawn_in_mm_and_not_empty(shape, axes):
    places = np.stack(np.meshgrid(*[np.arange(-16, 16.5, 0.5)] * axes, indexing="ij"))
    for seed in range(10):
        mask = shape(np.random.default_rng(seed), places, 6.0)
        assert mask.any()
        farthest = np.linalg.norm(places[:, mask], axis=0).max()
        assert 1.0 < farthest <= 6 * np.sqrt(axes) + 6


@pytest.mark.parametrize(("polarity", "sign"), [("bright", 1), ("dark", -1)])
def test_polarity(polarity, sign):
    for seed in range(8):
        image, _, made = pasted(seed=seed, polarity=polarity, count=(1, 1), strength=(4.0, 5.0), size_mm=(8.0, 12.0))
        change = (made["image"] - image)[made["image"] != image]
        assert float(change.mean()) * sign > 0


@pytest.mark.parametrize("polarity", ["bright", "dark"])
def test_no_anomaly_is_as_dark_as_air_or_brighter_than_all_else(polarity, monkeypatch):
    monkeypatch.setattr(pasting, "LAWS", (pasting.constant,))
    for seed in range(6):
        image, _, made = pasted(seed=seed, polarity=polarity, strength=(50.0, 60.0))
        new = made["image"][made["image"] != image]
        if polarity == "bright":
            assert float(new.max()) <= float(image.max())
        else:  # 0.8 of the way from the host's 10 to about -4
            assert -3.0 < float(new.min()) < 0.0


def test_strength_is_in_the_hosts_own_spread():
    """Ten times the contrast, ten times the change."""
    np.random.seed(0)
    image, labels = patch()
    transform = PasteAnomalies((1, 1, 1), [(HOST, LESION)], probability=1.0, count=(1, 1))
    changes = []
    for factor in (1, 10):
        np.random.seed(3)
        made = transform(image=factor * image, segmentation=labels)["image"]
        changes.append(made - factor * image)
    torch.testing.assert_close(10 * changes[0], changes[1], rtol=1e-3, atol=1e-3)


def test_what_is_pasted_is_a_lesion_where_that_is_asked_for():
    image, labels, made = pasted(lesions=[LESION])
    changed = made["segmentation"] != labels
    assert changed.any()
    assert (labels[changed] == HOST).all()
    assert (made["segmentation"][changed] == LESION).all()
    assert (made["image"] != image)[changed].float().mean() > 0.9
    asked = pasting_of({"as_lesions": True}, LABELS, ROLES, (1, 1, 1))
    assert (asked.hosts, asked.lesions) == ([(HOST, LESION)], [LESION])
    with pytest.raises(UserError, match="no label is a lesion of cartilage"):
        pasting_of({"as_lesions": True, "hosts": ["cartilage"]}, LABELS, ROLES, (1, 1, 1))


def test_a_mark_says_where_brighter_and_darker_was_pasted():
    for polarity, mark in (("bright", 1), ("dark", 2)):
        image, labels, made = pasted(mark=True, polarity=polarity, strength=[5.0, 6.0])
        assert torch.equal(made["segmentation"][:1], labels)
        marks = made["segmentation"][1]
        assert set(marks.unique().tolist()) == {0, mark}
        # Shapes overlap, and what another one covers keeps its mark.
        assert (made["image"] != image)[0][marks > 0].float().mean() > 0.95
        plain = PasteAnomalies((1.0,) * 3, [(HOST, LESION)], probability=0.0, mark=True)
        assert not plain(image=image, segmentation=labels)["segmentation"][1].any()


def test_a_patch_without_a_host_stays():
    np.random.seed(0)
    image, labels = patch()
    transform = PasteAnomalies((1, 1, 1), [(9,)], probability=1.0)
    assert torch.equal(transform(image=image.clone(), segmentation=labels)["image"], image)


def test_with_probability_0_batches_and_random_numbers_are_nnunets_to_the_bit():
    arguments = ((24, 24, 24), (-0.5, 0.5), None, (0, 1, 2), False)
    made = []
    for pasted_too in (False, True):
        transforms = nnUNetTrainer.get_training_transforms(*arguments)
        if pasted_too:
            with_pasting(transforms, PasteAnomalies((1, 1, 1), [(HOST,)], probability=0.0))
        np.random.seed(1)
        torch.manual_seed(1)
        image, labels = patch((30, 30, 30))
        made.append([transforms(image=image.clone(), segmentation=labels.clone()) for _ in range(6)])
    for plain, other in zip(*made, strict=True):
        assert torch.equal(plain["image"], other["image"])
        assert torch.equal(plain["segmentation"], other["segmentation"])


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_pasting_comes_after_the_spatial_transforms_and_before_those_of_intensity(dummy_2d):
    transforms = with_pasting(
        nnUNetTrainer.get_training_transforms((24, 24, 24), (-0.5, 0.5), None, (0,), dummy_2d),
        PasteAnomalies((1, 1, 1), [(HOST,)]),
    )
    names = [type(of).__name__ for of in transforms.transforms]
    place = names.index("PasteAnomalies")
    assert names[place - 1] == ("Convert2DTo3DTransform" if dummy_2d else "SpatialTransform")
    assert set(names[:place]).isdisjoint({"RandomTransform"})


def _probability_there(transform, connection):
    connection.send(float(transform.now))


def test_a_schedule_reaches_the_workers_of_the_loader():
    transform = PasteAnomalies((1, 1, 1), [(HOST,)], probability=0.7, until=0.8)
    seen = []
    for progress in (0.0, 0.79, 0.8, 1.0):
        transform.set_progress(progress)
        here, there = multiprocessing.Pipe()
        worker = multiprocessing.get_context("fork").Process(target=_probability_there, args=(transform, there))
        worker.start()
        seen.append(here.recv())
        worker.join()
    assert seen == pytest.approx([0.7, 0.7, 0.0, 0.0])


@pytest.mark.parametrize(
    "value",
    [
        {"probability": 1.5}, {"count": [0, 3]}, {"count": [3, 1]}, {"strength": 2}, {"size_mm": [0, 5]},
        {"polarity": "grey"}, {"hosts": "bone"}, {"until": -0.1}, {"shapes": 1}, [], "on",
    ],
)  # fmt: skip
def test_options_that_cannot_be(value):
    assert not is_pasting(value)


def test_hosts_are_the_bones_with_the_lesions_in_them_or_what_is_named():
    assert is_pasting({"probability": 1, "count": [1, 2], "hosts": None})
    assert pasting_of({}, LABELS, ROLES, (1, 1, 1)).hosts == [(HOST, LESION)]
    assert pasting_of({"hosts": ["cartilage"]}, LABELS, ROLES, (1, 1, 1)).hosts == [(OTHER,)]
    with pytest.raises(UserError, match="names liver among its hosts; expected some of background, bone"):
        pasting_of({"hosts": ["liver"]}, LABELS, ROLES, (1, 1, 1))
    with pytest.raises(UserError, match="has no host, as no label is a bone"):
        pasting_of({}, {"background": 0, "liver": 1}, LabelRoles({}, ()), (1, 1, 1))
