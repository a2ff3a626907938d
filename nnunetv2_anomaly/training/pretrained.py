"""From one data set's classes to another's: what a pretrained checkpoint brings, by label name (method paper, 4.3).

nnU-Net's own ``-pretrained_weights`` copies all but the output layers. Here these follow.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch import distributed as dist

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.training.checkpoints import DETECTOR_KEY, as_text, first_difference
from nnunetv2_anomaly.training.safe_loading import load_file, load_safely

#: key of a checkpoint under which the labels are kept that transfer learning added
CHECKPOINT_KEY = "anomaly_transfer"
#: what the state-dict keys of output layers contain; nnU-Net leaves them out when it copies pretrained weights
OUTPUT_LAYER = ".seg_layers."
_OPTION = "-pretrained_weights"


@dataclass(frozen=True)
class PretrainedModel:
    """A checkpoint to start from."""

    path: Path
    weights: Mapping[str, Tensor]
    labels: Mapping[str, int]  # name -> value, of its data set
    added_labels: tuple[str, ...]  # by an earlier transfer
    trainer_name: str
    dataset_name: str
    plans_name: str
    configuration: Mapping[str, Any]
    detector: Mapping[str, Any] | None = None  # description of the detector in it, if it has one


def given_weights_file(arguments: Sequence[str] | None = None) -> Path | None:
    """The file after ``-pretrained_weights`` on the command line, of which nnU-Net passes its trainers nothing.

    Args: arguments: of the command; those of this process if None.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for place, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        # argparse takes what begins like one option only; "-p" is another.
        if len(option) > 2 and _OPTION.startswith(option):
            if value:
                return Path(value)
            if place + 1 < len(arguments):
                return Path(arguments[place + 1])
    return None


def without_ignore(labels: Mapping[str, int]) -> dict[str, int]:
    """Labels that have an output channel: nnU-Net's ignore label has none."""
    return {name: value for name, value in labels.items() if name != "ignore"}


def read_weights(path: Path) -> dict[str, Any]:
    """A checkpoint that holds a network's weights, on the CPU: all that nnU-Net's ``-pretrained_weights`` asks for.

    Raises: UserError if it cannot be read or holds none, or if nnU-Net could not read it on this machine.
    """
    devices: set[str] = set()

    def on_cpu(storage: Any, device: str) -> Any:
        devices.add(device)
        return storage

    expected = "the checkpoint_final.pth of a training"
    checkpoint = load_file(path, f"give {expected}", kind="the pretrained weights", map_location=on_cpu)
    weights = checkpoint.get("network_weights") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values() or [None]):
        raise UserError(f"the pretrained weights {path} hold no tensors under 'network_weights'; expected {expected}")
    # nnU-Net 2.8.1 puts tensors back where they were saved, but for several GPUs, where it tells them where to go.
    absent = [] if dist.is_initialized() else sorted(device for device in devices if not _is_here(device))
    if absent:
        fault = f"the pretrained weights {path} were saved from the device {absent[0]}, which is not here, and nnU-Net "
        fault += "reads them onto no other; train where it is, or give a copy made with"
        copied = f"import torch; from {load_safely.__module__} import load_safely; "
        raise UserError(f"{fault}: python -c \"{copied}torch.save(load_safely('{path}'), 'copy.pth')\"")
    return checkpoint


def _is_here(device: str) -> bool:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # a device that is missing; one that torch was built without
        return False
    return True


def read_pretrained(path: Path) -> PretrainedModel:
    """A checkpoint of nnU-Net's or ours with the labels it was trained for.

    Raises: UserError if it cannot be read or is no checkpoint of a training.
    """
    checkpoint = read_weights(path)
    try:
        arguments = checkpoint["init_args"]
        plans = arguments["plans"]
        labels = without_ignore(arguments["dataset_json"]["labels"])
        return PretrainedModel(
            path=path,
            weights=dict(checkpoint["network_weights"]),
            labels={name: int(value) for name, value in labels.items()},
            added_labels=tuple(checkpoint.get(CHECKPOINT_KEY, {}).get("added_labels", ())),
            trainer_name=checkpoint["trainer_name"],
            dataset_name=plans["dataset_name"],
            plans_name=plans["plans_name"],
            configuration=PlansManager(plans).get_configuration(arguments["configuration"]).configuration,
            detector=checkpoint.get(DETECTOR_KEY),
        )
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        fault = f"hold no labels and plans to start from ({type(error).__name__}: {error})"
        expected = "expected the checkpoint_final.pth of a training with plain labels"
        raise UserError(f"the pretrained weights {path} {fault}; {expected}") from error


