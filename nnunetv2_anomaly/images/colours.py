"""One colour per label, in every figure and in the viewers: 3D Slicer's colour table and ITK-SNAP's label file."""

from __future__ import annotations

import colorsys
import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nnunetv2_anomaly.files import write_text

Colour = tuple[int, int, int]

#: for ``labels.LABELS`` and ``labels.OAIZIB_CM_LABELS``: bones blue and beige, cartilages green, lesions red
_KNOWN: dict[str, Colour] = {
    "background": (0, 0, 0),
    "femoral_bone": (66, 122, 196),
    "tibial_bone": (228, 196, 138),
    "patellar_bone": (138, 200, 244),
    "femoral_cartilage": (22, 160, 74),
    "tibial_cartilage": (164, 220, 60),
    "medial_tibial_cartilage": (124, 176, 22),
    "lateral_tibial_cartilage": (70, 226, 158),
    "patellar_cartilage": (10, 102, 70),
    "femoral_lesion": (226, 26, 40),
    "tibial_lesion": (255, 128, 108),
    "patellar_lesion": (150, 8, 62),
}

# Bright enough to be seen on a dark image, and none so pale that it looks like one.
_CANDIDATES: tuple[Colour, ...] = tuple(
    (round(255 * red), round(255 * green), round(255 * blue))
    for value, saturation, hue in itertools.product((1.0, 0.8, 0.6), (1.0, 0.7, 0.45), range(36))
    for red, green, blue in [colorsys.hsv_to_rgb(hue / 36, saturation, value)]
)

_ITKSNAP_HEAD = "# ITK-SnAP Label Description File\n# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n"


def label_colours(labels: Mapping[str, int]) -> dict[int, Colour]:
    """A colour per label (name -> value), the same one in every run.

    Names of this package's labels have fixed colours, whatever their value. Any other name takes, in the order of the
    values, the colour farthest from black, grey, white and all that are taken; up to 300 of them differ.

    Returns: value -> red, green, blue, each 0 to 255; background is black.
    """
    colours = {0: _KNOWN["background"]}
    taken = [*_KNOWN.values(), (128, 128, 128), (255, 255, 255)]
    for name, value in sorted(labels.items(), key=lambda entry: (entry[1], entry[0])):
        if value in colours:
            continue
        known = _KNOWN.get(re.sub(r"[\s-]+", "_", name.strip().lower()))
        colours[value] = known or _CANDIDATES[int(np.argmax(_distance_to_nearest(taken)))]
        taken.append(colours[value])
    return colours


def _distance_to_nearest(taken: list[Colour]) -> np.ndarray:
    """(candidates,) how different each candidate looks from the most similar taken colour, unitless.

    The weights of red and blue depend on how much red there is ("redmean"), an approximation of human vision.
    """
    candidates, others = np.array(_CANDIDATES, float)[:, None], np.array(taken, float)[None]
    redness = (candidates[..., 0] + others[..., 0]) / 2 / 256
    red, green, blue = np.moveaxis((candidates - others) ** 2, -1, 0)
    return ((2 + redness) * red + 4 * green + (3 - redness) * blue).min(axis=1)


def write_colour_tables(folder: Path, labels: Mapping[str, int]) -> list[Path]:
    """Write the labels' (name -> value) names and colours into a folder, which is made if missing.

    Returns: ``labels_3dslicer.ctbl``, a colour table whose names hold no white space, as 3D Slicer asks, and
        ``labels_itksnap.txt``, a label description file for ITK-SNAP's "Import Label Descriptions".
    """
    folder.mkdir(parents=True, exist_ok=True)
    colours = label_colours(labels)
    names = {0: "background"} | {value: name for name, value in sorted(labels.items(), reverse=True)}
    slicer = [f"# Color table file labels_3dslicer.ctbl\n# {len(colours)} values\n"]
    itksnap = [_ITKSNAP_HEAD]
    for value, (red, green, blue) in sorted(colours.items()):
        shown = int(value != 0)
        word = "_".join(names[value].split()) or f"label_{value}"
        slicer.append(f"{value} {word} {red} {green} {blue} {255 * shown}\n")
        name = names[value].replace('"', "'") if shown else "Clear Label"
        itksnap.append(f'{value:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:2d} {shown:2d}    "{name}"\n')
    paths = [folder / "labels_3dslicer.ctbl", folder / "labels_itksnap.txt"]
    for path, lines in zip(paths, (slicer, itksnap), strict=True):
        write_text(path, "".join(lines))
    return paths
