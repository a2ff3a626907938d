"""Runs the steps of a chain one after another, remembers which are finished, and continues where it stopped."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.environment import nnunet_command
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_text

_EPOCH = re.compile(r"Epoch (\d+)\s*$")


@dataclass(frozen=True)
class Step:
    """One step: a command as a user would type it, or a function of this package."""

    name: str
    title: str
    command: Sequence[str] = ()
    function: Callable[[], object] | None = None
    #: a folder whose checkpoints tell that an interrupted training can be continued with --c
    training_folder: Path | None = None


class Chain:
    """Steps with a state file in the output folder: what was run, with which arguments, for how many seconds."""

    def __init__(self, folder: Path, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Open or begin a chain.

        Args:
            folder: made if need be; logs go to folder/logs.
            arguments: what the results depend on; a folder that was begun with others is refused.
            environment: for the commands.
        Raises: UserError if the folder holds a chain with other arguments, or something else.
        """
        self.folder = folder
        # Unbuffered, so that the progress bar learns of an epoch when it begins.
        self.environment = {**environment, "PYTHONUNBUFFERED": "1"}
        self.state_file = folder / "demo.json"
        if self.state_file.is_file():
            self.state = json.loads(self.state_file.read_text())
            if self.state["arguments"] != dict(arguments):
                raise UserError(
                    f"{folder} holds a demo with other arguments ({self.state['arguments']}, now {dict(arguments)}); "
                    f"give another folder with -o, or remove that one"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no demo; give another folder with -o")
        else:
            self.state = {"version": __version__, "arguments": dict(arguments), "steps": {}}
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._write()

    def run(self, steps: Sequence[Step]) -> None:
        """Run what is not finished.

        Raises: UserError naming the log if a command fails; the next call continues there.
        """
        layout = "{l_bar}{bar}| {n}/{total} [{elapsed}]"
        with tqdm(total=len(steps), desc="demo", bar_format=layout) as bar:
            for step in steps:
                entry = self.state["steps"].setdefault(step.name, {"seconds": 0.0, "finished": False})
                entry["title"] = step.title
                if step.command:
                    entry["command"] = shlex.join(step.command)
                if not entry["finished"]:
                    bar.set_description(step.title)
                    bar.write(f"{step.title}: {entry.get('command', 'in this process')}")
                    began = monotonic()
                    try:
                        if step.function is not None:
                            step.function()
                        else:
                            self._execute(step, bar)
                        entry["finished"] = True
                    finally:
                        entry["seconds"] += monotonic() - began
                        self._write()
                bar.update()
            bar.set_description("demo finished")

    def _execute(self, step: Step, bar: tqdm) -> None:
        command = [nnunet_command(step.command[0]), *step.command[1:]]
        if step.training_folder is not None and any(step.training_folder.glob("checkpoint_*.pth")):
            command.append("--c")
        log_file = self.folder / "logs" / f"{step.name}.log"
        last = ""
        with open(log_file, "a", buffering=1) as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
            )
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    log.write(line)
                    last = line.strip() or last
                    epoch = _EPOCH.search(line)
                    if epoch:
                        bar.set_description(f"{step.title}, epoch {epoch.group(1)}")
                status = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if status != 0:
            raise UserError(
                f"the step '{step.title}' ended with status {status} ({last}); the whole output is in {log_file}; "
                f"when that is mended, run the same command again to continue"
            )

    def _write(self) -> None:
        write_text(self.state_file, json.dumps(self.state, indent=2))
