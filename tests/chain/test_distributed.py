"""Two processes train as one process does on the joined batch, and share the work without getting in each other's way.

nnU-Net 2.8.1 trains on several GPUs (``-num_gpus``) with NCCL and takes CUDA for granted wherever torch.distributed is
initialised. Here the same code runs on two CPU processes over gloo. Replaced is what names the device, and no more:

- ``run_training.setup_ddp``, which starts NCCL, starts gloo over a file;
- ``torch.cuda.set_device`` in ``run_training.run_ddp`` does nothing;
- ``nnUNetTrainer.__init__`` sets ``device`` to ``cuda:RANK`` and makes a gradient scaler for it: both are set back as
  nnU-Net has them on a CPU, before the network is built;
- ``nnUNetTrainer.initialize`` and the pre-stage wrap the network with ``device_ids=[RANK]``: on a CPU that is None;
- ``load_pretrained_weights`` reads the file to ``cuda:RANK``, unless torch.distributed says that it is not initialised.
"""

import copy
import json
import os
import random
import shutil
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer_module
from quick import pools_of_threads, server_with_torch, skip_progress_figures
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_anomaly import trainers
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.segmenters.published.loading import EveryCaseOnceLoader, case_at
from nnunetv2_anomaly.trainers import base as base_module
from nnunetv2_anomaly.trainers import inpainting as prestage_module
from nnunetv2_anomaly.trainers import phased as phased_module
from nnunetv2_anomaly.training.distributed import Queue

RANKS = 2
CASES_PER_RANK = 2
#: a collective call that waits longer is given up, so that a hang is a failure with a message
COLLECTIVE_SECONDS = 60
#: the labels that a transfer's source knows, of the data set's bone 1, cartilage 2, lesion 3
SOURCE_LABELS = {"background": 0, "femoral_cartilage": 1, "femoral_bone": 2}

# What is compared is computed in float64. In float32 a value before a leaky ReLU that is 0 but for rounding falls on
# one side or the other with the order of a sum, and so does the direction of Adam's step where a gradient is nothing
# but rounding (a bias in front of an instance normalisation): differences of 1e-3, in which little faults would hide.
TOLERANCE = 1e-10
# nnU-Net's Dice sums its voxels up in float32 whatever it is given: about 1e-7 of the loss.
NNUNET_DICE_TOLERANCE = 1e-6
# Adam's steps, of the largest one: gradients far below its epsilon of 1e-8 make steps that still tell their rounding.
UPDATE_TOLERANCE = 1e-5

TRANSFER = ("UNETSTransferTrainer", "AnomalyAwareTransferTrainer")
#: name of the run -> trainer, and what it changes in the configuration: one of each kind, and each way to sum a loss up
RUNS = {
    "AnomalyPreStageTrainer": ("AnomalyPreStageTrainer", {}),
    "AnomalyAwareTrainer": ("AnomalyAwareTrainer", {"batch_dice": False}),
    "AnomalyAwareTrainer, batch Dice": ("AnomalyAwareTrainer", {"batch_dice": True}),
    **{name: (name, {}) for name in ("UNETSTrainer", "CANTrainer", *TRANSFER)},
}
EVERY_TIME = ("AnomalyPreStageTrainer", "AnomalyAwareTrainer, batch Dice", "UNETSTrainer", "UNETSTransferTrainer")
runs = pytest.mark.parametrize(
    "run", [run if run in EVERY_TIME else pytest.param(run, marks=pytest.mark.exhaustive) for run in RUNS]
)


# --------------------------------------------------------------------------------------------- two processes on a CPU


class OnCPU(DistributedDataParallel):
    """The wrapper without the number of a GPU."""

    def __init__(self, module, device_ids):
        super().__init__(module)


class OnCPUInDoublePrecision(OnCPU):
    """The same around a network in float64; DDP wants the type before it wraps."""

    def __init__(self, module, device_ids):
        super().__init__(module.double(), device_ids)


