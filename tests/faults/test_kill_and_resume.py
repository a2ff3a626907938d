"""Training that is killed again and again reaches its end, with the losses and weights of a run that never was.

``KILLS=20 pytest tests/faults/test_kill_and_resume.py -m exhaustive`` kills more often.
"""

import copy
import json
import os
import random
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from nnunetv2_anomaly.environment import nnunet_command, nnunet_environment

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(not hasattr(os, "killpg"), reason="processes are killed with their children by POSIX's killpg"),
]

KILLS = int(os.environ.get("KILLS", "5"))
#: of each of the three: phase 1, phase 2, segmentation
EPOCHS = max(6, KILLS)
SETTINGS = {
    "inpainting_epochs": EPOCHS,
    "distillation_epochs": EPOCHS,
    "num_epochs": EPOCHS,
    "num_iterations_per_epoch": 4,
    "seed": 5,
}
PRESTAGE, SEGMENTATION = "AnomalyPreStageTrainer", "AnomalyAwareTrainer"
NOTHING_TO_CONTINUE = "Cannot continue training because there seems to be no checkpoint available"


@dataclass
class Walk:
    """What was seen while a trainer was killed and started again until it was done."""

    folder: Path
    kills: int = 0
    #: per start: checkpoints that lay there, and what the command printed
    starts: list = field(default_factory=list)


def checkpoints_in(folder):
    return sorted(path.name for path in folder.glob("checkpoint_*.pth"))


def last_epoch(text):
    return max((int(number) for number in re.findall(r": Epoch (\d+)", text)), default=-1)