def check_fits(source: PretrainedModel, network: nn.Module, move_command: str) -> None:
    """Check that all but the output layers fit, and these but for their number of classes.

    Args: network: to be trained, without wrappers. move_command: what to run where the plans differ.
    Raises: UserError naming the first difference; nnU-Net itself would end in a traceback.
    """
    origin = f"{source.path} ({source.trainer_name}, {source.dataset_name})"
    advice = f"so train both with the same trainer family, and move the plans: {move_command}"
    _compare(origin, source.weights, network.state_dict(), (), advice)


def check_copied_weights(path: Path, network: nn.Module, trainer_name: str) -> None:
    """Check that nnU-Net can copy a file's weights into a network: all that this has but the output layers.

    Args: path: the file after ``-pretrained_weights``. network: to be trained by ``trainer_name``, without wrappers.
    Raises: UserError if the file cannot be read, or naming the first difference; nnU-Net would end in a traceback.
    """
    checkpoint = read_weights(path)
    here = network.state_dict()
    names = [name for name in here if OUTPUT_LAYER not in name]
    origin = f"{path} ({checkpoint['trainer_name']})" if "trainer_name" in checkpoint else str(path)
    advice = f"so give those of a {trainer_name} on the same plans, or start without -pretrained_weights"
    _compare(origin, checkpoint["network_weights"], here, names, advice)


def _compare(
    origin: str, theirs: Mapping[str, Tensor], here: Mapping[str, Tensor], names: Iterable[str], advice: str
) -> None:
    """Raises: UserError naming the first tensor that is not alike, the number of classes left aside."""
    if difference := first_difference(theirs, here, names, but_for_classes=OUTPUT_LAYER):
        fault = f"the pretrained weights {origin} do not fit: {difference}"
        raise UserError(f"{fault}; expected the same kind of network on the same plans, {advice}")


def differing_plans(source: PretrainedModel, configuration: Mapping[str, Any]) -> list[str]:
    """In words, what the two configurations disagree in, of what matters to the weights."""
    names = ("patch_size", "spacing", "normalization_schemes")
    pairs = [(name, source.configuration.get(name), configuration.get(name)) for name in names]
    return [f"{name} {there} there, {here} here" for name, there, here in pairs if as_text(there) != as_text(here)]


def grow_output_layers(network: nn.Module, source: PretrainedModel, labels: Mapping[str, int]) -> tuple[list, list]:
    """Give every class that the source knew, by name, its learned output channel; the others stay as initialised.

    Args: network: without wrappers; its output layers have one channel per value of ``labels``. source: checked by
        ``check_fits``. labels: name -> value of the data set to be trained on, background included.
    Returns: names of the classes that were kept, and of those that are new.
    Raises: UserError if no class but the background is known to the source.
    """
    kept = [name for name in labels if name in source.labels]
    new = [name for name in labels if name not in source.labels]
    if not any(labels[name] != 0 for name in kept):
        known = f"the pretrained weights {source.path} know the labels {', '.join(source.labels)}"
        advice = "expected some in common, by name: rename the labels in one of the dataset.json files"
        raise UserError(f"{known}, and the data set has {', '.join(labels)}; {advice}")
    to = torch.tensor([labels[name] for name in kept])
    of = torch.tensor([source.labels[name] for name in kept])
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if OUTPUT_LAYER in name:
                tensor[to.to(tensor.device)] = source.weights[name][of].to(tensor)
    return kept, new


def first_convolutions(encoder: nn.Module, number: int = 2) -> list[nn.Module]:
    """The first convolution blocks of an encoder: each convolution with the normalisation that follows it.

    Args: encoder: of a planned network, its modules in the order of the data's way through it.
    """
    blocks: list[nn.Module] = []
    seen: set[int] = set()
    for module in encoder.modules():
        # Planned networks hold a block's convolution twice, by name and in a sequence.
        own = {id(child) for child in module.children() if isinstance(child, (nn.Conv2d, nn.Conv3d))}
        if own - seen:
            blocks.append(module)
            seen |= own
        if len(blocks) == number:
            break
    return blocks
