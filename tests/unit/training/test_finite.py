import pytest
import torch

from nnunetv2_anomaly.training.finite import where_it_began

CASES = ["a", "b"]


def sentence(images=None, error_image=None, keys=CASES, setting="segmentation_learning_rate"):
    batch = {"data": torch.ones(2, 1, 3, 3) if images is None else images, "keys": keys}
    return where_it_began(batch, error_image, setting, 0.01)


def spoiled(at=1, value=float("nan")):
    tensor = torch.ones(2, 1, 3, 3)
    tensor[at, 0, 1, 1] = value
    return tensor


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_come_first_and_are_named_by_their_case(value):
    found = sentence(spoiled(value=value), error_image=spoiled(at=0))
    assert found.startswith("a, b: the preprocessed image of b holds NaN or infinite voxels; training stopped")
    assert "run nnUNetv2_preprocess again" in found


def test_error_image_comes_next():
    assert "the detector's error image of a is not finite" in sentence(error_image=spoiled(at=0))


def test_network_and_loss_come_last_with_the_setting_that_lowers_the_learning_rate():
    found = sentence(error_image=torch.ones(2, 1, 3, 3))
    assert "what the network or the loss made of it is not finite" in found
    assert (
        "set 'segmentation_learning_rate' in the section 'anomaly' of plans.json to less than the present 0.01" in found
    )


def test_no_setting_is_advised_where_none_lowers_the_learning_rate():
    assert "so check images and labels of these cases if it happens again, and " in sentence(setting=None)


def test_cases_without_names_are_called_so():
    assert sentence(spoiled(), keys=[]).startswith(
        "a batch without names: the preprocessed image of a case of the batch"
    )
