"""The pasted detector finds lesions that no one labelled, on a phantom where intensity tells nothing."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from nnunetv2_anomaly.detectors.level import contrast_within
from nnunetv2_anomaly.detectors.pasted.loss import PastedLoss
from nnunetv2_anomaly.detectors.pasted.networks import PastedDetector, PastedNetwork
from nnunetv2_anomaly.detectors.pasted.settings import PASTING
from nnunetv2_anomaly.training.pasting import PasteAnomalies

SIZE, SPACING = 48, (2.0, 2.0)


def phantom(rng, sign):
    """A round bone in a bias field, (1, 48, 48); its labels; and a lesion as bright as marrow elsewhere."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    bone = (y**2 + x**2 < 0.7).astype(np.int16)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    image = 1.2 * along + rng.normal(0, 0.1, bone.shape) - 2.0 * (bone == 0)
    place = -0.45 * sign * np.array([np.sin(angle), np.cos(angle)]) + rng.normal(0, 0.05, 2)
    lesion = ((y - place[0]) ** 2 + (x - place[1]) ** 2 < 0.012) & (bone > 0)
    image += sign * 0.6 * lesion
    return image.astype(np.float32)[None], bone, lesion


def train(sign, polarity):
    torch.manual_seed(0)
    np.random.seed(0)
    rng = np.random.default_rng(0)
    detector = PastedDetector(num_channels=1, strides=[(2, 2)] * 2, features=8, polarity=polarity)
    network = PastedNetwork(detector)
    loss = PastedLoss([[1]], [14.0 / step for step in SPACING], polarity)
    paste = PasteAnomalies(SPACING, [[1]], **{**PASTING, "size_mm": [4.0, 16.0]}, mark=True)

    def batch(pasted):
        paste.now.fill_(1.0 if pasted else 0.0)
        made = []
        for _ in range(4):
            image, bone, _ = phantom(rng, sign)  # the unlabelled lesion stays where it is
            made.append(paste(image=torch.from_numpy(image), segmentation=torch.from_numpy(bone)[None]))
        return (torch.stack([of[key] for of in made]) for key in ("image", "segmentation"))

    images, labels = (list(of) for of in zip(*(tuple(batch(False)) for _ in range(4)), strict=True))
    detector.take_intensity_range([image for of in images for image in of])
    for phase, steps in enumerate((60, 150)):
        if phase:
            bones = [of[0] > 0 for batch in labels for of in batch]
            detector.set_deviation_scale([image for of in images for image in of], bones)
        network.set_phase(phase)
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=2e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step, n=steps: (1 - step / n) ** 0.9)
        for _ in range(steps):
            image, target = batch(phase == 1)
            optimizer.zero_grad()
            loss(network(image), target).backward()
            optimizer.step()
            schedule.step()
    return detector.eval()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("sign", "polarity"), [(1, "bright"), (-1, "dark")])
def test_lesion_within_the_marrows_range_is_found_and_by_intensity_is_not(sign, polarity):
    detector, rng = train(sign, polarity), np.random.default_rng(1)
    found = {"raw": [], "contrast": [], "pasted": []}
    for _ in range(20):
        image, labels, lesion = phantom(rng, sign)
        bone = labels > 0
        tensor = torch.from_numpy(image)
        with torch.no_grad():
            maps = {
                "raw": sign * tensor,
                "contrast": sign * contrast_within(tensor, torch.from_numpy(labels), [[1]], SPACING),
                "pasted": detector(tensor[None])[0],
            }
        for name, scores in maps.items():
            found[name].append(roc_auc_score(lesion[bone], scores[0].numpy()[bone]))
    means = {name: np.mean(of) for name, of in found.items()}
    assert means["raw"] < 0.65, means
    assert means["contrast"] > 0.9, means
    assert means["pasted"] > 0.9, means
    assert means["pasted"] > means["raw"] + 0.25, means
    # The map looks for its polarity alone.
    image, _, lesion = phantom(rng, -sign)
    with torch.no_grad():
        assert detector(torch.from_numpy(image)[None])[0, 0].numpy()[lesion].mean() < 0.5


@pytest.mark.parametrize("phase", [0, 1])
def test_ignored_voxels_do_not_count(phase):
    torch.manual_seed(0)
    network = PastedNetwork(PastedDetector(num_channels=1, strides=[(2, 2)] * 2, features=4, polarity="both"))
    network.set_phase(phase)
    target = torch.zeros(1, 2, 16, 16)
    target[:, 0, 2:12, 2:12] = 1
    target[:, 0, :, 12:] = 5
    output = network(torch.randn(1, 1, 16, 16))
    learnt = output.deviation if output.logits is None else output.logits
    learnt.retain_grad()
    PastedLoss([[1]], [4.0, 4.0], "both", ignore_label=5)(output, target).backward()
    assert not learnt.grad[..., 12:].any()
    assert learnt.grad[..., :12].any()
