"""The one table of detectors, segmenters, trainers and verbs; names alone, so that reading it imports nothing.

Another package adds a detector family through an entry point of the group ``nnunetv2_anomaly.detectors`` that names a
``DetectorFamily``; its trainer reaches nnU-Net as every outside trainer does, through ``nnUNet_extTrainer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

ENTRY_POINTS = "nnunetv2_anomaly.detectors"
DEFAULT_DETECTOR = "inpainting"
#: plans that ``plan_whole_image`` makes, by default
WHOLE_IMAGE_PLANS = "nnUNetWholeImagePlans"


@dataclass(frozen=True)
class DetectorFamily:
    """A family of detectors; ``detector`` and ``settings`` are named as ``module:attribute``."""

    name: str
    detector: str
    trainer: str  # the class that ``nnUNetv2_train -tr`` is given to train it
    summary: str
    settings: str | None = None  # table of the family's own settings, name -> plans.settings.Setting
    needs_bones: bool = False  # whether new images need segmented bones, where no bone model travels inside


@dataclass(frozen=True)
class SegmenterFamily:
    """A family of segmenters; its trainers build its networks."""

    name: str
    summary: str
    of_slices: bool = False


@dataclass(frozen=True)
class Trainer:
    """A class that nnU-Net's commands know by its name."""

    module: str
    family: str  # of detectors where it trains one, else of segmenters
    summary: str
    anomaly_aware: bool = False  # whether a trained detector travels in its network


DETECTORS: dict[str, DetectorFamily] = {
    family.name: family
    for family in (
        DetectorFamily(
            "inpainting",
            "nnunetv2_anomaly.detectors.inpainting.networks:AnomalyDetector",
            "AnomalyPreStageTrainer",
            "G/C/A: inpaint the erased anatomy, distil that into a detector without a mask (Woo et al.)",
            "nnunetv2_anomaly.detectors.inpainting.settings:SETTINGS",
        ),
        DetectorFamily(
            "pasted",
            "nnunetv2_anomaly.detectors.pasted.networks:PastedDetector",
            "PastedAnomalyTrainer",
            "what stands out from the bone's local level, learnt from anomalies that are pasted into healthy bone",
            "nnunetv2_anomaly.detectors.pasted.settings:SETTINGS",
        ),
        DetectorFamily(
            "bone_contrast",
            "nnunetv2_anomaly.detectors.bone_contrast.detector:BoneContrast",
            "BoneContrastTrainer",
            "robust local contrast in the bones that a segmentation finds: the control of the others",
        ),
        DetectorFamily(
            "lama_bml",
            "nnunetv2_anomaly.detectors.lama_bml.detector:LaMaDetector",
            "LaMaBMLTrainer",
            "bones of whole slices inpainted by Fourier convolutions, and what is brighter than that (Qin et al.)",
            "nnunetv2_anomaly.detectors.lama_bml.settings:SETTINGS",
            needs_bones=True,
        ),
        DetectorFamily(
            "asc_net",
            "nnunetv2_anomaly.detectors.asc_net.detector:ASCNetDetector",
            "ASCNetTrainer",
            "slices cut into what looks like normal ones and the rest, and mixed again (Dey et al.)",
            "nnunetv2_anomaly.detectors.asc_net.settings:SETTINGS",
        ),
        DetectorFamily(
            "mkd",
            "nnunetv2_anomaly.detectors.mkd.detector:MKDDetector",
            "MKDTrainer",
            "where a small network differs from VGG-16, whose features of healthy slices it learnt (Salehi et al.)",
            "nnunetv2_anomaly.detectors.mkd.settings:SETTINGS",
        ),
    )
}

SEGMENTERS: dict[str, SegmenterFamily] = {
    family.name: family
    for family in (
        SegmenterFamily("planned", "the network that nnU-Net planned"),
        SegmenterFamily("published", "UNET and CAN, plain or with additive deep supervision (Woo et al., Appendix A)"),
        SegmenterFamily("mask_rcnn", "Mask R-CNN on slices, plain or improved (Felfeliyan et al.)", of_slices=True),
    )
}

#: setting tables of what is no detector family, in the order of the settings page
SETTING_TABLES = {
    "every trainer": "nnunetv2_anomaly.plans.settings:SHARED",
    "detectors": "nnunetv2_anomaly.detectors.settings:SETTINGS",
    "segmentation": "nnunetv2_anomaly.segmenters.settings:SETTINGS",
    "instances in slices": "nnunetv2_anomaly.segmenters.mask_rcnn.settings:SETTINGS",
}

