"""torch.compile around our networks: training, continuing it, validation and prediction.

nnU-Net 2.8.1 compiles for GPUs unless nnUNet_compile says no; on a CPU it does so in prediction alone, and only if
nnUNet_compile says yes. Here its choice is made as for a GPU. The networks are really traced, forwards and backwards;
``COMPILE_BACKEND=inductor pytest tests/trainers/test_compile.py`` makes machine code of them too, which takes a C++
compiler and minutes.
"""

import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch._dynamo import OptimizedModule
from torch._dynamo.utils import counters

from nnunetv2_anomaly.prediction.anomaly_maps import load_detector, predict_anomaly_maps
from nnunetv2_anomaly.trainers.base import AnomalyTrainerBase

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nnU-Net does not compile on Windows")

PRESTAGE, SEGMENTATION, PUBLISHED = "AnomalyPreStageTrainer", "AnomalyAwareTrainer", "UNETSTrainer"
#: the same code under another trainer, which every run need not try
PRESTAGE_TOO, PUBLISHED_TOO = (pytest.param(name, marks=pytest.mark.exhaustive) for name in (PRESTAGE, PUBLISHED))
BACKEND = os.environ.get("COMPILE_BACKEND", "aot_eager")
CPU = torch.device("cpu")
ONCE = {"inpainting_epochs": 1, "distillation_epochs": 1, "num_epochs": 1, "seed": 7}


@pytest.fixture(autouse=True)
def compiled_as_on_a_gpu(monkeypatch):
    """nnU-Net's own choice for a GPU, which the variable nnUNet_compile has a say in; frames and graph breaks count."""
    choice = AnomalyTrainerBase._do_i_compile

    def as_on_a_gpu(trainer):
        trainer.device, device = torch.device("cuda"), trainer.device
        try:
            return choice(trainer)
        finally:
            trainer.device = device

    monkeypatch.setattr(AnomalyTrainerBase, "_do_i_compile", as_on_a_gpu)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=BACKEND))
    monkeypatch.delenv("nnUNet_compile")
    torch._dynamo.reset()
    counters.clear()


def weights_in(path):
    return torch.load(path, weights_only=False)["network_weights"]


def trained(trainer):
    trainer.run_training()
    return Path(trainer.output_folder) / "checkpoint_final.pth"


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [PRESTAGE_TOO, SEGMENTATION, PUBLISHED_TOO])
def test_compiled_training_is_the_uncompiled_one_and_goes_on(trainer_factory, after_prestage, monkeypatch, name):
    monkeypatch.setenv("nnUNet_compile", "f")
    plain = trainer_factory(name, anomaly=ONCE)
    plain_file = trained(plain)
    assert not isinstance(plain.network, OptimizedModule)
    assert not counters["frames"]
    plain_weights = weights_in(plain_file)

    monkeypatch.delenv("nnUNet_compile")
    trainer = trainer_factory(name, anomaly=ONCE)
    file = trained(trainer)
    assert isinstance(trainer.network, OptimizedModule)
    assert counters["frames"]["ok"] == counters["frames"]["total"] >= (4 if name == PRESTAGE else 2)
    assert not counters["graph_break"]
    for key in ("train_losses", "val_losses"):
        losses = [each.logger.get_value(key, step=None) for each in (plain, trainer)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), key
    weights = weights_in(file)
    assert list(weights) == list(plain_weights)
    assert all(weights[key].shape == plain_weights[key].shape for key in weights)
    trainer.perform_actual_validation()
    assert (file.parent / "validation" / "summary.json").is_file()

    # A training may be compiled or not each time it goes on.
    for number, compiled in enumerate((False, True), start=2):
        monkeypatch.setenv("nnUNet_compile", "t" if compiled else "f")
        resumed = trainer_factory(name, anomaly={**ONCE, "num_epochs": number, "distillation_epochs": number})
        resumed.load_checkpoint(str(file))
        assert trained(resumed) == file
        assert isinstance(resumed.network, OptimizedModule) is compiled
        assert resumed.current_epoch == resumed.num_epochs
        assert np.isfinite(resumed.logger.get_value("train_losses", step=None)).all()


def predicted(model_folder, image_file):
    """Segmentation and probabilities of an image, and the predictor."""
    predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=CPU)
    predictor.initialize_from_trained_model_folder(str(model_folder), (0,), "checkpoint_final.pth")
    image, properties = SimpleITKIO().read_images([str(image_file)])
    return *predictor.predict_single_npy_array(image, properties, None, None, True), predictor


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [SEGMENTATION, PUBLISHED])
def test_compiled_prediction_is_the_uncompiled_one(trainer_factory, after_prestage, tiny_dataset, monkeypatch, name):
    monkeypatch.setenv("nnUNet_compile", "f")
    model = trained(trainer_factory(name, anomaly=ONCE)).parents[1]
    (image,) = (tiny_dataset.raw / "imagesTs").glob("*.nii.gz")
    results = []
    for compiled in (False, True):
        monkeypatch.setenv("nnUNet_compile", "t" if compiled else "f")
        segmentation, probabilities, predictor = predicted(model, image)
        assert isinstance(predictor.network, OptimizedModule) is compiled
        assert bool(counters["frames"]["ok"]) is compiled
        results.append(probabilities)
    assert segmentation.shape == (20, 22, 24)
    assert np.allclose(*results, atol=5e-3)  # nnU-Net adds up the windows' logits in half precision


@pytest.mark.exhaustive
def test_error_images_are_the_same_where_prediction_is_compiled(trained_results, tiny_dataset, tmp_path, monkeypatch):
    (model,) = trained_results.glob(f"*/{PRESTAGE}__*")
    errors = []
    for choice in ("f", "t"):
        monkeypatch.setenv("nnUNet_compile", choice)
        predict_anomaly_maps(tiny_dataset.raw / "imagesTs", tmp_path / choice, load_detector(model, device=CPU))
        errors.append(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / choice / "case_5_error.nii.gz"))))
    assert errors[0].max() > 0
    assert np.allclose(*errors, atol=1e-3)