@contextmanager
def double_precision():
    """Where our networks and losses ask for float32, because half precision would not do, they get float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def on_cpu(trainer):
    """The trainer as nnU-Net builds it for a CPU where torch.distributed is not initialised."""
    trainer.device = torch.device("cpu")
    trainer.grad_scaler = None
    return trainer


def start_gloo(store, rank, world_size, seconds=COLLECTIVE_SECONDS):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=seconds),
    )


def _rank_main(rank, environment, function, folder, arguments):
    os.environ.clear()  # of the process that this one is forked from
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.save(function(rank, folder, *arguments), folder / f"rank_{rank}.pt")


def in_two_processes(function, folder, *arguments, seconds):
    """What function(rank, folder, *arguments) returns in each of two processes; fails after so many seconds."""
    server_with_torch()  # as nnU-Net's mp.spawn, but forked from a process that has torch already
    context = mp.start_processes(
        _rank_main, (dict(os.environ), function, folder, arguments), nprocs=RANKS, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + seconds
    while not context.join(timeout=max(0.0, deadline - time.monotonic())):
        if time.monotonic() >= deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"two processes were not done after {seconds} s: one of them waits for the other")
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(RANKS)]


# ---------------------------------------------------------------------------------------------------- steps compared


def build(run, material):
    """The trainer of a run, started as run_training starts it, from what the fixture ``material`` has.

    The seed makes the single process's first weights those of rank 0.
    """
    name, changes = RUNS[run]
    plans = copy.deepcopy(material["plans"])
    plans["continue_training"] = False
    configuration = plans["configurations"]["3d_small"]
    configuration.update(changes)
    configuration["anomaly"].update(
        seed=7,
        prestage_folder=str(material["prestage"]),
        inpainting_epochs=1,
        distillation_epochs=1,
        start_detector_from_inpainter=False,  # equal weights would make the first distillation a special case
    )
    # Several cases a batch for nnU-Net's own loaders; the published protocol takes one whatever the plans say.
    configuration["batch_size"] = RANKS * CASES_PER_RANK
    trainer = getattr(trainers, name)(
        plans, "3d_small", 0, copy.deepcopy(material["dataset_json"]), device=torch.device("cpu")
    )
    on_cpu(trainer)
    if name in TRANSFER:
        trainer.pretrained_weights = material["weights"][name]
    trainer.initialize()
    if not trainer.is_ddp:
        trainer.network.double()
    if name in TRANSFER:  # run_training.maybe_load_checkpoint
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "is_initialized", lambda: False)
            load_pretrained_weights(trainer.network, str(material["weights"][name]))
    return trainer


def batch_of(trainer, seed, cases):
    """Some cases of a batch as nnU-Net's loader hands it over: the same for the same seed, wherever it is made."""
    generator = torch.Generator().manual_seed(seed)
    joined = RANKS * CASES_PER_RANK
    data = torch.randn(joined, 1, 16, 16, 16, generator=generator, dtype=torch.float64)
    if isinstance(trainer, trainers.AnomalyPreStageTrainer):
        target = torch.zeros(joined, 2, 16, 16, 16, dtype=torch.int16)
        for case in range(joined):
            target[case, :, 4 : 9 + case, 5:12] = 1  # holes of different sizes
        return {"data": data[cases], "target": target[cases]}
    scales = [
        torch.randint(0, 4, (joined, 1, size, size, size), generator=generator, dtype=torch.int16)[cases]
        for size in (16, 8)
    ]
    return {"data": data[cases], "target": scales if trainer.enable_deep_supervision else scales[0]}


def named(trainer):
    """Parameters under all of their names, as in the state dict: planned networks hold some twice."""
    return list(trainer.module.named_parameters(remove_duplicate=False))


