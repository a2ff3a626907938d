"""What a data set's labels are: lesions, and the bones that hold them.

dataset.json may say it under ``ROLES_KEY``, for example ``{"lesions": {"patella_BML": "patella", "cyst": null},
"bones": ["patella", "femur"]}``; else the names do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2_anomaly.errors import UserError, worded

#: key of dataset.json, which nnU-Net ignores
ROLES_KEY = "label_roles"
_LESION = re.compile(r"lesion|bml|cyst|o?edema", re.IGNORECASE)
_BONE = re.compile(r"bone|femur|tibia(?!l)|patella(?!r)|fibula(?!r)", re.IGNORECASE)
_NO_BONE = re.compile(r"cartilage|meniscus|tendon|ligament|muscle|fluid|effusion", re.IGNORECASE)


@dataclass(frozen=True)
class LabelRoles:
    """Names of labels by what they are."""

    lesions: Mapping[str, str | None]  # lesion -> the bone that holds it; None where none is known
    bones: tuple[str, ...]


def label_roles(names: Iterable[str], said: Mapping[str, Any] | None = None) -> LabelRoles:
    """The roles of labels: as dataset.json says, else lesions are those with "lesion", "BML", "cyst", "edema" or
    "oedema" in their names, and bones those with "bone" or a bone's name and those that hold a lesion.

    A lesion lies in the bone whose name begins alike, word by word: femoral_lesion in femoral_bone, patella_BML in
    patella.

    Args: names: of the labels; background and the ignore label are left out. said: dataset.json's ``ROLES_KEY``.
    Raises: UserError if that names what is no label.
    """
    names = [name for name in names if name not in ("background", "ignore")]
    said = {} if said is None else said
    if not (
        isinstance(said, Mapping)
        and isinstance(said.get("lesions", {}), (Mapping, list))
        and isinstance(said.get("bones", []), list)
        and all(isinstance(name, str) for part in said.values() for name in part)
        and (
            isinstance(said.get("lesions"), list | None)
            or all(isinstance(b, str | None) for b in said["lesions"].values())
        )
    ):
        expected = '{"lesions": {LESION: BONE or null, ...}, "bones": [BONE, ...]}'
        raise UserError(f"dataset.json's {ROLES_KEY} are {worded(said)}; expected {expected}")
    lesions: dict[str, str | None] = {}
    if "lesions" in said:
        lesions = dict(said["lesions"]) if isinstance(said["lesions"], Mapping) else dict.fromkeys(said["lesions"])
    else:
        healthy = [name for name in names if not _LESION.search(name) and not _NO_BONE.search(name)]
        lesions = {name: _bone_of(name, healthy) for name in names if _LESION.search(name)}
    holding = {bone for bone in lesions.values() if bone is not None}
    found = [name for name in names if name in holding or (_BONE.search(name) and not _NO_BONE.search(name))]
    bones = said.get("bones") or [name for name in found if name not in lesions]
    unknown = sorted({*lesions, *holding, *bones} - set(names))
    if unknown:
        raise UserError(f"dataset.json's {ROLES_KEY} name {', '.join(unknown)}; expected some of {', '.join(names)}")
    return LabelRoles(lesions, tuple(bones))


def with_their_lesions(bones: Iterable[str], labels: Mapping[str, Any], roles: LabelRoles) -> list[list[int]]:
    """Label values of each bone, with those of the lesions in it. Args: labels: name -> value, or a region's values."""
    of_bones = ([bone, *(lesion for lesion, of in roles.lesions.items() if of == bone)] for bone in bones)
    return [sorted({int(value) for name in names for value in np.atleast_1d(labels[name])}) for names in of_bones]


def taken_as(names: Mapping[str, Iterable[str]]) -> str:
    """What labels are taken for, in words. Args: names: of labels, by what they are taken for."""
    return "Taken as " + "; as ".join(f"{what}: {', '.join(labels) or 'none'}" for what, labels in names.items())


def _bone_of(lesion: str, candidates: Iterable[str]) -> str | None:
    """The candidate whose words all begin as one of the lesion's does; of several the one with most words."""
    if _NO_BONE.search(lesion):
        return None
    own = _stems(_LESION.sub(" ", lesion))
    fitting = [name for name in candidates if _stems(name) and _stems(name) <= own]
    return max(fitting, key=lambda name: len(_stems(name)), default=None)


def _stems(name: str) -> set[str]:
    words = set(re.findall(r"[a-z]+", name.lower()))
    return {word[:3] for word in words - {"bone"} or words}
