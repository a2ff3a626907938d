import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.parallel import run_jobs


def double_or_fail(number: int) -> int:
    if number == 3:
        raise UserError("three is too many")
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.parametrize("num_processes", [1, 2])
def test_each_job_comes_back_with_its_result_or_its_error(num_processes):
    with run_jobs(double_or_fail, [1, 2, 3], num_processes) as finished:
        results = dict(finished)
    assert (results[1].result(), results[2].result()) == (2, 4)
    with pytest.raises(UserError, match="three is too many"):
        results[3].result()


def test_a_process_that_dies_is_told():
    with (
        pytest.raises(UserError, match=r"memory ran out; run again with fewer at a time \(-np 1\)"),
        run_jobs(double_or_fail, [4, 4], 2) as finished,
    ):
        list(finished)


def test_interrupts_are_afterwards_what_they_were_before():
    before = signal.getsignal(signal.SIGINT)
    with run_jobs(double_or_fail, [1, 2], 2) as finished:
        list(finished)
    with run_jobs(double_or_fail, [1, 2], 2) as unfinished:
        next(unfinished)
    assert signal.getsignal(signal.SIGINT) == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("left_by", ["end", "error"])
def test_no_process_is_left_behind(left_by):
    others = set(multiprocessing.active_children())
    with contextlib.suppress(RuntimeError), run_jobs(double_or_fail, [1, 2, 5, 6], 2) as finished:
        next(finished)
        assert set(multiprocessing.active_children()) - others
        if left_by == "error":
            raise RuntimeError
    assert not set(multiprocessing.active_children()) - others


# Ctrl-C

#: A command with jobs that write beside. Its arguments are their folder and kind: "long", of a minute; "stubborn", of a
#: minute, and not ending when told to; "quick", and the command does something long when the first one is back.
COMMAND = """
import signal, sys, time
from pathlib import Path
from nnunetv2_anomaly.files import written_beside
from nnunetv2_anomaly.parallel import run_jobs

def work(path):
    if sys.argv[2] == "quick":
        return
    if sys.argv[2] == "stubborn":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with written_beside(path) as temporary:
        temporary.touch()
        time.sleep(60)

if __name__ == "__main__":
    paths = [Path(sys.argv[1]) / name for name in "abcd"]
    print("begins", flush=True)
    try:
        with run_jobs(work, paths, 2) as finished:
            for path, future in finished:
                print("is back", flush=True)
                time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def begin(tmp_path):
    """Function that begins the command above in a process group of its own, as a shell does."""
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "out").mkdir()
    begun = []

    def begin(kind: str) -> subprocess.Popen:
        words = [sys.executable, str(tmp_path / "command.py"), str(tmp_path / "out"), kind]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        begun.append(process)
        assert process.stdout.readline() == "begins\n"
        return process

    yield begin
    for process in begun:
        for pid in of_group(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def of_group(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    table = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in table.splitlines()]
    return [int(pid) for pid, of, state in rows if int(of) == group and not state.startswith("Z")]


def assert_one_interrupt_ends(process: subprocess.Popen, within_s: float = 20) -> None:
    """Ctrl-C, once: status 130, nothing on standard error, and none of its processes left."""
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=within_s)
    assert (process.returncode, error) == (130, "")
    deadline = time.monotonic() + 5  # multiprocessing's own helper ends when it sees that the others have
    while of_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not of_group(process.pid)


@pytest.mark.parametrize("after_s", [0, 0.02, 0.1, 0.5])
def test_one_interrupt_is_enough_in_the_first_moments(begin, after_s, tmp_path):
    process = begin("long")
    time.sleep(after_s)
    assert_one_interrupt_ends(process)
    assert not list((tmp_path / "out").iterdir())


def wait_until_jobs_write(folder) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("part_*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("kind", "left"), [("long", 0), ("stubborn", 2)])
def test_one_interrupt_ends_jobs_that_are_at_work(begin, tmp_path, kind, left):
    process = begin(kind)
    wait_until_jobs_write(tmp_path / "out")
    assert_one_interrupt_ends(process)
    assert len(list((tmp_path / "out").iterdir())) == left


def test_one_interrupt_is_enough_while_the_command_is_at_something_else(begin):
    process = begin("quick")
    assert process.stdout.readline() == "is back\n"
    assert_one_interrupt_ends(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("kind", "left"), [("long", 0), ("stubborn", 2)])
def test_jobs_end_with_the_process_that_wanted_them(begin, tmp_path, number, kind, left):
    process = begin(kind)
    wait_until_jobs_write(tmp_path / "out")
    process.send_signal(number)
    process.wait(timeout=20)
    deadline = time.monotonic() + 20
    while of_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not of_group(process.pid)
    assert len(list((tmp_path / "out").iterdir())) == left
