"""What every detector's pre-stage shares: nnU-Net's loop with a loss of the family's, its artefact, its validation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import time
from typing import Any, ClassVar

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context, empty_cache
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, autocast, nn

from nnunetv2_anomaly.detectors.artefact import Artefact, add_what_validation_found, detector_of, detector_state
from nnunetv2_anomaly.detectors.base import Detector, check_fits_configuration, detector_class
from nnunetv2_anomaly.detectors.quality import describe_quality
from nnunetv2_anomaly.detectors.thresholds import IN_BONES, IN_IMAGE, fit_threshold
from nnunetv2_anomaly.images.sliding_window import Windows
from nnunetv2_anomaly.label_roles import ROLES_KEY, label_roles, taken_as, with_their_lesions
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.prediction.validation import (
    KEPT,
    CaseForValidation,
    Rivals,
    labels_named,
    quality_of,
    validate_case,
    write_summary,
)
from nnunetv2_anomaly.reporting.drawing import save_prestage_progress
from nnunetv2_anomaly.trainers.base import AnomalyTrainerBase
from nnunetv2_anomaly.training.checkpoints import DETECTOR_KEY
from nnunetv2_anomaly.training.data_record import check_cases_exist
from nnunetv2_anomaly.training.distributed import gathered, rank, world_size

PROGRESS_KEYS = ("train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps")


class DetectorTrainer(AnomalyTrainerBase):
    """Trains a family's detector on a fold's training cases, by nnU-Net's own loop, patches and augmentation.

    A family's trainer names its ``family`` and gives the loss of (what the network returned, target); its network is
    the detector, or holds it as ``detector``.
    """

    #: name in the registry
    family: ClassVar[str]
    #: what is trained, around the detector; None where the detector itself is
    network_class: ClassVar[type[nn.Module] | None] = None
    #: numbers of each validation epoch beside the loss, which the log and the progress figure keep
    quality_keys: ClassVar[tuple[str, ...]] = ()
    training_cases: list[str]
    #: whether lesions may be anywhere in a data set without bones
    whole_image: ClassVar[bool] = False
    #: the file whose weights the network has, None after a training
    loaded_checkpoint: Path | None = None
    lesion_labels: list[str] | None = default("lesion_labels")
    bone_labels: list[str] | None = default("bone_labels")
    candidates_per_bone: float = default("candidates_per_bone")
    min_lesion_mm3: float = default("min_lesion_mm3")
    mask_rule: str = default("mask_rule")
    min_difference: float = default("min_difference")
    peak_scope: str = default("peak_scope")

    def set_up(self) -> None:
        """No deep supervision, a checkpoint after every epoch."""
        super().set_up()
        check_fits_configuration(detector_class(self.family).contract, self.configuration_manager)
        self.enable_deep_supervision = False
        self.save_every = 1  # detectors are small, and so nothing is lost when a run is killed
        self.training_cases: list[str] = []
        self.quality: dict[str, float] = {}
        self._log_our_keys()

    @classmethod
    def build_detector_network(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> nn.Module:
        """What is trained: the family's detector, in its ``network_class`` if it has one."""
        detector = detector_class(cls.family).build(configuration_manager, num_channels, settings)
        return detector if cls.network_class is None else cls.network_class(detector)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """As ``build_detector_network``; a class method, so that a subclass's settings count at prediction."""
        settings = {**cls.settings(configuration_manager), "num_labels": num_output_channels}
        return cls.build_detector_network(configuration_manager, num_input_channels, settings)

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's augmentation; labels stay labels, whatever regions the data set has."""
        return nnUNetTrainer.get_training_transforms(*args, **{**kwargs, "regions": None})

    @staticmethod
    def get_validation_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's validation transforms, labels staying labels."""
        return nnUNetTrainer.get_validation_transforms(*args, **{**kwargs, "regions": None})

    # -------------------------------------------------------------- training

    def prepare(self) -> None:
        """Find the fold's cases, and record what they look like.

        Raises: UserError for a case that is missing or cannot be read.
        """
        if self.dataset_class is None:  # type: ignore[has-type]
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        with self.queue.rank_0_first():
            training, validation = self.do_split()
        known = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        check_cases_exist([*training, *validation], known, self.preprocessed_dataset_folder)
        self.prepare_cases(training, validation)
        self.record_data(self.training_cases)

    def prepare_cases(self, training: Sequence[str], validation: Sequence[str]) -> None:
        """What a family needs of every case before it starts; sets ``training_cases``."""
        self.training_cases = sorted(training)

    def on_train_start(self) -> None:
        """Check the labels, prepare the cases, then as in nnU-Net."""
        self.labels_of_validation()
        if not self.was_initialized:
            self.initialize()
        seen = self.training_cases  # of the checkpoint, if one was loaded: the split may have changed since
        self.prepare()
        self.loaded_checkpoint = None  # training changes the weights
        self.training_cases = sorted({*seen, *self.training_cases})
        if not self.resumed:
            self.start_from_data()
        super().on_train_start()

    def start_from_data(self) -> None:
        """What a family sets in its untrained network from the training cases."""

    def validation_step(self, batch: dict) -> dict:
        """Loss, and what the family measures of a batch."""
        return self.judged("validation", self._validate_batch, batch)

    def _validate_batch(self, batch: dict) -> dict:
        data, target = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        return {"loss": loss.detach().cpu().numpy(), "quality": self.measure_batch(output, data)}

    def measure_batch(self, output: Any, data: Tensor) -> Any:
        """What the family measures of a validation batch; anything that ``summarise_batches`` takes."""

    def summarise_batches(self, measured: Sequence[Any]) -> dict[str, float]:
        """The numbers of ``quality_keys``, and others for the artefact, of all batches of all ranks."""
        return {}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the epoch's loss and quality, over all ranks."""
        outputs = [output for of_rank in gathered(val_outputs) for output in of_rank]
        self.quality = self.summarise_batches([output["quality"] for output in outputs])
        self.logger.log("val_losses", float(np.mean([output["loss"] for output in outputs])), self.current_epoch)
        for key in self.quality_keys:
            self.logger.log(key, self.quality[key], self.current_epoch)

    def on_epoch_end(self) -> None:
        """Log, checkpoint, draw; nnU-Net's best score and figure are made of Dice, of which there is none."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        keys = (*PROGRESS_KEYS, *self.quality_keys)
        value = {key: self.logger.get_value(key, step=-1) for key in keys}
        phase = [name for start, name in self.phases().items() if start <= self.current_epoch][-1]
        self.print_to_log_file(f"{phase}: train_loss {value['train_losses']:.6f}, val_loss {value['val_losses']:.6f}")
        if self.quality:
            self.print_to_log_file(describe_quality(self.quality)[0])
        duration = value["epoch_end_timestamps"] - value["epoch_start_timestamps"]
        self.print_to_log_file(f"Epoch time: {duration:.2f} s")
        # nnU-Net stores _best_ema with the checkpoint; here it is the phase's best validation loss, negative. It is
        # settled before anything is written, so that a resumed run knows it.
        is_best = self._best_ema is None or -value["val_losses"] > self._best_ema  # type: ignore[has-type]
        if is_best:
            self._best_ema = -value["val_losses"]
        if (self.current_epoch + 1) % self.save_every == 0 and self.current_epoch != self.num_epochs - 1:
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
        if is_best:
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_best.pth"))
        if rank() == 0:
            logged = {key: self.logger.get_value(key, step=None) for key in keys}
            save_prestage_progress(Path(self.output_folder) / "progress.png", logged, self.phases())
        self.current_epoch += 1

    def phases(self) -> dict[int, str]:
        """First epoch of each phase -> its name, for the log and the progress figure."""
        return {0: self.family}

    # ----------------------------------------------------------- checkpoints

    def _log_our_keys(self) -> None:
        for key in self.quality_keys:
            self.logger.local_logger.my_fantastic_logging.setdefault(key, [])

    @property
    def own_detector(self) -> Detector:
        """The detector in the network."""
        found = detector_of(self.module)
        assert found is not None, f"{type(self).__name__} builds no detector"
        return found

    def artefact(self) -> Artefact:
        """The detector as it is now; a family adds its sources, and says whether its training is finished."""
        return Artefact(
            contract=self.own_detector.contract,
            state=detector_state(self.module.state_dict()),
            fitted_on=frozenset(self.training_cases),
            data=self.data,
            quality=self.quality,
            sources=dict(self.own_detector.sources),
            comparable=self.own_detector.comparable,
            finished=True,
        )

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """What a segmentation asks of its detector."""
        return {**super().extra_checkpoint_entries(), DETECTOR_KEY: self.artefact().description()}

    def load_checkpoint(self, *arguments: Any, **keywords: Any) -> None:
        """As in the base; the log learns our keys again. Raises: UserError if it is no checkpoint of this training."""
        super().load_checkpoint(*arguments, **keywords)
        self._log_our_keys()

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Cases and quality."""
        super().take_from_checkpoint(checkpoint, path)
        self.loaded_checkpoint = path
        description = checkpoint[DETECTOR_KEY]
        self.training_cases, self.quality = list(description["fitted_on"]), dict(description["quality"])
        self.own_detector.sources = dict(description["sources"])

    # ------------------------------------------------------------ validation

    @classmethod
    def rivals(
        cls, network: nn.Module, case: CaseForValidation, labels: Sequence[int], windows: Windows
    ) -> Rivals | None:
        """What the family compares its detector with on a case, whose ``labels`` are not background; here nothing."""
        return None

    def _lesions_and_bones(self) -> tuple[list[str], list[str]]:
        """Names of labels, by setting, else by role. Raises: UserError if one is no label."""
        labels = self.dataset_json["labels"]
        roles = label_roles(labels, self.dataset_json.get(ROLES_KEY))
        lesions = list(roles.lesions if self.lesion_labels is None else self.lesion_labels)
        bones = list(roles.bones if self.bone_labels is None else self.bone_labels)
        for names, word in ((lesions, "lesion"), (bones, "bone")):
            labels_named(labels, names, word)
        return lesions, bones

    def bones_with_lesions(self) -> list[list[int]]:
        """Values of each bone's labels with those of the lesions in it; none without a bone.

        Raises: UserError if a setting or dataset.json names what is no label.
        """
        labels = self.dataset_json["labels"]
        roles = label_roles(labels, self.dataset_json.get(ROLES_KEY))
        return with_their_lesions(self._lesions_and_bones()[1], labels, roles)

    def lesions(self) -> list[int]:
        """Values of the labels that are lesions. Raises: as ``bones_with_lesions``."""
        return labels_named(self.dataset_json["labels"], self._lesions_and_bones()[0], "lesion")

    def labels_of_validation(self) -> dict[str, Any]:
        """What validation counts as lesions, and the bones that hold them. Raises: as ``bones_with_lesions``."""
        lesions, bones = self._lesions_and_bones()
        self.print_to_log_file(taken_as({"lesions": lesions, "bones": bones}))
        return {"lesion_labels": self.lesions(), "bones": self.bones_with_lesions()}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Per validation case: anomaly map in the original geometry, a picture, and the numbers."""
        with self.write_failures_as_user_errors():
            self._validate_cases()
        empty_cache(self.device)

    def _validate_cases(self) -> None:
        self.prepare()
        self.network.eval()
        folder = Path(self.output_folder) / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        named = self.labels_of_validation()
        _, cases = self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, list(cases[rank() :: world_size()]))
        windows = Windows(self.plans_manager, self.configuration_manager, self.dataset_json, self.device)
        results = []
        for name in dataset.identifiers:
            self.print_to_log_file(f"predicting {name}")
            data, segmentation, _, properties = dataset.load_case(name)
            case = CaseForValidation(name, np.asarray(data[:]), np.asarray(segmentation[:])[0], properties)
            rivals = self.rivals(self.module, case, self.foreground_labels(), windows)
            found = validate_case(
                self.own_detector, case, folder, windows, rivals=rivals, keep=True, whole=self.whole_image, **named
            )
            results.append(found)
        results = sorted((one for of_rank in gathered(results) for one in of_rank), key=lambda result: result["case"])
        if rank() == 0:
            files = [folder / f"{result['case']}{KEPT}" for result in results]  # of all ranks
            threshold = fit_threshold(
                files,
                self.mask_rule,
                self.candidates_per_bone,
                self.min_lesion_mm3,
                min_difference=self.min_difference,
                scope=self.peak_scope,
            )
            if threshold:
                threshold["within"] = IN_BONES if named["bones"] else IN_IMAGE
            for file in files:
                file.unlink()
            self._report_validation(write_summary(folder / "summary.json", results)["mean"], threshold)

    def _report_validation(self, mean: Mapping[str, Any], threshold: Mapping[str, Any]) -> None:
        self.print_to_log_file("Validation complete")
        for source, numbers in mean.items():
            if isinstance(numbers, Mapping):
                shown = (f"{key} {'n/a' if value is None else f'{value:.5f}'}" for key, value in numbers.items())
                self.print_to_log_file(f"{source}: {', '.join(shown)}")
        words = ", ".join(f"{name} {value}" for name, value in threshold.items())
        self.print_to_log_file(f"threshold for lesions: {words or 'none, as no validation case has a bone'}")
        # Of --val_best the weights are others than those of the final checkpoint.
        path = self.loaded_checkpoint or Path(self.output_folder) / "checkpoint_final.pth"
        if path.is_file():
            add_what_validation_found(path, quality_of(mean), threshold)

    def foreground_labels(self) -> list[int]:
        """Values of the labels that are not background."""
        return [label for label in self.label_manager.all_labels if label != 0]
