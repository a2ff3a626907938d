"""Compare all families of detectors: same held-out knees, same budget, beside intensity and contrast.

python -m benchmarks.detectors --data SEGMENTATIONS --folder WORK --num_test 15
"""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from benchmarks import detector_scores
from benchmarks.cells import over_trainings
from benchmarks.comparison import provenance
from benchmarks.experiment import DATASET_ID, PLANS, Experiment, training_of, unfinished, whole_folder
from benchmarks.models import DETECTOR_TRAINERS, Detector, Model, parse_models
from benchmarks.naive_vs_aware import build_parser, checked, ended_well, run_in_folder
from benchmarks.scanners import AS_IT_IS, SCANNERS, write_as_by
from benchmarks.stress import lesion_in_bone, with_lesions_as_bone
from nnunetv2_anomaly.detectors.artefact import detector_of
from nnunetv2_anomaly.detectors.base import Detector as DetectorNetwork
from nnunetv2_anomaly.detectors.level import contrast_within
from nnunetv2_anomaly.detectors.thresholds import OTSU, lesions_in, thresholds_of
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.evaluation import statistics
from nnunetv2_anomaly.evaluation.lesion_slices import slice_rows, slice_tables
from nnunetv2_anomaly.evaluation.results import RAW
from nnunetv2_anomaly.evaluation.tables import Measure
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.labels import BONES, BONES_WITH_LESIONS, NAMES
from nnunetv2_anomaly.prediction.models import load_model
from nnunetv2_anomaly.reporting.table import Cell, Table, csv_text, number, word_cell
from nnunetv2_anomaly.workflows.steps import Step, step

#: what needs no training, and stands beside every detector
RAW_INTENSITY, CONTRAST = "raw intensity", "contrast in the labelled bones"
CONTROLS = (RAW_INTENSITY, CONTRAST)
#: the family whose segmentation gives their bones to detectors that need them
BONE_FINDER = "bone_contrast"

_AUC = {"factor": 1.0, "digits": 3, "larger_is_better": True}
MEASURES = (
    Measure("auc", "AUC, all bone", "auc", RAW, **_AUC),
    Measure("auc_inside", "AUC, inside", "auc_inside", RAW, **_AUC),
    Measure("ap", "AP", "ap", RAW, **_AUC),
    Measure("hits", "hits at one false component a bone", "hits", RAW, **_AUC),
)


@dataclass(frozen=True)
class Maps:
    """Anomaly maps of the held-out knees by one detector or control."""

    detector: str  # in tables
    training: str  # which one of it; empty for a control
    scanner: str
    #: knee -> its score map, (Z, Y, X); larger where more anomalous
    read: Callable[[str], NDArray]
    #: folder with the lesions by the threshold that its validation found; None for a control
    folder: Path | None = None


def expanded(models: Sequence[Model], seeds: Sequence[int]) -> list[Model]:
    """Each detector once for each seed, seed by seed, so that a run that is cut short leaves a comparison."""
    found = []
    for seed in seeds:
        for model in models:
            if model.detector is None or model.segments:
                raise UserError(f"the model {model.name} is no detector alone; expected {', '.join(DETECTOR_TRAINERS)}")
            detector = replace(model.detector, seed=seed)
            found.append(replace(model, name=f"{model.name}_seed{seed}", detector=detector))
    return found


