"""One case: its label map and its image brought together, checked against each other, and written."""

from __future__ import annotations

import dataclasses
import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_anomaly.conversion.dicom import DicomSeries, read_series, read_series_image, series_description
from nnunetv2_anomaly.conversion.mapping import IDENTITY, MappingEvidence, mapping_evidence
from nnunetv2_anomaly.conversion.release import Case, Options, Release
from nnunetv2_anomaly.conversion.side import SideEvidence, agreed_side, side_from_labels, side_from_text
from nnunetv2_anomaly.conversion.sources import ImageSource, source_key
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.files import (
    image_stem,
    label_source_sha256,
    read_header,
    read_image,
    sha256_of,
    write_image,
)
from nnunetv2_anomaly.images.grids import OPPOSITE, Grid, corner_distance_mm, differences, oriented, posed
from nnunetv2_anomaly.images.label_maps import count_values, read_label_map
from nnunetv2_anomaly.reporting.drawing import save_label_figure

#: columns of the manifest before the voxel counts, in their order
COLUMNS = (
    "case",
    "subject",
    "visit",
    "subset",
    "side",
    "side_in_description",
    "side_in_table",
    "side_in_labels",
    "side_in_labels_score",
    "mirrored",
    "kl_grade",
    "sex",
    "age_years",
    "bmi",
    "image_source",
    "label_source",
    "series_description",
    "series_uid",
    "size",
    "spacing_mm",
    "mapping",
    "mapping_evidence",
    "mapping_score_bits",
    "mapping_runner_up",
    "mapping_runner_up_score_bits",
    "slices_named_towards",
    "image_file",
    "image_sha256",
    "label_file",
    "label_sha256",
    "label_source_sha256",
    "options",
)

#: of the OAI's series descriptions, and of DESS series elsewhere
_IMAGING_WORDS = frozenset(
    (
        "SAG",
        "COR",
        "AX",
        "SAGITTAL",
        "CORONAL",
        "AXIAL",
        "3D",
        "2D",
        "DESS",
        "WE",
        "FS",
        "T1",
        "T2",
        "PD",
        "MAP",
        "MPR",
        "IW",
        "TSE",
        "SE",
        "GRE",
        "FLASH",
        "SPGR",
        "LOCALIZER",
        "PRE",
        "POST",
        "BILATERAL",
        "SCOUT",
        "KNEE",
        "THIGH",
        "RIGHT",
        "LEFT",
        "RT",
        "LT",
        "R",
        "L",
        "THIN",
        "THICK",
        "SLAB",
        "ECHO",
    )
)

#: a label map this near the image's grid need not be written anew where files are only referred to
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


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image that was chosen: where it is from, and what its header tells."""

    source: ImageSource
    grid: Grid  # as stored
    description: str
    series: DicomSeries | None = None

    def read(self) -> sitk.Image:
        return read_image(self.source.path) if self.series is None else read_series_image(self.series)

    def slices_named_towards(self) -> str:
        """Where the names of the slices' files ascend to (R, L, A, P, S or I); empty for a single file.

        Whoever sorted the slices by name when a mask was drawn has them in this order.
        """
        if self.series is None:
            return ""
        first, last = (_natural(self.series.files[index].name) for index in (0, -1))
        letter = self.grid.orientation[2]
        return letter if first <= last else OPPOSITE[letter]


def convert_case(job: CaseJob) -> CaseOutcome:
    """Convert one case, or see that an earlier run has done so.

    Whatever is wrong with it is told in the outcome, so that a bad case does not stop the others.
    """
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
        and row["options"] == options.told()
        and all((options.dataset_dir / row[f"{kind}_file"]).is_file() for kind in ("image", "label"))
    )


def _outcome(job: CaseJob) -> CaseOutcome:
    try:
        if job.row is not None and (done := _finished(job)) is not None:
            return done
        if job.case.problem is not None:
            raise UserError(job.case.problem)
        return CaseOutcome(row=_convert(job))
    except UserError as error:
        return CaseOutcome(problem=str(error))
    except OSError as error:
        return CaseOutcome(problem=f"{error}; make room, or see to the permissions, and run again.")
    except MemoryError:
        return CaseOutcome(problem="the memory is not enough; run again with fewer processes (-np).")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(str(error).split())
        return CaseOutcome(
            problem=f"unexpected {type(error).__name__}: {told} ({Path(place.filename).name}, line {place.lineno}); "
            "please report it."
        )


def case_files(case: Case) -> tuple[Path, Path, Path]:
    """Image, label map and picture of a case, relative to the data set's folder."""
    subset = "Ts" if case.is_test else "Tr"
    return (
        Path(f"images{subset}") / f"{case.name}_0000.nii.gz",
        Path(f"labels{subset}") / f"{case.name}.nii.gz",
        Path("previews") / f"{case.name}.png",
    )


