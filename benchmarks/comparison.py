"""Results of the comparison: the project's own evaluation over all repeats, and tables of it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch

from benchmarks.cells import over_trainings
from benchmarks.channel_use import AS_TRAINED, CHANGES, channel_use
from benchmarks.experiment import Experiment, Repeat, epoch_seconds, is_older, training_of
from benchmarks.figures import difference_drawing
from benchmarks.focal_weights import focal_weight_table
from benchmarks.stress_tables import stress_difference_table, stress_drawings, stress_rows, stress_table
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.evaluation import statistics
from nnunetv2_anomaly.evaluation.case import EvaluationSettings
from nnunetv2_anomaly.evaluation.lesion_tables import lesion_tables
from nnunetv2_anomaly.evaluation.pairing import find_pairs
from nnunetv2_anomaly.evaluation.results import BOTH, MISSED, RAW, Evaluation
from nnunetv2_anomaly.evaluation.run import evaluate_models, prepare_output, write_evaluation
from nnunetv2_anomaly.evaluation.tables import DSC, HD_RAW, MEASURES, Measure
from nnunetv2_anomaly.files import read_json, write_text
from nnunetv2_anomaly.images.dataset_description import DatasetDescription, find_dataset_description
from nnunetv2_anomaly.images.segmentations import chosen_reader
from nnunetv2_anomaly.labels import BONE_OF_LESION, NAMES
from nnunetv2_anomaly.measurements.surface import DISTANCES
from nnunetv2_anomaly.postprocessing.arguments import chosen_lesions
from nnunetv2_anomaly.postprocessing.clean_up import CleanUp
from nnunetv2_anomaly.prediction.validation import AUC_KEYS, CASES_KEY, MEASURED, means_over, measure_detector
from nnunetv2_anomaly.reporting.drawing import save_figure
from nnunetv2_anomaly.reporting.page import Picture, Section
from nnunetv2_anomaly.reporting.table import Cell, Table, csv_text, in_words, number

#: between a case's name and its repeat's, in the names of gathered files
_OF = "--"

#: the paper's 50 voxels of the OAI's images across their slices; less than that would part the two tibial plates
MAX_DISTANCE_MM = 35.0

#: of lesions that the labels count as bone
INSIDE = Measure(
    "bone_inside_lesion_percent", "bone inside lesion [%]", "inside", RAW, factor=100.0, digits=1, larger_is_better=True
)
COMPONENTS = Measure("components", "components before clean-up", "components", RAW, digits=2)


def report(experiment: Experiment, num_processes: int, command: str) -> Path:
    """Evaluate all predictions, measure the detectors, write tables and report.

    Args:
        experiment: all of whose steps are done.
        num_processes: of the evaluation.
        command: what the results name as having made them.
    Returns: results.md.
    """
    made_by = provenance(experiment, command)
    detectors = _detectors(experiment)
    if not experiment.repeats:
        return _write(experiment, made_by, _detector_tables(experiment, detectors))
    references, folders = _gather(experiment)
    dataset = find_dataset_description(experiment.raw / "dataset.json", [])
    settings = _settings(dataset, references.glob("*.nii.gz"))
    pairs = find_pairs(folders, dataset, reference_folder=references)
    output = experiment.folder / "evaluation"
    arguments = dataclasses.asdict(experiment.arguments)
    prepare_output(output, arguments)
    evaluation, failed = evaluate_models(pairs, output, settings, num_processes=num_processes)
    if failed:
        raise UserError(failed)
    tested = dataclasses.replace(evaluation, cases=by_knee(evaluation.cases), bones=bones_by_knee(evaluation.bones))
    lesions, inside = _bones_with_lesion(experiment), shares_inside_lesions(experiment)
    tables = {
        "segmentation": segmentation_table(evaluation),
        "lesions": lesion_table(evaluation, lesions, inside),
        "differences": difference_table(evaluation, lesions, inside),
    }
    if experiment.arguments.stress:
        rows = stress_rows(experiment, num_processes)
        write_text(experiment.folder / "stress" / "rows.csv", csv_text(rows))
        tables = {"stress": stress_table(rows), "stress_differences": stress_difference_table(rows)} | tables
    if detectors:
        tables |= _detector_tables(experiment, detectors)
    used = channel_use(experiment)
    if len(used):
        tables["channel_use"] = channel_table(used)
    tables["cost"] = cost_table(experiment)
    drawings = difference_drawings(evaluation, lesions)
    drawings += stress_drawings(experiment, rows) if experiment.arguments.stress else []
    lines = [line.strip("`") for line in (*made_by, _introduction(experiment))]
    shown = [Picture(drawing.figure, drawing.alt, drawing.alt) for drawing in drawings]
    sections = [Section("The comparison", [*lines, *shown, *tables.values()])]
    write_evaluation(
        output, evaluation, pairs, settings, arguments, title="Comparison", more_sections=sections,
        tested=tested,
    )  # fmt: skip
    figures = experiment.folder / "figures"
    shutil.rmtree(figures, ignore_errors=True)
    figures.mkdir()
    for drawing in drawings:
        save_figure(drawing.figure, figures / f"{drawing.name}.png", dpi=130)
    return _write(experiment, made_by, tables | lesion_tables(evaluation, tested))  # which the report has in any case


def _detector_tables(experiment: Experiment, detectors: dict[str, dict]) -> dict[str, Table]:
    return {"detectors": detector_table(detectors), "focal_weights": focal_weight_table(experiment)}


def _write(experiment: Experiment, made_by: list[str], tables: dict[str, Table]) -> Path:
    text = "\n\n".join([*made_by, *(table.markdown() for table in tables.values())]) + "\n"
    write_text(experiment.folder / "results.md", text)
    shutil.rmtree(experiment.folder / "tables", ignore_errors=True)  # of an earlier run with more models
    for name, table in tables.items():
        table.write(experiment.folder / "tables", name, ("csv",))
    print(text)
    return experiment.folder / "results.md"


def provenance(experiment: Experiment, command: str) -> list[str]:
    """What made the results: command, day, machine, versions, models; in Markdown."""
    versions, machines = (experiment.noted(key) for key in ("versions", "machine"))
    models = []
    for model in experiment.models:
        settings = {**model.settings, **model.ablation}
        settings |= {"detector": experiment.detector_title(model.detector)} if model.detector else {}
        models.append(f"{model.name} ({', '.join([model.trainer, *(f'{k} {v}' for k, v in settings.items())])})")
    return [
        f"`{command}`",
        f"{date.today().isoformat()}; trained and predicted on {' and '.join(machines) or 'an unrecorded machine'} "
        f"with {'; and '.join(versions) or 'unrecorded versions'}.",
        f"Models: {'; '.join(models)}.",
        *([_on_mirroring(mirroring)] if (mirroring := [m.name for m in experiment.models if m.mirrors]) else []),
    ]


def _on_mirroring(names: list[str]) -> str:
    return (
        f"As nnU-Net's default has it, {', '.join(names)} mirrored in training and at prediction, which takes up to "
        "eight passes; the others did not, unless their settings say so."
    )


def by_knee(cases: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``Evaluation.cases``, each the mean over a knee's repeats: these are independent, repeats are not.

    Of labels that the knee has.
    """
    keys = ["model", "processing", "label", "case"]
    # Where a knee lacks a label, an invented one would stand for a whole repeat.
    cases = cases[cases["status"].isin((BOTH, MISSED))]
    own = cases.assign(case=[_knee(case) for case in cases["case"]])
    numbers = [name for name in own.columns if name not in keys and pd.api.types.is_numeric_dtype(own[name])]
    return own.groupby(keys, sort=False, observed=True)[numbers].mean().reset_index()