def epoch(trainer, cases, seed, scales=None):
    """Two training steps, two validation steps and what nnU-Net does around them, on some cases of each batch."""
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    if scales is not None:
        # nnU-Net's _build_loss gives the lowest scale 1e-6 under DDP, since parameters without a gradient would stop
        # it, and 0 otherwise; a single process that is to be compared gets the same.
        trainer.loss.loss_of_scale.weight_factors = scales
    clip = torch.nn.utils.clip_grad_norm_
    norms, gradients, weights = [], [], []

    def clip_and_note(parameters, max_norm):
        norms.append(float(clip(parameters, max_norm)))

    with double_precision(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_note)
        outputs = []
        for step in range(2):
            outputs.append(trainer.train_step(batch_of(trainer, seed + step, cases)))
            gradients.append({name: None if p.grad is None else p.grad.clone() for name, p in named(trainer)})
            weights.append({name: value.clone() for name, value in trainer.module.state_dict().items()})
        trainer.on_train_epoch_end(outputs)
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            trainer.on_validation_epoch_end(
                [trainer.validation_step(batch_of(trainer, seed + 10 + step, cases)) for step in range(2)]
            )
    trainer.on_epoch_end()
    logged = trainer.logger.local_logger.my_fantastic_logging
    return {
        "norms": norms,
        "gradients": gradients,
        "weights": weights,
        "trained": [name for name, parameter in named(trainer) if parameter.requires_grad],
        "logged": {key: values[-1] for key, values in logged.items() if values and "timestamps" not in key},
        "best": trainer._best_ema,
    }


def epochs(trainer, cases, scales=None):
    """One epoch, or for the pre-stage one of each phase."""
    phases = 2 if isinstance(trainer, trainers.AnomalyPreStageTrainer) else 1
    return [epoch(trainer, cases, seed=100 * phase, scales=scales) for phase in range(phases)]


def _steps(rank, folder, material, runs):
    start_gloo(folder / "store", rank, RANKS)
    skip_progress_figures(pytest.MonkeyPatch())
    nnunet_trainer_module.DDP = phased_module.DistributedDataParallel = OnCPUInDoublePrecision
    results = {}
    for run in runs:
        trainer = build(run, material)
        trainer.on_train_start()
        planned = getattr(getattr(trainer.loss, "loss_of_scale", None), "weight_factors", None)
        buffers_are_sent = trainer.network.will_sync_module_buffers()  # before the first pass; later it depends
        draws = np.random.random(), float(torch.rand(1)), random.random()
        first = next(trainer.dataloader_train)
        begun = {name: value.clone() for name, value in trainer.module.state_dict().items()}
        results[run] = {
            "batch_size": trainer.batch_size,
            "scales": planned,
            "first_batch": first,
            "draws": draws,
            "begun": begun,
            "epochs": epochs(trainer, slice(rank * CASES_PER_RANK, (rank + 1) * CASES_PER_RANK)),
            "num_trained": sum(parameter.requires_grad for parameter in trainer.module.parameters()),
            "in_buckets": trainer.network._get_ddp_logging_data()["num_parameter_tensors"],
            "find_unused_parameters": trainer.network.find_unused_parameters,
            "buffers_are_sent": buffers_are_sent,
        }
    dist.destroy_process_group()
    return results


@pytest.fixture(scope="module")
def selected_runs(request):
    """The runs that the selected tests ask for."""
    here = (item for item in request.session.items if item.path == request.path)
    asked = {item.callspec.params.get("run") for item in here if hasattr(item, "callspec")}
    return [run for run in RUNS if run in asked]


@pytest.fixture(scope="module")
def material(tiny_dataset, build_trainer, trained_results, tmp_path_factory, selected_runs):
    """What both sides build their trainers from: plans, a trained pre-stage, weights to transfer from."""
    (prestage,) = trained_results.glob("*/AnomalyPreStageTrainer__nnUNetPlans__3d_small")
    folder = tmp_path_factory.mktemp("weights")
    weights = {}
    for name in sorted({RUNS[run][0] for run in selected_runs} & set(TRANSFER)):
        source = build_trainer(
            name.replace("Transfer", ""),
            anomaly={"prestage_folder": str(prestage)},
            dataset_json={**tiny_dataset.dataset_json, "labels": SOURCE_LABELS},
        )
        source.initialize()
        weights[name] = folder / f"{name}.pth"
        source.save_checkpoint(str(weights[name]))
    return {
        "plans": tiny_dataset.plans,
        "dataset_json": tiny_dataset.dataset_json,
        "prestage": prestage,
        "weights": weights,
    }


