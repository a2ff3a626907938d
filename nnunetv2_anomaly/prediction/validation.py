"""The pre-stage's validation: reconstructions and error images of whole cases, and how good they are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from scipy.ndimage import binary_erosion
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.auc import roc_auc
from nnunetv2_anomaly.detectors.inpainting.networks import AnomalyDetector, PreStageNetwork
from nnunetv2_anomaly.detectors.inpainting.quality import erased_region_quality
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.images.sliding_window import predict_image
from nnunetv2_anomaly.prediction.case_files import write_case

#: in summary.json: what ``validate_case`` returned, case by case; as in nnU-Net's own
CASES_KEY = "metric_per_case"
#: over all bone, and away from its surface
AUC_KEYS = ("lesion_auc", "lesion_auc_interior")
SIGNED_AUC_KEYS = ("lesion_auc_signed", "lesion_auc_signed_interior")
#: what is measured in summary.json, and which AUC of it: (source, its keys, title)
MEASURED = (
    ("intensity", AUC_KEYS, "raw intensity"),
    ("inpainter", AUC_KEYS, "error image of G (mask known)"),
    ("inpainter", SIGNED_AUC_KEYS, "x - G(x), with its sign"),
    ("detector", AUC_KEYS, "error image of A (no mask)"),
    ("detector", SIGNED_AUC_KEYS, "x - A(x), with its sign"),
)


class DetectorWindow(nn.Module):
    """A as a window network: normalised image (B, C, ...) -> reconstruction (B, C, ...) in [0, 1]."""

    def __init__(self, detector: AnomalyDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        """A's reconstruction of one window."""
        return self.detector.reconstruct(self.detector.rescale(image))


class InpainterWindow(nn.Module):
    """G as a window network: normalised image and hole mask (B, C + 1, ...) -> inpainting (B, C, ...) in [0, 1]."""

    def __init__(self, network: PreStageNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_and_hole: Tensor) -> Tensor:
        """G's inpainting of one window."""
        return self.network(image_and_hole).inpainted


def labels_named(dataset_labels: Mapping[str, Any], names: Sequence[str] | None, word: str) -> list[int]:
    """Label values by name: the given names, or every label with ``word`` in its name.

    Args: dataset_labels: "labels" of dataset.json; a region contributes all its values.
    Raises: UserError if a given name is not among the labels.
    """
    if names is not None:
        unknown = [name for name in names if name not in dataset_labels]
        if unknown:
            raise UserError(
                f"the setting '{word}_labels' names {', '.join(unknown)}; dataset.json has the labels "
                f"{', '.join(dataset_labels)}"
            )
    chosen = names if names is not None else [name for name in dataset_labels if word in name.lower()]
    values: set[int] = set()
    for name in chosen:
        value = dataset_labels[name]
        values.update(int(v) for v in value) if isinstance(value, (list, tuple)) else values.add(int(value))
    return sorted(values)