def bones_by_knee(bones: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``Evaluation.bones``, volumes and overlap each the mean over a knee's repeats; without outcomes."""
    if not len(bones):
        return bones
    keys = ["model", "bone", "lesion", "rule", "threshold", "case"]
    own = bones.assign(case=[_knee(case) for case in bones["case"]])
    return own.groupby(keys, sort=False)[["reference_mm3", "prediction_mm3", "dsc"]].mean().reset_index()


def segmentation_table(evaluation: Evaluation) -> Table:
    """Means over knees and repeats by label and model, with the range over repeats beneath."""
    measures = (*MEASURES, COMPONENTS)
    rows = []
    for label in evaluation.labels:
        for model in evaluation.models:
            of_both = evaluation.cases[(evaluation.cases["label"] == label) & (evaluation.cases["model"] == model)]
            cells = [_mean_cell(of_both[of_both["processing"] == m.processing], m) for m in measures]
            rows.append((_word("label", in_words(label)), _word("model", model), *cells))
    return Table(
        "Held-out knees: means over knees and repeats",
        ("label", "model", *(measure.title for measure in measures)),
        tuple(rows),
        (
            "Beneath a mean the smallest and the largest mean of a repeat (seed, fold), where there are several, and "
            "of distances the median (quartiles) over all knees and repeats.",
            _policy(),
            "A label that a knee lacks counts where a model invents it (DSC 0); differences and tests are of knees "
            "that have the label.",
        ),
        words=2,
        grouped=1,
    )


def lesion_table(evaluation: Evaluation, lesions: pd.DataFrame, inside: pd.DataFrame) -> Table:
    """The same of bones that hold a lesion, labelled or not, and of bones that do not.

    Args:
        evaluation: of all repeats.
        lesions: knee, label, and whether the bone holds a lesion.
        inside: case, model, label, and which share of the lesion's voxels was segmented as the bone.
    """
    cases = _with_lesions(evaluation.cases, lesions)
    rows = []
    for bone in [label for label in evaluation.labels if label in set(lesions["label"])]:
        for holds in (True, False):
            for model in evaluation.models:
                own = cases[(cases["label"] == bone) & (cases["model"] == model) & (cases["lesion"] == holds)]
                cells = [_mean_cell(own[own["processing"] == measure.processing], measure) for measure in MEASURES]
                number = own["case"].nunique()
                found = own[own["processing"] == RAW].merge(inside, on=["case", "model", "label"])
                cells.insert(0, _mean_cell(found, INSIDE))
                head = (_word("bone", in_words(bone)), _word("lesion", "yes" if holds else "no"), _word("model", model))
                rows.append((*head, *cells, Cell(str(number), values={"predictions": number})))
    return Table(
        "Bones with and without a lesion in the image, labelled or not",
        ("bone", "lesion", "model", INSIDE.title, *(measure.title for measure in MEASURES), "predictions"),
        tuple(rows),
        (f"{INSIDE.title}: share of a lesion's voxels that are segmented as its bone; what is missing are holes.",),
        words=3,
        grouped=2,
    )


def difference_table(evaluation: Evaluation, lesions: pd.DataFrame, inside: pd.DataFrame) -> Table:
    """Every model minus the baseline, knee by knee, with Wilcoxon's signed-rank test.

    Args: as for ``lesion_table``.
    """
    baseline = evaluation.models[0]
    metrics = list(dict.fromkeys(measure.metric for measure in (*MEASURES, INSIDE)))
    cases = _with_lesions(evaluation.cases, lesions).merge(inside, on=["case", "model", "label"], how="left")
    holds = cases["lesion"].astype("boolean")  # missing for cartilages
    subsets = {"all": cases}
    subsets |= {"bones with a lesion": cases[holds.fillna(False)], "without": cases[~holds.fillna(True)]}
    rows = []
    for title, subset in subsets.items():
        knees = by_knee(subset)
        tests = statistics.paired(knees, metrics)
        tests = tests[tests["model_a"] == baseline]
        spreads = _spreads(knees, baseline, metrics)
        tests["p_holm"] = tests.groupby(["processing", "metric"])["p"].transform(statistics.holm)
        ranges = _differences_by_training(subset, baseline, metrics)
        for measure in (INSIDE, *MEASURES) if title == "bones with a lesion" else MEASURES:
            own = tests[(tests["metric"] == measure.metric) & (tests["processing"] == measure.processing)]
            for row in own.to_dict("records"):
                key = row["model_b"], row["label"], measure.processing, measure.metric
                difference = -measure.factor * row["difference"]
                low, median, high = (measure.factor * value for value in spreads[key])
                shown = f"median {number(median, 2)} ({number(low, 2)} to {number(high, 2)})"
                rows.append(
                    (
                        _word("knees", title),
                        _word("metric", measure.title),
                        _word("label", in_words(row["label"])),
                        _word("model", row["model_b"]),
                        Cell(
                            number(difference, 2),
                            beneath="\n".join(filter(None, (shown, _range(*ranges[key], measure)))),
                            values={
                                "difference": difference,
                                "difference_q1": low,
                                "difference_median": median,
                                "difference_q3": high,
                            },
                        ),
                        Cell(number(row["p"], 3), values={"p": row["p"]}),
                        Cell(number(row["p_holm"], 3), values={"p_holm": row["p_holm"]}),
                        Cell(str(row["n"]), values={"n": row["n"]}),
                    )
                )
    return Table(
        f"Minus {baseline}, knee by knee (each the mean over its repeats)",
        ("knees", "metric", "label", "model", "difference", "p", "p (Holm)", "n"),
        tuple(rows),
        (
            "A difference is the mean; beneath it the median (quartiles) over knees, and the smallest and the largest "
            "mean of a training (seed, fold), where there are several. p: Wilcoxon's signed-rank test over knees, "
            "which says nothing about another training; Holm's correction is over labels and models. With n knees p is "
            "at least 2 / 2^n: 0.016 with seven, 0.031 with six. A label that a knee lacks takes no part.",
        ),
        words=4,
        grouped=3,
    )


def difference_drawings(evaluation: Evaluation, lesions: pd.DataFrame) -> list[Picture]:
    """Every model minus the baseline, a point for each knee; none where there is a single model.

    Args: as for ``lesion_table``.
    """
    if len(evaluation.models) < 2:
        return []
    knees = by_knee(evaluation.cases)
    return [difference_drawing(knees, lesions, evaluation.models, measure) for measure in (DSC, HD_RAW)]


def detector_table(detectors: dict[str, dict[str, dict[str, float | None]]]) -> Table:
    """How well error images find the lesions of held-out knees, and how well the erased region is reconstructed."""
    errors = {
        "mse_erased": "MSE in the erased region",
        "mse_constant": "of a constant",
        "mse_blurred": "of a blurred image",
    }
    rows = []
    for name, found in detectors.items():
        for source, keys_of_auc, title in MEASURED:
            if source not in found:
                continue  # the published family alone has an inpainter
            values = {key: found[source][measured] for key, measured in zip(AUC_KEYS, keys_of_auc, strict=True)}
            values |= {key: found[source].get(key) if keys_of_auc == AUC_KEYS else None for key in errors}
            cells = (Cell(number(values[key], 5 if key in errors else 3), values={key: values[key]}) for key in values)
            rows.append((_word("detector", name), _word("source", title), *cells))
    return Table(
        "Detectors on held-out knees",
        ("detector", "of", "AUC of lesions in bone", "away from its surface", *errors.values()),
        tuple(rows),
        (
            "AUC: the voxels of lesions against the other voxels of bones, mean over the knees with a lesion; with the "
            "sign, above 0.5 where lesions are brighter than expected. A larger margin erases a larger region, "
            "which is a harder task for G, and its MSE is over other voxels.",
        ),
        words=2,
        grouped=1,
    )


def channel_table(used: pd.DataFrame) -> Table:
    """What the trained models lose without their error channel; ``used`` is of ``channel_use``."""
    means = used.groupby(["label", "model", "channel"], sort=False)["dsc"].mean().mul(100).unstack()
    rows = []
    for (label, model), own in means.iterrows():
        cells = [_word("label", in_words(NAMES[label])), _word("model", model)]
        cells.append(Cell(number(own[AS_TRAINED], 1), values={"dsc_percent": own[AS_TRAINED]}))
        for change in CHANGES:
            lost = own[change] - own[AS_TRAINED]
            cells.append(Cell(number(lost, 1), values={f"difference_{change.replace(' ', '_')}": lost}))
        rows.append(tuple(cells))
    return Table(
        "The error channel at prediction: what the trained models do without it",
        ("label", "model", "DSC [%], as trained", *(f"channel {change}: difference" for change in CHANGES)),
        tuple(rows),
        (
            "The same weights predict again with the error channel zero everywhere, or with its values at other voxels "
            "of the patch. Before clean-up.",
        ),
        words=2,
        grouped=1,
    )


def cost_table(experiment: Experiment) -> Table:
    """Seconds and memory of trainings and predictions; trainings that ran side by side slow each other down."""
    arguments = experiment.arguments
    num_cases = len(list(experiment.references.glob("*.nii.gz")))
    rows = []
    for model in (model for model in experiment.models if model.segments):
        repeats = [repeat for repeat in experiment.repeats if repeat.model == model]
        folders = [experiment.training_folder(repeat) for repeat in repeats]
        cells = _training_cells(experiment, folders, [f"train-{repeat.name}" for repeat in repeats])
        if arguments.num_test:
            seconds = np.array([experiment.record(f"predict-{repeat.name}", "s") for repeat in repeats])
            cells.insert(1, _spread_cell(seconds / num_cases, "prediction_seconds_per_knee", 2))
        rows.append((_word("model", model.name), *cells))
    for detector in experiment.detectors:
        folders = [experiment.detector_folder(detector) / f"fold_{fold}" for fold in arguments.folds]
        cells = _training_cells(experiment, folders, [training_of(detector, fold) for fold in arguments.folds])
        if arguments.num_test:
            cells.insert(1, Cell(""))
        rows.append((_word("model", f"pre-stage, {experiment.detector_title(detector)}"), *cells))
    titles = ["seconds an iteration", *(["prediction, seconds a knee"] if arguments.num_test else [])]
    return Table(
        "Cost: medians (quartiles)",
        ("model", *titles, "training, seconds in all", "peak memory of training [MiB]"),
        tuple(rows),
        (
            "An iteration is a batch of training with its share of the epoch's validation. A training is the sum of "
            "its epochs: without what comes before and between them (checkpoints, progress.png), and without nnU-Net's "
            "prediction of the validation cases after it. Prediction is the whole command, with its start. The "
            "pre-stage comes on top, once for each fold. Steps that ran side by side (--jobs), or on different "
            "machines, are not for comparing; benchmarks.cost is. " + _machines_of(experiment),
        ),
    )


def _training_cells(experiment: Experiment, folders: list[Path], steps: list[str]) -> list[Cell]:
    """Seconds an iteration, seconds of a training, peak memory, over trainings; seconds from their checkpoints."""
    epochs = [epoch_seconds(folder) for folder in folders]  # these outlive what ends a training from outside
    iterations = np.concatenate(epochs) / experiment.arguments.iterations_per_epoch
    peaks = np.array([experiment.record(step, "max_rss") for step in steps])
    return [
        _spread_cell(iterations, "seconds_per_iteration", 3),
        _spread_cell(np.array([own.sum() for own in epochs]), "training_seconds", 0),
        _spread_cell(peaks, "training_peak_mib", 0),
    ]


def _machines_of(experiment: Experiment) -> str:
    machines = experiment.noted("machine")
    return f"The steps ran on {len(machines)} machines: {'; '.join(machines)}." if len(machines) > 1 else ""


# ------------------------------------------------------------------------ parts


def _gather(experiment: Experiment) -> tuple[Path, dict[str, Path]]:
    """Predictions of all repeats side by side, CASE--REPEAT.nii.gz, and as many references; links where possible."""
    root = experiment.folder / "gathered"
    shutil.rmtree(root, ignore_errors=True)
    folders = {model.name: root / "models" / model.name for model in experiment.models if model.segments}
    references = root / "references"
    for folder in (references, *folders.values()):
        folder.mkdir(parents=True)
    for repeat in experiment.repeats:
        for file in sorted(experiment.predictions(repeat).glob("*.nii.gz")):
            gathered = f"{_case(file.name.removesuffix('.nii.gz'), repeat)}.nii.gz"
            _link(file, folders[repeat.model.name] / gathered)
            if not (references / gathered).exists():
                _link(experiment.references / file.name, references / gathered)
    return references, folders


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _settings(dataset: DatasetDescription, references: Iterable[Path]) -> EvaluationSettings:
    lesions = chosen_lesions(None, dataset)
    anatomy = tuple(sorted(dataset.values - {0} - set(lesions)))
    clean_up = CleanUp(anatomy=anatomy, bone_of_lesion=lesions, max_distance_mm=MAX_DISTANCE_MM)
    dataset = dataclasses.replace(dataset, reader=chosen_reader(dataset, references))
    return EvaluationSettings(dataset=dataset, clean_up=clean_up, with_probabilities=False)


def _bones_with_lesion(experiment: Experiment) -> pd.DataFrame:
    """Columns knee, label, lesion: whether a bone holds one in the image."""
    rows = []
    for file in sorted(experiment.anomalies.glob("*.nii.gz")):
        present = set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(file)))).tolist())
        knee = file.name.removesuffix(".nii.gz")
        rows += [
            {"knee": knee, "label": NAMES[bone], "lesion": lesion in present} for lesion, bone in BONE_OF_LESION.items()
        ]
    return pd.DataFrame(rows, columns=["knee", "label", "lesion"])


