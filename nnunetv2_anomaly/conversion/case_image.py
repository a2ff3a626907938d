"""The image of a case: the one of its candidates that a label map was drawn on."""

from __future__ import annotations

import dataclasses
import re

import SimpleITK as sitk

from nnunetv2_anomaly.conversion.dicom import DicomSeries, read_series, read_series_image, series_description
from nnunetv2_anomaly.conversion.release import Case, Options
from nnunetv2_anomaly.conversion.sources import ImageSource
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.images.files import image_stem, read_header, read_image
from nnunetv2_anomaly.images.grids import OPPOSITE, Grid, differences

#: of the OAI's series descriptions, and of DESS series elsewhere
_IMAGING_WORDS = {
    "SAG", "COR", "AX", "SAGITTAL", "CORONAL", "AXIAL", "2D", "3D", "DESS", "WE", "FS", "T1", "T2", "PD", "MAP", "MPR",
    "IW", "TSE", "SE", "GRE", "FLASH", "SPGR", "LOCALIZER", "SCOUT", "PRE", "POST", "KNEE", "THIGH", "BILATERAL",
    "RIGHT", "LEFT", "RT", "LT", "R", "L", "THIN", "THICK", "SLAB", "ECHO",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CaseImage:
    """An image of a case: its source and what its header says."""

    source: ImageSource
    grid: Grid  # as stored
    description: str
    series: DicomSeries | None = None

    def read(self) -> sitk.Image:
        """Read the voxels; raises UserError if that fails."""
        return read_image(self.source.path) if self.series is None else read_series_image(self.series)

    def slices_named_towards(self) -> str:
        """Where the names of the slices' files ascend to (R, L, A, P, S or I); empty for a single file.

        Whoever sorted the slices by name when a mask was drawn has them in this order.
        """
        if self.series is None:
            return ""
        names = [self.series.files[index].name for index in (0, -1)]
        ascending = names == sorted(names, key=lambda name: (int("0" + re.sub(r"\D", "", name)), name))
        letter = self.grid.orientation[2]
        return letter if ascending else OPPOSITE[letter]


def only_image(case: Case) -> CaseImage:
    """The one image of a mask without pose. Raises: UserError if there are several, or the series is no DESS."""
    if len(case.images) != 1:
        found = listed([source.relative for source in case.images])
        fault = f"{len(case.images)} images may belong to it ({found})"
        raise UserError(f"{fault}; expected one; leave only that in the folder")
    chosen = _header(case.images[0])
    if chosen.series is not None and "DESS" not in chosen.description.upper():
        called = f"the series {chosen.source.relative} is called {public_words(chosen.description)!r}"
        raise UserError(f"{called}; expected one such as SAG_3D_DESS_RIGHT; check the list of series")
    return chosen


def image_on_grid(case: Case, grid: Grid, options: Options) -> CaseImage:
    """Of a case's images the one on the mask's grid. Raises: UserError that compares all, unless just one fits."""
    fitting: list[CaseImage] = []
    found: list[str] = []
    others: set[str] = set()
    for source in case.images:
        description = series_description(source.path) if source.is_series else "DESS"
        if "DESS" not in (description or "").upper():
            others.add("no DICOM" if description is None else public_words(description))
            continue
        try:
            candidate = _header(source)
        except UserError as error:
            found.append(f"{source.relative}: {str(error).rstrip('.')}")
            continue
        difference, series = differences(candidate.grid, grid), candidate.series
        name = f" ({public_words(candidate.description)}, series {series.series_uid})" if series else ""
        found.append(f"{source.relative}{name}: {difference or 'has its grid'}")
        fitting += [] if difference else [candidate]
    if len(fitting) > 1 and options.series_uids:
        named = [image for image in fitting if image.series and image.series.series_uid in options.series_uids]
        fitting = named or fitting
    if len(fitting) == 1:
        return fitting[0]
    if not found:
        among = f"those of subject {case.subject}, visit {case.visit} ({', '.join(sorted(others))})"
        raise UserError(f"no DESS series among {among}; expected one such as SAG_3D_DESS_RIGHT")
    count = f"{len(fitting)} of them have" if fitting else "none of them has"
    advice = "name the right one with --series UID" if fitting else "check that the visit's package is complete"
    candidates = f"candidates for {case.label_file.name}, candidate against mask: {' | '.join(found)}"
    raise UserError(f"{candidates}; expected one with the mask's grid, and {count} it; {advice}")


def public_words(description: str) -> str:
    """A series description reduced to words of imaging: users of some scanners write names there."""
    return re.sub(r"[^\W_]+", lambda word: word[0] if word[0].upper() in _IMAGING_WORDS else "?", description)


def _header(source: ImageSource) -> CaseImage:
    if source.is_series:
        series = read_series(source.path)
        return CaseImage(source, series.grid, series.description, series)
    reader = read_header(source.path)
    if reader.GetDimension() != 3:
        raise UserError(f"{source.path} has {reader.GetDimension()} dimensions; expected a 3D image")
    return CaseImage(source, Grid.of(reader), image_stem(source.path))
