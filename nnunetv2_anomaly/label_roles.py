"""What a data set's labels are: bones, lesions and cartilages with the bones that hold them, effusions.

dataset.json may say it under ``ROLES_KEY``, for example ``{"lesions": {"patella_BML": "patella", "cyst": null},
"bones": ["patella", "femur"], "cartilages": {"patella_AC": "patella"}, "effusions": ["joint_fluid"]}``; else the names
do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunetv2_anomaly.errors import UserError, worded

#: key of dataset.json, which nnU-Net ignores
ROLES_KEY = "label_roles"
_LESION = re.compile(r"lesion|bml|cyst|o?edema", re.IGNORECASE)
_BONE = re.compile(r"bone|femur|tibia(?!l)|patella(?!r)|fibula(?!r)", re.IGNORECASE)
_CARTILAGE = re.compile(r"cartilage", re.IGNORECASE)
_EFFUSION = re.compile(r"effusion|synovi|fluid", re.IGNORECASE)
_NO_BONE = re.compile(r"cartilage|meniscus|tendon|ligament|muscle|fluid|effusion", re.IGNORECASE)


@dataclass(frozen=True)
class LabelRoles:
    """Names of labels by what they are."""

    lesions: Mapping[str, str | None]  # lesion -> the bone that holds it; None where none is known
    bones: tuple[str, ...]
    cartilages: Mapping[str, str | None] = field(
        default_factory=dict
    )  # cartilage -> its bone; None where none is known
    effusions: tuple[str, ...] = ()


def label_roles(names: Iterable[str], said: Mapping[str, Any] | None = None) -> LabelRoles:
    """The roles of labels: as dataset.json says, else lesions are those with "lesion", "BML", "cyst", "edema" or
    "oedema" in their names, bones those with "bone" or a bone's name and those that hold a lesion, cartilages and
    effusions those that are called so.

    A lesion or a cartilage belongs to the bone whose name begins alike, word by word: femoral_lesion to femoral_bone,
    patella_BML to patella, medial_tibial_cartilage to tibia.

    Args: names: of the labels; background and the ignore label are left out. said: dataset.json's ``ROLES_KEY``.
    Raises: UserError if that names what is no label.
    """
    names = [name for name in names if name not in ("background", "ignore")]
    said = {} if said is None else said
    if not _are_roles(said):
        expected = '{"lesions": {LESION: BONE or null, ...}, "bones": [BONE, ...], "cartilages": ..., "effusions": ...}'
        raise UserError(f"dataset.json's {ROLES_KEY} are {worded(said)}; expected {expected}")
    found = {}
    for role, pattern in (("lesions", _LESION), ("cartilages", _CARTILAGE)):
        if role in said:
            found[role] = dict(said[role]) if isinstance(said[role], Mapping) else dict.fromkeys(said[role])
            continue
        # A cartilage's bone is known by the cartilage's own words; a lesion is in the bone that is called as it is.
        healthy = [name for name in names if not _LESION.search(name) and not _NO_BONE.search(name)]
        called = {name: _bone_of(pattern.sub(" ", name), healthy) for name in names if pattern.search(name)}
        found[role] = {name: bone for name, bone in called.items() if role == "lesions" or not _LESION.search(name)}
    lesions, cartilages = found["lesions"], found["cartilages"]
    holding = {bone for bone in lesions.values() if bone is not None}
    named = [name for name in names if name in holding or (_BONE.search(name) and not _NO_BONE.search(name))]
    bones = said.get("bones")
    bones = [name for name in named if name not in lesions] if bones is None else bones
    taken = {*lesions, *cartilages, *bones}
    effusions = said.get("effusions")
    if effusions is None:
        effusions = [name for name in names if _EFFUSION.search(name) and name not in taken]
    of_cartilages = {bone for bone in cartilages.values() if bone is not None}
    unknown = sorted({*taken, *holding, *of_cartilages, *effusions} - set(names))
    if unknown:
        raise UserError(f"dataset.json's {ROLES_KEY} name {', '.join(unknown)}; expected some of {', '.join(names)}")
    return LabelRoles(lesions, tuple(bones), cartilages, tuple(effusions))


def _are_roles(said: Any) -> bool:
    if not isinstance(said, Mapping):
        return False
    if set(said) - {"lesions", "bones", "cartilages", "effusions"}:
        return False
    lists = all(isinstance(said.get(role, []), list) for role in ("bones", "effusions"))
    maps = [said.get(role, {}) for role in ("lesions", "cartilages")]
    return (
        lists
        and all(isinstance(of, (Mapping, list)) for of in maps)
        and all(isinstance(name, str) for part in said.values() for name in part)
        and all(isinstance(bone, str | None) for of in maps if isinstance(of, Mapping) for bone in of.values())
    )


def is_of_bone(lesion: str) -> bool:
    """Whether a lesion may lie in a bone, by its name: not one of cartilage, meniscus and the like."""
    return not _NO_BONE.search(lesion)


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
        return None  # of another tissue
    own = _stems(_LESION.sub(" ", lesion))
    fitting = [name for name in candidates if _stems(name) and _stems(name) <= own]
    return max(fitting, key=lambda name: len(_stems(name)), default=None)


def _stems(name: str) -> set[str]:
    words = set(re.findall(r"[a-z]+", name.lower()))
    return {word[:3] for word in words - {"bone"} or words}
