"""A small cohort from images to one report: on this machine and through Slurm, killed, cancelled and resumed."""

import os
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import cohort
import pytest
from offline import Offline
from places import ROOT

pytestmark = pytest.mark.exhaustive
SLURM = ROOT / "tests" / "cluster" / "slurm.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]

#: logs whose appearance is a moment to kill everything at
MOMENTS = (
    "train_AnomalyPreStageTrainer_500_fold0", "train_AnomalyAwareTrainer_500_fold0", "predict_AnomalyAwareTrainer",
    "measure_AnomalyAwareTrainer", "evaluate",
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "W"
    cohort.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def done(prepared, tmp_path_factory):
    """The cohort, run through without a fault, with no network within reach."""
    folder = cohort.copy_of(prepared, tmp_path_factory.mktemp("done") / "W")
    offline = Offline(tmp_path_factory.mktemp("offline"), cohort.environment())
    assert f"Report: {folder / 'report.html'}" in cohort.run(folder, offline).stdout
    offline.check()
    return folder


def test_report_has_evaluation_measurements_trainings_and_commands(done):
    text = (done / "report.html").read_text()
    for expected in ("naive nnU-Net", "anomaly-aware", "measures/AnomalyAwareTrainer/measurements.csv"):
        assert expected in text
    assert "nnUNetv2_train 500 3d_demo 0" in text
    assert all(len(table.splitlines()) > 1 for table in cohort.tables(done).values())
    assert len(list((done / "records").glob("*.tsv"))) == 18


def test_a_second_run_has_nothing_to_do(done):
    before = {file: file.stat().st_mtime_ns for file in done.rglob("*") if ".snakemake" not in file.parts}
    assert "Nothing to be done" in cohort.run(done).stderr
    assert {file: file.stat().st_mtime_ns for file in done.rglob("*") if ".snakemake" not in file.parts} == before


def test_killed_at_five_moments_it_ends_with_the_same_tables(prepared, done, tmp_path):
    folder = cohort.with_one_trainer(cohort.copy_of(prepared, tmp_path / "W"))
    for moment in MOMENTS:
        words = cohort.verb("workflow", "run", folder)
        with (tmp_path / "output.txt").open("a") as output:
            process = subprocess.Popen(
                words, env=cohort.environment(), stdout=output, stderr=output, start_new_session=True
            )
        cohort.wait_for(lambda: (folder / "logs" / f"{moment}.log").exists() or process.poll() is not None)  # noqa: B023
        assert process.poll() is None, (tmp_path / "output.txt").read_text()[-3000:]
        while alive := [process.pid] * (process.poll() is None) + list(cohort.processes_of(folder)):
            for number in alive:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            process.poll()
    cohort.run(folder)
    assert cohort.tables(folder) == cohort.tables(done)


def test_a_case_that_fails_is_named_and_the_rest_is_done(done, tmp_path):
    folder = cohort.with_one_trainer(cohort.copy_of(done, tmp_path / "W"))
    outputs = ("predictions", "cleaned", "measures", "evaluation", "anomaly_maps", "detector")
    for name in outputs:
        shutil.rmtree(folder / name)
    images = folder / "nnUNet_raw" / "Dataset500_SimulatedKnees" / "imagesTs"
    first = min(images.iterdir())
    case, whole = first.name.removesuffix("_0000.nii.gz"), first.read_bytes()
    first.write_bytes(whole[:-300])
    first_words = cohort.verb("workflow", "run", folder, "--", "--forcerun", "check_images", "anomaly_maps")
    for words in (first_words, cohort.verb("workflow", "run", folder)):
        failed = subprocess.run(words, env=cohort.environment(), capture_output=True, text=True)
        assert failed.returncode == 1
        said = failed.stdout[failed.stdout.index("Left out, while all") :]
        assert f"  {case}: {first.relative_to(folder)} is cut short" in said
        assert str(folder / "logs" / "check_images.log") in said
    assert f"{case}: {first.relative_to(folder)}" in (folder / "report.html").read_text()
    for name, pattern in (("anomaly_maps", "*_error.nii.gz"), (f"predictions/{cohort.TRAINER}", "*.nii.gz")):
        assert len(list((folder / name).glob(pattern))) == cohort.SIZE.num_test - 1
    of_case = {name: f"{case}," in text for name, text in cohort.tables(folder).items()}
    assert not any(of_case.values())
    first.write_bytes(whole)
    (again,) = (line for line in said.splitlines() if "--forcerun" in line)
    predict = f"predict_{cohort.TRAINER}"
    cohort.run(folder, words=[*cohort.verb(), *shlex.split(again)[1:], "--until", predict])
    assert len(list((folder / "predictions" / cohort.TRAINER).glob("*.nii.gz"))) == cohort.SIZE.num_test
    assert {file.name for file in (folder / "failed").iterdir()} == {"anomaly_maps", "evaluate", "measure_detector"}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Function: a command of slurm.sh on the cluster that is up meanwhile."""
    folder = tmp_path_factory.mktemp("slurm")

    def call(command):
        subprocess.run(["bash", SLURM, command, folder], check=True, timeout=180)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        try:
            call("start")
            yield call
        finally:
            call("stop")


def jobs_of(name, states):
    """Numbers of Slurm's jobs whose comment, the rule, holds a name."""
    words = ["squeue", "--noheader", f"--states={states}", "--format=%i %k"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(line.split()[0] for line in lines if name in line)


@pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed (no {', '.join(MISSING)}): apt install slurm-wlm")
def test_the_cohort_through_slurm_loses_nothing_by_a_cancelled_job_and_a_node_restart(prepared, done, slurm, tmp_path):
    folder = cohort.with_one_trainer(cohort.copy_of(prepared, tmp_path / "W"))
    profile = folder / "profiles" / "slurm" / "config.yaml"
    seconds = "slurm-init-seconds-before-status-checks: "
    assert f"{seconds}10\n" in profile.read_text()
    # This Slurm keeps no accounts, and is asked often.
    profile.write_text(profile.read_text().replace(f"{seconds}10", f"slurm-status-command: squeue\n{seconds}1"))
    output = (tmp_path / "output.txt").open("w+")
    words = cohort.verb("workflow", "run", folder, "--profile", "slurm")
    process = subprocess.Popen(words, env=cohort.environment(), stdout=output, stderr=output)
    log = folder / "logs" / "train_AnomalyPreStageTrainer_500_fold0.log"
    cohort.wait_for(lambda: log.is_file() and "Epoch 1" in log.read_text(), seconds=600)
    (job,) = jobs_of("PreStage", "R")
    subprocess.run(["scancel", job], check=True)
    later = folder / "logs" / "train_AnomalyAwareTrainer_500_fold0.log"
    cohort.wait_for(lambda: later.is_file() and "Epoch 1" in later.read_text(), seconds=900)
    assert len(jobs_of("PreStage", "all")) == 2  # cancelled, and submitted again
    slurm("restart_node")
    assert process.wait(timeout=1500) == 0, Path(output.name).read_text()[-4000:]
    for resumed in (log, later):  # Snakemake begins a step's log again with the step
        assert "Epoch 0" not in resumed.read_text()
    assert cohort.tables(folder) == cohort.tables(done)
