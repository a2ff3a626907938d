"""One case: its label map and its image brought together, checked against each other, and written."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_anomaly.conversion.case_image import CaseImage, image_on_grid, only_image, public_words
from nnunetv2_anomaly.conversion.dicom import series_uid
from nnunetv2_anomaly.conversion.mapping import IDENTITY, AxisMapping, MappingEvidence, mapping_evidence
from nnunetv2_anomaly.conversion.release import Case, Options, Release
from nnunetv2_anomaly.conversion.side import SideEvidence, agreed_side, side_from_labels, side_from_text
from nnunetv2_anomaly.conversion.sources import ImageSource, source_key
from nnunetv2_anomaly.conversion.subjects import Subject
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import label_source_sha256, sha256_of
from nnunetv2_anomaly.images.files import read_header, read_image, write_image
from nnunetv2_anomaly.images.grids import Grid, corner_distance_mm, oriented, posed
from nnunetv2_anomaly.images.label_maps import count_values, read_label_map, relabelled
from nnunetv2_anomaly.images.label_meaning import check_label_meaning
from nnunetv2_anomaly.reporting.drawing import label_figure, save_figure

#: columns of the manifest before the voxel counts, in their order
COLUMNS = (
    "case", "subject", "visit", "subset",
    "side", "side_in_description", "side_in_table", "side_in_labels", "side_in_labels_score", "mirrored",
    "kl_grade", "sex", "age_years", "bmi",
    "image_source", "label_source", "series_description", "series_uid", "size", "spacing_mm",
    "mapping", "mapping_evidence", "mapping_score_bits", "mapping_runner_up", "mapping_runner_up_score_bits",
    "slices_named_towards",
    "image_file", "image_sha256", "label_file", "label_sha256", "label_source_sha256", "options",
)  # fmt: skip

#: a label map this near the image's grid is not written again where files are only referred to
_EXACT_MM = 1e-4

#: what a case takes from the subject table
_FROM_TABLE = ("side_in_table", "kl_grade", "sex", "age_years", "bmi")


@dataclasses.dataclass(frozen=True)
class CaseJob:
    """A case to convert, for a worker process."""

    case: Case
    release: Release
    options: Options
    row: Mapping[str, str] | None = None  # of the manifest, from an earlier run


@dataclasses.dataclass(frozen=True)
class CaseOutcome:
    """What became of a case: its row of the manifest, or why there is none."""

    row: dict[str, str] | None = None
    problem: str | None = None
    kept: bool = False  # the files of an earlier run are whole and were left alone
    dropped: bool = False  # it failed, and nothing of it is in the data set


def convert_case(job: CaseJob) -> CaseOutcome:
    """Convert one case, or keep what an earlier run made of it; what is wrong with it is reported in the outcome."""
    outcome = _outcome(job)
    if outcome.row is not None or job.options.dry_run or is_there(job.row, job.options):
        return outcome
    # An image without its label map, from now or from an interrupted run, would be a case to nnU-Net.
    for file in case_files(job.case):
        (job.options.dataset_dir / file).unlink(missing_ok=True)
    return dataclasses.replace(outcome, dropped=True)


def is_there(row: Mapping[str, str] | None, options: Options) -> bool:
    """Whether the files that a row of the manifest names are there, made with these options."""
    return (
        row is not None
        and row["options"] == options.described()
        and all((options.dataset_dir / row[f"{kind}_file"]).is_file() for kind in ("image", "label"))
    )


def _outcome(job: CaseJob) -> CaseOutcome:
    try:
        if job.row is not None and not job.options.overwrite and is_there(job.row, job.options):
            return CaseOutcome(row=_checked_row(job, job.row), kept=True)
        if job.case.problem is not None:
            raise UserError(job.case.problem)
        return CaseOutcome(row=_convert(job))
    except UserError as error:
        return CaseOutcome(problem=str(error))
    except OSError as error:
        return CaseOutcome(problem=f"{error}; make room, or check the permissions, and run again")
    except Exception as error:  # one sentence in the table of problems, where a traceback has no place
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        return CaseOutcome(problem=f"unexpected {' '.join(repr(error).split())} ({where}); please report it")


def case_files(case: Case) -> tuple[Path, Path, Path]:
    """Image, label map and picture of a case, relative to the data set's folder."""
    subset = "Ts" if case.is_test else "Tr"
    return (
        Path(f"images{subset}") / f"{case.name}_0000.nii.gz",
        Path(f"labels{subset}") / f"{case.name}.nii.gz",
        Path("previews") / f"{case.name}.png",
    )


