import json

import pytest

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.workflows.table import steps_of

NAMES = {501: "Dataset501_OAIZIB", 502: "Dataset502_OAIZIBUQ", 503: "Dataset503_OAIAKOA"}
SIX = ["UNET", "UNETPlus", "UNETS", "CAN", "CANPlus", "CANS"]


@pytest.fixture
def folders(nnunet_folders):
    """nnU-Net's folders with three raw data sets."""
    for name in NAMES.values():
        (nnunet_folders / "nnUNet_raw" / name).mkdir()
        (nnunet_folders / "nnUNet_raw" / name / "dataset.json").write_text(json.dumps({"numTraining": 2}))
    return nnunet_folders


def make(networks=("UNET", "UNETS"), plans="nnUNetWholeImagePlans", **options):
    return steps_of({"workflow": "published_chain", "networks": list(networks), "plans": plans, **options})


def test_all_six_networks_in_the_published_order(folders):
    steps = make(SIX)
    trained = [one.command.split()[1:6] for one in steps if one.command.startswith("nnUNetv2_train")]
    assert len(trained) == 6 + 6 * (6 + 1 + 5)
    for network in SIX:
        own = [words for words in trained if words[4] in (f"{network}Trainer", f"{network}TransferTrainer")]
        assert [(words[0], words[2]) for words in own] == [
            *[("501", fold) for fold in ("0", "1", "2", "3", "4", "all")],
            ("502", "all"),
            *[("503", fold) for fold in ("0", "1", "2", "3", "4")],
        ]
    made = {str(folders / "nnUNet_raw" / name / "dataset.json") for name in NAMES.values()}
    for one in steps:
        assert {*one.follows, *one.needs} <= made
        made.add(one.output)
    weights = {one.command.split()[5]: one.command for one in steps if "-pretrained_weights" in one.command}
    model = "UNETTransferTrainer__nnUNetWholeImagePlansOf501__3d_fullres"
    assert f"{model}/fold_all/checkpoint_final.pth" in weights["UNETTransferTrainer"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"uq": 501}, "expected three different ones"),
        ({"uq": 777}, "data set 777 is missing"),
        ({"plans": "nnUNetOtherPlans"}, "nnUNetOtherPlans.json does not exist"),
        ({"networks": ["VNET"]}, "there is no network VNET"),
    ],
)
def test_mistakes_are_reported(folders, options, expected):
    with pytest.raises(UserError, match=expected):
        make(**options)


def test_what_is_done_is_not_printed_by_a_dry_run(folders, capsys):
    folder = folders / "nnUNet_preprocessed" / NAMES[501]
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text("{}")
    words = ["published_chain", "-o", str(folders / "chain"), "--dry_run", "--networks", "UNET"]
    assert main(words) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nnUNetv2_")]
    assert printed == [one.command for one in make(["UNET"])][1:]
    assert main([*words[:-1], "CAN"]) == 1
    assert "says networks: ['UNET'], not ['CAN']" in capsys.readouterr().err
