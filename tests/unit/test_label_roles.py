"""One rule for what is a lesion, and what a bone, in every verb and in the pre-stage."""

import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.label_roles import label_roles
from nnunetv2_anomaly.labels import BONE_OF_LESION, BONES, LABELS, NAMES


def test_the_knees_own_labels():
    roles = label_roles(LABELS)
    assert roles.lesions == {NAMES[lesion]: NAMES[bone] for lesion, bone in BONE_OF_LESION.items()}
    assert roles.bones == tuple(NAMES[bone] for bone in BONES)


@pytest.mark.parametrize(
    ("names", "lesions", "bones"),
    [
        (["patella", "patella_BML", "Femur BML"], {"patella_BML": "patella", "Femur BML": None}, ["patella"]),
        (["femoral_bone", "femur_cyst", "femoral_cartilage"], {"femur_cyst": "femoral_bone"}, ["femoral_bone"]),
        (
            ["tibia", "marrow_oedema", "edema_tibia"],
            {"marrow_oedema": None, "edema_tibia": "tibia"},
            ["tibia"],
        ),
        (["tibial_cartilage", "tibial_lesion"], {"tibial_lesion": None}, []),
        (["liver", "liver_lesion", "vein"], {"liver_lesion": "liver"}, ["liver"]),
        (["femur", "femur_cartilage", "patella_tendon", "femur_BML"], {"femur_BML": "femur"}, ["femur"]),
        (["tibia", "tibial_cartilage", "tibial_cartilage_lesion"], {"tibial_cartilage_lesion": None}, ["tibia"]),
        (["bone", "bone_lesion"], {"bone_lesion": "bone"}, ["bone"]),
        (["background", "brain", "tumour", "ignore"], {}, []),
    ],
)
def test_names_tell(names, lesions, bones):
    roles = label_roles(names)
    assert roles.lesions == lesions
    assert list(roles.bones) == bones


def test_dataset_json_tells_otherwise():
    names = ["shaft", "spot", "lesion_of_old"]
    roles = label_roles(names, {"lesions": {"spot": "shaft"}, "bones": ["shaft"]})
    assert (roles.lesions, roles.bones) == ({"spot": "shaft"}, ("shaft",))
    assert label_roles(names, {"lesions": ["spot"]}).lesions == {"spot": None}
    for wrong in (["spot"], {"lesions": "spot"}, {"bones": "shaft"}, {"lesions": [["spot"]]}):
        with pytest.raises(UserError, match=r"label_roles are .*; expected"):
            label_roles(names, wrong)
    with pytest.raises(UserError, match="label_roles name spott; expected some of shaft, spot, lesion_of_old"):
        label_roles(names, {"lesions": {"spott": "shaft"}})
