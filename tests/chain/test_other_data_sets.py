"""Data sets that are no knees: channels, normalisations, file endings, spacings, sizes and labels of every kind.

Each goes through nnU-Net's own planning, preprocessing, both trainings and prediction, and through our clean-up and
evaluation; some also through the paper's network and protocol, and a transfer.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from skimage import io
from stock_commands import SETTINGS, WHILE_PLANNING, run_commands

pytestmark = pytest.mark.exhaustive


@dataclass(frozen=True)
class DataSet:
    """What is special about one."""

    number: int
    name: str
    channels: tuple[str, ...] = ("MR",)
    labels: dict = field(default_factory=lambda: {"background": 0, "bone": 1, "cartilage": 2})
    file_ending: str = ".nii.gz"
    shape: tuple[int, ...] = (20, 22, 24)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    configuration: str = "3d_fullres"

    @property
    def folder(self) -> str:
        return f"Dataset{self.number}_{self.name}"

    def model(self, base: Path, trainer: str) -> Path:
        return base / "nnUNet_results" / self.folder / f"{trainer}__nnUNetPlans__{self.configuration}"


DATA_SETS = (
    DataSet(820, "TwoChannels", channels=("T1", "T2")),
    DataSet(821, "FourChannelsCt", channels=("CT", "CT", "MR", "rescale_to_0_1"), file_ending=".nrrd"),
    DataSet(822, "Flat", channels=("R", "G", "B"), file_ending=".png", shape=(40, 44), configuration="2d"),
    DataSet(823, "IgnoreLabel", labels={"background": 0, "bone": 1, "cartilage": 2, "ignore": 3}),
    DataSet(824, "OneLabel", labels={"background": 0, "bone": 1}, file_ending=".mha"),
    DataSet(825, "Small", shape=(10, 12, 14)),
    DataSet(826, "Anisotropic", shape=(8, 40, 40), spacing=(6.0, 0.5, 0.5)),
    DataSet(827, "Many", labels={"background": 0, **{f"part_{n}": n for n in range(1, 12)}}),
)

#: those that also train with the other families, whose networks, losses and loaders are their own
WITH_OTHER_TRAINERS = tuple(d for d in DATA_SETS if d.name in ("TwoChannels", "Flat", "IgnoreLabel"))

#: those whose labels name a host for pasted anomalies
WITH_BONE = tuple(d for d in DATA_SETS if "bone" in d.labels)

#: too small for nnU-Net to plan any downsampling, which the detector follows
TOO_SMALL = DataSet(828, "TooSmall", shape=(6, 7, 9))


def write_case(data_set: DataSet, number: int, raw: Path, *, labelled: bool) -> None:
    random = np.random.default_rng(1000 * data_set.number + number)
    shape = data_set.shape
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    distance = np.sqrt((((grid - np.array(shape) / 2) / (np.array(shape) * 0.3)) ** 2).sum(-1))
    values = [value for name, value in data_set.labels.items() if name not in ("background", "ignore")]
    labels = np.zeros(shape, np.uint8)
    for share, value in zip(np.linspace(1.3, 0.5, len(values)), reversed(values), strict=True):
        labels[distance < share] = value
    if "ignore" in data_set.labels:
        labels[: shape[0] // 4] = data_set.labels["ignore"]
    images = [
        100 * (labels > 0) * (channel + 1) + random.normal(50, 10, shape) for channel in range(len(data_set.channels))
    ]
    suffix = "Tr" if labelled else "Ts"
    stem = f"case_{number}"
    if data_set.file_ending == ".png":
        colours = np.clip(np.stack(images, -1), 0, 255).astype(np.uint8)
        io.imsave(raw / f"images{suffix}" / f"{stem}_0000.png", colours, check_contrast=False)
        if labelled:
            io.imsave(raw / f"labels{suffix}" / f"{stem}.png", labels, check_contrast=False)
        return
    files = {raw / f"images{suffix}" / f"{stem}_{channel:04d}{data_set.file_ending}": image.astype(np.float32)
             for channel, image in enumerate(images)}  # fmt: skip
    if labelled:
        files[raw / f"labels{suffix}" / f"{stem}{data_set.file_ending}"] = labels
    for path, voxels in files.items():
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(data_set.spacing[::-1])
        sitk.WriteImage(image, str(path))


def write_data_set(data_set: DataSet, base: Path) -> None:
    raw = base / "nnUNet_raw" / data_set.folder
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / name).mkdir(parents=True)
    for number in range(6):
        write_case(data_set, number, raw, labelled=number < 5)
    content = {
        "channel_names": {str(place): name for place, name in enumerate(data_set.channels)},
        "labels": data_set.labels,
        "numTraining": 5,
        "file_ending": data_set.file_ending,
    }
    (raw / "dataset.json").write_text(json.dumps(content))


def shorten(data_set: DataSet, base: Path) -> None:
    """Few features, a batch of two, a short training; patch and strides as planned."""
    file = base / "nnUNet_preprocessed" / data_set.folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configuration = plans["configurations"][data_set.configuration]
    keywords = configuration["architecture"]["arch_kwargs"]
    keywords["features_per_stage"] = [4] * keywords["n_stages"]
    configuration.update(batch_size=2, anomaly=dict(SETTINGS))
    file.write_text(json.dumps(plans))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    base = tmp_path_factory.mktemp("other")
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        (base / name).mkdir()
    for data_set in (*DATA_SETS, TOO_SMALL):
        write_data_set(data_set, base)
    results = run_commands(base, "plan", [
        {"name": f"plan-{d.name}", "command": ["nnUNetv2_plan_and_preprocess", "-d", str(d.number), "-c",
                                               d.configuration, "-npfp", "1", "-np", "1", "--verify_dataset_integrity"]}
        for d in (*DATA_SETS, TOO_SMALL)
    ], **WHILE_PLANNING)  # fmt: skip
    entries = []
    for d in DATA_SETS:
        shorten(d, base)
        raw, out = base / "nnUNet_raw" / d.folder, base / "out" / d.name
        validated = d.model(base, "AnomalyPreStageTrainer") / "fold_0" / "validation"
        train = ["nnUNetv2_train", str(d.number), d.configuration, "0", "-device", "cpu", "-tr"]
        of = ["-d", str(d.number), "-c", d.configuration, "-f", "0", "-device", "cpu", "-i", str(raw / "imagesTs")]
        predict = ["nnUNetv2_predict", *of, "-npp", "0", "-nps", "0", "-tr"]
        ours = {
            "prestage": [*train, "AnomalyPreStageTrainer"],
            "train": [*train, "AnomalyAwareTrainer"],
            "predict": [*predict, "AnomalyAwareTrainer", "-o", str(out / "predicted")],
            "error_images": ["nnUNetv2_anomaly", "anomaly_maps", *of, "-o", str(out / "errors")],
            "postprocess": ["nnUNetv2_anomaly", "postprocess", "-i", str(out / "predicted"), "-o", str(out / "clean"),
                            "-np", "1"],
            "evaluate": ["nnUNetv2_anomaly", "evaluate", "-ref", str(raw / "labelsTr"), "-pred",
                         str(d.model(base, "AnomalyAwareTrainer")), "--folds", "0", "-o", str(out / "evaluation"),
                         "-np", "1", "--images", str(raw / "imagesTr"), "--error_images", str(validated)],
        }  # fmt: skip
        if d in WITH_OTHER_TRAINERS:
            weights = d.model(base, "AnomalyAwareTrainer") / "fold_0" / "checkpoint_final.pth"
            transfer = "AnomalyAwareTransferTrainer"
            ours |= {
                "train_published": [*train, "UNETSTrainer"],
                "predict_published": [*predict, "UNETSTrainer", "-o", str(out / "published")],
                "transfer": [*train, transfer, "-pretrained_weights", str(weights)],
                "predict_transfer": [*predict, transfer, "-o", str(out / "transferred")],
            }
        if "bone" in d.labels:
            validation = ["-i", str(out / "lesions"), "-o", str(out / "measures"), "-np", "1", "--side", "left"]
            ours |= {
                "pasted": [*train, "PastedAnomalyTrainer"],
                "contrast": [*train, "BoneContrastTrainer"],
                "lesions": ["nnUNetv2_anomaly", "detect_lesions", *of, "-o", str(out / "lesions"), "--threshold",
                            "0.05"],
                "contrast_maps": ["nnUNetv2_anomaly", "anomaly_maps", *of, "-o", str(out / "contrast"), "-tr",
                                  "BoneContrastTrainer"],
                "measure": ["nnUNetv2_anomaly", "measure", *validation],
            }  # fmt: skip
        entries += [{"name": f"{name}-{d.name}", "command": command} for name, command in ours.items()]
    entries.append(
        {"name": "prestage-TooSmall", "command": ["nnUNetv2_train", "828", "3d_fullres", "0", "-device", "cpu", "-tr",
                                                  "AnomalyPreStageTrainer"]}
    )  # fmt: skip
    return base, results | run_commands(base, "commands", entries)


STEPS = ("plan", "prestage", "train", "predict", "error_images", "postprocess", "evaluate")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("data_set", DATA_SETS, ids=lambda data_set: data_set.name)
def test_step_ends_well(done, data_set, step):
    _, results = done
    result = results[f"{step}-{data_set.name}"]
    assert result["status"] == 0, result["output"]


@pytest.mark.parametrize("step", ["train_published", "predict_published", "transfer", "predict_transfer"])
@pytest.mark.parametrize("data_set", WITH_OTHER_TRAINERS, ids=lambda data_set: data_set.name)
def test_step_with_another_trainer_ends_well(done, data_set, step):
    _, results = done
    result = results[f"{step}-{data_set.name}"]
    assert result["status"] == 0, result["output"]


@pytest.mark.parametrize("folder", ["predicted", "published", "transferred"])
@pytest.mark.parametrize("data_set", WITH_OTHER_TRAINERS, ids=lambda data_set: data_set.name)
def test_every_familys_prediction_has_the_images_shape_and_labels_but_the_ignore_label(done, data_set, folder):
    base, _ = done
    (file,) = (base / "out" / data_set.name / folder).glob(f"*{data_set.file_ending}")
    assert file.name == f"case_5{data_set.file_ending}"
    predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    assert predicted.shape == data_set.shape
    assert set(np.unique(predicted)) <= {value for name, value in data_set.labels.items() if name != "ignore"}


@pytest.mark.parametrize("data_set", DATA_SETS, ids=lambda data_set: data_set.name)
def test_outputs_are_there(done, data_set):
    base, _ = done
    out = base / "out" / data_set.name
    for folder in ("predicted", "clean"):
        assert [path.name for path in sorted((out / folder).glob(f"*{data_set.file_ending}"))] == [
            f"case_5{data_set.file_ending}"
        ]
    several = len(data_set.channels) > 1
    channels = [f"_{channel:04d}" for channel in range(len(data_set.channels))] if several else [""]
    assert {path.name for path in (out / "errors").iterdir()} == {
        "anomaly_maps.json", "case_5.png",
        *(f"case_5_{kind}{channel}.nii.gz" for kind in ("reconstruction", "error") for channel in channels),
    }  # fmt: skip
    assert (out / "evaluation" / "report.html").is_file()
    assert len(list((out / "evaluation" / "figures").glob("case_*.png"))) == 1


@pytest.mark.parametrize("data_set", WITH_BONE, ids=lambda data_set: data_set.name)
def test_detectors_without_lesion_labels_go_through(done, data_set):
    base, results = done
    for step in ("pasted", "contrast", "lesions", "contrast_maps"):
        result = results[f"{step}-{data_set.name}"]
        assert result["status"] == 0, result["output"]
    out = base / "out" / data_set.name
    for folder in ("lesions", "lesions/anatomy"):
        (file,) = (out / folder).glob(f"*{data_set.file_ending}")
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(file))).shape == data_set.shape
    labels = json.loads((out / "lesions" / "dataset.json").read_text())["labels"]
    assert labels["bone_lesion"] == 1 + max(value for name, value in data_set.labels.items() if name != "ignore")
    result = results[f"measure-{data_set.name}"]
    if data_set.file_ending == ".png":
        assert (result["status"], "2 axes; expected a volume" in result["output"]) == (3, True)
    else:
        assert result["status"] == 0, result["output"]
        assert (out / "measures" / "measurements.csv").is_file()


def test_error_images_of_a_colour_file_are_those_of_its_channels_in_their_order(done):
    base, _ = done
    (flat,) = (data_set for data_set in DATA_SETS if data_set.file_ending == ".png")
    checkpoint = flat.model(base, "AnomalyAwareTrainer") / "fold_0" / "checkpoint_final.pth"
    weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]
    pixels = io.imread(base / "nnUNet_raw" / flat.folder / "imagesTs" / "case_5_0000.png").astype(np.float64)
    for channel in range(3):
        reconstruction, error = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
            for kind in ("reconstruction", "error")
            for path in (base / "out" / flat.name / "errors").glob(f"case_5_{kind}_{channel:04d}.nii.gz")
        )
        # nnU-Net's z-score, then the data set's range to [0, 1].
        low, high = (weights[f"detector.intensity_{end}"][channel].item() for end in ("low", "high"))
        normalised = (pixels[..., channel] - pixels[..., channel].mean()) / pixels[..., channel].std()
        image = np.clip((normalised - low) / (high - low), 0, 1)
        assert error.dtype == np.float32
        np.testing.assert_allclose(error, (image - reconstruction) ** 2, atol=1e-5)
        # Windows overlap, and nnU-Net blends them in float16.
        assert -5e-4 <= reconstruction.min() <= reconstruction.max() <= 1 + 5e-4


def test_images_too_small_for_any_downsampling_are_told(done):
    _, results = done
    assert results["plan-TooSmall"]["status"] == 0
    assert results["prestage-TooSmall"]["status"] == 1
    assert "expected at least one downsampling" in results["prestage-TooSmall"]["output"]
    assert "Traceback" not in results["prestage-TooSmall"]["output"]