def shares_inside_lesions(experiment: Experiment) -> pd.DataFrame:
    """Columns case, model, label, inside: share of a lesion's voxels that are segmented as the bone, or as lesion."""
    rows = []
    for repeat in experiment.repeats:
        for file in sorted(experiment.predictions(repeat).glob("*.nii.gz")):
            predicted, truth = (
                sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (file, experiment.anomalies / file.name)
            )
            case = _case(file.name.removesuffix(".nii.gz"), repeat)
            for lesion, bone in BONE_OF_LESION.items():
                own = predicted[truth == lesion]
                if own.size:
                    share = float(np.isin(own, (bone, lesion)).mean())
                    rows.append({"case": case, "model": repeat.model.name, "label": NAMES[bone], "inside": share})
    # Without any lesion pandas would take an empty column for one of objects.
    return pd.DataFrame(rows, columns=["case", "model", "label", "inside"]).astype({"inside": float})


def _with_lesions(cases: pd.DataFrame, lesions: pd.DataFrame) -> pd.DataFrame:
    return cases.assign(knee=[_knee(case) for case in cases["case"]]).merge(lesions, on=["knee", "label"], how="left")


def _detectors(experiment: Experiment) -> dict[str, dict]:
    """Means over folds and held-out knees by detector; without held-out knees over each fold's validation cases."""
    experiment.enter()
    arguments = experiment.arguments
    part = "Ts" if arguments.num_test else "Tr"
    found = {}
    for detector in experiment.detectors:
        cases = []
        for fold in arguments.folds:
            output = experiment.folder / "detectors" / f"{detector.name}_fold{fold}"
            trained = experiment.detector_folder(detector) / f"fold_{fold}" / "checkpoint_final.pth"
            if is_older(output / "summary.json", trained):
                measure_detector(
                    *(experiment.raw / f"{kind}{part}" for kind in ("images", "labels", "anomalies")),
                    output,
                    experiment.detector_folder(detector),
                    fold=fold,
                    device=torch.device(arguments.device),
                    chosen=None if arguments.num_test else experiment.validation_cases(fold),
                )
            cases += read_json(output / "summary.json")[CASES_KEY]
        found[experiment.detector_title(detector)] = means_over(cases)
    return found


