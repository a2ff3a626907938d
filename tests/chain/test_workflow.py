"""A small cohort from images to one report on this machine, killed and resumed."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress

import cohort
import pytest

pytestmark = pytest.mark.exhaustive

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
    """The cohort, run through without a fault."""
    folder = cohort.copy_of(prepared, tmp_path_factory.mktemp("done") / "W")
    assert f"Report: {folder / 'report.html'}" in cohort.run(folder).stdout
    return folder


def test_report_has_evaluation_measurements_trainings_and_commands(done):
    text = (done / "report.html").read_text()
    for expected in ("anomaly-aware", "measures/AnomalyAwareTrainer/measurements.csv", "nnUNetv2_train 500 3d_demo 0"):
        assert expected in text
    assert all(cohort.tables(done).values())


def test_a_second_run_has_nothing_to_do(done):
    before = {file: file.stat().st_mtime_ns for file in done.rglob("*") if ".snakemake" not in file.parts}
    assert "Nothing to be done" in cohort.run(done).stderr
    assert {file: file.stat().st_mtime_ns for file in done.rglob("*") if ".snakemake" not in file.parts} == before


def test_killed_at_five_moments_it_ends_with_the_same_tables(prepared, done, tmp_path):
    folder = cohort.copy_of(prepared, tmp_path / "W")
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
    folder = cohort.copy_of(done, tmp_path / "W")
    shutil.rmtree(folder / "anomaly_maps")
    for file in (folder / "done" / "anomaly_maps", folder / "report.html"):
        file.unlink()
    images = folder / "nnUNet_raw" / "Dataset500_SimulatedKnees" / "imagesTs"
    first = min(images.iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[:-300])
    words = cohort.verb("workflow", "run", folder)
    failed = subprocess.run(words, env=cohort.environment(), capture_output=True, text=True)
    assert failed.returncode == 1
    said = failed.stdout[failed.stdout.index("Failed, while all") :]
    assert "'Anomaly maps' failed" in said
    assert first.name.removesuffix("_0000.nii.gz") in said
    assert len(list((folder / "anomaly_maps").glob("*_error.nii.gz"))) == cohort.SIZE.num_test - 1
    assert not (folder / "report.html").exists()
    first.write_bytes(whole)
    cohort.run(folder)
    assert (folder / "report.html").is_file()