class Bench:
    """The maps of an experiment's detectors, and what they are measured against."""

    def __init__(self, experiment: Experiment, names: dict[Detector, str], scanners: Sequence[str]) -> None:
        self.experiment, self.names, self.scanners = experiment, names, scanners
        self.knees = [file.name.removesuffix(".nii.gz") for file in sorted(experiment.references.glob("*.nii.gz"))]

    def images(self, scanner: str) -> Path:
        """Folder of the held-out images."""
        source = self.experiment.raw / "imagesTs"
        return source if scanner == AS_IT_IS else self.experiment.folder / "scanners" / scanner.replace(" ", "_")

    def output(self, detector: Detector, fold: str, scanner: str) -> Path:
        """Folder of a training's maps."""
        return self.experiment.folder / "maps" / scanner.replace(" ", "_") / f"{detector.name}_fold{fold}"

    def bone_finder(self, detector: Detector) -> Detector:
        """The segmentation whose bones a detector is given. Raises: UserError if there is none in the bench."""
        for other in self.names:
            if other.family == BONE_FINDER and other.seed == detector.seed:
                return other
        raise UserError(f"{detector.name} needs bones; expected {BONE_FINDER} among the models, which predicts them")

    def step(self, detector: Detector, fold: str, scanner: str) -> Step:
        """The command that makes the maps, as a user would type it."""
        experiment, output = self.experiment, self.output(detector, fold, scanner)
        words = [
            "nnUNetv2_anomaly", "anomaly_maps", "-i", str(self.images(scanner)), "-o", str(unfinished(output)),
            "-d", DATASET_ID, "-c", detector.configuration, "-f", fold, "-tr", detector.trainer, "-p", PLANS,
            "-device", experiment.arguments.device,
        ]  # fmt: skip
        after = [experiment.steps()[training_of(detector, fold)]]
        if detector.of_slices:
            finder = self.bone_finder(detector)
            words += ["--bones", str(experiment.detector_folder(finder))]
            after.append(experiment.steps()[training_of(finder, fold)])
        name = f"maps-{scanner.replace(' ', '_')}-{detector.name}-fold{fold}"
        needs = tuple(one.output for one in after)
        return whole_folder(step(name, words, "predict", needs=needs), output)

    def make(self, jobs: int) -> None:
        """Make all maps that are missing."""
        for scanner in self.scanners:
            if scanner != AS_IT_IS:
                write_as_by(scanner, self.experiment.raw / "imagesTs", self.images(scanner))
        folds = self.experiment.arguments.folds
        steps = [self.step(d, fold, s) for s in self.scanners for d in self.names for fold in folds]
        self.experiment.run(steps, jobs)

    def maps(self) -> Iterator[Maps]:
        """All maps, the controls first."""
        for scanner in self.scanners:
            yield Maps(RAW_INTENSITY, "", scanner, lambda knee, s=scanner: self._image(knee, s))
            yield Maps(CONTRAST, "", scanner, lambda knee, s=scanner: self._contrast(knee, s))
            for detector, name in sorted(self.names.items(), key=lambda of: list(self.names.values()).index(of[1])):
                for fold in self.experiment.arguments.folds:
                    folder = self.output(detector, fold, scanner)
                    training = f"seed{detector.seed}-fold{fold}"
                    read = functools.partial(_read_map, folder)
                    yield Maps(name, training, scanner, read, folder)

    def _image(self, knee: str, scanner: str) -> NDArray:
        return _read(self.images(scanner) / f"{knee}_0000.nii.gz")

    def _contrast(self, knee: str, scanner: str) -> NDArray:
        labels = sitk.ReadImage(str(self.experiment.references / f"{knee}.nii.gz"))
        image = torch.from_numpy(self._image(knee, scanner))[None]
        voxels = torch.from_numpy(sitk.GetArrayFromImage(labels).astype(np.int64))
        return contrast_within(image, voxels, BONES_WITH_LESIONS, labels.GetSpacing()[::-1])[0].numpy()

    def mask(
        self, knee: str, scores: NDArray, bones: Mapping[int, NDArray[np.bool_]]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[float, ...]]:
        """Lesions that Otsu's rule makes of a map in the labelled bones, of every detector alike; bones; spacing, mm.

        Opening and closing have a radius of one voxel.
        """
        spacing = sitk.ReadImage(str(self.experiment.references / f"{knee}.nii.gz")).GetSpacing()[::-1]
        axis = int(np.argmax(spacing))
        radius = max(np.delete(spacing, axis))
        fit = {"rule": OTSU, "min_mm3": 0.0, "min_difference": 0.0, "opening_mm": radius, "closing_mm": radius}
        every = np.logical_or.reduce(list(bones.values()))
        return lesions_in(scores, every.astype(np.uint8), spacing, fit, axis) > 0, every, spacing

    def truth(self, knee: str) -> tuple[NDArray[np.bool_], dict[int, NDArray[np.bool_]], float]:
        """Lesion voxels within bones, the bones' masks by label, and the volume of a voxel in mm3."""
        labels = sitk.ReadImage(str(self.experiment.references / f"{knee}.nii.gz"))
        voxels, anomalies = sitk.GetArrayFromImage(labels), _read(self.experiment.anomalies / f"{knee}.nii.gz")
        anatomy = with_lesions_as_bone(voxels)
        bones = {bone: anatomy == bone for bone in BONES if (anatomy == bone).any()}
        return lesion_in_bone(anomalies, voxels) > 0, bones, float(np.prod(labels.GetSpacing()))


