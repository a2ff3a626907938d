"""``nnUNetv2_anomaly measure``: a folder of segmentations, one tidy table."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.labels import LABELS
from nnunetv2_anomaly.simulation.phantom import draw_phantom, phantom_image

SPACING, SIZE = (2.9, 2.9, 3.5), (48, 48, 32)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Two right knees with lesions and one left."""
    folder = tmp_path_factory.mktemp("knees")
    for case, seed, side in (("right_1", 0, "right"), ("right_2", 3, "right"), ("left_1", 1, "left")):
        parameters = draw_phantom(np.random.default_rng(seed), side=side, lesion_share=1.0)
        image = phantom_image(parameters, size=SIZE, spacing_mm=SPACING)
        sitk.WriteImage(image, str(folder / f"{case}.nii.gz"))
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    return folder


@pytest.fixture
def knees(phantoms, tmp_path):
    return shutil.copytree(phantoms, tmp_path / "knees")


def measure(folder, output, *words):
    return main(["measure", "-i", str(folder), "-o", str(output), "-np", "1", *words])


def manifest(tmp_path, text):
    file = tmp_path / "manifest.csv"
    file.write_text(text)
    return str(file)


SIDES = "case,subject,visit,side\nright_1,9001,V00,right\nright_2,9002,V00,right\nleft_1,9001,V00,left\n"


def test_every_value_has_a_unit_and_what_is_missing_a_flag(knees, tmp_path):
    assert measure(knees, tmp_path / "o", "--manifest", manifest(tmp_path, SIDES)) == 0
    table = pd.read_csv(tmp_path / "o" / "measurements.csv", keep_default_na=False, na_values={"value": [""]})
    assert set(table["case"]) == {"right_1", "right_2", "left_1"}
    assert set(table["subject"]) == {9001, 9002}
    assert table["unit"].ne("").all()
    assert (table["value"].isna() <= table["flag"].ne("")).all()
    assert not table.duplicated(["case", "structure", "region", "quantity"]).any()
    lesions = pd.read_csv(tmp_path / "o" / "lesions.csv")
    sums = table[(table["quantity"] == "lesion_volume") & (table["region"] == "all")].groupby("case")["value"].sum()
    for case, own in lesions.groupby("case"):
        assert own["volume_mm3"].sum() == pytest.approx(sums[case])
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(knees / f"{case}.nii.gz")))
        assert own["volume_mm3"].sum() == pytest.approx((labels >= 7).sum() * np.prod(SPACING), rel=1e-4)


def test_it_resumes_and_measures_again_what_has_changed(knees, tmp_path):
    words = ("--manifest", manifest(tmp_path, SIDES))
    assert measure(knees, tmp_path / "o", *words) == 0
    records = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "o" / "cases").iterdir()}
    shutil.copy(knees / "right_2.nii.gz", knees / "right_1.nii.gz")
    assert measure(knees, tmp_path / "o", *words) == 0
    changed = {
        file.name for file in (tmp_path / "o" / "cases").iterdir() if file.stat().st_mtime_ns != records[file.name]
    }
    assert changed == {"right_1.json"}


def test_a_bad_case_does_not_stop_the_others(knees, tmp_path, capsys):
    (knees / "bad.nii.gz").write_bytes(b"no image")
    assert measure(knees, tmp_path / "o", "--manifest", manifest(tmp_path, SIDES)) == 1
    assert "bad" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "o" / "measurements.csv")["case"]) == {"right_1", "right_2", "left_1"}


def test_labels_that_a_data_set_lacks_are_not_measured(knees, tmp_path):
    few = {name: value for name, value in LABELS.items() if value <= 4}
    (knees / "dataset.json").write_text(json.dumps({"labels": few, "file_ending": ".nii.gz"}))
    for file in knees.glob("*.nii.gz"):
        image = sitk.ReadImage(str(file))
        sitk.WriteImage(sitk.ChangeLabel(image, {5.0: 0, 6.0: 0, 7.0: 1, 8.0: 3, 9.0: 0}), str(file))
    assert measure(knees, tmp_path / "o", "--manifest", manifest(tmp_path, SIDES)) == 0
    table = pd.read_csv(tmp_path / "o" / "measurements.csv")
    assert set(table["structure"]) == {"femoral_bone", "femoral_cartilage", "tibial_bone", "tibial_cartilage"}
    assert not table["quantity"].str.startswith("lesion").any()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name\nright_1\n", "expected case, and subject, visit or side"),
        ("case,side\nright_1,R\n", "has the side R; expected right, left or nothing"),
        ("case\nright_1\nright_1\n", "has right_1 twice"),
        ("case\nother\n", "the manifest has none of the cases"),
    ],
)
def test_manifests_that_cannot_be(knees, tmp_path, capsys, text, sentence):
    assert measure(knees, tmp_path / "o", "--manifest", manifest(tmp_path, text)) == 1
    assert sentence in capsys.readouterr().err
