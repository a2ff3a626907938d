"""Cases at a time, one process each."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import SimpleITK as sitk

Job = TypeVar("Job")
Result = TypeVar("Result")


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
                yield futures[future], future
        finally:
            # After an error the jobs that have not begun are not worth waiting for.
            pool.shutdown(cancel_futures=True)


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