def _read(path: Path) -> NDArray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32)


def _read_map(folder: Path, knee: str) -> NDArray:
    return _read(folder / f"{knee}_error.nii.gz")


def measure(bench: Bench, maps: Maps) -> dict[str, pd.DataFrame]:
    """What one set of maps gives: knees, bones, lesions and slices, a row each; and a row of masks by thresholds."""
    truth = {knee: bench.truth(knee) for knee in bench.knees}
    scores = {knee: maps.read(knee) for knee in bench.knees}
    thresholds = thresholds_of(
        [scores[knee][np.logical_or.reduce(list(bones.values()))] for knee, (_, bones, _) in truth.items()]
    )
    knees, of_bones, of_lesions, of_slices, counts = [], [], [], [], []
    for knee, (lesion, bones, voxel_mm3) in truth.items():
        rows = slice_rows(lesion, *bench.mask(knee, scores[knee], bones))
        of_slices += [{"knee": knee, **row} for row in rows]
        knees.append({"knee": knee, **detector_scores.voxel_scores(scores[knee], lesion, bones)})
        of_bones += [{"knee": knee, **row} for row in detector_scores.bone_rows(scores[knee], lesion, bones)]
        image = bench._image(knee, AS_IT_IS)
        rows = detector_scores.lesion_rows(scores[knee], image, lesion, bones, voxel_mm3)
        of_lesions += [{"knee": knee, **row} for row in rows]
        counts.append(detector_scores.counts_at(scores[knee], lesion, bones, thresholds).assign(knee=knee))
    table = pd.DataFrame(knees).merge(detector_scores.hits(pd.concat(counts)), on="knee")
    found = {"knees": table, "bones": pd.DataFrame(of_bones), "lesions": pd.DataFrame(of_lesions)}
    found["slices"] = pd.DataFrame(of_slices)
    files = {} if maps.folder is None else {knee: maps.folder / f"{knee}_lesions.nii.gz" for knee in truth}
    made = {knee: _read(file) > 0 for knee, file in files.items() if file.is_file()}
    found["masks"] = pd.DataFrame([detector_scores.mask_row(scores, truth, made)])
    head = {"detector": maps.detector, "training": maps.training, "scanner": maps.scanner}
    return {name: frame.assign(**head) for name, frame in found.items()}


# ------------------------------------------------------------------------ tables


def main_table(knees: pd.DataFrame, bones: pd.DataFrame) -> Table:
    """Means over knees and trainings, with the range over trainings beneath, and the test against raw intensity."""
    tests = _against(knees, RAW_INTENSITY)
    rows = []
    for detector in dict.fromkeys(knees["detector"]):
        own = knees[knees["detector"] == detector]
        cells = []
        for of in MEASURES:
            mean, beneath, kept = over_trainings(
                own[of.metric].dropna(), own.loc[own[of.metric].notna(), "training"], of
            )
            if detector != RAW_INTENSITY:
                p = float(tests.loc[(detector, of.metric), "p"])
                beneath, kept = [*beneath, f"p {number(p, 3)}"], {**kept, f"{of.name}_p": p}
            cells.append(Cell(number(mean, of.digits), beneath="\n".join(beneath), values=kept))
        of_bones = bones[bones["detector"] == detector].groupby("training")
        area = of_bones[["positive", "score"]].apply(detector_scores.bone_auc)
        cells.append(Cell(number(float(area.mean()), 3), values={"bone_auc": float(area.mean())}))
        rows.append((word_cell("detector", detector), *cells))
    return Table(
        "Detectors on held-out knees",
        ("detector", *(of.title for of in MEASURES), "bones with a lesion against those without, AUC"),
        tuple(rows),
        (
            "Means over knees and trainings; beneath, the smallest and the largest mean of a training, and p of "
            f"Wilcoxon's signed-rank test over knees against {RAW_INTENSITY}, not corrected. Lesion against other "
            "bone, voxel by voxel; inside: at least one voxel from the bone's surface. Hits: lesions met at the "
            "threshold that leaves one false component a bone over all knees.",
        ),
        words=1,
    )


