"""Steps of a workflow: a command as a user types it, and the files by which the engine knows that it is done.

Everything that runs in steps shares these: a cohort, the demonstration, the published chain, the benchmarks.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_anomaly.environment import FOLDER_VARIABLES

#: those that nnU-Net makes
PLANS = "nnUNetPlans"
#: folder of the files that stand for steps with many outputs; a step's own are whole or absent, and named last
DONE = "done"
#: folder of a file for each step that has left cases out
FAILED = "failed"
#: so many lines on the cases of a step are shown at the end
_SHOWN = 20


@dataclass(frozen=True)
class Step:
    """One step; paths are relative to the workflow's folder, or absolute."""

    name: str  # of its rule, log and record
    command: str
    kind: str  # whose resources it takes
    title: str = ""
    needs: tuple[str, ...] = ()  # files of other steps
    #: the file that it writes last; without one, the engine leaves a mark in ``DONE`` when the command has ended well
    makes: str = ""
    #: files of other steps that have to be there, however old: a finished training is not repeated for their sake
    follows: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The file that exists once it is done."""
        return self.makes or f"{DONE}/{self.name}"


def rule_name(name: str) -> str:
    """The name made fit for a rule of Snakemake."""
    return re.sub(r"\W", "_", name)


def step(name: str, words: Sequence[object], kind: str, **more: object) -> Step:
    """A step of a command without shell syntax."""
    command = shlex.join(str(word) for word in words)
    return Step(rule_name(name), command, kind, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Dataset:
    """A data set in nnU-Net's three folders."""

    name: str
    raw_base: Path
    preprocessed_base: Path
    results_base: Path

    @classmethod
    def below(cls, folder: Path, name: str) -> Dataset:
        """In the folders nnUNet_raw, nnUNet_preprocessed and nnUNet_results of a folder."""
        return cls(name, *(folder / variable for variable in FOLDER_VARIABLES))

    @property
    def number(self) -> str:
        """As nnU-Net's commands take it."""
        return str(int(self.name[7:10]))

    @property
    def raw(self) -> Path:
        """Folder of images and labels."""
        return self.raw_base / self.name

    @property
    def described(self) -> str:
        """dataset.json, which comes last when a data set is made."""
        return str(self.raw / "dataset.json")

    def plans(self, name: str) -> str:
        """A plans file."""
        return str(self.preprocessed_base / self.name / f"{name}.json")

    def model(self, trainer: str, plans: str, configuration: str) -> Path:
        """A model folder."""
        return self.results_base / self.name / f"{trainer}__{plans}__{configuration}"


def plan_step(dataset: Dataset) -> Step:
    """nnU-Net's own plans."""
    words = ["nnUNetv2_plan_and_preprocess", "-d", dataset.number, "--verify_dataset_integrity", "--no_pp"]
    more = {"title": "Planning", "needs": (dataset.described,), "makes": dataset.plans(PLANS)}
    return step(f"plan_{dataset.number}", words, "plan", **more)


def whole_image_step(dataset: Dataset, planned: Step, makes: str) -> Step:
    """Plans with the whole image as patch, next to nnU-Net's."""
    words = ["nnUNetv2_anomaly", "plan_whole_image", "-d", dataset.number]
    more = {"title": "Planning whole images", "needs": (planned.output,), "makes": dataset.plans(makes)}
    return step(f"plan_whole_image_{dataset.number}", words, "plan", **more)


def preprocess_step(dataset: Dataset, plans: str, configuration: str, processes: int) -> Step:
    """Preprocessed data of one configuration, made again when the plans have changed."""
    words = ["nnUNetv2_preprocess", "-d", dataset.number, "-plans_name", plans, "-c", configuration, "-np", processes]
    # Also where plans were written again with other settings of trainers alone: their spacing is not looked at.
    more = {"title": "Preprocessing", "needs": (dataset.plans(plans),)}
    return step(f"preprocess_{dataset.number}", words, "preprocess", **more)


def train_step(
    dataset: Dataset, model: tuple[str, str, str], fold: str, device: str, *follows: Step, weights: str = ""
) -> Step:
    """A training, which continues from its checkpoint where it has one.

    Args: model: trainer, plans, configuration. weights: checkpoint to begin with.
    """
    trainer, plans, configuration = model
    folder = dataset.model(*model) / f"fold_{fold}"
    words = ["nnUNetv2_train", dataset.number, configuration, fold, "-tr", trainer, "-p", plans, "-device", device]
    # Without a checkpoint nnU-Net takes --c for a new training. It takes no --c with weights to begin with.
    start = "--c"
    if weights:
        resumed = f"ls {shlex.quote(str(folder))}/checkpoint_*.pth > /dev/null 2>&1"
        start = f"$({resumed} && echo --c || echo -pretrained_weights {shlex.quote(weights)})"
    return Step(
        rule_name(f"train_{trainer}_{dataset.number}_fold{fold}"),
        f"{shlex.join(words)} {start}",
        "train",
        f"Training {trainer}, fold {fold}",
        follows=tuple(of.output for of in follows),
        # The summary comes last: a training whose validation was interrupted is not done.
        makes=str(folder / "validation" / "summary.json"),
    )


def levels(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps in groups that can run side by side, each after those it needs; one kind to a group."""
    depth: dict[str, int] = {}
    for one in steps:  # each comes after those it needs
        before = [depth[file] for file in (*one.needs, *one.follows) if file in depth]
        depth[one.output] = 1 + max(before, default=-1)
    groups: dict[tuple[int, str], list[Step]] = {}
    for one in steps:
        groups.setdefault((depth[one.output], one.kind), []).append(one)
    return [groups[key] for key in sorted(groups)]


def failures(folder: Path, steps: Sequence[Step], since: float = 0.0) -> list[str]:
    """A sentence for each step that ran and left no output: its name, the last line of its log, and where that is.

    Args: since: time after which its log was written, in seconds since the epoch.
    """
    found = []
    for one in steps:
        log = folder / "logs" / f"{one.name}.log"
        if (folder / one.output).exists() or not log.is_file() or log.stat().st_mtime < since:
            continue
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = f" ({lines[-1].strip()})" if lines else ""
        found.append(f"the step '{one.title or one.name}' failed{last}; its output is in {log}")
    return found


def left_out(folder: Path, steps: Sequence[Step]) -> dict[str, str]:
    """Step -> which cases it has left out, as its command named them last, the first of many; and where its log is."""
    found = {}
    for one in steps:
        if (folder / FAILED / one.name).exists():
            log = folder / "logs" / f"{one.name}.log"
            text = log.read_text(errors="replace") if log.is_file() else ""
            # PROGRAM: NUMBER of ... (errors.exit_status), then a line for each case.
            said = re.split(r"^\S+: (?=\d+ )", text, flags=re.MULTILINE)[-1].strip().splitlines()
            more = [f"  and {len(said) - _SHOWN} more"] if len(said) > _SHOWN else []
            shown = "\n".join([*said[:_SHOWN], *more, f"  its output is in {log}"])
            found[one.name] = f"{one.title or one.name}: {shown}"
    return found
