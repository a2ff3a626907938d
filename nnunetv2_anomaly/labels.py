"""The one table of knee labels (method paper, Sections 3 and 4; OAI ZIB-UQ and OAI AKOA use all, OAI ZIB 0 to 4)."""

from __future__ import annotations

LABELS: dict[str, int] = {
    "background": 0,
    "femoral_bone": 1,
    "femoral_cartilage": 2,
    "tibial_bone": 3,
    "tibial_cartilage": 4,
    "patellar_bone": 5,
    "patellar_cartilage": 6,
    "femoral_lesion": 7,
    "tibial_lesion": 8,
    "patellar_lesion": 9,
}

#: label -> name
NAMES: dict[int, str] = {value: name for name, value in LABELS.items()}

BONES: tuple[int, ...] = (1, 3, 5)
CARTILAGES: tuple[int, ...] = (2, 4, 6)
LESIONS: tuple[int, ...] = (7, 8, 9)

#: lesion label -> label of the bone that holds the lesion
BONE_OF_LESION: dict[int, int] = {7: 1, 8: 3, 9: 5}

#: the labels of each bone with those of its lesions, in the order of ``BONES``
BONES_WITH_LESIONS: tuple[tuple[int, ...], ...] = tuple(
    (bone, *(lesion for lesion, of in BONE_OF_LESION.items() if of == bone)) for bone in BONES
)

#: OAI ZIB-like training labels: lesions count as bone
ANATOMY: dict[str, int] = {name: value for name, value in LABELS.items() if value not in LESIONS}

#: OAI ZIB: femur and tibia alone
OAI_ZIB_LABELS: dict[str, int] = {name: value for name, value in LABELS.items() if value <= 4}

#: OAIZIB-CM: tibial cartilage in two compartments
OAIZIB_CM_LABELS: dict[str, int] = {
    "background": 0,
    "femoral_bone": 1,
    "femoral_cartilage": 2,
    "tibial_bone": 3,
    "medial_tibial_cartilage": 4,
    "lateral_tibial_cartilage": 5,
}