def _against(knees: pd.DataFrame, baseline: str) -> pd.DataFrame:
    metrics = [of.metric for of in MEASURES]
    means = knees.groupby(["detector", "knee"], sort=False)[metrics].mean().reset_index()
    means = means.rename(columns={"detector": "model", "knee": "case"}).assign(processing=RAW, label="bone")
    tests = statistics.paired(means, metrics)
    # The baseline comes first in all pairs.
    return tests[tests["model_a"] == baseline].set_index(["model_b", "metric"])


def lesion_table(lesions: pd.DataFrame) -> Table:
    """AUC of lesions one by one, against all healthy bone of their knee, by size, contrast and bone."""
    groups = {
        "volume": ("volume_mm3", _interval(lesions["volume_mm3"], detector_scores.SIZES_MM3, "mm3")),
        "contrast": ("contrast", _interval(lesions["contrast"], detector_scores.CONTRASTS, "spreads")),
        "bone": ("bone", lesions["bone"].map(NAMES).str.replace("_", " ")),
    }
    detectors, rows = list(dict.fromkeys(lesions["detector"])), []
    for by, (key, values) in groups.items():
        order = list(dict.fromkeys(lesions.assign(of=values).sort_values(key)["of"]))
        for group in (of for of in order if isinstance(of, str)):
            own = lesions[values == group]
            number_of = len(own[own["detector"] == detectors[0]])
            means = [float(own.loc[own["detector"] == detector, "auc"].mean()) for detector in detectors]
            cells = [Cell(number(m, 3), values={d: m}) for d, m in zip(detectors, means, strict=True)]
            rows.append((word_cell("by", by), word_cell("group", f"{group} ({number_of})"), *cells))
    note = "Mean AUC of single lesions, in brackets their number; contrast: of the lesion's mean, in the bone's spread."
    return Table("By size, contrast and bone", ("by", "lesions", *detectors), tuple(rows), (note,), words=2, grouped=1)


def _interval(values: pd.Series, edges: Sequence[float], unit: str) -> pd.Series:
    low, high = (f"{edge:g}" for edge in edges)
    words = [f"below {low} {unit}", f"from {low} to {high} {unit}", f"from {high} {unit}"]
    return pd.cut(values, [-np.inf, *edges, np.inf], labels=words, right=False).astype(object)


def scanner_table(knees: pd.DataFrame) -> Table:
    """AUC over all bone by simulated scanner."""
    scanners, rows = list(dict.fromkeys(knees["scanner"])), []
    for detector in dict.fromkeys(knees["detector"]):
        own = knees[knees["detector"] == detector].groupby("scanner")[["auc", "ap"]].mean()
        cells = [
            Cell(f"{number(own.loc[s, 'auc'], 3)}, {number(own.loc[s, 'ap'], 3)}", values={s: own.loc[s, "auc"]})
            for s in scanners
        ]
        rows.append((word_cell("detector", detector), *cells))
    note = "AUC over all bone, and average precision; the detectors were trained on images as they are."
    return Table("By simulated scanner", ("detector", *scanners), tuple(rows), (note,), words=1)


def mask_table(masks: pd.DataFrame) -> Table:
    """Dice of lesions by thresholds, in the labelled bones."""
    rows = []
    for detector, own in masks.groupby("detector", sort=False):
        values = own[["fitted", "best"]].mean()
        rows.append((word_cell("detector", detector), *(Cell(number(v, 3), values={k: v}) for k, v in values.items())))
    titles = ("detector", "Dice, its own threshold", "Dice, best threshold")
    note = (
        "Dice of all voxels in the labelled bones of all knees. Its own threshold: what anomaly_maps writes, as the "
        "validation found it, opened, closed and without small parts, in the bones that were given; best: the "
        "threshold alone, chosen on the held-out knees, which no detector can have."
    )
    return Table("Masks by thresholds", titles, tuple(rows), (note,), words=1)