@pytest.fixture(scope="module")
def two_ranks(material, tmp_path_factory, selected_runs):
    """Every selected run in two processes, each with its half of every batch."""
    folder = tmp_path_factory.mktemp("two_ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder / "nnUNet_results"))
        return in_two_processes(_steps, folder, material, selected_runs, seconds=600)


@pytest.fixture(scope="module")
def one_process(material, two_ranks, tmp_path_factory):
    """Function: a run in this process, on the whole of every batch."""
    done = {}

    def of(run):
        if run not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("one_process")))
                trainer = build(run, material)
                trainer.on_train_start()
                begun = {name: value.clone() for name, value in trainer.module.state_dict().items()}
                done[run] = {"begun": begun, "epochs": epochs(trainer, slice(None), two_ranks[0][run]["scales"])}
        return done[run]

    return of


def tolerance_of(run):
    return NNUNET_DICE_TOLERANCE if run.startswith("AnomalyAwareTrainer") else TOLERANCE


def assert_close(of_ranks, of_one, tolerance):
    """Equal up to a part of the largest value, tensor by tensor of dicts."""
    assert of_ranks.keys() == of_one.keys()
    largest = max(float(value.abs().max()) for value in of_one.values() if value is not None)
    for name, expected in of_one.items():
        if expected is None:
            assert of_ranks[name] is None, name
        else:
            assert float((of_ranks[name] - expected).abs().max()) <= tolerance * largest, name


@runs
def test_gradients_are_those_of_one_process_on_the_joined_batch(run, two_ranks, one_process):
    for phase, single in enumerate(one_process(run)["epochs"]):
        for shared in (two_ranks[rank][run]["epochs"][phase] for rank in range(RANKS)):
            # before nnU-Net clips them: a wrong factor would not survive the clipping
            assert shared["norms"] == pytest.approx(single["norms"], rel=tolerance_of(run))
            for of_ranks, of_one in zip(shared["gradients"], single["gradients"], strict=True):
                assert_close(of_ranks, of_one, tolerance_of(run))


def updates_of(result):
    """What every step of every phase has added to the weights."""
    before = result["begun"]
    for phase in result["epochs"]:
        for weights in phase["weights"]:
            yield {name: weight - before[name] for name, weight in weights.items()}
            before = weights


@runs
def test_updates_are_those_of_one_process_on_the_joined_batch(run, two_ranks, one_process):
    for rank in range(RANKS):
        for of_ranks, of_one in zip(updates_of(two_ranks[rank][run]), updates_of(one_process(run)), strict=True):
            assert_close(of_ranks, of_one, UPDATE_TOLERANCE)


@runs
def test_ranks_have_the_same_weights_to_the_bit(run, two_ranks):
    for one, other in zip(*(two_ranks[rank][run]["epochs"] for rank in range(RANKS)), strict=True):
        for weights, of_other in zip(one["weights"], other["weights"], strict=True):
            for name, weight in weights.items():
                assert torch.equal(weight, of_other[name]), name


@runs
def test_losses_and_scores_are_reduced_over_the_ranks(run, two_ranks, one_process):
    """Pre-stage: losses, the three MSEs, the best score. Segmentation: losses, Dice per class, the best mean Dice."""
    for phase, single in enumerate(one_process(run)["epochs"]):
        for shared in (two_ranks[rank][run]["epochs"][phase] for rank in range(RANKS)):
            assert shared["logged"].keys() == single["logged"].keys()
            for key, value in single["logged"].items():
                assert shared["logged"][key] == pytest.approx(value, rel=tolerance_of(run)), key
            assert shared["best"] == pytest.approx(single["best"], rel=tolerance_of(run))
            assert shared["best"] == two_ranks[0][run]["epochs"][phase]["best"]