def killed_until_done(trainer, folder, moments, environment, output):
    """Start the trainer, kill it at a moment (an epoch, and seconds after it began), start it with --c, and so on."""
    walk = Walk(folder)
    command = [nnunet_command("nnUNetv2_train"), "801", "3d_killed", "0", "-tr", trainer, "-device", "cpu"]
    for number, moment in enumerate([*moments, None]):
        there = checkpoints_in(folder)
        file = output / f"{trainer}_{number}.txt"
        with file.open("w") as stdout:
            process = subprocess.Popen(
                command + (["--c"] if number else []),
                env=environment,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            end = time.monotonic() + 200
            while moment is not None and process.poll() is None and last_epoch(file.read_text()) < moment[0]:
                assert time.monotonic() < end, file.read_text()
                time.sleep(0.01)
            if moment is None:
                process.wait(timeout=200)
            else:
                time.sleep(moment[1])
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        text = file.read_text()
        assert process.returncode in (0, -signal.SIGKILL), text[-3000:]
        walk.kills += process.returncode != 0
        walk.starts.append((there, text))
        for name in checkpoints_in(folder):  # whatever the moment was
            torch.load(folder / name, weights_only=False)
    assert process.returncode == 0, text[-3000:]
    return walk


def moments(rng, phases, number):
    """Seeded random moments: epochs in order, and up to a second into or past each.

    One at least lies in each of so many phases of ``EPOCHS`` epochs, late enough for a checkpoint of that phase.
    """
    of_phases = [phase * EPOCHS + rng.randrange(2, EPOCHS - 2) for phase in range(phases)]
    chosen = sorted(of_phases + rng.choices(range(phases * EPOCHS), k=number - phases))
    return [(epoch, rng.uniform(0, 1)) for epoch in chosen]


@pytest.fixture(scope="module")
def walks(tiny_dataset, tmp_path_factory):
    """Pre-stage and segmentation, each killed until done; the first kill comes before there is any checkpoint."""
    base = tmp_path_factory.mktemp("killed")
    plans = copy.deepcopy(tiny_dataset.plans)
    settings = {**plans["configurations"]["3d_small"]["anomaly"], **SETTINGS}
    plans["configurations"]["3d_killed"] = {"inherits_from": "3d_small", "anomaly": settings}
    preprocessed = base / "nnUNet_preprocessed" / tiny_dataset.preprocessed.name
    preprocessed.mkdir(parents=True)
    for path in tiny_dataset.preprocessed.iterdir():
        if path.name not in ("anomaly_erased_regions", "splits_final.json"):
            (preprocessed / path.name).symlink_to(path)
    (preprocessed / "nnUNetPlans.json").unlink()
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    for name in ("nnUNet_raw", "nnUNet_results"):
        (base / name).mkdir()
    rng = random.Random(20)
    of_prestage = round(0.6 * KILLS)
    environment = nnunet_environment(base, PYTHONUNBUFFERED=1)
    folders = {
        name: base / "nnUNet_results" / preprocessed.name / f"{name}__nnUNetPlans__3d_killed" / "fold_0"
        for name in (PRESTAGE, SEGMENTATION)
    }
    first = [(0, 0.0)]
    return {
        PRESTAGE: killed_until_done(
            PRESTAGE, folders[PRESTAGE], first + moments(rng, 2, of_prestage - 1), environment, base
        ),
        SEGMENTATION: killed_until_done(
            SEGMENTATION, folders[SEGMENTATION], moments(rng, 1, KILLS - of_prestage), environment, base
        ),
    }


@pytest.fixture(scope="module")
def undisturbed(build_trainer, tmp_path_factory):
    """The last checkpoints of the same trainings, never killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    checkpoints = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())  # as the command does: fewer would add up in another order
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("nnUNet_results", str(folder))
            for name in (PRESTAGE, SEGMENTATION):
                trainer = build_trainer(name, anomaly=SETTINGS)
                trainer.run_training()
                final = Path(trainer.output_folder) / "checkpoint_final.pth"
                checkpoints[name] = torch.load(final, weights_only=False)
    finally:
        torch.set_num_threads(threads)
    return checkpoints


def test_both_were_really_killed(walks):
    # A moment that falls behind the end of a fast run kills nothing.
    assert sum(walk.kills for walk in walks.values()) >= KILLS - 1


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION])
def test_killed_training_reaches_its_end_and_validates(walks, name):
    folder = walks[name].folder
    assert "checkpoint_final.pth" in checkpoints_in(folder)
    assert (folder / "validation" / "summary.json").is_file()
    assert list(folder.glob("*.part")) == []


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION])
def test_loss_curve_joins_as_if_nothing_had_happened(walks, undisturbed, name):
    checkpoint = torch.load(walks[name].folder / "checkpoint_final.pth", weights_only=False)
    logged, expected = checkpoint["logging"], undisturbed[name]["logging"]
    epochs = EPOCHS if name == SEGMENTATION else 2 * EPOCHS
    assert checkpoint["current_epoch"] == epochs
    assert logged["lrs"] == expected["lrs"]
    for key in ("train_losses", "val_losses"):
        assert len(logged[key]) == epochs
        assert [float(value) for value in logged[key]] == pytest.approx([float(value) for value in expected[key]])


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION])
def test_killed_training_ends_with_the_weights_and_the_best_score_of_one_that_was_not(walks, undisturbed, name):
    checkpoint = torch.load(walks[name].folder / "checkpoint_final.pth", weights_only=False)
    expected = undisturbed[name]
    torch.testing.assert_close(checkpoint["network_weights"], expected["network_weights"])
    assert float(checkpoint["_best_ema"]) == pytest.approx(float(expected["_best_ema"]))


@pytest.mark.parametrize(("name", "phase"), [(PRESTAGE, 0), (PRESTAGE, 1), (SEGMENTATION, 0)])
def test_every_phase_was_continued_from_a_checkpoint_of_its_own(walks, name, phase):
    begun = [
        int(re.search(r": Epoch (\d+)", text)[1])
        for there, text in walks[name].starts
        if there and re.search(r": Epoch (\d+)", text)
    ]
    assert any(phase * EPOCHS < epoch < (phase + 1) * EPOCHS for epoch in begun), begun


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION])
def test_start_without_a_checkpoint_says_so_and_any_other_continues(walks, name):
    for number, (there, text) in enumerate(walks[name].starts):
        assert (NOTHING_TO_CONTINUE in text) == (number > 0 and not there)
    if name == PRESTAGE:
        assert not walks[name].starts[1][0]  # the first kill came before the first checkpoint
