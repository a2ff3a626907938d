import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from benchmarks.ablation import MAPS, AblationNetwork, AblationTrainer, BudgetedNNUNetTrainer, shuffled
from nnunetv2_anomaly.detectors.inpainting.networks import AnomalyDetector
from nnunetv2_anomaly.detectors.pasted.networks import PastedDetector
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.segmenters.base import AnomalyAwareNetwork

PATCH = (8, 12, 10)


class Seen(nn.Module):
    """Hands back what it was given."""

    def forward(self, stacked):
        return stacked


@pytest.fixture
def detector():
    torch.manual_seed(0)
    detector = AnomalyDetector(num_channels=1, patch_size=PATCH, strides=[(2, 2, 2)], features=2, code_length=4)
    detector.set_intensity_range(torch.tensor([-2.0]), torch.tensor([2.0]))
    return detector


@pytest.mark.parametrize("form", ["published", "squared", "signed"])
def test_the_whole_difference_is_the_method_itself(detector, form):
    image = torch.randn(2, 1, *PATCH)
    method = AnomalyAwareNetwork(detector, Seen(), form, 1)
    own = AblationNetwork(detector, Seen(), form, 1, channel="whole", weight="whole", mask_known=False)
    assert torch.equal(own(image), method(image))
    assert torch.equal(own.latest_error_image, method.latest_error_image)


def test_brighter_and_darker_share_out_the_difference():
    difference = torch.randn(2, 1, *PATCH)
    brighter, darker = (MAPS[name](difference) for name in ("brighter", "darker"))
    assert torch.equal(brighter + darker, difference)
    assert torch.equal(brighter.square() + darker.square(), difference.square())
    assert torch.equal(brighter > 0, difference > 0)
    assert torch.equal(darker < 0, difference < 0)


def test_shuffled_has_the_histogram_and_not_the_places():
    error = torch.rand(2, 1, *PATCH)
    other = shuffled(error)
    assert torch.equal(other, shuffled(error))  # a prediction can be repeated
    for image, moved in zip(error, other, strict=True):
        assert torch.equal(image.flatten().sort().values, moved.flatten().sort().values)
    assert abs(torch.corrcoef(torch.stack((error.flatten(), other.flatten())))[0, 1]) < 0.1


def test_channel_and_weight_are_chosen_apart(detector):
    image = torch.randn(1, 1, *PATCH)
    network = AblationNetwork(detector, Seen(), "squared", 1, channel="none", weight="whole", mask_known=False)
    with torch.no_grad():
        assert torch.equal(network(image)[:, 1:], torch.zeros_like(image))
        assert torch.equal(network.latest_error_image, detector(image))


def test_known_mask_is_erased_and_not_shown_to_the_segmenter(detector):
    image = torch.randn(1, 1, *PATCH)
    hole = torch.zeros_like(image)
    hole[..., 3:] = 1
    network = AblationNetwork(detector, Seen(), "squared", 1, channel="whole", weight="whole", mask_known=True)
    with torch.no_grad():
        stacked = network(torch.cat((image, hole), dim=1))
        rescaled = detector.rescale(image)
        inpainted = detector.reconstructor(rescaled * (1 - hole), detector.compressor(rescaled))
    assert stacked.shape == (1, 2, *PATCH)
    assert torch.equal(stacked[:, :1], image)
    torch.testing.assert_close(stacked[:, 1:], 100 * (rescaled - inpainted).square())


def test_of_two_maps_the_larger_counts_for_channel_and_weight(detector):
    image = torch.randn(1, 1, *PATCH)
    torch.manual_seed(1)
    other = PastedDetector(num_channels=1, strides=[(2, 2, 2)], features=2, polarity="bright")
    other.take_intensity_range([image[0]])
    parts = {"channel": "whole", "weight": "whole", "mask_known": False}
    network = AblationNetwork(detector, Seen(), "published", 1, **parts, other=other).train()
    with torch.no_grad():
        published, found = detector(image), other(image)
        channel = network(image)[:, 1:]
    assert 0 < (published > found).float().mean() < 1
    assert torch.equal(network.latest_error_image, torch.maximum(published, found))
    assert torch.equal(channel, network.latest_error_image)
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_unknown_maps_are_refused():
    with pytest.raises(UserError, match="expected 'channel' and 'weight'"):
        AblationTrainer.choices({"ablation": {"channel": "cubed"}})
    with pytest.raises(UserError, match="expected 'channel' and 'weight'"):
        AblationTrainer.choices({"ablation": {"chanel": "none"}})
    with pytest.raises(UserError, match="'larger_of' with one of inpainting"):
        AblationTrainer.choices({"ablation": {"larger_of": "unheard_of"}})


def test_budgeted_trainer_is_nnunets_own_to_the_bit(build_trainer, results_folder):
    steps = {}
    for trainer_class in (nnUNetTrainer, BudgetedNNUNetTrainer):
        trainer = build_trainer(trainer_class)
        torch.manual_seed(0)
        trainer.initialize()
        assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] == (0, 1, 2)
        generator = torch.Generator().manual_seed(1)
        batch = {
            "data": torch.randn(2, 1, 16, 16, 16, generator=generator),
            "target": [
                torch.randint(0, 4, (2, 1, *[size] * 3), generator=generator, dtype=torch.int16) for size in (16, 8)
            ],
        }
        losses = [float(trainer.train_step(batch)["loss"]) for _ in range(2)]
        steps[trainer_class] = losses, {name: value.clone() for name, value in trainer.network.state_dict().items()}
    (own, weights), (budgeted, same) = steps.values()
    assert own == budgeted
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