def passes(detector: DetectorNetwork, image: torch.Tensor) -> int:
    """How often its networks are run for the maps of an image, (B, C, *axes)."""
    networks = [child for child in detector.children() if next(child.parameters(), None) is not None]
    run: list[str] = []
    hooks = [network.register_forward_hook(lambda of, *_: run.append(type(of).__name__)) for network in networks]
    with torch.no_grad():
        bones = torch.ones(len(image), *image.shape[2:], dtype=torch.int64)
        _ = detector.maps_in(image, bones) if detector.needs_bones else detector.maps(image)
    for hook in hooks:
        hook.remove()
    return len(run)


def cost_table(bench: Bench) -> Table:
    """Parameters, passes, and seconds on the way, of each family's first training."""
    experiment, rows, seen = bench.experiment, [], set()
    fold = experiment.arguments.folds[0]
    for detector, name in bench.names.items():
        if name in seen:
            continue
        seen.add(name)
        predictor = load_model(experiment.detector_folder(detector), folds=(fold,), device=torch.device("cpu"))
        found = detector_of(predictor.network)
        assert found is not None, detector
        parameters = sum(parameter.numel() for parameter in found.parameters())
        training = experiment.record(training_of(detector, fold), "s")
        seconds = experiment.record(bench.step(detector, fold, AS_IT_IS).name, "s") / len(bench.knees)
        patch = predictor.configuration_manager.patch_size
        window = torch.zeros(1, 1, *patch)  # the images have one channel
        numbers = {
            "parameters": (parameters, 0),
            "passes": (passes(found, window), 0),
            "training": (training, 0),
            "a_knee": (seconds, 1),
        }
        cells = [Cell(number(value, digits), values={key: value}) for key, (value, digits) in numbers.items()]
        rows.append((word_cell("detector", name), *cells))
    titles = ("detector", "parameters", "passes a window", "training, seconds", "maps of a knee, seconds")
    return Table("Cost", titles, tuple(rows), ("Several steps ran side by side: not for comparing closely.",), words=1)


def report(bench: Bench, command: str, num_processes: int) -> None:
    """Measure all maps, write tables."""
    jobs = (joblib.delayed(measure)(bench, maps) for maps in bench.maps())
    found = joblib.Parallel(n_jobs=num_processes, prefer="threads")(jobs)
    frames = {name: pd.concat([of[name] for of in found], ignore_index=True) for name in found[0]}
    plain = {name: frame[frame["scanner"] == AS_IT_IS] for name, frame in frames.items()}
    tables = {
        "detectors": main_table(plain["knees"], plain["bones"]),
        "lesions": lesion_table(plain["lesions"]),
        "masks": mask_table(plain["masks"]),
        **slice_tables(plain["slices"].rename(columns={"detector": "model"})),
        "cost": cost_table(bench),
    }
    if len(bench.scanners) > 1:
        tables["scanners"] = scanner_table(frames["knees"])
    lines = [*provenance(bench.experiment, command), *(table.markdown() for table in tables.values())]
    folder = bench.experiment.folder
    write_text(folder / "detectors.md", "\n\n".join(lines) + "\n")
    for name, frame in frames.items():
        write_text(folder / f"detectors_{name}.csv", csv_text(frame))
    print((folder / "detectors.md").read_text())


def main(argv: list[str] | None = None) -> int:
    """Run the bench, or what is left of it. Returns: as ``ended_well``."""
    parser = build_parser(__doc__.splitlines()[0], f"detectors, by default {' '.join(DETECTOR_TRAINERS)}")
    parser.add_argument("--scanners", action="store_true", help="also as other scanners would have made the images")
    options = parser.parse_args(argv)
    options.ablations, options.stress = False, False
    options.models = options.models or [f"{family}={trainer}" for trainer, family in DETECTOR_TRAINERS.items()]
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "benchmarks.detectors", *words])

    def work() -> None:
        if not options.num_test:
            raise UserError("--num_test is 0; expected held-out knees, which all detectors are measured on")
        arguments = checked(options)
        models = parse_models(arguments.models)
        repeats = expanded(models, arguments.seeds)
        names = {of.detector: of.name.rpartition("_seed")[0] for of in repeats if of.detector is not None}

        def after(experiment: Experiment) -> None:
            bench = Bench(experiment, names, [AS_IT_IS, *(SCANNERS if options.scanners else ())])
            bench.make(options.jobs)
            experiment.enter()
            report(bench, command, options.num_processes)

        run_in_folder(options, arguments, repeats, after)

    return ended_well(work)


if __name__ == "__main__":
    sys.exit(main())