def _finished(job: CaseJob) -> CaseOutcome | None:
    """The outcome if an earlier run finished this case and nothing has changed since; None if it is to be made anew."""
    if job.options.overwrite or not is_there(job.row, job.options):
        return None
    row, case, folder = dict(job.row), job.case, job.options.dataset_dir
    changed = [
        f"{row[f'{kind}_file']} is not as it was then"
        for kind in ("image", "label")
        if sha256_of(folder / row[f"{kind}_file"]) != row[f"{kind}_sha256"]
    ]
    if case.label_file.is_file() and label_source_sha256(case.label_file) != row["label_source_sha256"]:
        changed.append(f"its label map {case.label_relative} is not as it was then ({row['label_source']})")
    keys = {source.key() for source in case.images}
    if case.problem is None and source_key(row["image_source"], is_series=bool(row["series_uid"])) not in keys:
        changed.append(f"its image was {row['image_source']}")
    known = _table_cells(case)
    for name in _FROM_TABLE:
        if case.known is not None and row[name] and row[name] != known[name]:
            changed.append(f"{name} was {row[name]} and is {known[name] or 'nothing'}")
        elif known[name]:
            row[name] = known[name]
    if changed:
        raise UserError(f"converted before, and {'; '.join(changed)}; --overwrite makes it anew.")
    anatomy = SideEvidence(row["side_in_labels"] or None, float(row["side_in_labels_score"]))
    row["side"] = agreed_side(row["side_in_description"] or None, row["side_in_table"] or None, anatomy) or ""
    preview = folder / case_files(case)[2]
    if job.options.previews and not preview.is_file() and not job.options.dry_run:
        image, labels = (oriented(read_image(folder / row[f"{kind}_file"])) for kind in ("image", "label"))
        _draw(job, image, sitk.GetArrayViewFromImage(labels))
    return CaseOutcome(row=row, kept=True)


