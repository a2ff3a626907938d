"""OAIZIB-CM -> nnU-Net raw data set: OAI ZIB as NIfTI, tibial cartilage in two compartments.

<input>/imagesTr/oaizib_001_0000.nii.gz, labelsTr/oaizib_001.nii.gz
<input>/imagesTs/oaizib_405_0000.nii.gz, labelsTs/oaizib_405.nii.gz

docs/how-to/convert-oaizib-cm.md
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_anomaly.conversion.command import main_of, run_conversion
from nnunetv2_anomaly.conversion.release import LICENCE, Case, Release
from nnunetv2_anomaly.conversion.sources import ImageSource, image_files, label_files
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.files import image_stem
from nnunetv2_anomaly.labels import OAI_ZIB_LABELS, OAIZIB_CM_LABELS

RELEASE = Release(
    key="oaizib_cm",
    converted_by="nnunetv2_anomaly.dataset_conversion.Dataset504_OAIZIBCM",
    description="OAIZIB-CM: sagittal DESS of 507 knees, bones and cartilages of femur and tibia.",
    licence=LICENCE,
    reference="Ambellan et al., Medical Image Analysis 52 (2019), doi:10.1016/j.media.2018.11.009; OAIZIB-CM",
    source_labels=OAIZIB_CM_LABELS,
    labels=OAI_ZIB_LABELS,
    has_pose=True,
)

#: the same with medial and lateral tibial cartilage apart
RELEASE_WITH_COMPARTMENTS = dataclasses.replace(RELEASE, labels=OAIZIB_CM_LABELS)


def pairs(images: Path, labels: Path, *, is_test: bool, root: Path | None = None) -> list[Case]:
    """A case for every label map of one folder, with the image of the same name in the other.

    Args:
        images, labels: the two folders.
        is_test: whether these are the release's test cases.
        root: what the sources are told relative to; None for the folders themselves.

    Raises: UserError if a folder is missing, or there is no label map.
    """
    named: dict[str, list[Path]] = {}
    for file in image_files(images):
        named.setdefault(re.sub(r"_0000$", "", image_stem(file)), []).append(file)
    cases = []
    for file in label_files(labels):
        name = image_stem(file)
        found = named.pop(name, [])
        cases.append(
            Case(
                name=name,
                subject=name,
                visit=None,
                label_file=file,
                label_relative=file.relative_to(root or labels).as_posix(),
                images=tuple(
                    ImageSource(path, path.relative_to(root or images).as_posix(), is_series=False) for path in found
                ),
                is_test=is_test,
                problem=None if found else f"no image in {images}; expected {name}_0000.nii.gz, as the release has it.",
            )
        )
    for name, found in sorted(named.items()):
        problem = f"no label map in {labels}; expected {name}.nii.gz, as the release has it."
        cases.append(Case(name, name, None, found[0], found[0].name, is_test=is_test, problem=problem))
    return cases


def run(args: argparse.Namespace) -> int:
    """Convert as the options say; returns 0, or 1 if a case failed."""
    if (args.input is None) == (args.images is None) or (args.images is None) != (args.labels is None):
        raise UserError("Give the release with -i DIR, or training images and label maps: --images DIR --labels DIR.")
    if args.input is None:
        cases = pairs(args.images, args.labels, is_test=False)
    else:
        cases = pairs(args.input / "imagesTr", args.input / "labelsTr", is_test=False, root=args.input)
        if (args.input / "labelsTs").is_dir():
            cases += pairs(args.input / "imagesTs", args.input / "labelsTs", is_test=True, root=args.input)
    return run_conversion(args, RELEASE_WITH_COMPARTMENTS if args.keep_compartments else RELEASE, cases)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and convert; returns 0, or 1 if something failed."""
    return main_of("oaizib_cm", run, argv)


if __name__ == "__main__":
    sys.exit(main())
