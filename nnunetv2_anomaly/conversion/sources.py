"""Where the files of a subject and visit are: OAI's packages, folders of converted images, folders of label maps."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import is_half_written
from nnunetv2_anomaly.images.files import FILE_ENDINGS, image_stem, only_files

BASELINE = "00m"

#: month of the visit -> number that OAI's packages of it begin with, and that the visit's code V00, V01 ... ends in
VISIT_NUMBERS = {"00m": 0, "12m": 1, "18m": 2, "24m": 3, "30m": 4, "36m": 5, "48m": 6, "72m": 8, "96m": 10}
_VISIT_OF_NUMBER = {number: visit for visit, number in VISIT_NUMBERS.items()}

_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
_SUBJECT = re.compile(r"(?<!\d)(\d{7})(?!\d)")  # OAI's public subject numbers
_PACKAGE = re.compile(r"(\d{1,2})\.[A-Za-z0-9]+(\.\d+)?")  # 0.C.2, 5.E.1, 10.E.1
_MONTH = re.compile(r"(?<![0-9A-Za-z])(\d{2})m(?![A-Za-z])", re.IGNORECASE)
_VISIT_CODE = re.compile(r"(?<![0-9A-Za-z])V(\d{2})(?![0-9A-Za-z])", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """A DICOM series' folder or an image file that may be a case's image."""

    path: Path
    relative: str  # to the folder that the user gave, with forward slashes
    is_series: bool

    @property
    def public(self) -> str:
        """Its place without the folders of the date and the barcode of the examination, which identify a person."""
        return self.relative.rsplit("/", 2)[0] if self.is_series else self.relative


def source_key(public: str, *, is_series: bool) -> str:
    """What a source is, from wherever it is looked at: package/subject of a series, a file's name."""
    return "/".join(public.split("/")[-2 if is_series else -1 :])


