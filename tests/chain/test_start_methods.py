"""Augmentation in other processes, however the system starts them.

nnU-Net takes Python's default: fork on Linux up to Python 3.13, forkserver from 3.14 on, spawn on macOS and Windows.
The last two send a worker what it needs pickled, and it imports everything anew.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_anomaly import trainers
from nnunetv2_anomaly.environment import nnunet_environment
from nnunetv2_anomaly.trainers.mask_rcnn import InstanceTrainer
from nnunetv2_anomaly.trainers.slices import SliceDetectorTrainer

pytestmark = pytest.mark.exhaustive
#: one of each family; the transfer from the one before it
CHAIN = ("AnomalyPreStageTrainer", "AnomalyAwareTrainer", "UNETSTrainer", "UNETSTransferTrainer")
#: start method -> the trainings; what the published ones send their workers, spawn shows alone
CHAINS = {"spawn": CHAIN, "forkserver": CHAIN[:2]}
ONCE = {"inpainting_epochs": 1, "distillation_epochs": 1, "num_epochs": 1, "num_iterations_per_epoch": 2}
#: as on such systems: nothing happens when a worker imports it, and nothing is there that the worker was not sent
SCRIPT = """
import multiprocessing
import sys

if __name__ == "__main__":
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point
    from nnunetv2.run.run_training import run_training_entry

    method, weights, images, output, *chain = sys.argv[1:]
    multiprocessing.set_start_method(method)
    forks = []
    sys.addaudithook(lambda event, _: forks.append(event) if event == "os.fork" else None)
    for trainer in chain:
        sys.argv = ["nnUNetv2_train", "801", "3d_started", "0", "-tr", trainer, "-device", "cpu"]
        sys.argv += ["-pretrained_weights", weights] if "Transfer" in trainer else []
        run_training_entry()
    sys.argv = ["nnUNetv2_predict", "-i", images, "-o", output, "-d", "801", "-c", "3d_started", "-f", "0"]
    sys.argv += ["-tr", chain[1], "-device", "cpu", "-npp", "2", "-nps", "2"]
    predict_entry_point()
    print("started by", multiprocessing.get_start_method(), "and forked", len(forks), "times")
"""


@pytest.fixture(scope="module")
def started(tiny_dataset, tmp_path_factory):
    """Both start methods at the same time, each with folders of its own: folder, exit status and output by method."""
    plans = json.loads(json.dumps(tiny_dataset.plans))
    settings = {**plans["configurations"]["3d_small"]["anomaly"], **ONCE}
    plans["configurations"]["3d_started"] = {"inherits_from": "3d_small", "anomaly": settings}
    running = {}
    for method, chain in CHAINS.items():
        base = tmp_path_factory.mktemp(method)
        preprocessed = base / "nnUNet_preprocessed" / tiny_dataset.preprocessed.name
        results = base / "nnUNet_results"
        preprocessed.mkdir(parents=True)
        results.mkdir()
        for path in tiny_dataset.preprocessed.iterdir():
            if path.name not in ("nnUNetPlans.json", "anomaly_erased_regions", "splits_final.json"):
                (preprocessed / path.name).symlink_to(path)
        (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
        script = base / "chain.py"
        script.write_text(SCRIPT)
        weights = model_of(base, CHAIN[2]) / "checkpoint_final.pth"
        environment = nnunet_environment(base, nnUNet_n_proc_DA=2, OMP_NUM_THREADS=1)
        with (base / "output.txt").open("w") as output:
            running[base] = subprocess.Popen(
                [sys.executable, script, method, weights, tiny_dataset.raw / "imagesTs", base / "out", *chain],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
    try:
        ended = {base: process.wait(timeout=560) for base, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
    return {
        method: (base, status, (base / "output.txt").read_text())
        for method, (base, status) in zip(CHAINS, ended.items(), strict=True)
    }


def model_of(base: Path, trainer: str) -> Path:
    return base / "nnUNet_results" / "Dataset801_TinyKnee" / f"{trainer}__nnUNetPlans__3d_started" / "fold_0"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows starts processes in one way only, and has no forkserver")
@pytest.mark.parametrize("method", CHAINS)
def test_training_and_prediction_end_well(started, method):
    base, status, output = started[method]
    assert status == 0, output[-4000:]
    assert f"started by {method} and forked 0 times" in output
    assert "Exception in background worker" not in output
    for trainer in CHAINS[method]:
        debug = json.loads((model_of(base, trainer) / "debug.json").read_text())
        assert debug["dataloader_train.num_processes"] == "2", trainer
        assert (model_of(base, trainer) / "checkpoint_final.pth").is_file(), trainer
        assert (model_of(base, trainer) / "validation" / "summary.json").is_file(), trainer
    assert (base / "out" / "case_5.nii.gz").is_file()


#: trainers that learn from slices
SLICES = [
    name for name in trainers.__all__ if issubclass(trainers.load_trainer(name), SliceDetectorTrainer | InstanceTrainer)
]


@pytest.mark.parametrize(
    ("name", "configuration"),
    [(name, "2d_whole" if name in SLICES else "3d_small") for name in (*trainers.__all__, "without augmentation")]
    + [(name, "2d_small") for name in CHAIN],
)
def test_what_a_worker_is_sent_makes_the_same_batches(trainer_factory, name, configuration):
    settings = {"prestage_augmentation": False} if name == "without augmentation" else {}
    name = "AnomalyPreStageTrainer" if settings else name
    trainer = trainer_factory(name, configuration=configuration, anomaly={"seed": 3, **settings})
    # What of nnU-Net's initialize the loaders need; the rest would want a pre-stage and weights.
    trainer._set_batch_size_and_oversample()
    trainer.dataset_class = nnUNetDatasetBlosc2
    if hasattr(trainer, "prepare"):
        trainer.prepare()
    for augmenter in trainer.get_dataloaders():
        loader = augmenter.data_loader
        sent = pickle.loads(pickle.dumps(loader))
        for each in (loader, sent):
            each.set_thread_id(0)
        batches = []
        for each in (loader, sent):
            trainer._seed_everything(0)
            batches.append(next(each))
        assert list(batches[0]["keys"]) == list(batches[1]["keys"])
        assert np.array_equal(batches[0]["data"], batches[1]["data"])
