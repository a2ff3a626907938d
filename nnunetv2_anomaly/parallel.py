"""Cases at a time, one process each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol, TypeVar

import SimpleITK as sitk
from tqdm import tqdm

from nnunetv2_anomaly.errors import UserError


class OfCase(Protocol):
    """A job of one case."""

    @property
    def case(self) -> str:
        """Its name."""


Job = TypeVar("Job")
CaseJob = TypeVar("CaseJob", bound=OfCase)
Result = TypeVar("Result")


def chosen_processes(asked: int | None) -> int:
    """How many processes -np asks for; None takes as many as there are cores, at most four, as each takes memory.

    Raises: UserError for less than one.
    """
    if asked is not None and asked < 1:
        raise UserError(f"-np is {asked}; expected 1 or more.")
    return asked or min(4, os.cpu_count() or 1)


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_processes: int
) -> Iterator[tuple[Job, Future[Result]]]:
    """Do jobs side by side, and hand each back as soon as it is done.

    With one process, or one job, all is done in this process. What has not begun when the caller stops early is left.

    Args:
        function: of a module, so that another process can find it.
        jobs: its arguments; they and the results are sent between processes.
        num_processes: at most this many at a time, one core each.

    Yields: the job, and its finished future, whose ``result()`` returns or raises what the function did.

    Raises: UserError if a process was killed, as systems do where memory runs out.
    """
    if min(num_processes, len(jobs)) <= 1:
        for job in jobs:
            future: Future[Result] = Future()
            try:
                future.set_result(function(job))
            except Exception as error:  # as a process would: whoever asks for the result gets it
                future.set_exception(error)
            yield job, future
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_processes, len(jobs)), mp_context=context, initializer=_one_thread) as pool:
        with _interrupts_ignored():  # by the processes too, which inherit it: one of them is told, this one
            futures = {pool.submit(function, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    raise UserError(
                        "a process ended without a word, most likely because memory ran out; run again with fewer at a "
                        "time (-np 1)."
                    ) from future.exception()
                yield futures[future], future
        finally:
            # After an error the jobs that have not begun are not worth waiting for.
            pool.shutdown(cancel_futures=True)


def run_cases(
    function: Callable[[CaseJob], Result], jobs: Sequence[CaseJob], num_processes: int, doing: str, done: str
) -> tuple[dict[str, Result], str]:
    """Do the jobs of some cases side by side, with a progress bar; a case that fails does not stop the others.

    Args:
        function, jobs, num_processes: as ``run_jobs`` takes them.
        doing, done: what is done, for the bar and for the sentence: "cleaning", "cleaned".

    Returns: what was found of each case that did not end in a UserError; and a sentence that lists those that did,
        empty where none did.

    Raises: whatever else the function raises.
    """
    found: dict[str, Result] = {}
    failed: dict[str, str] = {}
    with tqdm(total=len(jobs), desc=doing, unit="case") as bar:
        for job, future in run_jobs(function, jobs, num_processes):
            try:
                found[job.case] = future.result()
            except UserError as error:
                failed[job.case] = str(error)
            bar.update()
    told = "\n".join(f"  {case}: {failed[case]}" for case in sorted(failed))
    return found, f"{len(failed)} of {len(jobs)} cases could not be {done}:\n{told}" if failed else ""


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