def _convert(job: CaseJob) -> dict[str, str]:
    case, release, options = job.case, job.release, job.options
    label_image = read_label_map(case.label_file, release.source_labels)
    if not sitk.GetArrayViewFromImage(label_image).any():
        raise UserError(f"{case.label_file} is empty, background in all of its voxels; get the segmentation again.")
    chosen = _image_on_grid(case, Grid.of(label_image), options) if release.has_pose else _only_image(case)
    if options.reference and not chosen.source.path.name.endswith(".nii.gz"):
        raise UserError(f"{chosen.source.relative} is no .nii.gz file; --reference can point to such images only.")
    image = oriented(chosen.read())
    if not _finite(image):
        raise UserError(f"{chosen.source.path} holds infinite voxels or NaN; get or convert the image again.")

    labels = sitk.GetArrayFromImage(oriented(label_image) if release.has_pose else label_image)
    try:
        evidence = mapping_evidence(sitk.GetArrayViewFromImage(image), labels)
    except UserError as error:
        raise UserError(
            f"{case.label_file.name} over {chosen.source.relative}: {str(error).rstrip('.')}; expected the mask of "
            "this very image: check that both are of the same knee and visit."
        ) from error
    mapping = IDENTITY if release.has_pose else evidence.best
    _check_mapping(evidence, release, case, chosen)
    labels = mapping.apply(labels)
    if _same_voxels(labels, sitk.GetArrayViewFromImage(image)):
        raise UserError(f"{chosen.source.path} is the label map itself, and not its image; give the folder of images.")

    told = side_from_text(chosen.description), case.known.side if case.known else None
    anatomy = side_from_labels(labels, image.GetSpacing()[::-1], release.source_labels)
    side = agreed_side(*told, anatomy)
    mirrored = options.mirror_left and side == "left"
    if options.mirror_left and side is None:
        raise UserError(
            "neither series, nor table, nor labels tell whether it is a left knee, and --mirror_left was given; name "
            "its side in the subject table (--subjects, column KneeSide)."
        )
    merged = release.merged_values()
    if any(value != target for value, target in merged.items()):
        table = np.zeros(256, np.uint8)
        table[list(merged)] = list(merged.values())
        labels = table[labels]
    label_counts = count_values(labels)
    if mirrored:
        labels, image = labels[:, :, ::-1], posed(sitk.GetArrayViewFromImage(image)[:, :, ::-1], Grid.of(image))

    row = dict.fromkeys(COLUMNS, "")
    row |= {
        "case": case.name,
        "subject": case.subject,
        "visit": case.visit or "",
        "subset": "test" if case.is_test else "training",
        "side": side or "",
        "side_in_description": told[0] or "",
        "side_in_labels": anatomy.side or "",
        "side_in_labels_score": f"{anatomy.score:.3f}",
        "mirrored": "yes" if mirrored else "no",
        "image_source": chosen.source.relative,
        "label_source": case.label_relative,
        "series_description": public_words(chosen.description) if chosen.series else "",
        "series_uid": chosen.series.series_uid if chosen.series else "",
        "size": " ".join(str(n) for n in image.GetSize()),
        "spacing_mm": " ".join(f"{s:.6g}" for s in image.GetSpacing()),
        "mapping": str(mapping),
        "mapping_evidence": f"{evidence.margin:.4f}",
        "mapping_score_bits": f"{evidence.score:.4f}",
        "mapping_runner_up": str(evidence.runner_up or ""),
        "mapping_runner_up_score_bits": f"{evidence.runner_up_score:.4f}",
        "slices_named_towards": chosen.slices_named_towards(),
    }
    row |= _table_cells(case)
    row |= {"label_source_sha256": label_source_sha256(case.label_file), "options": options.told()}
    row |= {f"voxels_{name}": str(label_counts.get(value, 0)) for name, value in release.labels.items()}
    if not options.dry_run:
        _write(job, chosen, image, np.ascontiguousarray(labels), row)
    return row


def _write(job: CaseJob, chosen: _Image, image: sitk.Image, labels: NDArray[np.uint8], row: dict[str, str]) -> None:
    """Write what has to be written, and note in the row what and where."""
    folder = job.options.dataset_dir
    image_file, label_file, _ = case_files(job.case)
    if job.options.reference:
        image_file = Path(os.path.abspath(chosen.source.path))
        if _usable_as_it_is(job, chosen):
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
    save_label_figure(
        job.options.dataset_dir / case_files(job.case)[2],
        title=job.case.name,
        image=sitk.GetArrayViewFromImage(image),
        labels=labels,
        spacing=image.GetSpacing()[::-1],
        names=job.release.labels,
    )


def _usable_as_it_is(job: CaseJob, chosen: _Image) -> bool:
    """Whether nnU-Net can read the published label map itself: its kind, values and place are the data set's."""
    unmerged = all(value == target for value, target in job.release.merged_values().items())
    if not (job.release.has_pose and unmerged and job.case.label_file.name.endswith(".nii.gz")):
        return False
    return corner_distance_mm(Grid.of(read_header(job.case.label_file)), chosen.grid) <= _EXACT_MM


def _only_image(case: Case) -> _Image:
    """The image of a mask without pose, of which there must be just one.

    Raises: UserError if there are several, or the series is no DESS.
    """
    if len(case.images) != 1:
        told = ", ".join(source.relative for source in case.images)
        raise UserError(
            f"{len(case.images)} images may be its own ({told}); expected one: leave only that in the folder."
        )
    chosen = _header(case.images[0])
    if chosen.series is not None and "DESS" not in chosen.description.upper():
        raise UserError(
            f"the series {chosen.source.relative} is called {public_words(chosen.description)!r}; expected a DESS "
            "series, such as SAG_3D_DESS_RIGHT: check the list of series."
        )
    return chosen


