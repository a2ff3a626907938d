"""Resumable runs: a step whose files exist is skipped, an interrupted training continues from its checkpoint."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from tqdm import tqdm

from nnunetv2_anomaly import files
from nnunetv2_anomaly.environment import nnunet_command
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json, write_text

#: file that a run keeps locked in its folder
LOCK = "lock"
_EPOCH = re.compile(r"Epoch (\d+)$", re.MULTILINE)


class StepError(UserError):
    """A step failed; ``status`` is the exit status of its command, or 1 if that was 0 and files are missing."""

    status = 1


@dataclass(frozen=True, eq=False)
class Step:
    """One step: a command as a user would type it, or a function that runs in this process."""

    name: str  # of its log and its record
    #: files and folders that exist once it is done, a training's checkpoint last; the name may be a pattern such as
    #: ``*.nii.gz``. Where nothing is named, the step always runs.
    makes: tuple[Path, ...]
    command: tuple[str, ...] = ()
    function: Callable[[], object] | None = None  # in place of a command
    after: tuple[Step, ...] = ()  # steps that it needs
    title: str = ""  # for people; by default the name
    num_files: int = 1  # that each pattern in ``makes`` matches once the step is done
    variables: Mapping[str, str] = field(default_factory=dict)  # of the command's environment

    @property
    def label(self) -> str:
        """What people read."""
        return self.title or self.name

    def is_done(self) -> bool:
        """Whether all its files exist."""
        made = [list(path.parent.glob(path.name)) for path in self.makes]
        return bool(made) and all(len(files) >= self.num_files for files in made)

    def to_run(self) -> tuple[str, ...]:
        """The command; an interrupted training continues."""
        if self.command[:1] != ("nnUNetv2_train",) or not any(self.makes[-1].parent.glob("checkpoint_*.pth")):
            return self.command
        # The checkpoint has the weights that the training started from, and nnU-Net takes only one of the two.
        command = list(self.command)
        if "-pretrained_weights" in command:
            place = command.index("-pretrained_weights")
            del command[place : place + 2]
        return (*command, "--c")

    def finish(self) -> None:
        """Called when the command has ended well."""

    def shown(self) -> str:
        """The command as a user would type it."""
        return shlex.join(self.to_run())


@dataclass
class _Running:
    step: Step
    words: tuple[str, ...]
    process: subprocess.Popen
    began: float
    peaks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Runner:
    """Runs steps, each after those it needs."""

    environment: Mapping[str, str]  # of the commands
    folder: Path | None = None  # gets logs/NAME.log and records/NAME.json; without one, commands print to the terminal
    lock: int | None = None  # of ``locked``; a command that outlives this process keeps the folder locked
    #: process id of a running command -> values, several times a second; the record keeps the largest ones
    measure: Callable[[int], Mapping[str, float]] = lambda pid: {}
    facts: Mapping[str, Any] = field(default_factory=dict)  # further entries of each record

    def run(self, steps: Sequence[Step], *, jobs: int = 1) -> None:
        """Run the steps that are not done, each after those it needs; ``jobs`` commands side by side, functions alone.

        Raises: StepError if a step fails, once those that run beside it have ended.
        """
        waiting, running, failures = list(steps), list[_Running](), list[StepError]()
        layout = "{l_bar}{bar}| {n}/{total} [{elapsed}]"
        with tqdm(total=len(steps), bar_format=layout, disable=self.folder is None) as bar:
            try:
                while running or (waiting and not failures):
                    step = _ready(waiting, running) if len(running) < jobs and not failures else None
                    if step is None:
                        failures += self._look_after(running, bar)
                        continue
                    waiting.remove(step)
                    if step.is_done():
                        bar.update()
                        continue
                    number = f"[{steps.index(step) + 1}/{len(steps)}]"
                    bar.write(f"{number} {step.label}: {step.shown() or 'in this process'}")
                    sys.stdout.flush()
                    bar.set_description(step.label)
                    if step.function is None:
                        running.append(self._start(step))
                    else:
                        began = monotonic()
                        step.function()
                        self._write_record(step, (), monotonic() - began, {})
                        bar.update()
            finally:
                for one in running:
                    self._end(one)
        if failures:
            raise failures[0]

    def record(self, step: Step) -> dict[str, Any]:
        """Title, command and seconds of a step, what was measured, facts; empty if it has not run in this folder."""
        file = self._file("records", step, "json")
        return read_json(file) if file is not None and file.is_file() else {}

    def _file(self, kind: str, step: Step, ending: str) -> Path | None:
        return self.folder and self.folder / kind / f"{step.name}.{ending}"

    def _start(self, step: Step) -> _Running:
        words, log, output = step.to_run(), self._file("logs", step, "log"), None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("a")
        environment = {**self.environment, **step.variables, "PYTHONUNBUFFERED": "1"}  # an epoch is logged as it begins
        if words[0].startswith("nnUNetv2_plan") and environment.get("nnUNet_n_proc_DA") == "0":
            environment["nnUNet_n_proc_DA"] = "1"  # the planner takes it for a number of threads
        process = subprocess.Popen(
            [nnunet_command(words[0]), *words[1:]],
            env=environment,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            start_new_session=True,  # so that it is ended with all its workers
            pass_fds=() if self.lock is None else (self.lock,),
        )
        if output is not None:
            output.close()
        return _Running(step, words, process, monotonic())

    def _look_after(self, running: list[_Running], bar: tqdm) -> list[StepError]:
        """Wait a moment, measure, show the epoch, and take what has ended off the list; returns failures."""
        sleep(0.1)
        failures = []
        for one in list(running):
            if one.process.poll() is None:
                measured = self.measure(one.process.pid).items()
                one.peaks |= {name: max(one.peaks.get(name, 0.0), value) for name, value in measured}
                epochs = _EPOCH.findall("\n".join(self._last_lines(one.step)))
                shown = f"{one.step.label}, epoch {epochs[-1]}" if epochs else one.step.label
                if bar.desc != f"{shown}: ":
                    bar.set_description(shown)
            else:
                running.remove(one)
                bar.update()
                failures += self._finish(one)
        return failures

    def _finish(self, one: _Running) -> list[StepError]:
        self._write_record(one.step, one.words, monotonic() - one.began, one.peaks)
        status, step = one.process.returncode, one.step
        if status == 0:
            step.finish()
        if status == 0 and (not step.makes or step.is_done()):
            return []
        outcome = f"ended with status {status}" if status else "ended well, but not all of its files exist"
        if self.folder is not None:
            lines = self._last_lines(step)
            outcome += f" ({lines[-1] if lines else 'no output'}); its output is in {self._file('logs', step, 'log')}"
        advice = "fix the cause and run the same command again to resume"
        failure = StepError(f"the step '{step.label}' {outcome}; {advice}")
        failure.status = status or 1
        return [failure]

    def _last_lines(self, step: Step) -> list[str]:
        log = self._file("logs", step, "log")
        if log is None:
            return []
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            return [line for line in map(str.strip, file.read().decode(errors="replace").splitlines()) if line]

    def _end(self, one: _Running) -> None:
        """End a command before its time; its seconds count for the one that continues it."""
        with suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGTERM)
        one.process.wait()
        self._write_record(one.step, one.words, monotonic() - one.began, one.peaks)

    def _write_record(self, step: Step, words: Sequence[str], seconds: float, peaks: Mapping[str, float]) -> None:
        file = self._file("records", step, "json")
        if file is None:
            return
        before = self.record(step) if "--c" in words else {}
        largest = {name: max(before.get(name) or 0.0, peak) or None for name, peak in peaks.items()}
        kept = {"title": step.label, "command": shlex.join(words), "seconds": before.get("seconds", 0.0) + seconds}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**kept, **largest, **self.facts}, indent=1))


def _ready(waiting: Sequence[Step], running: Sequence[_Running]) -> Step | None:
    """The first step that needs none of those that wait or run."""
    not_done = [*waiting, *(one.step for one in running)]
    return next((step for step in waiting if not any(needed in not_done for needed in step.after)), None)


def training_step(
    results: Path, model: tuple[str, str, str], trainer: str, plans: str, *options: str, name: str = "", **more: Any
) -> Step:
    """A call of nnUNetv2_train, named after trainer, data set and fold where there is no other name.

    Args: results: the data set's folder in nnUNet_results. model: number of the data set, configuration, fold. options:
        further words of the command. more: as ``Step`` takes it.
    """
    dataset, configuration, fold = model
    folder = results / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"
    # The summary comes last: a training whose validation was interrupted is not done.
    makes = (folder / "validation" / "summary.json", folder / "checkpoint_final.pth")
    command = ("nnUNetv2_train", *model, "-tr", trainer, "-p", plans, *options)
    return Step(name or f"train_{trainer}_{dataset}_fold{fold}", makes, command, **more)


def locked(folder: Path, advice: str) -> AbstractContextManager[int]:
    """Keep a second run out of a folder (``files.locked``). advice: what else a user can do than wait."""
    busy = f"another run is at work in {folder}, or a step that outlived one; wait for it or end it, or {advice}"
    return files.locked(folder / LOCK, busy)
