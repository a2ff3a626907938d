"""``simulate -d`` that is killed before any of its changes to the disk resumes, and ends as if it had never been.

A process without threads forks for every moment: the child kills itself before its n-th change to the disk, the next
one resumes and is killed before its (n + 1)-th, until one comes to its end.
"""

import os
import subprocess
import sys
import textwrap

import pytest

from nnunetv2_anomaly.environment import create_nnunet_folders, nnunet_environment

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, as only POSIX can"),
]

DRIVER = textwrap.dedent("""
    import os, signal, sys
    from nnunetv2_anomaly.command_line.main import main
    import nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees
    import nnunetv2_anomaly.simulation.simulate

    CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copyfile", "shutil.rmtree"}

    def run(deadly):
        count = 0
        def hook(event, arguments):
            nonlocal count
            written = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            count += bool(written) or event in CHANGES
            if count == deadly and event != "os.kill":
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        os._exit(main(sys.argv[1:]))

    kills = 0
    while True:
        child = os.fork() or run(kills + 1)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
    print(f"killed {kills} times")
    sys.exit(os.WEXITSTATUS(status))
""")
SIZE = ("--size", "16", "16", "16", "--spacing", "8", "8", "8")


def simulate(folder, driver=()):
    """Three knees and a data set of them below a folder; the first line of the driver's output."""
    create_nnunet_folders(folder)
    words = ["simulate", "-o", str(folder / "knees"), "--phantoms", "3", *SIZE, "-np", "1", "-d", "501"]
    words += ["--num_test", "1"]
    command = [sys.executable, *(driver or ("-m", "nnunetv2_anomaly.command_line.main")), *words]
    environment = nnunet_environment(folder, OMP_NUM_THREADS=1, OPENBLAS_NUM_THREADS=1)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def files_of(folder):
    """Path -> content; of pictures, which matplotlib's version is part of, that they are there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.suffix == ".png" or path.read_bytes() for path in files}


def test_simulation_killed_before_each_change_resumes_and_deletes_nothing_of_others(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    create_nnunet_folders(killed)
    # Names that resemble those of half-written folders, but are none of ours or none of this data set.
    others = ("part_of_nnunetv2_anomaly_mine_Dataset501_SimulatedKnees", "part_of_nnunetv2_anomaly_7_Dataset502_Other")
    for name in others:
        (killed / "nnUNet_raw" / name).mkdir()
        (killed / "nnUNet_raw" / name / "notes.txt").write_text("mine")
    output = simulate(killed, ("-c", DRIVER))
    kills = int(output.split("killed ")[1].split()[0])
    assert kills > 40
    simulate(whole)
    for name in others:
        assert (killed / "nnUNet_raw" / name / "notes.txt").read_text() == "mine"
        (killed / "nnUNet_raw" / name / "notes.txt").unlink()
    assert files_of(killed) == files_of(whole)
    assert {path.name for path in (killed / "nnUNet_raw").iterdir()} == {*others, "Dataset501_SimulatedKnees"}
    # And once more it is kept as it is.
    before = files_of(whole / "nnUNet_raw")
    assert "2 training and 1 test case." in simulate(whole)
    assert files_of(whole / "nnUNet_raw") == before
