"""The bench of detectors: its scores on maps that can be counted by hand, and the whole of it on phantoms."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import detector_scores, detectors
from benchmarks.models import DETECTOR_TRAINERS, parse_models
from nnunetv2_anomaly.detectors.asc_net.detector import ASCNetDetector
from nnunetv2_anomaly.errors import UserError

BONES = (1, 3)


def knee():
    """Two bones of 1,000 voxels each; the first holds a lesion of 8 voxels, and scores are 1 there and 0 elsewhere."""
    bones = {number: np.zeros((10, 10, 20), bool) for number in BONES}
    bones[1][:, :, :10], bones[3][:, :, 10:] = True, True
    lesion = np.zeros((10, 10, 20), bool)
    lesion[4:6, 4:6, 4:6] = True
    return lesion.astype(float), lesion, bones


def test_a_map_that_is_the_lesion_has_the_best_of_all_scores():
    scores, lesion, bones = knee()
    assert detector_scores.voxel_scores(scores, lesion, bones) == {"auc": 1.0, "auc_inside": 1.0, "ap": 1.0}
    rows = pd.DataFrame(detector_scores.bone_rows(scores, lesion, bones))
    assert rows["positive"].tolist() == [True, False]
    assert detector_scores.bone_auc(rows) == 1.0


def test_a_map_that_says_nothing_has_chance():
    _, lesion, bones = knee()
    found = detector_scores.voxel_scores(np.zeros(lesion.shape), lesion, bones)
    assert found == {"auc": 0.5, "auc_inside": 0.5, "ap": pytest.approx(8 / 2000)}


def test_inside_leaves_out_the_bones_surfaces():
    scores, lesion, bones = knee()
    bones[1][0], bones[3][0] = False, False  # so that the bones have a surface within the image
    scores[1, :, :10] = 2.0  # bright, at that surface
    found = detector_scores.voxel_scores(scores, lesion, bones)
    assert found["auc_inside"] == 1.0
    assert found["auc"] < 0.96


def test_lesions_are_rows_with_volume_and_contrast():
    scores, lesion, bones = knee()
    lesion[8, 8, 18] = True
    image = np.random.default_rng(0).normal(0, 1, lesion.shape)
    image[lesion] = 5.0
    rows = detector_scores.lesion_rows(scores, image, lesion, bones, voxel_mm3=2.0)
    assert [(row["bone"], row["volume_mm3"]) for row in rows] == [(1, 16.0), (3, 2.0)]
    assert [row["contrast"] for row in rows] == pytest.approx([5.0, 5.0], abs=0.3)
    assert [row["auc"] for row in rows] == [1.0, pytest.approx(0.5)]


def test_hits_are_counted_at_one_false_component_a_bone():
    scores, lesion, bones = knee()
    # Three false components above 0.8, one more above 0.6; of two bones two are allowed.
    scores[0, 0, 0] = scores[0, 9, 0] = scores[9, 0, 19] = 0.9
    scores[9, 9, 19] = 0.7
    scores[lesion] = 0.95
    counts = detector_scores.counts_at(scores, lesion, bones, np.array([0.65, 0.8, 0.92]))
    assert counts[["found", "false_components", "lesions", "bones"]].to_numpy().tolist() == [
        [1, 4, 1, 2], [1, 3, 1, 2], [1, 0, 1, 2],
    ]  # fmt: skip
    assert detector_scores.hits(counts.assign(knee="a"))["hits"].tolist() == [1.0]
    scores[lesion] = 0.75  # now as low as what is false
    counts = detector_scores.counts_at(scores, lesion, bones, np.array([0.65, 0.8, 0.92]))
    assert detector_scores.hits(counts.assign(knee="a"))["hits"].tolist() == [0.0]


def test_masks_are_judged_by_their_own_threshold_and_by_the_best():
    scores, lesion, bones = knee()
    scores[0, 0, :4] = 1.0  # as bright as the lesion's eight voxels
    scores[lesion] = np.linspace(1, 2, 8)
    truth, half = {"a": (lesion, bones, 1.0)}, {"a": lesion & (scores > 1.5)}
    row = detector_scores.mask_row({"a": scores}, truth, half)
    assert row == {"fitted": pytest.approx(2 * 4 / 12), "best": pytest.approx(2 * 7 / 15)}
    assert np.isnan(detector_scores.mask_row({"a": scores}, truth, {})["fitted"])


def test_passes_of_networks_are_counted():
    detector = ASCNetDetector(num_channels=1, features=2, polarity="bright").eval()
    assert detectors.passes(detector, torch.zeros(1, 1, 32, 16)) == 1
    assert detectors.passes(detector, torch.zeros(1, 1, 3, 32, 16)) == 1  # three slices at once


def test_every_family_is_trained_once_for_each_seed():
    words = [f"{family}={trainer}" for trainer, family in DETECTOR_TRAINERS.items()]
    models = detectors.expanded(parse_models(words), [0, 1])
    assert len({model.detector.name for model in models}) == 2 * len(DETECTOR_TRAINERS)
    detectors_of = {model.detector.family: model.detector for model in models}
    budget = {name: sum(of.epochs((1200, 900), 100).values()) * of.cycles for name, of in detectors_of.items()}
    assert budget == {**dict.fromkeys(detectors_of, 21), "asc_net": 24}  # the same for all, in whole epochs of 4 cycles
    (fewer,) = parse_models(["ASCNetTrainer:asc_cycles=[2,1],prestage_learning_rate=0.001"])
    assert fewer.detector.epochs((1200, 900), 100) == {"asc_discriminator_epochs": 2, "asc_main_epochs": 5}
    assert fewer.detector.title((1200, 900), 100).startswith("asc_net, 200 + 500 iterations in each of 3 cycles")
    with pytest.raises(UserError, match="is no detector alone"):
        detectors.expanded(parse_models(["nnUNetTrainer"]), [0])
    wide, narrow = parse_models(["LaMaBMLTrainer", "narrow=LaMaBMLTrainer:lama_features=8,hole=drawn"])
    assert wide.detector.name != narrow.detector.name
    assert dict(narrow.detector.settings) == {"lama_features": 8, "hole": "drawn"}
    with pytest.raises(UserError, match="has lama_features 0; expected a whole number from 1"):
        parse_models(["LaMaBMLTrainer:lama_features=0"])


@pytest.mark.exhaustive
def test_bench_of_phantoms_from_images_to_tables(tmp_path, capfd):
    words = "--num_phantoms 6 --num_test 2 --folds 0 --num_val 1 --seeds 0 --size 24 32 24 --patch 16 32 32 --batch 2"
    words += " --features 4 --budget 4 --iterations_per_epoch 4 --detector_budget 4 4 --device cpu --scanners -np 1"
    folder = tmp_path / "bench"
    options = [
        "--folder",
        str(folder),
        *words.split(),
        "--models",
        "bones=BoneContrastTrainer",
    ]
    options += ["lama=LaMaBMLTrainer:lama_features=4,lama_blocks=1,discriminator_features=4"]
    assert detectors.main(options) == 0, capfd.readouterr()
    knees = pd.read_csv(folder / "detectors_knees.csv")
    assert set(knees["detector"]) == {"raw intensity", "contrast in the labelled bones", "bones", "lama"}
    assert len(knees) == 2 * 4 * 5  # knees, detectors, scanners
    means = knees[knees["scanner"] == "as it is"].groupby("detector")["auc"].mean()
    assert means["contrast in the labelled bones"] > means["raw intensity"] > 0.6
    text = (folder / "detectors.md").read_text()
    masks = pd.read_csv(folder / "detectors_masks.csv").set_index(["detector", "scanner"])["best"]
    assert masks["contrast in the labelled bones", "as it is"] > masks["raw intensity", "as it is"] > 0.01
    titles = (
        "Masks by thresholds",
        "Detectors on held-out knees",
        "By size, contrast and bone",
        "Cost",
        "By simulated scanner",
    )
    for title in (*titles, "Lesions, slice by slice", "Slices by the area of their lesions"):
        assert f"**{title}**" in text
    assert "n/a" not in text[text.index("**Cost**") : text.index("**By simulated scanner**")]
