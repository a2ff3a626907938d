"""Facts about the words and curves of the demonstration's and a cohort's report: they follow the numbers."""

from __future__ import annotations

import pytest

from nnunetv2_anomaly.registry import load_trainer
from nnunetv2_anomaly.workflows.configuration import read_configuration
from nnunetv2_anomaly.workflows.demo import FULL, QUICK, TRAINERS, init_demo
from nnunetv2_anomaly.workflows.report import _detector_content
from nnunetv2_anomaly.workflows.training_figure import training_picture


@pytest.mark.parametrize("size", [FULL, QUICK])
def test_neither_segmenter_mirrors_and_both_take_length_and_seed_from_the_plans(size):
    naive, aware = (load_trainer(trainer) for trainer in TRAINERS.values())
    assert naive.mirror_axes == aware.mirror_axes == ()
    assert {"num_epochs", "seed"} <= size.anomaly.keys()
    assert not {"mirror_axes", "segmentation_learning_rate"} & size.anomaly.keys()


def test_the_quick_demonstration_claims_nothing(tmp_path):
    texts = {}
    for name, size in (("full", FULL), ("quick", QUICK)):
        init_demo(tmp_path / name, device="cpu", size=size)
        texts[name] = read_configuration(tmp_path / name)
    assert texts["quick"]["compared"].startswith(
        "Naive nnU-Net and the anomaly-aware network segmented 4 simulated knees"
    )
    assert texts["quick"]["worth"].endswith("hardly trained, and 4 knees are too few to test a difference.")
    assert not texts["full"].get("worth")
    assert "for 5 epochs of nnU-Net's 1000" in texts["full"]["notes"][1]


@pytest.mark.parametrize(
    ("error", "intensity", "said"),
    [
        (0.9, 0.8, "better than the image's own intensity does: AUC 0.900, against 0.800."),
        (0.7, 0.8, "worse than the image's own intensity does: AUC 0.700, against 0.800."),
        (0.4, 0.4, "as well as the image's own intensity does: AUC 0.400, no better than chance, against 0.400."),
    ],
)
def test_the_error_image_is_called_what_its_numbers_are(error, intensity, said):
    auc = {"lesion_auc": error, "lesion_auc_interior": error, "lesion_auc_signed": error}
    mean = dict.fromkeys(("inpainter", "detector", "contrast"), auc) | {"intensity": {"lesion_auc": intensity}}
    sentence, table = _detector_content({**mean, "num_cases_with_lesion": 3})
    assert sentence.endswith(said)
    assert all(table.header)


def test_losses_of_one_epoch_are_points_that_differ_in_colour_shape_and_panel():
    one = {"train_losses": [0.5], "val_losses": [0.4], "mean_fg_dice": [0.25]}
    errors = {"mse_erased": [0.1], "mse_constant": [0.3], "mse_blurred": [0.2]}
    figure = training_picture(errors, {"A": one, "B": one}).figure
    assert [axis.get_title() for axis in figure.axes] == [
        "detector: MSE in the erased region", "loss of A", "loss of B", "pseudo Dice of validation patches [%]",
    ]  # fmt: skip
    for axis in figure.axes:
        assert len({(line.get_color(), line.get_marker()) for line in axis.lines}) == len(axis.lines) > 1
        assert len({line.get_marker() for line in axis.lines}) == len(axis.lines)
    assert [line.get_ydata()[0] for line in figure.axes[-1].lines] == [25.0, 25.0]
