"""Anomaly maps in given bones, and candidate lesions in a segmentation, through the verbs."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from quick import pools_of_threads

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.prediction.lesion_detection import labels_with_lesions

SEGMENTER, DETECTOR = "PastingTrainer", "PastedAnomalyTrainer"


@pytest.fixture(scope="module")
def models(build_trainer, tmp_path_factory):
    """nnUNet_results with a short segmentation and a short detector, fold 0."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(results))
        for name in (SEGMENTER, DETECTOR):
            trainer = build_trainer(name)
            trainer.run_training()
            with pytest.MonkeyPatch.context() as threads:
                pools_of_threads(threads)
                trainer.perform_actual_validation()
    return results


@pytest.fixture
def options(models, tiny_dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(models))
    return ["-i", str(tiny_dataset.raw / "imagesTs"), "-d", "801", "-c", "3d_small", "-device", "cpu"]


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture
def bones(tiny_dataset, tmp_path):
    """Segmentations of the new images, a ball each."""
    folder = tmp_path / "bones"
    folder.mkdir()
    for file in (tiny_dataset.raw / "imagesTs").glob("*_0000.nii.gz"):
        image = sitk.ReadImage(str(file))
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.GetSize()[::-1]), indexing="ij")
        labels = sitk.GetImageFromArray((z**2 + y**2 + x**2 < 0.5).astype(np.uint8))
        labels.CopyInformation(image)
        sitk.WriteImage(labels, str(folder / file.name.replace("_0000", "")))
    return folder


def test_maps_of_a_trained_detector_are_kept_to_given_bones(options, bones, tmp_path):
    assert main(["anomaly_maps", *options, "-o", str(tmp_path / "o"), "-tr", DETECTOR, "--bones", str(bones)]) == 0
    for file in bones.glob("*.nii.gz"):
        scores = read(tmp_path / "o" / file.name.replace(".nii.gz", "_error.nii.gz"))
        bone = read(file) > 0
        assert scores[bone].max() > 0
        # Resampling between grids blurs the border by less than two voxels.
        from scipy.ndimage import binary_dilation

        assert (scores[~binary_dilation(bone, iterations=2)] == 0).all()
    assert json.loads((tmp_path / "o" / "anomaly_maps.json").read_text())["bones"] == str(bones)


def test_contrast_in_given_bones_needs_no_training(options, bones, tmp_path):
    words = [*options, "-o", str(tmp_path / "o"), "-tr", "BoneContrastTrainer"]
    assert main(["anomaly_maps", *words]) == 1  # nothing is trained, and no bones are given
    assert main(["error_images", *words, "--bones", str(bones)]) == 0  # by its earlier name
    record = json.loads((tmp_path / "o" / "anomaly_maps.json").read_text())
    assert (record["model_folder"], record["detector"]) == (None, "bone_contrast")
    (file, *_) = sorted(bones.glob("*.nii.gz"))
    assert read(tmp_path / "o" / file.name.replace(".nii.gz", "_error.nii.gz")).max() > 0


def test_lesions_are_label_maps_in_the_images_geometry_and_the_same_after_export(
    options, models, tmp_path, monkeypatch
):
    output = tmp_path / "lesions"
    assert main(["detect_lesions", *options, "-o", str(output), "-tr", SEGMENTER, "--threshold", "0.01"]) == 0
    names = sorted(path.name for path in output.glob("*.nii.gz"))
    assert names
    description = json.loads((output / "dataset.json").read_text())
    lesion, bone = (description["labels"][name] for name in ("femoral_lesion", "femoral_bone"))
    for name in names:
        image = sitk.ReadImage(str(options[1]) + "/" + name.replace(".nii.gz", "_0000.nii.gz"))
        made, anatomy = sitk.ReadImage(str(output / name)), sitk.ReadImage(str(output / "anatomy" / name))
        assert (made.GetSize(), made.GetSpacing()) == (image.GetSize(), image.GetSpacing())
        labels, before = sitk.GetArrayFromImage(made), sitk.GetArrayFromImage(anatomy)
        changed = labels != before
        assert set(np.unique(labels[changed])) <= {lesion}
        assert set(np.unique(before[changed])) <= {bone}
    # The same models elsewhere give the same: exported and imported by nnU-Net.
    for trainer in (SEGMENTER, DETECTOR):
        file = str(tmp_path / f"{trainer}.zip")
        export_pretrained_model(801, file, ("3d_small",), trainer, folds=(0,))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("nnUNet_results", str(elsewhere))
    for trainer in (SEGMENTER, DETECTOR):
        install_model_from_zip_file(str(tmp_path / f"{trainer}.zip"))
    again = tmp_path / "again"
    assert main(["detect_lesions", *options, "-o", str(again), "-tr", SEGMENTER, "--threshold", "0.01"]) == 0
    for name in names:
        assert np.array_equal(read(output / name), read(again / name))
        score = name.replace(".nii.gz", "_error.nii.gz")
        assert np.array_equal(read(output / "maps" / score), read(again / "maps" / score))
    before = {name: (again / name).stat().st_mtime_ns for name in names}
    words = ["detect_lesions", *options, "-o", str(again), "-tr", SEGMENTER, "--continue_prediction"]
    assert main(words) == 1  # the threshold is another one
    assert main([*words, "--threshold", "0.01"]) == 0
    assert {name: (again / name).stat().st_mtime_ns for name in names} == before


