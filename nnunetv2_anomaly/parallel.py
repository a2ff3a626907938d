"""Cases at a time, one process each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

import SimpleITK as sitk
from tqdm import tqdm

from nnunetv2_anomaly.errors import UserError


class OfCase(Protocol):
    """A job of one case."""

    @property
    def case(self) -> str:
        """Its name."""


#: seconds that jobs have to remove what they were writing, when Ctrl-C or their parent's end ends them
_MOMENT_S = 2.0

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
    Ctrl-C ends what is being done, too, wherever the caller is: what a job writes, it has to write beside and rename.
    It is given a moment to remove what it was writing. The same happens when this process is killed.

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
    interrupts = _Interrupts()
    with (
        ProcessPoolExecutor(min(num_processes, len(jobs)), mp_context=context, initializer=_prepare) as pool,
        interrupts,
    ):
        with interrupts.start_processes():
            futures = {pool.submit(_do, function, job): job for job in jobs}
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


class _Interrupts:
    """Ctrl-C while processes work: it ends them at once, and then does in this process what it does at other times.

    A terminal sends it to every process of a command. Those that are started here never get it, for each of them would
    tell it with a traceback of its own, from the first moment on; this one gets it, and would wait for what they are
    at. While they are being started, it is put off: half a start leaves a process that fails, or that nobody ends.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._starting = False
        self._put_off = False
        self._processes: set[BaseProcess] = set()

    def __enter__(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()  # which alone may say what a signal does
        before = signal.getsignal(signal.SIGINT)
        if is_main and before not in (signal.SIG_IGN, None):  # ignored by nohup, or not of Python
            self._before = signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def start_processes(self) -> Iterator[None]:
        """Within it, processes are started."""
        others = set(multiprocessing.active_children())
        self._starting = True
        try:
            with _blocked_interrupts():
                yield
            self._processes = set(multiprocessing.active_children()) - others
        finally:
            self._starting = False
        if self._put_off:
            self._end()

    def _handle(self, *_: object) -> None:
        if self._starting:
            self._put_off = True
        else:
            self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + _MOMENT_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()  # which does nothing to one that has ended
        signal.signal(signal.SIGINT, self._before)
        signal.raise_signal(signal.SIGINT)


@contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """What is started within it inherits that Ctrl-C does not reach it, whatever it does later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield  # Windows, where processes inherit nothing of the kind
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Ended(BaseException):
    """A process is told to end while it is at a job, which no ``except Exception`` of the job may keep it from."""


def _do(function: Callable[[Job], Result], job: Job) -> Result:
    """A job, in a process that may be told to end: what the job was writing is removed then, as after any error."""
    try:
        signal.signal(signal.SIGTERM, _end_job)
        try:
            return function(job)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except _Ended:
        os._exit(1)


def _end_job(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would disturb what the first lets be removed
    raise _Ended


def _prepare() -> None:
    """Makes a process ready for its jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process, and its job, once the one that wanted it is gone: killed, it could not tell anybody."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of this thread: the main one is to be interrupted
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_MOMENT_S)
        os._exit(1)
