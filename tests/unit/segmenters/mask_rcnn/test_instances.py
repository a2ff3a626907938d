"""Label maps to instances and back, and empty slices at their rate."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from nnunetv2_anomaly.segmenters.mask_rcnn.instances import class_logits, instances_of, listed_instances, pasted
from nnunetv2_anomaly.segmenters.mask_rcnn.loading import EmptySlicesAtRate, empty_slices
from nnunetv2_anomaly.segmenters.mask_rcnn.parts import ExactTransform


def test_parts_that_touch_at_corners_are_one_instance_and_small_ones_none():
    labels = np.zeros((6, 8), np.int16)
    labels[0, 0] = labels[1, 1] = labels[2, 2] = 1
    labels[5, 7] = 1
    labels[4:6, 0:2] = 3
    found = instances_of(labels, [1, 3], min_pixels=2)
    assert found["labels"].tolist() == [1, 3]
    assert found["boxes"].tolist() == [[0, 0, 3, 3], [0, 4, 2, 6]]
    assert found["masks"].sum(dim=(1, 2)).tolist() == [3, 4]
    assert torch.equal(found["masks"][0], torch.from_numpy((labels == 1) & (np.arange(8) < 5)).to(torch.uint8))
    assert len(instances_of(labels, [1, 3], min_pixels=1)["labels"]) == 3


def test_a_slice_without_labels_has_instances_of_the_right_shapes():
    found = instances_of(np.full((5, 7), 2), [1], 1)  # 2 is not learned
    assert found["boxes"].shape == (0, 4)
    assert found["masks"].shape == (0, 5, 7)
    assert (found["labels"].dtype, found["masks"].dtype) == (torch.int64, torch.uint8)


def ring(size=240, outer=90.0, width=8.0):
    distance = np.linalg.norm(np.stack(np.mgrid[:size, :size], -1) - size / 2 + 0.37, axis=-1)
    return (distance < outer) & (distance >= outer - width)


def through_boxes(mask, pixels, scale=1.0):
    """A mask as the network gives it back if it is right: resampled in its box in the resized slice, and pasted."""
    found = instances_of(mask.astype(int), [1], 1)
    size = round(scale * max(mask.shape))
    _, resized = ExactTransform(size, size, [0.0], [1.0]).train().resize(torch.zeros(1, *mask.shape), dict(found))
    own = project_masks_on_boxes(resized["masks"], resized["boxes"], torch.zeros(1), pixels)
    detected = {**found, "masks": own[:, None]}
    return class_logits([detected], 2, mask.shape, torch.zeros(2), scale).argmax(dim=1)[0].numpy() == 1


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.75])
def test_label_maps_survive_the_way_through_boxes(scale):
    assert dice(through_boxes(ring(width=1000.0), 56, scale), ring(width=1000.0)) > 0.99


@pytest.mark.parametrize(("width", "at_56", "at_28"), [(4, 0.965, 0.48), (8, 0.98, 0.96)])
def test_thin_rings_survive_better_at_56_pixels(width, at_56, at_28):
    found = [dice(through_boxes(ring(width=width), pixels), ring(width=width)) for pixels in (56, 28)]
    assert found[0] > at_56 - 0.005
    assert found[1] < at_28
    assert dice(through_boxes(ring(width=width), 56, 4.0), ring(width=width)) > at_56 - 0.02


def test_pasting_is_more_exact_than_torchvisions():
    mask = ring(width=4)
    found = instances_of(mask.astype(int), [1], 1)
    own = project_masks_on_boxes(found["masks"], found["boxes"], torch.zeros(1), 56)
    theirs = paste_masks_in_image(own[:, None], found["boxes"], mask.shape)[0, 0].numpy() >= 0.5
    assert dice(theirs, mask) < 0.82
    assert dice(through_boxes(mask, 56), mask) > 0.96


def test_boxes_that_reach_beyond_the_slice_are_cut_off():
    place, probability = pasted(torch.ones(28, 28), torch.tensor([-5.0, -3.0, 4.0, 90.0]), (20, 30))
    assert probability.shape == (20, 6)
    assert place == (slice(0, 20), slice(0, 6))
    assert torch.allclose(probability[:, :4], torch.tensor(1.0))
    assert not probability[:, 5:].any()
    outside = torch.tensor([40.0, 5.0, 50.0, 9.0])
    assert pasted(torch.ones(28, 28), outside, (20, 30))[1].numel() == 0


def detection(*found, size=(2, 3)):
    """Of (label, probability everywhere)."""
    masks = torch.stack([torch.full((1, 28, 28), float(probability)) for _, probability in found])
    boxes = torch.tensor([[-2.0, -2.0, size[1] + 2.0, size[0] + 2.0]]).expand(len(found), 4)
    return {"labels": torch.tensor([label for label, _ in found]), "masks": masks, "boxes": boxes}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(1, 0.6), (2, 0.9)], 2),
        ([(1, 0.49), (2, 0.3)], 0),
        ([(1, 0.5)], 1),
        ([(1, 0.4), (1, 0.7), (2, 0.6)], 1),  # the largest of a class's instances counts
        ([(1, 0.8), (2, 0.8)], 2),  # a tie, and 2 goes first
        ([(1, 0.8), (3, 0.8)], 1),
        ([(2, 0.4999)], 0),  # going first makes nothing of what does not count
    ],
)
def test_label_is_the_class_of_the_largest_probability_from_one_half_on(found, expected):
    first = torch.tensor([0.0, 0.0, 1.0, 0.0])
    logits = class_logits([detection(*found)], 4, (2, 3), first)
    assert logits.shape == (1, 4, 2, 3)
    assert (logits.argmax(dim=1) == expected).all()
    assert (logits.half().argmax(dim=1) == expected).all()  # as nnU-Net adds them up


def test_softmax_of_a_sure_instance_is_sure():
    nothing = {name: of[:0] for name, of in detection((1, 1.0)).items()}
    logits = class_logits([detection((1, 1.0)), nothing], 3, (2, 3), torch.zeros(3))
    assert (logits.softmax(dim=1)[0, 1] > 0.98).all()
    assert (logits.softmax(dim=1)[1, 0] > 0.98).all()


def test_listed_instances_are_plain_and_sorted():
    boxes = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]])
    detected = {"labels": torch.tensor([1, 2]), "scores": torch.tensor([0.5, 0.75]), "boxes": boxes}
    assert listed_instances(detected, {1: "femur", 2: "effusion"}) == [
        {"label": 2, "class": "effusion", "score": 0.75, "box": [4, 5, 6, 7]},
        {"label": 1, "class": "femur", "score": 0.5, "box": [0, 1, 2, 3]},
    ]


@pytest.mark.parametrize("size", [36, 64, 100, 128])
def test_resized_masks_lie_where_their_image_does(size):
    mask = ring(48, 16.0, 1000.0)
    image = torch.from_numpy(mask.astype(np.float32))[None]
    target = instances_of(mask.astype(int), [1], 1)
    resized, found = ExactTransform(size, size, [0.0], [1.0]).train().resize(image, target)
    places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    middles = [(places * of).sum(dim=(1, 2)) / of.sum() for of in (resized[0], found["masks"][0].float())]
    assert (middles[0] - middles[1]).abs().max() < 0.2  # torchvision's lie 0.28 to 0.46 pixels beside


class DataSet:
    """Two cases as nnU-Net has them: one with a label in slices 1 and 2 of 5, one without."""

    identifiers = ("empty", "some")

    def load_case(self, name):
        labels = np.zeros((1, 5, 6, 7), np.int16)
        if name == "some":
            labels[0, 1:3, 2, 3] = 2
        places = np.argwhere(labels)
        return np.zeros((1, 5, 6, 7)), labels, None, {"class_locations": {2: places}, "other": 1}


def test_empty_slices_come_at_their_rate_and_only_where_there_are_any():
    dataset = DataSet()
    empty = empty_slices(dataset, dataset.identifiers, [1, 2])
    assert {case: of.tolist() for case, of in empty.items()} == {"empty": [0, 1, 2, 3, 4], "some": [0, 3, 4]}
    chosen = EmptySlicesAtRate(dataset, empty, 0.25, (4, 4))
    np.random.seed(0)
    drawn = 0
    for _ in range(400):
        *_, properties = chosen.load_case("some")
        ((value, places),) = properties["class_locations"].items()
        assert set(places[:, 1]) == ({0, 3, 4} if value == 1 else {1, 2})
        assert properties["other"] == 1
        drawn += value == 1
    assert 70 < drawn < 130
    assert list(EmptySlicesAtRate(dataset, empty, 0.0, (4, 4)).load_case("some")[3]["class_locations"]) == [2]
    full = EmptySlicesAtRate(dataset, {"some": np.array([], int)}, 1.0, (4, 4))
    assert list(full.load_case("some")[3]["class_locations"]) == [2]
    assert chosen.identifiers is DataSet.identifiers


def test_whole_slices_are_loaded_whole_wherever_their_labels_lie():
    dataset = DataSet()
    empty = empty_slices(dataset, dataset.identifiers, [1, 2])
    for rate in (0.0, 1.0):
        chosen = EmptySlicesAtRate(dataset, empty, rate, (6, 4))  # slices have 6 x 7 voxels
        (places,) = chosen.load_case("some")[3]["class_locations"].values()
        assert set(places[:, 2]) == {3}
        assert rate == 1.0 or set(places[:, 3]) == {3}
    untouched = EmptySlicesAtRate(dataset, empty, 0.0, (5, 4)).load_case("some")[3]["class_locations"][2]
    assert set(untouched[:, 2]) == {2}
