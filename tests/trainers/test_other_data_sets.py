"""Data sets that are no knees: channels, normalisations, file endings, spacings, sizes and labels of every kind.

Each goes through nnU-Net's own planning, preprocessing, both trainings and prediction, and through our clean-up and
evaluation.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage import io

from nnunetv2_anomaly.environment import nnunet_environment

pytestmark = pytest.mark.slow

SETTINGS = {
    "detector_features": 4,
    "compressor_code_length": 8,
    "erase_margin_voxels": 2,
    "inpainting_epochs": 1,
    "distillation_epochs": 1,
    "num_epochs": 1,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
}


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
    environment = nnunet_environment(base, nnUNet_def_n_proc="1", OMP_NUM_THREADS="1", nnUNet_compile="0")
    results = {}

    def run(label, entries, **variables):
        (base / f"{label}.json").write_text(json.dumps(entries))
        script, out = Path(__file__).with_name("stock_commands.py"), base / f"{label}_results.json"
        subprocess.run([sys.executable, str(script), str(base / f"{label}.json"), str(out)], check=True,
                       env={**environment, **variables}, timeout=1500)  # fmt: skip
        results.update(json.loads(out.read_text()))

    for data_set in (*DATA_SETS, TOO_SMALL):
        write_data_set(data_set, base)
    # The planner takes the number of augmentation processes for a thread count, which 0 is not.
    run("plan", [
        {"name": f"plan-{d.name}", "command": ["nnUNetv2_plan_and_preprocess", "-d", str(d.number), "-c",
                                               d.configuration, "-npfp", "1", "-np", "1", "--verify_dataset_integrity"]}
        for d in (*DATA_SETS, TOO_SMALL)
    ], nnUNet_n_proc_DA="1")  # fmt: skip
    entries = []
    for d in DATA_SETS:
        shorten(d, base)
        raw, out = base / "nnUNet_raw" / d.folder, base / "out" / d.name
        model = base / "nnUNet_results" / d.folder / f"AnomalyAwareTrainer__nnUNetPlans__{d.configuration}"
        train = ["nnUNetv2_train", str(d.number), d.configuration, "0", "-device", "cpu", "-tr"]
        of = ["-d", str(d.number), "-c", d.configuration, "-f", "0", "-device", "cpu", "-i", str(raw / "imagesTs")]
        ours = {
            "prestage": [*train, "AnomalyPreStageTrainer"],
            "train": [*train, "AnomalyAwareTrainer"],
            "predict": ["nnUNetv2_predict", *of, "-tr", "AnomalyAwareTrainer", "-o", str(out / "predicted"),
                        "-npp", "0", "-nps", "0"],
            "error_images": ["nnUNetv2_anomaly", "error_images", *of, "-o", str(out / "errors")],
            "postprocess": ["nnUNetv2_anomaly", "postprocess", "-i", str(out / "predicted"), "-o", str(out / "clean"),
                            "-np", "1"],
            "evaluate": ["nnUNetv2_anomaly", "evaluate", "-ref", str(raw / "labelsTr"), "-pred", str(model), "--folds",
                         "0", "-o", str(out / "evaluation"), "-np", "1"],
        }  # fmt: skip
        entries += [{"name": f"{name}-{d.name}", "command": command} for name, command in ours.items()]
    entries.append(
        {"name": "prestage-TooSmall", "command": ["nnUNetv2_train", "828", "3d_fullres", "0", "-device", "cpu", "-tr",
                                                  "AnomalyPreStageTrainer"]}
    )  # fmt: skip
    run("commands", entries, nnUNet_n_proc_DA="0")
    return base, results


STEPS = ("plan", "prestage", "train", "predict", "error_images", "postprocess", "evaluate")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("data_set", DATA_SETS, ids=lambda data_set: data_set.name)
def test_step_ends_well(done, data_set, step):
    _, results = done
    result = results[f"{step}-{data_set.name}"]
    if (step, data_set.name) == ("error_images", "Flat"):
        # Files with several channels in one are refused in a sentence.
        assert result["status"] == 1
        assert "has 1 channel(s); expected 3" in result["output"]
        return
    assert result["status"] == 0, result["output"]


@pytest.mark.parametrize("data_set", DATA_SETS, ids=lambda data_set: data_set.name)
def test_outputs_are_there(done, data_set):
    base, _ = done
    out = base / "out" / data_set.name
    for folder in ("predicted", "clean"):
        assert [path.name for path in sorted((out / folder).glob(f"*{data_set.file_ending}"))] == [
            f"case_5{data_set.file_ending}"
        ]
    assert list((out / "errors").glob("case_5_error*")) or data_set.name == "Flat"
    assert (out / "evaluation" / "report.html").is_file()


def test_images_too_small_for_any_downsampling_are_told(done):
    _, results = done
    assert results["plan-TooSmall"]["status"] == 0
    assert results["prestage-TooSmall"]["status"] == 1
    assert "expected at least one downsampling" in results["prestage-TooSmall"]["output"]
    assert "Traceback" not in results["prestage-TooSmall"]["output"]