@dataclass(frozen=True)
class CaseForValidation:
    """One preprocessed case: image (C, X, Y, Z) normalised, labels and hole mask (X, Y, Z), nnU-Net's properties."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    hole_mask: np.ndarray
    properties: dict


def validate_case(
    network: PreStageNetwork,
    case: CaseForValidation,
    output_folder: Path,
    *,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
    device: torch.device,
    lesion_labels: Sequence[int],
    bone_labels: Sequence[int],
) -> dict[str, Any]:
    """Reconstruct one case with A and with G, write A's images, and measure both.

    Returns: for "detector" (A) and "inpainter" (G) the MSE inside and outside the erased region with its baselines
        and, where the case has lesion labels, the voxel-wise AUC for lesion against bone, over all bone and over the
        bone at least one voxel from its surface: of the error image (``AUC_KEYS``), and of x - A(x), which is above
        0.5 where lesions are brighter than expected (``SIGNED_AUC_KEYS``); for "intensity" the AUC of the image itself.
    """
    image = torch.from_numpy(case.image)
    hole = torch.from_numpy(case.hole_mask).to(image.dtype)[None]
    rescaled = network.detector.rescale(image[None].to(device))[0].cpu()
    reconstructions = {
        name: predict_image(
            window,
            volume,
            num_output_channels=len(image),
            plans_manager=plans_manager,
            configuration_manager=configuration_manager,
            dataset_json=dataset_json,
            device=device,
        )
        for name, window, volume in (
            ("detector", DetectorWindow(network.detector), image),
            ("inpainter", InpainterWindow(network), torch.cat((image, hole))),
        )
    }
    lesion_mask = np.isin(case.labels, lesion_labels)
    bone_mask = lesion_mask | np.isin(case.labels, bone_labels)
    # At the bone's surface every reconstruction is a little off; what is left without it tells that apart. Beyond the
    # image's edge bone may go on, and 2D images have one slice only.
    areas = (bone_mask, binary_erosion(bone_mask, border_value=1))
    intensity = lesion_auc(rescaled.mean(dim=0).numpy(), lesion_mask, areas, AUC_KEYS)
    result: dict[str, Any] = {"case": case.name, "intensity": intensity}
    for name, reconstruction in reconstructions.items():
        quality = erased_region_quality(
            rescaled[None], reconstruction[None], hole[None], configuration_manager.patch_size
        )
        difference = rescaled - reconstruction
        result[name] = {
            **quality.summary(),
            **lesion_auc(torch.square(difference).mean(dim=0).numpy(), lesion_mask, areas, AUC_KEYS),
            **lesion_auc(difference.mean(dim=0).numpy(), lesion_mask, areas, SIGNED_AUC_KEYS),
        }
    write_case(
        output_folder,
        case.name,
        image=rescaled.numpy(),
        reconstruction=reconstructions["detector"].numpy(),
        properties=case.properties,
        plans_manager=plans_manager,
        configuration_manager=configuration_manager,
        outlines=lesion_mask if lesion_mask.any() else None,
    )
    return result


def lesion_auc(
    scores: np.ndarray, lesion_mask: np.ndarray, areas: Sequence[np.ndarray], keys: Sequence[str] = AUC_KEYS
) -> dict[str, float | None]:
    """How well scores tell lesion from other bone: the AUC over each of some areas.

    Args:
        scores, lesion_mask: (X, Y, Z).
        areas: masks of that shape: all bone with its lesions, and the same away from its surface.
        keys: what the numbers are called, one for each area.
    Returns: the numbers, None where there is no lesion or nothing else.
    """
    values = [roc_auc(scores[mask], lesion_mask[mask]) for mask in areas]
    return {key: None if math.isnan(value) else value for key, value in zip(keys, values, strict=True)}


def mean_of_cases(values: Sequence[float | None]) -> float | None:
    """Mean over the cases that have a finite value; None where none has."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def means_over(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of what ``validate_case`` returned, over the cases where each number exists."""
    areas = (*AUC_KEYS, *SIGNED_AUC_KEYS)
    errors = ("mse_erased", "mse_constant", "mse_blurred", "mse_outside")
    mean: dict[str, Any] = {
        source: {key: mean_of_cases([case[source].get(key) for case in cases]) for key in keys}
        for source, keys in (("detector", errors + areas), ("inpainter", errors + areas), ("intensity", AUC_KEYS))
    }
    mean["num_cases"] = len(cases)
    mean["num_cases_with_lesion"] = sum(case["detector"]["lesion_auc"] is not None for case in cases)
    return mean


def write_summary(path: Path, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write summary.json: means over cases, then each case; numbers that do not exist are null.

    Returns: what was written.
    """
    summary = _without_nan({"mean": means_over(cases), CASES_KEY: list(cases)})
    write_text(path, json.dumps(summary, indent=2, allow_nan=False))
    return summary


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
