"""``nnUNetv2_anomaly measure``: a folder of segmentations, one tidy table."""

import json
import re
import shutil
import sys
from urllib.parse import quote

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

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


def measure(folder, output, *words, pictures=False):
    without = () if pictures else ("--no_reports", "--no_maps")
    return main(["measure", "-i", str(folder), "-o", str(output), "-np", "1", *without, *words])


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


def test_pages_and_maps_of_every_case_need_no_network(knees, tmp_path):
    odd = "knee <b> & 100%#1"
    (knees / "left_1.nii.gz").unlink()
    (knees / "right_2.nii.gz").unlink()
    text = SIDES.replace("left_1", odd)
    parameters = draw_phantom(np.random.default_rng(1), side="left", lesion_share=1.0)
    fine = phantom_image(parameters, size=(96, 96, 64), spacing_mm=(1.45, 1.45, 1.75))  # thickness can be measured
    sitk.WriteImage(fine, str(knees / f"{odd}.nii.gz"))
    words = ("--manifest", manifest(tmp_path, text), "--images", str(images_of(knees)))
    assert measure(knees, tmp_path / "o", *words, pictures=True) == 0
    pages = {page.stem: page.read_text() for page in (tmp_path / "o" / "reports").glob("*.html")}
    assert set(pages) == {"right_1", odd}
    for page in (*pages.values(), (tmp_path / "o" / "report.html").read_text()):
        assert "<b>" not in page
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert 'src="plotly.min.js"' in pages["right_1"]
    assert (tmp_path / "o" / "reports" / "plotly.min.js").stat().st_size > 1e6
    cohort = (tmp_path / "o" / "report.html").read_text()
    assert f'href="reports/{quote(odd)}.html"' in cohort
    files = {file.name for file in (tmp_path / "o" / "maps" / odd).iterdir()}
    assert {"thickness_mm.nii.gz", "tibial_bone_cartilage.vtp", "tibial_bone_thickness_flat.png"} <= files
    volume = sitk.ReadImage(str(tmp_path / "o" / "maps" / odd / "thickness_mm.nii.gz"))
    assert volume.GetSize() == (96, 96, 64)
    lesions = pd.read_csv(tmp_path / "o" / "lesions.csv")
    np.testing.assert_allclose(lesions["image_mean"], 7)
    assert set(lesions["case"]) == {"right_1", odd}


def images_of(knees):
    """An image beside each knee: 7 everywhere."""
    folder = knees.parent / "images"
    folder.mkdir()
    for file in knees.glob("*.nii.gz"):
        image = sitk.ReadImage(str(file))
        sitk.WriteImage(image * 0 + 7, str(folder / file.name.replace(".nii.gz", "_0000.nii.gz")))
    return folder


def test_only_what_is_asked_for_is_measured(knees, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vtk", None)  # importing it fails
    words = ("--manifest", manifest(tmp_path, SIDES), "--quantities", "volumes", "lesions")
    assert measure(knees, tmp_path / "o", *words) == 0
    quantities = set(pd.read_csv(tmp_path / "o" / "measurements.csv")["quantity"])
    assert {"volume", "lesion_volume"} <= quantities
    assert not {"VC", "ThCtAB"} & quantities


@pytest.mark.parametrize("missing", ["vtk", "plotly"])
def test_a_missing_extra_is_named(knees, tmp_path, capsys, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert measure(knees, tmp_path / "o", pictures=True) == 1
    assert f"{missing} is not installed" in (error := capsys.readouterr().err)
    assert 'pip install "nnunetv2-anomaly[measure]"' in error
    assert not (tmp_path / "o").exists()


def test_values_are_held_against_a_reference_and_a_cohort(knees, tmp_path):
    reference = tmp_path / "reference.csv"
    reference.write_text("structure,region,quantity,mean,sd\nfemoral_bone,all,lesion_volume,100,50\n")
    words = ("--manifest", manifest(tmp_path, SIDES), "--reference", str(reference))
    assert measure(knees, tmp_path / "o", *words) == 0
    table = pd.read_csv(tmp_path / "o" / "measurements.csv").set_index(["case", "structure", "region", "quantity"])
    for case in ("right_1", "left_1"):
        value = table.loc[(case, "femoral_bone", "all", "lesion_volume"), "value"]
        assert table.loc[(case, "femoral_bone", "all", "z_lesion_volume"), "value"] == pytest.approx((value - 100) / 50)
    assert "disease_activity" not in table.index.get_level_values("quantity")  # no label of effusion
    reference.write_text("structure,region,quantity,mean,sd\nfemoral_bone,all,lesion_volume,100,0\n")
    assert measure(knees, tmp_path / "o2", *words) == 1


def test_visits_of_a_knee_are_compared(knees, tmp_path, capsys):
    shutil.copy(knees / "right_1.nii.gz", knees / "right_2.nii.gz")
    text = SIDES.replace("right_2,9002,V00", "right_2,9001,V01")
    words = ("--manifest", manifest(tmp_path, text), "--quantities", "volumes", "lesions", "cartilage")
    limits = tmp_path / "limits.csv"
    limits.write_text("quantity,limit\nlesion_volume,10\n")
    assert measure(knees, tmp_path / "o", *words, "--limits", str(limits)) == 0
    change = pd.read_csv(tmp_path / "o" / "change.csv")
    assert set(change["pair"]) == {"right_1--right_2"}  # the left knee has one visit
    known = change[change["before"].notna() & change["after"].notna()]
    np.testing.assert_allclose(known["change"], 0, atol=60)
    judged = change[change["quantity"] == "lesion_volume"]
    assert set(judged["verdict"].dropna()) == {"within"}
    matches = pd.read_csv(tmp_path / "o" / "lesion_matches.csv")
    assert set(matches["kind"]) == {"stable"}
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("before,after\nright_1,left_1\n")
    assert measure(knees, tmp_path / "o", *words, "--pairs", str(pairs)) == 3
    assert "expected two visits of one knee" in capsys.readouterr().err
    pairs.write_text("before,after\nright_1,other\n")
    assert measure(knees, tmp_path / "o3", *words, "--pairs", str(pairs)) == 1
    assert "the pairs name other, which have no segmentation" in capsys.readouterr().err
    assert not (tmp_path / "o3").exists()


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
    assert measure(knees, tmp_path / "o", "--manifest", manifest(tmp_path, SIDES)) == 3
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
    assert set(table["structure"]) == {
        "femoral_bone", "femoral_cartilage", "tibial_bone", "tibial_cartilage", "knee"
    }  # fmt: skip
    assert not table["quantity"].str.startswith("lesion").any()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name\nright_1\n", "lacks the column case"),
        ("case,side\nright_1,R\n", "has the side R; expected right, left or nothing"),
        ("case\nright_1\nright_1\n", "has right_1 twice"),
        ("case\nother\n", "no case of the manifest (other) is in"),
    ],
)
def test_manifests_that_cannot_be(knees, tmp_path, capsys, text, sentence):
    assert measure(knees, tmp_path / "o", "--manifest", manifest(tmp_path, text)) == 1
    assert sentence in capsys.readouterr().err


