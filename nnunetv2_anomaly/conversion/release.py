"""What a published set of segmentations is, and what of it becomes a case."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # SimpleITK takes a while to import, which --help need not wait for
    from nnunetv2_anomaly.conversion.sources import ImageSource
    from nnunetv2_anomaly.conversion.subjects import Subject

#: of every release on OAI's images
LICENCE = "images: data use agreement of the Osteoarthritis Initiative; segmentations: as their publisher states"


@dataclasses.dataclass(frozen=True)
class Release:
    """A published set of segmentations, and the raw data set that it becomes."""

    key: str  # as on the command line
    converted_by: str  # module
    description: str
    reference: str
    source_labels: Mapping[str, int]  # name -> value in the published files
    labels: Mapping[str, int]  # name -> value in the data set
    has_pose: bool  # whether the masks' headers give their place in space

    def merged_values(self) -> dict[int, int]:
        """Published value -> value in the data set. A compartment goes to the structure that its name ends in."""
        merged = {}
        for name, value in self.source_labels.items():
            target = next(target for target in self.labels if name == target or name.endswith(f"_{target}"))
            merged[value] = self.labels[target]
        return merged


@dataclasses.dataclass(frozen=True)
class Case:
    """One case to be: its label map, and the images that may be its image."""

    name: str
    subject: str
    visit: str | None  # "00m", "12m", ...; None where the release has no visits
    label_file: Path
    label_relative: str  # to the folder that the user gave
    images: tuple[ImageSource, ...] = ()
    is_test: bool = False
    known: Subject | None = None  # what the subject table says
    knees: Mapping[str, Subject] = dataclasses.field(default_factory=dict)  # by side, in a table of either knee
    problem: str | None = None  # why there is no image


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user asks for."""

    dataset_dir: Path
    splits_dir: Path = Path()  # the data set's folder in nnU-Net's preprocessed folder
    test_sets: Sequence[Sequence[str]] | None = None  # subjects of each validation set; None for a seeded draw
    seed: int = 0  # of that draw
    num_processes: int = 2  # cases at a time
    differing_mappings: bool = False  # whether masks without pose may have their axes in different orders
    mirror_left: bool = False
    reference: bool = False  # dataset.json names the images where they are
    previews: bool = False
    overwrite: bool = False
    dry_run: bool = False
    series_uids: frozenset[str] = frozenset()  # to take where several fit

    def of_content(self) -> dict[str, bool]:
        """Options that change what is written into a case's files."""
        return {"mirror_left": self.mirror_left, "reference": self.reference}

    def described(self) -> str:
        """``of_content`` with one word per option, as in every row of the manifest."""
        return " ".join(name for name, given in self.of_content().items() if given) or "none"
