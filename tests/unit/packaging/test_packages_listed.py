"""What setup.cfg says about the package is what lies in the folders."""

import configparser

import pytest
from places import ROOT

import nnunetv2_anomaly

MAPPED = {"trainers": "nnunetv2_anomaly.trainers", "dataset_conversion": "nnunetv2_anomaly.dataset_conversion"}
SHIM = "nnunetv2.training.nnUNetTrainer.anomaly"


@pytest.fixture(scope="module")
def options():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def listed(text):
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_every_folder_with_code_is_a_listed_package(options):
    on_disk = {SHIM}
    for top, package in {"nnunetv2_anomaly": "nnunetv2_anomaly", **MAPPED}.items():
        for folder in {file.parent for file in (ROOT / top).rglob("*.py")}:
            on_disk.add(".".join([package, *folder.relative_to(ROOT / top).parts]))
    packages = listed(options["options"]["packages"])
    assert sorted(packages) == sorted(on_disk)


def test_every_listed_package_has_an_init_file(options):
    folders = dict(line.replace(" ", "").split("=") for line in listed(options["options"]["package_dir"]))
    for package in listed(options["options"]["packages"]):
        top = next((name for name in folders if package == name or package.startswith(f"{name}.")), None)
        path = package if top is None else package.replace(top, folders[top].replace("/", "."), 1)
        assert (ROOT / path.replace(".", "/") / "__init__.py").is_file(), package


def test_the_shim_is_mapped_into_nnunets_trainer_folder(options):
    assert f"{SHIM} = nnunetv2_anomaly/trainer_shim" in listed(options["options"]["package_dir"])


def test_there_is_one_version(options):
    assert options["metadata"]["version"] == "attr: nnunetv2_anomaly.__version__"
    assert nnunetv2_anomaly.__version__.count(".") == 2


def test_nnunetv2_is_bounded_on_both_sides(options):
    requirement = next(
        line for line in listed(options["options"]["install_requires"]) if line.split(" ")[0] == "nnunetv2"
    )
    assert ">=2.8.1" in requirement
    assert "<3" in requirement