def test_an_empty_label_map_has_a_page_and_flags(knees, tmp_path):
    for case in ("right_2", "left_1"):
        (knees / f"{case}.nii.gz").unlink()
    image = sitk.ReadImage(str(knees / "right_1.nii.gz"))
    sitk.WriteImage(image * 0, str(knees / "right_1.nii.gz"))
    assert measure(knees, tmp_path / "o", "--side", "right", pictures=True) == 0
    table = pd.read_csv(tmp_path / "o" / "measurements.csv", keep_default_na=False)
    assert table["flag"].ne("").all()
    assert (tmp_path / "o" / "reports" / "right_1.html").is_file()
    (tmp_path / "o" / "reports" / "right_1.html").unlink()
    assert measure(knees, tmp_path / "o", "--side", "right", pictures=True) == 0
    assert (tmp_path / "o" / "reports" / "right_1.html").is_file()


def test_labels_that_dataset_json_does_not_know_and_pictures_are_reported(knees, tmp_path, capsys):
    image = sitk.ReadImage(str(knees / "right_2.nii.gz"))
    sitk.WriteImage(sitk.ChangeLabel(image, {9.0: 77.0}), str(knees / "right_2.nii.gz"))
    sitk.WriteImage(sitk.ReadImage(str(knees / "left_1.nii.gz"))[:, :, 20], str(knees / "left_1.nii.gz"))
    assert measure(knees, tmp_path / "o", "--side", "right") == 3
    error = capsys.readouterr().err
    assert "holds unknown labels: 77" in error
    assert "has 2 axes; expected a volume" in error
    assert set(pd.read_csv(tmp_path / "o" / "measurements.csv")["case"]) == {"right_1"}


def test_the_side_is_found_whatever_the_order_of_axes_that_nibabel_reads(knees, tmp_path):
    for case in ("right_1", "left_1"):
        (knees / f"{case}.nii.gz").unlink()
    image = nibabel.as_closest_canonical(nibabel.load(knees / "right_2.nii.gz"))
    voxels = np.asarray(image.dataobj).copy()  # from left to right
    cartilage = np.argwhere(voxels == LABELS["tibial_cartilage"])
    medial = cartilage[cartilage[:, 0] < np.median(cartilage[:, 0])]  # of a right knee, to the patient's left
    voxels[tuple(medial.T)] = 10
    image = nibabel.Nifti1Image(voxels, image.affine)
    labels = {name: value for name, value in LABELS.items() if name != "tibial_cartilage"}
    labels |= {"lateral_tibial_cartilage": LABELS["tibial_cartilage"], "medial_tibial_cartilage": 10}
    content = {"labels": labels, "file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIO"}
    (knees / "dataset.json").write_text(json.dumps(content))
    found = []
    for codes in ("RAS", "LPS", "SRA"):
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
        nibabel.save(image.as_reoriented(turn), knees / "right_2.nii.gz")
        assert measure(knees, tmp_path / codes) == 0
        table = pd.read_csv(tmp_path / codes / "measurements.csv")
        found.append(table.set_index(["structure", "region", "quantity"])["value"])
        assert set(table["side"]) == {"right"}
    for other in found[1:]:
        np.testing.assert_allclose(other.reindex(found[0].index), found[0], rtol=1e-3, atol=60)