@runs
def test_only_what_is_trained_is_synchronised_and_waited_for(run, two_ranks):
    """The detector, and what transfer freezes, is in no bucket, so that no rank waits for its gradient."""
    for of_rank in (two_ranks[rank][run] for rank in range(RANKS)):
        last = of_rank["epochs"][-1]
        assert of_rank["in_buckets"] == of_rank["num_trained"] > 0
        assert of_rank["find_unused_parameters"] is False
        frozen = last["weights"][-1].keys() - set(last["trained"])
        if "PreStage" in run:
            assert {name for name in frozen if not name.startswith("detector.intensity_")} == {
                name for name in last["weights"][-1] if name.startswith(("inpainter.", "detector.compressor."))
            }
        else:
            assert {name for name in last["weights"][-1] if name.startswith("detector.")} <= frozen
            for name in frozen:
                assert torch.equal(last["weights"][-1][name], of_rank["begun"][name]), name


@runs
def test_ranks_begin_with_the_weights_of_the_first(run, two_ranks, one_process):
    begun = one_process(run)["begun"]
    for rank in range(RANKS):
        assert two_ranks[rank][run]["begun"].keys() == begun.keys()
        for name, value in two_ranks[rank][run]["begun"].items():
            assert torch.equal(value, begun[name]), name


@runs
def test_ranks_do_not_draw_the_same_cases_and_augmentation(run, two_ranks):
    """Also where a seed is set: one seed for all ranks would train on every patch twice."""
    for draws in zip(*(two_ranks[rank][run]["draws"] for rank in range(RANKS)), strict=True):
        assert len(set(draws)) == RANKS
    first = [two_ranks[rank][run]["first_batch"]["data"] for rank in range(RANKS)]
    assert not torch.equal(*first)


@runs
def test_batch_is_shared_out_or_one_case_on_each_rank(run, two_ranks):
    published = RUNS[run][0] not in ("AnomalyPreStageTrainer", "AnomalyAwareTrainer", "AnomalyAwareTransferTrainer")
    for rank in range(RANKS):
        assert two_ranks[rank][run]["batch_size"] == (1 if published else CASES_PER_RANK)
        assert len(two_ranks[rank][run]["first_batch"]["data"]) == two_ranks[rank][run]["batch_size"]


@runs
def test_buffers_do_not_travel_with_every_forward_pass(run, two_ranks):
    """They never change, and a collective call in a forward pass is a hang where ranks predict different windows."""
    for rank in range(RANKS):
        assert not two_ranks[rank][run]["buffers_are_sent"]


# ------------------------------------------------------------------------------------------------ whole runs, shared

DATASET = "Dataset801_TinyKnee"  # what conftest.py makes
SPLITS = [
    {"train": ["case_0", "case_1"], "val": ["case_2", "case_3", "case_4"]},
    {"train": ["case_0", "case_1", "case_2", "case_3"], "val": ["case_4"]},
]
#: name -> trainer, configuration, fold, epoch to stop before, --c, --val
WHOLE_RUNS = {
    "pre-stage": ("AnomalyPreStageTrainer", "3d_small", 0, 1, False, False),
    "pre-stage resumed for phase 2": ("AnomalyPreStageTrainer", "3d_small", 0, 2, True, False),
    "pre-stage resumed in phase 2": ("AnomalyPreStageTrainer", "3d_small", 0, 3, True, False),
    "segmentation": ("AnomalyAwareTrainer", "3d_small", 0, 1, False, False),
    "validation alone": ("AnomalyAwareTrainer", "3d_small", 0, 1, False, True),
    "published": ("CANTrainer", "3d_once", 1, 2, False, False),
}
#: a group of processes gives up after so many seconds, while rank 0 works for longer
IMPATIENT_SECONDS, WORK_SECONDS = 4, 6


class ChangedFiles:
    """Files below a folder that Python code of this process writes, replaces or removes, run by run."""

    def __init__(self, base):
        self._base = base
        self._seen = set()
        sys.addaudithook(self._note)

    def _note(self, event, arguments):
        if event == "open" and isinstance(arguments[0], str) and set(str(arguments[1] or "r")) & set("wax+"):
            self._seen.add(arguments[0])
        elif event == "os.rename":
            self._seen.add(str(arguments[1]))

    def take(self):
        seen, self._seen = self._seen, set()
        paths = [Path(path) for path in seen]
        return {  # part_ are those that our code removes or renames at once
            str(path.relative_to(self._base))
            for path in paths
            if path.is_relative_to(self._base) and not path.name.startswith("part_")
        }