def _introduction(experiment: Experiment) -> str:
    arguments = experiment.arguments
    number = {part: len(list((experiment.raw / f"labels{part}").glob("*.nii.gz"))) for part in ("Tr", "Ts")}
    knees = (
        f"{number['Tr']} knees for training and validation and {number['Ts']} held out"
        if arguments.num_test
        else f"{number['Tr']} knees, those of each fold's validation held out"
    )
    pre_stage = f"; the pre-stage {arguments.detector_budget[0]} and {arguments.detector_budget[1]}, one for each fold"
    return (
        f"{knees}; {arguments.budget} iterations a training, seeds {', '.join(map(str, arguments.seeds))}, folds "
        f"{', '.join(arguments.folds)}{pre_stage if experiment.detectors else ''}. The tables above have a row for "
        "every repeat of a knee, and numbers of bones and lesions count each repeat; tests and the agreement of "
        "volumes take each knee's mean over its repeats."
    )


def _mean_cell(rows: pd.DataFrame, measure: Measure) -> Cell:
    values = measure.factor * rows[measure.metric]
    mean, beneath, kept = over_trainings(values, [_repeat(case) for case in rows["case"]], measure)
    if measure.metric in DISTANCES and values.notna().any():
        # A few far islands dominate the mean; the median shows the others.
        quartiles = [float(value) for value in np.nanquantile(values, [0.25, 0.5, 0.75])]
        kept |= dict(zip((f"{measure.name}_{q}" for q in ("q1", "median", "q3")), quartiles, strict=True))
        shown = [number(value, measure.digits) for value in quartiles]
        beneath.append(f"median {shown[1]} ({shown[0]} to {shown[2]})")
    return Cell(number(mean, measure.digits), beneath="\n".join(beneath), values=kept)