class OaiPackages:
    """OAI's image packages as downloaded: <root>/36m/5.E.1/<subject>/<yyyymmdd>/<barcode>/ with the slices.

    A root may be a package, a visit's folder, the folder of the visits, or lie one or two folders above it.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        """Find the packages below the roots. Raises: UserError if a root is missing or holds no package."""
        self._packages: dict[str, list[tuple[Path, Path]]] = {visit: [] for visit in VISIT_NUMBERS}
        self._root_names = ", ".join(map(str, roots))
        seen: set[Path] = set()
        for root in roots:
            packages = list(_packages_below(root))
            if not packages:
                fault = "holds no OAI package" if root.is_dir() else "is no folder"
                expected = "expected folders such as 00m/0.E.1/<subject>/<date>/<barcode>/"
                raise UserError(f"{root} {fault}; {expected}{packed_in(root, '*') or packed_in(root, '*/*')}")
            for visit, package in packages:
                if package.resolve() not in seen:
                    seen.add(package.resolve())
                    # A package's name belongs to a series' place, also where the package itself was given.
                    self._packages[visit].append((package, root if root != package else root.parent))

    def series_of_visit(self, subject: str, visit: str) -> list[ImageSource]:
        """Every folder with a series of a subject's visit, of whatever kind, each once.

        Raises: UserError if the visit was not downloaded, or not for this subject.
        """
        packages = self._packages[visit]
        if not packages:
            expected = f"{visit}/{VISIT_NUMBERS[visit]}.*/{subject}/"
            raise UserError(f"no package of visit {visit} below {self._root_names}; expected {expected}")
        # The same folder below two roots is one download twice; an empty one is a download that failed.
        found: dict[str, ImageSource] = {}
        for package, root in packages:
            for folder in sorted((package / subject).glob("*/*/")):
                key = folder.relative_to(package.parent).as_posix()
                if key not in found or not any(found[key].path.iterdir()):
                    found[key] = ImageSource(folder, folder.relative_to(root).as_posix(), is_series=True)
        if not found:
            places = ", ".join(str(package) for package, _ in packages)
            packed = "".join(packed_in(package / subject, "**/*") for package, _ in packages)
            raise UserError(f"no series of subject {subject} in visit {visit}; looked in {places}{packed}")
        return list(found.values())

    def series_at(self, path: str) -> ImageSource:
        """The baseline series at a path below OAI's baseline folder, as package/subject/date/barcode.

        Raises: UserError if it is not there.
        """
        name, _, rest = path.partition("/")
        places = [(package / rest, root) for package, root in self._packages[BASELINE] if package.name == name]
        there = [(folder, root) for folder, root in places if folder.is_dir()]
        for folder, root in sorted(there, key=lambda place: not any(place[0].iterdir())):
            return ImageSource(folder, folder.relative_to(root).as_posix(), is_series=True)
        expected = ", ".join(str(folder) for folder, _ in places) or f"{BASELINE}/{name} below {self._root_names}"
        packed = "".join(packed_in(folder.parent, f"{folder.name}.*") for folder, _ in places)
        advice = packed or "; download that package"
        raise UserError(f"the series {path} is missing; expected its slices in {expected}{advice}")


def packed_in(folder: Path, pattern: str) -> str:
    """What to do about archives in a folder, as the end of a sentence; empty where there are none."""
    files = sorted(file for file in folder.glob(pattern) if file.name.lower().endswith(_ARCHIVES))
    count = f"{len(files)} archives" if len(files) > 1 else "an archive"
    return f"; {count} such as {files[0]} lie there: unpack each into a folder of its name" if files else ""


def _packages_below(folder: Path, depth: int = 4) -> Iterator[tuple[str, Path]]:
    """(visit, package's folder) at and below a folder; what lies in a package is not looked through."""
    found = _PACKAGE.fullmatch(folder.name)
    visit = _VISIT_OF_NUMBER.get(int(found[1])) if found else None
    if visit is not None and not any((folder / name).is_dir() for name in VISIT_NUMBERS):
        # A package in another visit's folder is not what either name says: nothing is taken from it.
        if folder.parent.name == visit or folder.parent.name not in VISIT_NUMBERS:
            yield visit, folder
    elif depth > 0 and not _SUBJECT.fullmatch(folder.name):
        for child in sorted(folder.glob("*/")):
            yield from _packages_below(child, depth - 1)


class ImageFolder:
    """Images that were converted before: files named by subject, and by visit where there are several."""

    def __init__(self, folder: Path) -> None:
        """List the images. Raises: UserError if the folder is missing or holds no image that is named by a subject."""
        self._folder = folder
        self._files: dict[str, list[tuple[str | None, Path]]] = {}
        for file in image_files(folder):
            subject, visit = subject_of(file), visit_of(file)
            if subject is not None:
                self._files.setdefault(subject, []).append((visit, file))
        if not self._files:
            expected = f"9001104.nii.gz or 9001104_36m_0000.nii.gz ({', '.join(FILE_ENDINGS)})"
            raise UserError(f"{folder} holds no image named by its subject; expected files such as {expected}")

    def images_of(self, subject: str, visit: str) -> list[ImageSource]:
        """The images named by a subject's visit, else those named by no visit. Raises: UserError if there is none."""
        files = self._files.get(subject, [])
        fitting = [file for month, file in files if month == visit] or [file for month, file in files if month is None]
        if not fitting:
            names = listed([file.name for _, file in files]) or "nothing"
            fault = f"no image of subject {subject}, visit {visit}, in {self._folder}, which holds {names} of it"
            raise UserError(f"{fault}; expected {subject}.nii.gz or {subject}_{visit}.nii.gz")
        return [ImageSource(file, file.relative_to(self._folder).as_posix(), is_series=False) for file in fitting]


def image_files(folder: Path) -> list[Path]:
    """Image files in a folder and those in it, sorted, but hidden and unfinished ones.

    Raises: UserError if it is missing, or something else has such a name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected images ({', '.join(FILE_ENDINGS)}) in it")
    entries: list[Path] = []
    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        # A link may lead back to where the walk came from.
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(place, name)) not in seen)
        seen.update(os.path.realpath(os.path.join(place, name)) for name in folders)
        images = [name for name in (*folders, *names) if name.lower().endswith(FILE_ENDINGS)]
        entries += [Path(place, name) for name in images if not (name.startswith(".") or is_half_written(name))]
    # Some programs unpack an image into a folder that is named like one.
    parents = {parent for entry in entries for parent in entry.parents}
    return only_files(entry for entry in entries if entry not in parents)


def label_files(folder: Path) -> list[Path]:
    """Label maps in a folder. Raises: UserError if it is missing or holds none."""
    files = image_files(folder)
    if not files:
        raise UserError(f"{folder} holds no label map; expected files ending in {', '.join(FILE_ENDINGS)}")
    return files


def subject_of(file: Path) -> str | None:
    """OAI's public subject number, seven digits, in a file's name; None unless there is just one."""
    found = set(_SUBJECT.findall(image_stem(file)))
    return found.pop() if len(found) == 1 else None


def visit_of(file: Path) -> str | None:
    """``visit_named`` of an image file's name."""
    return visit_named(image_stem(file))


def visit_named(text: str) -> str | None:
    """Month of the visit ("00m", "12m", ...) in a name, or by OAI's code (V00, V01, ...); None unless there is one."""
    stem = text.replace("_", " ")
    months = {f"{month}m" for month in _MONTH.findall(stem)} & set(VISIT_NUMBERS)
    codes = {int(code) for code in _VISIT_CODE.findall(stem)}
    months |= {visit for visit, number in VISIT_NUMBERS.items() if number in codes}
    return months.pop() if len(months) == 1 else None


def read_series_paths(file: Path) -> dict[str, str]:
    """Read OAI ZIB's list of series: a line a subject, "9001104: 0.E.1/9001104/20050825/10498212".

    Returns: subject -> path below OAI's baseline folder.
    Raises: UserError if the file is missing, a line is of another form, or a subject is listed twice.
    """
    paths: dict[str, str] = {}
    expected = "expected a subject and the path of its series, such as 9001104: 0.E.1/9001104/20050825/10498212"
    for number, line in enumerate(read_lines(file, "OAI ZIB's list of series, oai_mri_paths.txt"), start=1):
        text = line.strip().rstrip(",;").strip().strip('"').replace("\\", "/")
        if not text:
            continue
        parts = re.fullmatch(r"(\d{7})\s*:\s*\"?(?:\.?/)?(?:00m/)?([^\s:\"]+?)/?\"?", text)
        steps = parts[2].split("/") if parts else []
        if not parts or ".." in steps or parts[1] not in steps:
            raise UserError(f"{file}, line {number}: {line.strip()!r}; {expected}")
        if paths.setdefault(parts[1], parts[2]) != parts[2]:
            raise UserError(f"{file}, line {number}: subject {parts[1]} is listed a second time with another path")
    if not paths:
        raise UserError(f"{file} is empty; {expected}")
    return paths


def find_series_paths_file(folders: Iterable[Path]) -> Path | None:
    """OAI ZIB's list of series in the release's folder, its folder of segmentations, or beside the masks."""
    places = ("segmentation/doc", "doc", "../doc", ".")
    files = (folder / place / "oai_mri_paths.txt" for folder in folders for place in places)
    return next((file for file in files if file.is_file()), None)


def read_lines(file: Path, expected: str) -> list[str]:
    """Lines of a text file in UTF-8. Raises: UserError with what is ``expected`` if it is missing, or no such text."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        fault = "is no text file in UTF-8" if file.is_file() else "is no file"
        raise UserError(f"{file} {fault}; expected {expected}") from error
