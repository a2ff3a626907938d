"""The detector of knowledge distillation: its teacher stays outside, its map moves with the slice."""

import pytest
import torch

from nnunetv2_anomaly.detectors.mkd.detector import Distillation, MKDDetector
from nnunetv2_anomaly.detectors.mkd.localisation import gradient_map
from nnunetv2_anomaly.detectors.mkd.networks import CRITICAL
from nnunetv2_anomaly.detectors.mkd.settings import SETTINGS
from nnunetv2_anomaly.detectors.mkd.teacher import load_teacher
from nnunetv2_anomaly.errors import UserError


def detector(seed=0, **settings):
    torch.manual_seed(seed)
    of = {name: setting.default for name, setting in SETTINGS.items()}
    return MKDDetector(1, {**of, "teacher_weights": "random:0", **settings}).eval()


def normal_slices(number, seed, size=64):
    """Smooth slices of one kind."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[torch.linspace(0, 1, size)] * 2, indexing="ij")
    shift = torch.rand(number, 1, 1, generator=rng)
    return (0.5 + 0.3 * torch.sin(6 * (x + shift)) * torch.cos(4 * y))[:, None]


def test_training_lessens_the_loss_and_leaves_the_teacher_as_it_is():
    network = Distillation(detector()).train()
    teacher = network.detector.teacher
    before = [parameter.clone() for parameter in teacher.parameters()]
    held_out, cloner = normal_slices(4, 99), [p.clone() for p in network.detector.cloner.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def loss_of_held_out():
        with torch.no_grad():
            return float(network.eval()(held_out).mean())

    first = loss_of_held_out()
    network.train()
    for step in range(25):
        optimizer.zero_grad()
        network(normal_slices(4, step)).mean().backward()
        optimizer.step()
    assert loss_of_held_out() < 0.5 * first
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(cloner, network.detector.cloner.parameters(), strict=True))
    assert not any("teacher" in name and name != "detector.teacher_digest" for name in network.state_dict())
    trained = {id(parameter) for parameter in network.parameters()}
    assert not trained & {id(parameter) for parameter in teacher.parameters()}


def test_the_map_moves_with_the_slice():
    of = detector()
    image = torch.rand(1, 1, 160, 160, generator=torch.Generator().manual_seed(0))
    seen = [of.seen(moved) for moved in (image, torch.roll(image, 32, dims=3))]
    maps = [gradient_map(of.cloner, of.teacher, slices, scored=(CRITICAL[1],))[0] for slices in seen]
    # The distance is of whole slices, so that its scale moves with what is at their borders; places stay.
    inside = [maps[0][0, 48:112, 40:80].flatten(), maps[1][0, 48:112, 72:112].flatten()]
    assert torch.corrcoef(torch.stack(inside))[0, 1] > 0.98


def test_the_teacher_of_a_model_has_to_be_the_one_that_it_was_trained_with():
    trained = detector()
    _ = trained.teacher
    other = detector(teacher_weights="random:1")
    other.load_state_dict(trained.state_dict())
    with pytest.raises(UserError, match="not those that the detector was trained with"):
        _ = other.teacher
    same = detector(seed=5)
    same.load_state_dict(trained.state_dict())
    image = normal_slices(1, 0)
    assert torch.equal(same(image), trained(image))
    assert not trained.comparable
    assert trained.sources == {"teacher (VGG-16)": "random:0"}


def test_weights_that_are_missing_or_others_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"absent\.pth do not exist; expected the weights of torchvision's VGG-16"):
        load_teacher(f"file:{tmp_path / 'absent.pth'}")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds other weights than torchvision's VGG-16"):
        load_teacher(f"file:{tmp_path / 'other.pth'}")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pth"):
        load_teacher(f"file:{tmp_path / 'text.pth'}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*arguments, **keywords):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"vgg16-.*\.pth does not exist.*file:PATH"):
        load_teacher("torchvision")


def test_a_file_with_the_teachers_weights_gives_the_same_maps_as_what_it_was_written_from(tmp_path):
    of = detector()
    state, numbers = {}, iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    for layer in of.teacher.modules():
        if isinstance(layer, torch.nn.Conv2d):
            number = next(numbers)
            state[f"features.{number}.weight"], state[f"features.{number}.bias"] = layer.weight, layer.bias
    torch.save(state, tmp_path / "vgg16.pth")
    from_file = detector(teacher_weights=f"file:{tmp_path / 'vgg16.pth'}")
    image = normal_slices(1, 1)
    assert torch.equal(from_file(image), of(image))
    assert from_file.comparable
    assert len(from_file.sources["teacher (VGG-16)"]) == 64


@pytest.mark.parametrize(("channels", "same"), [(2, True), (3, False)])
def test_colours_are_taken_as_they_are_and_other_channels_as_their_mean(channels, same):
    of = {name: setting.default for name, setting in SETTINGS.items()}
    network = MKDDetector(channels, {**of, "teacher_normalisation": "none"})
    image = torch.rand(1, channels, 8, 8)
    seen = network.seen(image)
    assert seen.shape == (1, 3, 8, 8)
    assert torch.equal(seen[:, 0], seen[:, 1]) == same


def test_nnunets_prediction_is_told_the_right_verb():
    network = Distillation(detector())
    with torch.inference_mode(), pytest.raises(UserError, match=r"nnUNetv2_anomaly anomaly_maps .* -tr MKDTrainer"):
        network(normal_slices(1, 0))


def test_gradients_pass_weights_that_were_moved_in_inference_mode():
    moved, plain = detector(), detector()
    with torch.inference_mode():
        moved.double().float()  # as nnU-Net's prediction moves a network to its device
        image = normal_slices(1, 0)
        found = moved(image)
    assert any(of.any() for of in found)
    torch.testing.assert_close(found.clone(), plain(image.clone()))


def test_maps_reach_from_0_to_1_in_each_slice_and_scores_tell_slices_apart():
    of = detector()
    image = torch.cat((normal_slices(1, 0), torch.rand(1, 1, 64, 64)))
    maps = of(image)
    assert maps.amin(dim=(1, 2, 3)).tolist() == [0, 0]
    assert maps.amax(dim=(1, 2, 3)).tolist() == [1, 1]
    scores = of.scores(image)
    assert scores.shape == (2,)
    assert scores[0] != scores[1]