TRAINERS: dict[str, Trainer] = {
    "AnomalyPreStageTrainer": Trainer("inpainting", "inpainting", "the detector: G with C, then A (Eq. 1, 2)"),
    "PastedAnomalyTrainer": Trainer("pasted", "pasted", "the detector: local level, then what is pasted"),
    "BoneContrastTrainer": Trainer(
        "bone_contrast", "bone_contrast", "nnU-Net's segmentation, for contrast in its bones"
    ),
    "LaMaBMLTrainer": Trainer("lama_bml", "lama_bml", "the detector: inpainting of bones in whole slices"),
    "ASCNetTrainer": Trainer("asc_net", "asc_net", "the detector: adversarial selective cutting of slices"),
    "MKDTrainer": Trainer(
        "mkd", "mkd", "the detector: knowledge distillation on whole slices, the baseline of LaMa-BML"
    ),
    "AnomalyAwareTrainer": Trainer(
        "anomaly_aware", "planned", "nnU-Net's network on image and error image, alpha 1", anomaly_aware=True
    ),
    "AnomalyAwarePublishedTrainer": Trainer("anomaly_aware", "planned", "the same with the paper's alpha, 10", True),
    "SegmentationTrainer": Trainer("segmentation", "planned", "nnU-Net's network and loss, without mirroring"),
    "PastingTrainer": Trainer("segmentation", "planned", "nnU-Net's network and loss, with pasted anomalies"),
    "UNETTrainer": Trainer("published", "published", "UNET"),
    "UNETPlusTrainer": Trainer("published", "published", "UNET+"),
    "UNETSTrainer": Trainer("published", "published", "UNET-S", anomaly_aware=True),
    "CANTrainer": Trainer("published", "published", "CAN"),
    "CANPlusTrainer": Trainer("published", "published", "CAN+"),
    "CANSTrainer": Trainer("published", "published", "CAN-S", anomaly_aware=True),
    "MaskRCNNTrainer": Trainer("mask_rcnn", "mask_rcnn", "Mask R-CNN on slices"),
    "IMaskRCNNTrainer": Trainer("mask_rcnn", "mask_rcnn", "improved Mask R-CNN on slices"),
    "IMaskRCNNSTrainer": Trainer(
        "mask_rcnn", "mask_rcnn", "improved Mask R-CNN on slices and error image", anomaly_aware=True
    ),
    "UNETTransferTrainer": Trainer("transfer", "published", "UNET, transferred"),
    "UNETPlusTransferTrainer": Trainer("transfer", "published", "UNET+, transferred"),
    "UNETSTransferTrainer": Trainer("transfer", "published", "UNET-S, transferred", anomaly_aware=True),
    "CANTransferTrainer": Trainer("transfer", "published", "CAN, transferred"),
    "CANPlusTransferTrainer": Trainer("transfer", "published", "CAN+, transferred"),
    "CANSTransferTrainer": Trainer("transfer", "published", "CAN-S, transferred", anomaly_aware=True),
    "AnomalyAwareTransferTrainer": Trainer("transfer", "planned", "AnomalyAwareTrainer, transferred", True),
}

#: verbs of ``nnUNetv2_anomaly`` in the order of its help; each is a module of command_line
VERBS = (
    "demo", "workflow", "convert", "simulate", "plan_whole_image", "change_plans", "published_chain", "check_images",
    "anomaly_maps", "detect_lesions", "instances", "postprocess", "measure", "agreement", "evaluate", "doctor", "env",
)  # fmt: skip
#: verb -> its earlier names, which still work
VERB_ALIASES = {"anomaly_maps": ("error_images",)}


def load(path: str) -> Any:
    """The object that ``module:attribute`` names."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def detector_families() -> dict[str, DetectorFamily]:
    """Name -> family, those of other installed packages included."""
    others = {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in DETECTORS}
    return DETECTORS | {name: point.load() for name, point in others.items()}


def setting_tables(families: Mapping[str, DetectorFamily]) -> dict[str, Mapping[str, Any]]:
    """Owner -> table of settings, name -> plans.settings.Setting; a detector family's owner is its name."""
    tables = {family.name: family.settings for family in families.values() if family.settings}
    return {owner: load(path) for owner, path in {**SETTING_TABLES, **tables}.items()}


def load_trainer(name: str) -> type:
    """The class of a trainer of ours. Raises: KeyError if there is none of that name."""
    return getattr(import_module(f"nnunetv2_anomaly.trainers.{TRAINERS[name].module}"), name)
