"""Hands the benchmarks' trainers to nnU-Net's search by class name; nnUNet_extTrainer names this folder."""

from benchmarks.ablation import AblationTrainer, BudgetedNNUNetTrainer

__all__ = ["AblationTrainer", "BudgetedNNUNetTrainer"]