def _wait_for_rank_0(rank, store):
    """rank_0_first in a group that would not wait that long."""
    start_gloo(store, rank, RANKS, seconds=IMPATIENT_SECONDS)
    with Queue().rank_0_first():
        came = time.monotonic()
        if rank == 0:
            time.sleep(WORK_SECONDS)
    dist.destroy_process_group()
    return came


def _whole_runs(rank, folder, base):
    """nnU-Net's own run_ddp, with everything in it but the devices, for one trainer after the other."""
    results = {}
    get_trainer = run_training.get_trainer_from_args
    prepare_cases, get_indices = prestage_module.preparation.prepare_cases, EveryCaseOnceLoader.get_indices
    current = {}

    def build_on_cpu(*arguments):
        trainer = current["trainer"] = on_cpu(get_trainer(*arguments))
        trainer.num_epochs = current["stop"]
        if current["run"] == "published":
            trainer.perform_actual_validation = lambda save_probabilities: None
        if current["run"] == "validation alone":  # with fewer cases than ranks
            training, validation = trainer.do_split()
            trainer.do_split = lambda: (training, validation[:1])
        return trainer

    def prepare_and_note(*arguments, **keywords):
        began = time.monotonic()  # one clock for all processes of a machine
        if rank == 0:
            time.sleep(0.5)
        statistics = prepare_cases(*arguments, **keywords)
        current["prepared"].append((began, time.monotonic()))
        return statistics

    def indices_and_note(loader):
        cases = get_indices(loader)
        current["cases"].append((len(loader.indices), *map(str, cases)))
        return cases

    skip_progress_figures(pytest.MonkeyPatch())
    pools_of_threads(pytest.MonkeyPatch())
    nnunet_trainer_module.DDP = phased_module.DistributedDataParallel = OnCPU
    torch.cuda.set_device = lambda device: None
    base_module.check_device = lambda device: None
    run_training.get_trainer_from_args = build_on_cpu
    prestage_module.preparation.prepare_cases = prepare_and_note
    EveryCaseOnceLoader.get_indices = indices_and_note
    changed = ChangedFiles(base)
    for number, (run, (trainer, configuration, fold, stop, proceed, validate)) in enumerate(WHOLE_RUNS.items()):
        run_training.setup_ddp = partial(start_gloo, folder / f"store_{number}")
        current.update(run=run, stop=stop, prepared=[], cases=[])
        run_training.run_ddp(
            rank,
            DATASET,
            configuration,
            fold,
            trainer,
            "nnUNetPlans",
            disable_checkpointing=False,
            c=proceed,
            val=validate,
            pretrained_weights=None,
            npz=False,
            val_with_best=False,
            world_size=RANKS,
        )
        finished = current["trainer"]
        results[run] = {
            "files": changed.take(),
            "epoch": finished.current_epoch,
            "distilling": getattr(finished.module, "distilling", None),
            "best": finished._best_ema,
            "prepared": current["prepared"],
            "cases": current["cases"],
            "weights": finished.module.state_dict(),
        }
    results["came"] = _wait_for_rank_0(rank, folder / "store_impatient")
    return results


@pytest.fixture(scope="module")
def whole_runs(tiny_dataset, tmp_path_factory):
    """Where the data sets lie, and what each rank has to tell of every run."""
    base = tmp_path_factory.mktemp("whole_runs")
    preprocessed = base / "nnUNet_preprocessed" / DATASET
    shutil.copytree(tiny_dataset.preprocessed, preprocessed, ignore=shutil.ignore_patterns("anomaly_erased_regions"))
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    plans = copy.deepcopy(tiny_dataset.plans)
    section = plans["configurations"]["3d_small"]["anomaly"]
    section.update(inpainting_epochs=1, distillation_epochs=2, num_iterations_per_epoch=2, seed=3)
    once = {name: value for name, value in section.items() if not name.endswith("iterations_per_epoch")}
    plans["configurations"]["3d_once"] = {"inherits_from": "3d_small", "anomaly": once}
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(base / name))
        return base, in_two_processes(_whole_runs, base, base, seconds=300)


