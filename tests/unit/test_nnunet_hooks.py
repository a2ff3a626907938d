"""The methods of nnU-Net's trainer that our trainers override keep the signatures that nnU-Net calls them with."""

import ast
import importlib.metadata
import inspect

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from places import ROOT

from nnunetv2_anomaly.registry import TRAINERS, load_trainer

#: The release of nnU-Net that the trainers were written for
RELEASE = "2.8.1"
#: Every method that a trainer overrides, with its parameters in that release
HOOKS = {
    "__init__": ("plans", "configuration", "fold", "dataset_json", "device"),
    "_build_loss": (),
    "_do_i_compile": (),
    "_set_batch_size_and_oversample": (),
    "build_network_architecture": (
        "plans_manager",
        "configuration_manager",
        "num_input_channels",
        "num_output_channels",
        "enable_deep_supervision",
    ),
    "configure_optimizers": (),
    "configure_rotation_dummyDA_mirroring_and_inital_patch_size": (),
    "do_split": (),
    "get_dataloaders": (),
    "get_tr_and_val_datasets": (),
    "get_training_transforms": (
        "patch_size",
        "rotation_for_DA",
        "deep_supervision_scales",
        "mirror_axes",
        "do_dummy_2d_data_aug",
        "use_mask_for_norm",
        "is_cascaded",
        "foreground_labels",
        "regions",
        "ignore_label",
    ),
    "get_validation_transforms": (
        "deep_supervision_scales",
        "is_cascaded",
        "foreground_labels",
        "regions",
        "ignore_label",
    ),
    "initialize": (),
    "load_checkpoint": ("filename_or_checkpoint",),
    "on_epoch_end": (),
    "on_epoch_start": (),
    "on_train_end": (),
    "on_train_epoch_end": ("train_outputs",),
    "on_train_epoch_start": (),
    "on_train_start": (),
    "on_validation_epoch_end": ("val_outputs",),
    "perform_actual_validation": ("save_probabilities",),
    "run_training": (),
    "save_checkpoint": ("filename",),
    "set_deep_supervision_enabled": ("enabled",),
    "train_step": ("batch",),
    "validation_step": ("batch",),
}
#: Parameters that nnU-Net's main branch names differently; both names are accepted
NEWER_HOOKS = {"load_checkpoint": ("checkpoint",)}


def our_classes() -> set[type]:
    """Our trainers and the classes that they inherit from, without nnU-Net's."""
    return {owner for name in TRAINERS for owner in load_trainer(name).__mro__ if owner not in nnUNetTrainer.__mro__}


def overrides() -> list[tuple[str, type]]:
    """Each method of nnU-Net's trainer that one of our classes defines again, with that class."""
    return sorted(
        (
            (name, owner)
            for owner in our_classes()
            for name in vars(owner)
            if inspect.isroutine(getattr(nnUNetTrainer, name, None)) and name in vars(nnUNetTrainer)
        ),
        key=lambda item: (item[0], item[1].__qualname__),
    )


def needs_no_trainer(owner: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(owner, name), staticmethod | classmethod)


def signature(owner: type, name: str) -> inspect.Signature:
    """The parameters of a method as its caller sees them, without ``self`` or ``cls``."""
    found = inspect.signature(getattr(owner, name))
    if needs_no_trainer(owner, name):
        return found
    return found.replace(parameters=list(found.parameters.values())[1:])


def test_every_overridden_method_is_in_the_table():
    assert {name for name, _ in overrides()} == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_nnunet_has_the_signature_that_the_trainers_were_written_for(name):
    installed = importlib.metadata.version("nnunetv2")
    assert hasattr(nnUNetTrainer, name), f"nnU-Net {installed} has no {name}, which {RELEASE} had"
    names = tuple(signature(nnUNetTrainer, name).parameters)
    assert names in (HOOKS[name], NEWER_HOOKS.get(name)), (
        f"{name} takes {names} in nnU-Net {installed}, and {HOOKS[name]} in {RELEASE}, which our trainers were written "
        f"for; adapt {[owner.__qualname__ for hook, owner in overrides() if hook == name]} and this table"
    )


@pytest.mark.parametrize(("name", "owner"), overrides(), ids=lambda item: getattr(item, "__qualname__", item))
def test_an_override_can_be_called_as_nnunet_calls_it(name, owner):
    ours, theirs = signature(owner, name), signature(nnUNetTrainer, name)
    if needs_no_trainer(nnUNetTrainer, name):
        assert needs_no_trainer(owner, name), f"nnU-Net calls {name} without a trainer"
    required = [key for key, parameter in theirs.parameters.items() if parameter.default is parameter.empty]
    ours.bind(*theirs.parameters)
    ours.bind(*required)
    for names in {tuple(theirs.parameters), tuple(required), HOOKS[name], NEWER_HOOKS.get(name, HOOKS[name])}:
        ours.bind(**dict.fromkeys(names))
    defaults = {key: parameter.default for key, parameter in theirs.parameters.items() if key not in required}
    for key, parameter in ours.parameters.items():
        if key in defaults:
            assert parameter.default == defaults[key], f"{key} has another default than in nnU-Net"


def test_the_network_is_built_under_nnunets_own_parameter_names():
    # nnU-Net reads the names to tell this signature from the one of older trainers.
    for trainer in our_classes():
        if hasattr(trainer, "build_network_architecture"):
            assert (
                tuple(signature(trainer, "build_network_architecture").parameters)
                == (HOOKS["build_network_architecture"])
            ), trainer


@pytest.mark.parametrize("trainer", ["AnomalyPreStageTrainer", "UNETTrainer"])
def test_a_checkpoint_is_loaded_under_each_of_nnunets_parameter_names(trainer, trainer_factory, tmp_path):
    path = str(tmp_path / "checkpoint_latest.pth")
    writer = trainer_factory(trainer)
    writer.initialize()
    if hasattr(writer, "prepare"):
        writer.prepare()
    writer.save_checkpoint(path)
    for arguments, keywords in (((path,), {}), ((), {"filename_or_checkpoint": path}), ((), {"checkpoint": path})):
        reader = trainer_factory(trainer)
        reader.load_checkpoint(*arguments, **keywords)
        for key, value in writer.module.state_dict().items():
            assert value.equal(reader.module.state_dict()[key]), key


def test_the_rank_is_asked_of_torch():
    # nnU-Net's local_rank may become the rank on the machine: it names a device, and nothing else.
    for file in sorted((ROOT / "trainers").rglob("*.py")):
        tree = ast.parse(file.read_text())
        devices = {
            id(node)
            for keyword in ast.walk(tree)
            if isinstance(keyword, ast.keyword) and keyword.arg == "device_ids"
            for node in ast.walk(keyword)
        }
        uses = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr == "local_rank" and id(node) not in devices
        ]
        assert not uses, f"{file.name} uses local_rank in lines {uses}; use training.distributed.rank()"