def _checked_row(job: CaseJob, earlier: Mapping[str, str]) -> dict[str, str]:
    """The row of an earlier run, with what the table has added since. Raises: UserError if anything else changed."""
    row, case, folder = dict(earlier), job.case, job.options.dataset_dir
    changed = [
        f"{row[f'{kind}_file']} is not as it was then"
        for kind in ("image", "label")
        if sha256_of(folder / row[f"{kind}_file"]) != row[f"{kind}_sha256"]
    ]
    if case.label_file.is_file() and label_source_sha256(case.label_file) != row["label_source_sha256"]:
        changed.append(f"its label map {case.label_relative} is not as it was then ({row['label_source']})")
    if case.problem is None and not any(_is_source(source, row) for source in case.images):
        changed.append(f"its image was {' '.join((row['image_source'], row['series_uid'])).strip()}")
    known = _table_cells(case, row["side"])
    for name in _FROM_TABLE:
        if case.known is not None and row[name] and row[name] != known[name]:
            changed.append(f"{name} was {row[name]} and is {known[name] or 'nothing'}")
        elif known[name]:
            row[name] = known[name]
    if changed:
        raise UserError(f"converted before, and {'; '.join(changed)}; --overwrite converts it again")
    anatomy = SideEvidence(row["side_in_labels"] or None, float(row["side_in_labels_score"]))
    row["side"] = agreed_side(row["side_in_description"] or None, row["side_in_table"] or None, anatomy) or ""
    preview = folder / case_files(case)[2]
    if job.options.previews and not preview.is_file() and not job.options.dry_run:
        image, labels = (oriented(read_image(folder / row[f"{kind}_file"])) for kind in ("image", "label"))
        _draw(job, image, sitk.GetArrayViewFromImage(labels))
    return row


def _is_source(source: ImageSource, row: Mapping[str, str]) -> bool:
    """Whether a row's image came from there: the same file's name, or the same series in the same place."""
    places = (source_key(place, is_series=source.is_series) for place in (source.public, row["image_source"]))
    return len(set(places)) == 1 and (not source.is_series or series_uid(source.path) == row["series_uid"])


def _convert(job: CaseJob) -> dict[str, str]:
    case, release, options = job.case, job.release, job.options
    label_image = read_label_map(case.label_file, release.source_labels)
    chosen = image_on_grid(case, Grid.of(label_image), options) if release.has_pose else only_image(case)
    image = oriented(chosen.read())
    labels = sitk.GetArrayFromImage(oriented(label_image) if release.has_pose else label_image)
    _check_voxels(labels, image, case, chosen, options)
    mapping, evidence = _checked_mapping(labels, image, release, case, chosen)
    labels = mapping.apply(labels)
    if np.array_equal(labels, sitk.GetArrayViewFromImage(image)):
        raise UserError(f"{chosen.source.path} is the label map itself; expected its image; give the folder of images")
    check_label_meaning(labels, image.GetSpacing()[::-1], release.source_labels, case.label_file)
    said = side_from_text(chosen.description), case.known.side if case.known else None
    anatomy = side_from_labels(labels, image.GetSpacing()[::-1], release.source_labels)
    side = agreed_side(*said, anatomy)
    mirrored = options.mirror_left and side == "left"
    if options.mirror_left and side is None:
        fault = "neither series, nor table, nor labels say whether it is a left knee, which --mirror_left needs"
        raise UserError(f"{fault}; give its side in the subject table (--subjects, column KneeSide)")
    labels = relabelled(labels, release.merged_values())
    label_counts = count_values(labels)
    if mirrored:
        labels, image = labels[:, :, ::-1], posed(sitk.GetArrayViewFromImage(image)[:, :, ::-1], Grid.of(image))
    row = dict.fromkeys(COLUMNS, "") | _table_cells(case, side)
    row |= {
        "case": case.name,
        "subject": case.subject,
        "visit": case.visit or "",
        "subset": "test" if case.is_test else "training",
        "side": side or "",
        "side_in_description": said[0] or "",
        "side_in_labels": anatomy.side or "",
        "side_in_labels_score": f"{anatomy.score:.3f}",
        "mirrored": "yes" if mirrored else "no",
        "image_source": chosen.source.public,
        "label_source": case.label_relative,
        "series_description": public_words(chosen.description) if chosen.series else "",
        "series_uid": chosen.series.series_uid if chosen.series else "",
        "size": " ".join(str(n) for n in image.GetSize()),
        "spacing_mm": " ".join(f"{s:.6g}" for s in image.GetSpacing()),
        "mapping": str(mapping),
        "mapping_evidence": f"{evidence.margin:.4f}",
        "mapping_score_bits": f"{evidence.score:.4f}",
        "mapping_runner_up": str(evidence.runner_up),
        "mapping_runner_up_score_bits": f"{evidence.runner_up_score:.4f}",
        "slices_named_towards": chosen.slices_named_towards(),
        "label_source_sha256": label_source_sha256(case.label_file),
        "options": options.described(),
    }
    row |= {f"voxels_{name}": str(label_counts.get(value, 0)) for name, value in release.labels.items()}
    if not options.dry_run:
        _write(job, chosen, image, np.ascontiguousarray(labels), row)
    return row