def _image_on_grid(case: Case, grid: Grid, options: Options) -> _Image:
    """Of the images that may be a case's own, the one that has the mask's voxels.

    Raises: UserError telling every candidate and how it differs, unless just one fits.
    """
    fitting: list[_Image] = []
    told: list[str] = []
    others: list[str] = []
    for source in case.images:
        if source.is_series:
            description = series_description(source.path)
            if description is None or "DESS" not in description.upper():
                others.append("no DICOM" if description is None else public_words(description))
                continue
        try:
            candidate = _header(source)
        except UserError as error:
            told.append(f"{source.relative}: {str(error).rstrip('.')}")
            continue
        name = source.relative
        if candidate.series:
            name += f" ({public_words(candidate.description)}, series {candidate.series.series_uid})"
        difference = differences(candidate.grid, grid)
        if difference:
            told.append(f"{name}: {difference}")
        else:
            distance = corner_distance_mm(candidate.grid, grid)
            told.append(f"{name}: has the mask's grid, corners {distance:.4f} mm apart, {_number_of_slices(candidate)}")
            fitting.append(candidate)
    if len(fitting) > 1 and options.series_uids:
        named = [image for image in fitting if image.series and image.series.series_uid in options.series_uids]
        fitting = named or fitting
    if len(fitting) == 1:
        return fitting[0]
    if not told:
        raise UserError(
            f"no DESS series among the {len(others)} series of subject {case.subject}, visit {case.visit} "
            f"({', '.join(sorted(set(others))) or 'none'}); expected one such as SAG_3D_DESS_RIGHT."
        )
    found = "none of them has" if not fitting else f"{len(fitting)} of them have"
    mend = "see that the visit's package is complete" if not fitting else "name the right one with --series UID"
    raise UserError(
        f"candidates for {case.label_file.name}, candidate against mask: {' | '.join(told)}; expected one with the "
        f"mask's grid, and {found} it: {mend}."
    )


def public_words(description: str) -> str:
    """A series description without whatever is no word of imaging: some scanners' users write names there."""
    return re.sub(r"[^\W_]+", lambda word: word[0] if word[0].upper() in _IMAGING_WORDS else "?", description)


def _header(source: ImageSource) -> _Image:
    if source.is_series:
        series = read_series(source.path)
        return _Image(source, series.grid, series.description, series)
    reader = read_header(source.path)
    if reader.GetDimension() != 3:
        raise UserError(f"{source.path} has {reader.GetDimension()} dimensions; expected a 3D image.")
    return _Image(source, Grid.of(reader), image_stem(source.path))


def _check_mapping(evidence: MappingEvidence, release: Release, case: Case, chosen: _Image) -> None:
    where = f"{case.label_file.name} over {chosen.source.relative}"
    if not release.has_pose and not evidence.clear:
        raise UserError(
            f"{where}: no axis mapping wins clearly (evidence {evidence.margin:.3f}): {evidence.reason()}; expected "
            "the mask of this very image: check that both are of the same knee and visit."
        )
    if release.has_pose and evidence.contradicts(IDENTITY):
        raise UserError(
            f"{where}: by their headers mask and image lie on each other, and by their voxels the mask's axes are "
            f"{evidence.best} (evidence {evidence.margin:.3f}); expected both to agree: get both files again."
        )


def _table_cells(case: Case) -> dict[str, str]:
    known = case.known
    if known is None:
        return dict.fromkeys(_FROM_TABLE, "")
    values = (known.side, known.kl_grade, known.sex, known.age_years, known.bmi)
    return {
        name: "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in zip(_FROM_TABLE, values, strict=True)
    }


def _finite(image: sitk.Image) -> bool:
    voxels = sitk.GetArrayViewFromImage(image)
    return np.issubdtype(voxels.dtype, np.integer) or bool(np.isfinite(voxels).all())


def _same_voxels(voxels: NDArray, others: NDArray) -> bool:
    """Whether two arrays of one shape are equal; where they are not, a slice in the middle usually tells."""
    middle = len(voxels) // 2
    return np.array_equal(voxels[middle], others[middle]) and np.array_equal(voxels, others)


def _number_of_slices(image: _Image) -> str:
    return f"{len(image.series.files)} slices" if image.series else "one file"


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(character for character in name if character.isdigit())
    return (int(digits) if digits else 0, name)
