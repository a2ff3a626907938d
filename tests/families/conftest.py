"""Makes the toy family known as an installed package would be: by an entry point, and to nnU-Net by its variable."""

import os
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"


@pytest.fixture(scope="session", autouse=True)
def toy_family(tmp_path_factory, nnunet_environment):
    """The folders that have to be on the path of a process that knows the toy family."""
    site = tmp_path_factory.mktemp("site")
    info = site / "toy_family-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-family\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[nnunetv2_anomaly.detectors]\nmedian = toy_family:FAMILY\n")
    folders = [str(site), str(TOY)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, *folders])
        patch.setenv("PYTHONPATH", os.pathsep.join(folders), prepend=os.pathsep)
        patch.setenv("nnUNet_extTrainer", str(TOY), prepend=os.pathsep)
        yield folders