def _spread_cell(values: np.ndarray, column: str, digits: int) -> Cell:
    if np.isnan(values).all():
        return Cell("not measured", values={column: float("nan")})
    low, median, high = (float(value) for value in np.nanquantile(values, [0.25, 0.5, 0.75]))
    shown = f"{number(median, digits)} ({number(low, digits)} to {number(high, digits)})"
    return Cell(shown, values={column: median, f"{column}_q1": low, f"{column}_q3": high})


def _spreads(
    knees: pd.DataFrame, baseline: str, metrics: list[str]
) -> dict[tuple[str, str, str, str], tuple[float, float, float]]:
    """(model, label, processing, metric) -> quartiles of the knees' differences from the baseline."""
    found = {}
    for metric, differences in _minus_baseline(knees, baseline, metrics, ["label", "processing", "case"]):
        for (label, processing), own in differences.groupby(["label", "processing"]):
            for model in own:
                found[model, label, processing, metric] = tuple(own[model].quantile([0.25, 0.5, 0.75]))
    return found


def _differences_by_training(
    cases: pd.DataFrame, baseline: str, metrics: list[str]
) -> dict[tuple, tuple[float, float]]:
    """(model, label, processing, metric) -> smallest and largest mean difference from the baseline of one training."""
    found = {}
    of_repeat = cases[cases["status"].isin((BOTH, MISSED))]
    of_repeat = of_repeat.assign(repeat=[_repeat(case) for case in of_repeat["case"]])
    keys = ["label", "processing"]
    for metric, differences in _minus_baseline(of_repeat, baseline, metrics, [*keys, "repeat", "case"]):
        for (label, processing), own in differences.groupby([*keys, "repeat"]).mean().groupby(keys):
            for model in own:
                found[model, label, processing, metric] = (float(own[model].min()), float(own[model].max()))
    return found


def _minus_baseline(
    cases: pd.DataFrame, baseline: str, metrics: list[str], index: list[str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """For each metric the other models' columns minus the baseline's; nothing where there are no cases."""
    for metric in metrics if len(cases) else ():
        wide = cases.pivot(index=index, columns="model", values=metric)
        yield metric, wide.drop(columns=baseline).sub(wide[baseline], axis=0)


def _range(low: float, high: float, measure: Measure) -> str:
    if low == high:
        return ""
    return f"{number(measure.factor * low, 2)} to {number(measure.factor * high, 2)}"


def _word(column: str, text: str) -> Cell:
    return Cell(text, left=True, values={column: text})


def _case(knee: str, repeat: Repeat) -> str:
    return f"{knee}{_OF}seed{repeat.seed}-fold{repeat.fold}"


def _knee(case: str) -> str:
    return case.rsplit(_OF, 1)[0]


def _repeat(case: str) -> str:
    return case.rsplit(_OF, 1)[1]


def _policy() -> str:
    return (
        "DSC, ASD and HD after clean-up, HD* before it; where a label is missing from one of the maps, a distance is "
        "the image's diagonal."
    )