def _check_voxels(labels: NDArray, image: sitk.Image, case: Case, chosen: CaseImage, options: Options) -> None:
    voxels = sitk.GetArrayViewFromImage(image)
    if not labels.any():
        raise UserError(f"{case.label_file} is empty, background in all of its voxels; get the segmentation again")
    if options.reference and not chosen.source.path.name.endswith(".nii.gz"):
        raise UserError(f"{chosen.source.relative} is no .nii.gz file; --reference can refer to such images only")
    if not np.issubdtype(voxels.dtype, np.integer) and not np.isfinite(voxels).all():
        raise UserError(f"{chosen.source.path} holds infinite voxels or NaN; get or convert the image again")


def _checked_mapping(
    labels: NDArray, image: sitk.Image, release: Release, case: Case, chosen: CaseImage
) -> tuple[AxisMapping, MappingEvidence]:
    """The mapping that the headers give, or the voxels where there is no pose; and what the voxels say of it.

    Raises: UserError if the voxels contradict the headers or, without pose, no mapping fits clearly.
    """
    evidence = mapping_evidence(sitk.GetArrayViewFromImage(image), labels)
    fault, margin = None, f"(evidence {evidence.margin:.3f})"
    if release.has_pose and evidence.contradicts(IDENTITY):
        fault = f"by their voxels the mask's axes are {evidence.best} {margin}, by header {IDENTITY}; get both again"
    elif not evidence.clear and (evidence.margin < 0 or not release.has_pose):
        reason = f"no axis mapping wins clearly {margin}: {evidence.reason()}"
        fault = f"{reason}; expected the mask of this very image; check that both are of the same knee and visit"
    if fault is not None:
        raise UserError(f"{case.label_file.name} over {chosen.source.relative}: {fault}")
    return IDENTITY if release.has_pose else evidence.best, evidence


def _write(job: CaseJob, chosen: CaseImage, image: sitk.Image, labels: NDArray[np.uint8], row: dict[str, str]) -> None:
    folder = job.options.dataset_dir
    image_file, label_file, _ = case_files(job.case)
    if job.options.reference:
        image_file = Path(os.path.abspath(chosen.source.path))
        # nnU-Net can read a published label map itself whose kind, values and place are the data set's.
        unmerged = all(value == target for value, target in job.release.merged_values().items())
        usable = job.release.has_pose and unmerged and job.case.label_file.name.endswith(".nii.gz")
        if usable and corner_distance_mm(Grid.of(read_header(job.case.label_file)), chosen.grid) <= _EXACT_MM:
            label_file = Path(os.path.abspath(job.case.label_file))
    if not image_file.is_absolute():
        write_image(image, folder / image_file)
    if not label_file.is_absolute():
        write_image(posed(labels, Grid.of(image)), folder / label_file)
    for kind, file in (("image", image_file), ("label", label_file)):
        row |= {f"{kind}_file": file.as_posix(), f"{kind}_sha256": sha256_of(folder / file)}
    if job.options.previews:
        _draw(job, image, labels)


def _draw(job: CaseJob, image: sitk.Image, labels: NDArray[np.uint8]) -> None:
    path = job.options.dataset_dir / case_files(job.case)[2]
    path.parent.mkdir(exist_ok=True)
    voxels, spacing = sitk.GetArrayViewFromImage(image), image.GetSpacing()[::-1]
    save_figure(label_figure(voxels, labels, spacing, job.release.labels, job.case.name), path)


def _table_cells(case: Case, side: str | None) -> dict[str, str]:
    known = case.knees.get(side or "") or case.known or Subject(case.subject)
    values = (known.side, known.kl_grade, known.sex, known.age_years, known.bmi)
    return {
        name: "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in zip(_FROM_TABLE, values, strict=True)
    }
