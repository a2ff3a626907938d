"""Hands the benchmarks' trainers to nnU-Net's search by class name; nnUNet_extTrainer names this folder."""

import sys
from pathlib import Path

# Last, so that the checkout's folder nnunetv2_anomaly does not hide the installed package.
sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.ablation import AblationTrainer, BudgetedNNUNetTrainer
from benchmarks.equal_time import EqualTimeIMaskRCNNTrainer, EqualTimeMaskRCNNTrainer, EqualTimeNNUNetTrainer

__all__ = [
    "AblationTrainer", "BudgetedNNUNetTrainer", "EqualTimeIMaskRCNNTrainer", "EqualTimeMaskRCNNTrainer",
    "EqualTimeNNUNetTrainer",
]  # fmt: skip