def test_threshold_comes_from_the_validation_and_is_asked_for_where_there_is_none(
    options, models, build_trainer, tmp_path, monkeypatch, capsys
):
    words = ["detect_lesions", *options, "-tr", SEGMENTER]
    assert main([*words, "-o", str(tmp_path / "o")]) == 0
    threshold = json.loads((tmp_path / "o" / "detect_lesions.json").read_text())["threshold"]
    assert threshold["fitted_by"] == "labels"  # the tiny data set has lesion labels
    assert 0 <= threshold["value"] <= 1
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    shutil.copytree(models, tmp_path / "results")
    build_trainer(DETECTOR).run_training()  # without its validation
    assert main([*words, "-o", str(tmp_path / "p")]) == 1
    assert "has no threshold for lesions" in capsys.readouterr().err


def test_bones_of_another_pose_are_refused(options, bones, tmp_path, capsys):
    for file in bones.glob("*.nii.gz"):
        image = sitk.ReadImage(str(file))
        image.SetOrigin((7.0, 0.0, 0.0))
        sitk.WriteImage(image, str(file))
    words = ["anomaly_maps", *options, "-o", str(tmp_path / "o"), "-tr", DETECTOR, "--bones", str(bones)]
    assert main(words) == 3
    assert "expected one grid" in capsys.readouterr().err


def test_segmentations_of_another_model_are_made_again_unless_continued(options, tmp_path):
    words = ["detect_lesions", *options, "-o", str(tmp_path / "o"), "-tr", SEGMENTER, "--threshold", "0.5"]
    assert main(words) == 0
    (file, *_) = sorted((tmp_path / "o" / "anatomy").glob("*.nii.gz"))
    made = read(file)
    empty = sitk.ReadImage(str(file)) * 0
    sitk.WriteImage(empty, str(file))
    assert main([*words, "--continue_prediction"]) == 0
    assert not read(file).any()
    assert main(words) == 0
    assert np.array_equal(read(file), made)


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
@pytest.mark.parametrize("option", ["--threshold", "--min_mm3"])
def test_numbers_that_cannot_be_are_named(options, tmp_path, capsys, option, number):
    assert main(["detect_lesions", *options, "-o", str(tmp_path / "o"), f"{option}={number}"]) == 1
    assert f"{option} is {float(number)}; expected a number from 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("description", "lesions", "kept"),
    [
        ({"labels": {"background": 0, "femur": 1, "AC": 2},
          "label_roles": {"bones": ["femur"], "cartilages": {"AC": "femur"}}},
         {"femur_lesion": 3}, {"cartilages": {"AC": "femur"}}),
        ({"labels": {"background": 0, "femoral_bone": [1], "femoral_lesion": [2]}}, {"femoral_lesion": 2}, {}),
        ({"labels": {"background": 0, "femoral_bone": 1, "femoral_lesion": 2},
          "label_roles": {"lesions": {"femoral_lesion": None}, "bones": ["femoral_bone"]}},
         {"femoral_lesion": 2, "femoral_bone_candidate_lesion": 3}, {}),
    ],
)  # fmt: skip
def test_labels_and_roles_of_the_segmentation_stay(description, lesions, kept):
    made, values = labels_with_lesions(description)
    assert {name: value for name, value in made["labels"].items() if "lesion" in name} == lesions
    assert values == [max(lesions.values())]
    assert kept.items() <= made["label_roles"].items()
