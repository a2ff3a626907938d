"""Which slices detectors of slices learn from, and how nnU-Net's loader comes to them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.training.slices import ChosenSlices, RandomBiasField, divided_slices, read_slice_list

BONE, CARTILAGE, LESION = 1, 2, 3
#: of the image's first slices nnU-Net cropped so many away
CROPPED = 2


class Dataset:
    """Two cases of nine slices, 30 x 26: bone in slices 1 to 7, lesions in slice 3 of one, 4 and 5 of the other."""

    identifiers = ("a", "b")
    sizes = (9, 30, 26)

    def load_case(self, case):
        labels = np.zeros((1, *self.sizes), np.int16)
        labels[0, 1:8, 8:20, 8:20] = BONE
        labels[0, [3] if case == "a" else [4, 5], 10:12, 10:12] = LESION
        image = np.broadcast_to(np.arange(9.0, dtype=np.float32)[:, None, None], self.sizes)[None].copy()
        image += 100 * (case == "b")
        properties = {"shape_before_cropping": (12, 30, 26), "class_locations": {1: np.zeros((1, 4), int)}}
        properties["bbox_used_for_cropping"] = [[CROPPED, CROPPED + 9], [0, 30], [0, 26]]
        return image, labels, None, properties


def chosen(listed=None, lesions=(LESION,)):
    found, others = divided_slices(Dataset(), ["a", "b"], [BONE, LESION], lesions, listed)
    assert all(sorted([*found[case], *others[case]]) == list(range(1, 8)) for case in found)  # all that hold bone
    return {case: of.tolist() for case, of in found.items()}


def test_labels_tell_slices_with_bone_and_without_a_lesion():
    assert chosen() == {"a": [1, 2, 4, 5, 6, 7], "b": [1, 2, 3, 6, 7]}


def test_without_hosts_all_that_is_not_cropped_away_counts():
    free, others = divided_slices(Dataset(), ["a"], None, [LESION], None)
    assert free["a"].tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert others["a"].tolist() == [3]


def test_what_nobody_has_looked_at_is_free_of_lesions_only_if_listed():
    class Partly(Dataset):
        def load_case(self, case):
            image, labels, previous, properties = super().load_case(case)
            labels[0, 6, 0, 0] = 9
            labels[0, 7] = 9
            return image, labels, previous, properties

    of = (Partly(), ["a"], [BONE], [LESION])
    free, others = divided_slices(*of, None, ignored=9)
    assert free["a"].tolist() == [1, 2, 4, 5]
    assert others["a"].tolist() == [3, 6]  # the last has no bone that is known
    listed, _ = divided_slices(*of, {"a": {4, 8}}, ignored=9)
    assert listed["a"].tolist() == [2, 6]
    whole, _ = divided_slices(Partly(), ["a"], None, [LESION], None, ignored=9)
    assert whole["a"].tolist() == [0, 1, 2, 4, 5, 8]


def test_a_list_counts_slices_of_the_file_and_may_leave_cases_out():
    assert chosen({"a": {0, 3, 4, 11}}) == {"a": [1, 2], "b": []}
    assert chosen({"a": {3}, "b": {6}}, lesions=()) == {"a": [1], "b": [4]}


def test_a_list_that_names_a_lesion_or_no_slice_is_refused():
    with pytest.raises(UserError, match="slice 5 of a is listed as free of lesions and has a labelled one"):
        chosen({"a": {4, 5}})
    with pytest.raises(UserError, match=r"slice 12 of a is listed .* has 12 slices; expected numbers from 0 to 11"):
        chosen({"a": {12}})


def test_a_list_is_read_with_its_ranges(tmp_path):
    file = tmp_path / "slices.csv"
    file.write_text("case,slices\na,3\na,5-7\nb,0 - 1\n")
    assert read_slice_list(file) == {"a": {3, 5, 6, 7}, "b": {0, 1}}
    for text in ("a,x", "a,7-5", "a,"):
        file.write_text(f"case,slices\n{text}\n")
        with pytest.raises(UserError, match="expected a number or a range such as 10-25"):
            read_slice_list(file)
    file.write_text("case\na\n")
    with pytest.raises(UserError, match="lacks the column slices"):
        read_slice_list(file)


@pytest.mark.parametrize("patch", [(32, 32), (30, 26)])
def test_nnunets_loader_meets_chosen_slices_alone_and_each_of_them_whole(patch):
    slices = {"a": np.array([2, 6]), "b": np.array([], int)}
    labels = SimpleNamespace(all_labels=[0, 1, 2, 3], has_ignore_label=False)
    loader = nnUNetDataLoader(ChosenSlices(Dataset(), slices), 4, patch, patch, labels, 1.0)
    assert ChosenSlices(Dataset(), slices).identifiers == ["a"]
    seen = [next(loader) for _ in range(10)]
    images = torch.cat([batch["data"] for batch in seen])
    assert images.shape == (40, 1, *patch)
    top, left = (of - size for of, size in zip(patch, Dataset.sizes[1:], strict=True))
    inside = images[:, 0, top // 2 : top // 2 + 30, left // 2 : left // 2 + 26]
    assert set(inside.unique().tolist()) == {2.0, 6.0}
    assert all(len(image.unique()) == 1 for image in inside)
    assert inside.sum() == images.sum()  # all of it is there


def test_bias_fields_are_smooth_seeded_and_leave_the_darkest_voxel():
    image = torch.rand(2, 40, 50) + 0.5
    image[:, 0, 0] = 0.1

    def biased(strength, seed):
        np.random.seed(seed)
        return RandomBiasField(strength)(image=image.clone())["image"]

    assert torch.equal(biased(0.0, 0), image)
    assert torch.equal(biased(0.5, 3), biased(0.5, 3))
    field = (biased(0.5, 3) - 0.1)[:, 1:, 1:] / (image - 0.1)[:, 1:, 1:]
    torch.testing.assert_close(field[0], field[1])  # of all channels alike
    assert (field > 0).all()
    assert field.max() / field.min() > 1.2
    second = torch.diff(field[0].log(), n=4, dim=1)  # beyond the third order nothing is left
    assert second.abs().max() < 1e-3
    assert torch.allclose(biased(0.5, 3)[:, 0, 0], torch.tensor(0.1))
