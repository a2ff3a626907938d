"""Where the files of a demonstration are."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, DETECTORS

DATASET_NAME = "Dataset500_SimulatedKnees"
PLANS = "nnUNetDemoPlans"
CONFIGURATION = "3d_demo"
PRESTAGE, AWARE = DETECTORS[DEFAULT_DETECTOR].trainer, "AnomalyAwareTrainer"


class DemoFolders:
    """The folders below that of a demonstration, and its three trainers."""

    def __init__(self, folder: Path, naive_trainer: str) -> None:
        """Name them; folder is absolute, naive_trainer is the one of nnU-Net's that is compared."""
        self.folder = folder
        self.raw = folder / "nnUNet_raw" / DATASET_NAME
        self.preprocessed = folder / "nnUNet_preprocessed" / DATASET_NAME
        self.results = folder / "nnUNet_results" / DATASET_NAME
        self.simulated, self.detector, self.error_images, self.evaluation = (
            folder / name for name in ("simulated", "detector", "error_images", "evaluation")
        )
        self.lesions = folder / "lesions.csv"  # which case holds a lesion, for the evaluation's groups
        self.trainers = {"prestage": PRESTAGE, "naive": naive_trainer, "aware": AWARE}

    def model(self, trainer: str) -> Path:
        """A trainer's model folder."""
        return self.results / f"{trainer}__{PLANS}__{CONFIGURATION}"

    def predictions(self, trainer: str) -> Path:
        """A trainer's predictions of the test cases."""
        return self.folder / "predictions" / trainer
