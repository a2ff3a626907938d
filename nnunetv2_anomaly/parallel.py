"""Cases side by side, one process each.

The processes are those of concurrent.futures. This module adds that none of them outlives the command and that none
leaves a half-written file, whether the command ends by Ctrl-C, SIGTERM or SIGKILL; joblib guarantees neither (see
docs/explanation/decisions/code.md).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, TypeVar

import SimpleITK as sitk
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from nnunetv2_anomaly.errors import UserError, counted, sentence_of

#: seconds that a job has to remove the file it was writing before its process is killed
_MOMENT_S = 2.0

Job = TypeVar("Job")
Result = TypeVar("Result")


def chosen_processes(asked: int | None) -> int:
    """The number of processes for -np; None takes as many as there are cores, at most four, as each takes memory.

    Raises: UserError for less than one.
    """
    if asked is not None and asked < 1:
        raise UserError(f"-np is {asked}; expected 1 or more")
    return asked or min(4, os.cpu_count() or 1)


@contextmanager
def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_processes: int
) -> Iterator[Iterator[tuple[Job, Future[Result]]]]:
    """Run jobs side by side; leaving the context ends those that still run and drops those that have not begun.

    With one process, or one job, everything runs in this process. A job that is ended gets a moment to remove the file
    it is writing (``files.written_beside``). Jobs end with this process, too, even where it is killed.

    Args:
        function: of a module, so that another process can find it.
        jobs: its arguments; they and the results are sent between processes.
        num_processes: at most this many at a time, one core each.

    Yields: an iterator over each job and its finished future, whose ``result()`` returns or raises what the function
        did, in the order in which they finish. It raises a UserError if a process was killed, as systems do when memory
        runs out.
    """
    num_processes = min(num_processes, len(jobs))
    if num_processes <= 1:
        # Not for each job: to find the libraries takes longer than many a job.
        with threadpool_limits(1, user_api="blas"):
            yield ((job, _done_here(function, job)) for job in jobs)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare)
    try:
        with _interrupts_put_off():
            futures = {pool.submit(_run, function, job): job for job in jobs}
            finished: SimpleQueue[Future[Result]] = SimpleQueue()
            for future in futures:
                future.add_done_callback(finished.put)
        yield _finished(futures, finished)
    finally:
        _end(pool, set(multiprocessing.active_children()) - others)


def run_cases(
    function: Callable[[Any], Result],
    jobs: Sequence[Any],
    num_processes: int,
    doing: str,
    done: str,
    keep: Callable[[str, Result], None] = lambda case, result: None,
) -> tuple[dict[str, Result], str]:
    """Run the jobs of some cases side by side, with a progress bar; a case that fails does not stop the others.

    Args:
        function, jobs, num_processes: as ``run_jobs`` takes them; ``job.case`` is the case's name.
        doing, done: what is done, for the bar and for the sentence: "cleaning", "cleaned".
        keep: is given each case and its result as soon as it is there.
    Returns: the result of each case that did not end in a UserError or at a name that is too long; and a sentence that
        lists those that did, empty if none did.
    Raises: any other error of the function.
    """
    results: dict[str, Result] = {}
    failed: dict[str, str] = {}
    with run_jobs(function, jobs, num_processes) as finished:
        for job, future in tqdm(finished, total=len(jobs), desc=doing, unit="case"):
            try:
                results[job.case] = future.result()
            except (UserError, OSError) as error:
                failed[job.case] = sentence_of(error)
            else:
                keep(job.case, results[job.case])
    told = "\n".join(f"  {case}: {failed[case]}" for case in sorted(failed))
    return results, f"{len(failed)} of {counted(len(jobs), 'case')} could not be {done}:\n{told}" if failed else ""


def _done_here(function: Callable[[Job], Result], job: Job) -> Future[Result]:
    future: Future[Result] = Future()
    try:
        future.set_result(function(job))
    except Exception as error:  # raised by future.result(), as from another process
        future.set_exception(error)
    return future


def _finished(
    futures: Mapping[Future[Result], Job], finished: SimpleQueue[Future[Result]]
) -> Iterator[tuple[Job, Future[Result]]]:
    # Not as_completed: a Ctrl-C while it takes the locks of all futures leaves them held, and the pool never ends.
    for _ in futures:
        future = finished.get()
        if isinstance(future.exception(), BrokenProcessPool):
            fault = "a process ended without a word, most likely because memory ran out"
            raise UserError(f"{fault}; run again with fewer at a time (-np 1)") from future.exception()
        yield futures[future], future


def _end(pool: ProcessPoolExecutor, processes: Collection[BaseProcess]) -> None:
    """End the processes of a pool, after a moment in which their jobs remove the files they are writing."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _MOMENT_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()  # no effect on one that has ended
    pool.shutdown()


@contextmanager
def _interrupts_put_off() -> Iterator[None]:
    """Within it processes are started, and a Ctrl-C takes effect at its end: half a start leaves a failing process.

    What is started never gets the Ctrl-C of a terminal, which every process would report with a traceback.
    """
    handler, came = signal.getsignal(signal.SIGINT), threading.Event()
    # Only the main thread may set a handler; nohup ignores the signal.
    put_off = callable(handler) and threading.current_thread() is threading.main_thread()
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows, where processes inherit nothing of the kind
    if put_off:  # another thread may still get what is blocked for this one
        signal.signal(signal.SIGINT, lambda *_: came.set())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_block else set()
    try:
        yield
    finally:
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if put_off:
            signal.signal(signal.SIGINT, handler)
        if came.is_set():
            signal.raise_signal(signal.SIGINT)


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpool_limits(1, user_api="blas")  # several processes with several threads each wait for one another
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _run(function: Callable[[Job], Result], job: Job) -> Result:
    """A job, in a process of its own; SIGTERM ends it like an error, so that it removes the file it is writing."""
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return function(job)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except KeyboardInterrupt:
        os._exit(1)


def _end_with_parent() -> None:
    """End this process, and its job, once the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if hasattr(signal, "pthread_kill"):  # not on Windows
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(_MOMENT_S)
    os._exit(1)