@pytest.mark.exhaustive
def test_all_runs_end_alike_on_both_ranks(whole_runs):
    _, (first, second) = whole_runs
    for run, (_, _, _, stop, _, validate) in WHOLE_RUNS.items():
        assert first[run]["epoch"] == second[run]["epoch"] == stop, run
        assert first[run]["best"] == second[run]["best"], run
        assert first[run]["best"] is not None or validate, run
        for name, weight in first[run]["weights"].items():
            assert torch.equal(weight, second[run]["weights"][name]), f"{run}: {name}"
    assert [first[run]["distilling"] for run in WHOLE_RUNS][:3] == [False, True, True]


@pytest.mark.exhaustive
def test_only_the_first_rank_writes_checkpoints_figures_and_summaries(whole_runs):
    _, ranks = whole_runs
    both = ("plans.json", "dataset.json", "dataset_fingerprint.json")  # nnU-Net lets every rank write these
    for run, (trainer, configuration, fold, *_, validate) in WHOLE_RUNS.items():
        model = f"nnUNet_results/{DATASET}/{trainer}__nnUNetPlans__{configuration}"
        written = [{file for file in ranks[rank][run]["files"] if not file.endswith(both)} for rank in range(RANKS)]
        if not validate:
            for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png"):
                assert f"{model}/fold_{fold}/{name}" in written[0], run
        for file in written[1]:  # its share of the validation cases, if any
            assert file.startswith(f"{model}/fold_{fold}/validation/case_"), f"{run}: {file}"
        assert not written[0] & written[1], run


@pytest.mark.exhaustive
def test_validation_cases_are_shared_out_and_summed_up(whole_runs):
    base, _ = whole_runs
    for trainer, key in (("AnomalyPreStageTrainer", "case"), ("AnomalyAwareTrainer", "prediction_file")):
        folder = base / "nnUNet_results" / DATASET / f"{trainer}__nnUNetPlans__3d_small" / "fold_0" / "validation"
        cases = json.loads((folder / "summary.json").read_text())["metric_per_case"]
        assert sorted(Path(case[key]).name.split(".")[0] for case in cases) == SPLITS[0]["val"]


@pytest.mark.exhaustive
def test_one_rank_makes_the_erased_regions_while_the_other_waits(whole_runs):
    _, (first, second) = whole_runs
    assert first["pre-stage"]["prepared"][0][1] <= second["pre-stage"]["prepared"][0][0]
    regions = {file for file in first["pre-stage"]["files"] if "anomaly_erased_regions" in file}
    assert {Path(file).stem for file in regions} == {f"case_{number}" for number in range(5)}


@pytest.mark.exhaustive
def test_waiting_for_the_first_rank_is_not_given_up(whole_runs):
    _, (first, second) = whole_runs
    assert second["came"] - first["came"] >= WORK_SECONDS > IMPATIENT_SECONDS


@pytest.mark.exhaustive
def test_ranks_take_the_ordered_cases_in_turn_and_none_twice(whole_runs):
    _, ranks = whole_runs
    training = SPLITS[1]["train"]
    of_ranks = [[case for number, case in ranks[rank]["published"]["cases"] if number == 4] for rank in range(RANKS)]
    in_turn = [case for pair in zip(*of_ranks, strict=True) for case in pair]
    assert in_turn == [training[case_at(position, 4)] for position in range(8)]
    for epoch_of in (in_turn[:4], in_turn[4:]):
        assert sorted(epoch_of) == training


# -------------------------------------------------------------------------------------------------- refused at start


@pytest.fixture
def as_one_of_three(monkeypatch):
    """Let nnU-Net believe that it is rank 0 of 3, for what it decides before anything is sent."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)


def test_batch_dice_of_unequal_shares_is_refused(trainer_factory, as_one_of_three):
    trainer = on_cpu(trainer_factory("AnomalyAwareTrainer", changes={"batch_size": 4, "batch_dice": True}))
    with pytest.raises(UserError, match="a batch of 4 cannot be shared out equally among 3 GPUs"):
        trainer.build_dice()
