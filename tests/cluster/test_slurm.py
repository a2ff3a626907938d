"""The small cohort through the Slurm profile, on a Slurm of one node that this test starts and stops."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chain"))
import cohort

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(
        bool(MISSING), reason=f"Slurm is not installed (no {', '.join(MISSING)}): apt install slurm-wlm"
    ),
]
SCRIPT = Path(__file__).with_name("slurm.sh")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Function: a command of slurm.sh on the cluster that is up meanwhile."""
    folder = tmp_path_factory.mktemp("slurm")

    def call(command):
        subprocess.run(["bash", SCRIPT, command, folder], check=True, timeout=180)

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


def test_the_cohort_through_slurm_loses_nothing_by_a_cancelled_job_and_a_node_restart(slurm, tmp_path):
    folder = tmp_path / "W"
    cohort.prepare(folder)
    alone = cohort.copy_of(folder, tmp_path / "alone")
    with (folder / "profiles" / "slurm" / "config.yaml").open("a") as profile:
        profile.write("slurm-status-command: squeue\n")  # this Slurm keeps no accounts
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
    cohort.run(alone)
    assert cohort.tables(folder) == cohort.tables(alone)
