"""The conversions as they are typed, on small OAI-like trees."""

import csv
import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from oai_tree import (
    Knee,
    make_knee,
    uid_of,
    write_akoa_mask,
    write_series,
    write_uq_mask,
    write_visit,
    write_zib_mask,
    write_zib_release,
)

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.conversion import case
from nnunetv2_anomaly.conversion.mapping import AxisMapping
from nnunetv2_anomaly.conversion.options import main_of
from nnunetv2_anomaly.conversion.run import read_manifest, write_manifest
from nnunetv2_anomaly.dataset_conversion import Dataset503_OAIAKOA
from nnunetv2_anomaly.images.grids import Grid, corner_distance_mm
from nnunetv2_anomaly.labels import BONE_OF_LESION

SUBJECTS = ("9001104", "9002430", "9002817")


def zib_labels(labels: sitk.Image) -> sitk.Image:
    """As OAI ZIB has them: lesions are bone, no patella."""
    array = sitk.GetArrayFromImage(labels)
    for lesion, bone in BONE_OF_LESION.items():
        array[array == lesion] = bone
    array[array > 4] = 0
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(labels)
    return result


def knee_of(index: int, **options) -> Knee:
    return make_knee(index, side="right" if index % 2 == 0 else "left", **options)


def write_tree(folder: Path, *, order=(1, 0, 2), flips=(0, 2), subjects=SUBJECTS, **listing) -> dict[str, Knee]:
    """<folder>/oai and <folder>/zib: right and left knees, slices named in either order."""
    knees, release = {}, {}
    for index, subject in enumerate(subjects):
        knee = knee_of(index)
        series = write_visit(
            folder / "oai", "00m", subject, knee, barcode=f"1049{index:04d}", descending=index % 2 == 1
        )
        knees[subject] = Knee(knee.image, zib_labels(knee.labels), knee.side)
        release[subject] = (knees[subject], series.relative_to(folder / "oai" / "00m").as_posix())
    write_zib_release(folder / "zib", release, order=order, flips=flips, **listing)
    return knees


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree that tests only read."""
    folder = tmp_path_factory.mktemp("tree")
    return folder, write_tree(folder)


@pytest.fixture(autouse=True)
def nnunet(tmp_path, monkeypatch):
    """nnU-Net's folders, empty."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))


def words_of(capsys) -> str:
    """All that was printed, in one line."""
    return " ".join("".join(capsys.readouterr()).split())


def convert(*words) -> int:
    return main(["convert", *(str(word) for word in words), "-np", "1"])


def convert_zib(folder: Path, *words) -> int:
    return convert("oai_zib", "--zib", folder / "zib", "--oai", folder / "oai", *words)


def manifest_of(dataset: Path) -> dict[str, dict[str, str]]:
    with (dataset / "manifest.csv").open(newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def assert_same_voxels(file: Path, truth: sitk.Image):
    written = sitk.ReadImage(str(file))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(truth))
    assert corner_distance_mm(Grid.of(written), Grid.of(truth)) < 1e-4


def test_oai_zib_becomes_a_raw_data_set(tree, tmp_path, capsys):
    folder, knees = tree
    assert convert_zib(folder, "--previews") == 0
    dataset = tmp_path / "raw" / "Dataset501_OAIZIB"
    rows = manifest_of(dataset)
    assert set(rows) == set(knees)
    for subject, knee in knees.items():
        assert_same_voxels(dataset / "imagesTr" / f"{subject}_0000.nii.gz", knee.image)
        assert_same_voxels(dataset / "labelsTr" / f"{subject}.nii.gz", knee.labels)
        assert rows[subject]["side"] == rows[subject]["side_in_description"] == knee.side
        assert float(rows[subject]["mapping_evidence"]) > 0.25
        counts = np.bincount(sitk.GetArrayFromImage(knee.labels).ravel(), minlength=5)
        names = ("background", "femoral_bone", "femoral_cartilage", "tibial_bone", "tibial_cartilage")
        assert [int(rows[subject][f"voxels_{name}"]) for name in names] == counts.tolist()
        assert (dataset / "previews" / f"{subject}.png").stat().st_size > 10_000
        assert rows[subject]["image_source"] == f"00m/0.E.1/{subject}"  # without date and barcode
        assert "20050825" not in (dataset / "manifest.csv").read_text()
    assert len({row["mapping"] for row in rows.values()}) == 1
    # What was written is np.flip(labels, (0, 2)).transpose(1, 0, 2).
    assert AxisMapping.parse(rows["9001104"]["mapping"]) == AxisMapping((1, 0, 2), (0, 2))
    described = json.loads((dataset / "dataset.json").read_text())
    assert described["numTraining"] == 3
    assert described["file_ending"] == ".nii.gz"
    assert list(described["labels"].values()) == [0, 1, 2, 3, 4]
    splits = json.loads((tmp_path / "preprocessed" / "Dataset501_OAIZIB" / "splits_final.json").read_text())
    assert sorted(case for split in splits for case in split["val"]) == sorted(knees)
    assert not (dataset / "problems.csv").exists()
    assert "3 cases converted" in capsys.readouterr().out


def test_nothing_that_identifies_a_person_is_written(tree, tmp_path):
    folder, _ = tree
    tags = ("PatientName", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID")
    header = pydicom.dcmread(next((folder / "oai").rglob("001")))
    secrets = [str(header[tag].value).encode() for tag in tags if tag in header and str(header[tag].value)]
    assert len(secrets) >= 3
    assert convert_zib(folder) == 0
    for name, content in files_of(tmp_path / "raw").items():
        content = gzip.decompress(content) if name.endswith(".gz") else content
        for secret in secrets:
            assert secret not in content, f"{secret} in {name}"


@pytest.mark.parametrize(
    "listing",
    [{"line_ending": "\r\n"}, {"trailing_comma": True}, {"line_ending": "\r\n", "trailing_comma": True, "bom": True}],
)
def test_list_of_series_in_its_other_forms(tmp_path, listing):
    write_tree(tmp_path, subjects=SUBJECTS[:1], **listing)
    assert convert_zib(tmp_path) == 0


def test_second_run_leaves_finished_cases_alone_and_completes_the_rest(tree, tmp_path, capsys):
    folder, _ = tree
    shutil.copytree(folder / "zib", tmp_path / "zib")
    shutil.copytree(folder / "oai", tmp_path / "oai")
    mask = tmp_path / "zib/segmentation/segmentation_masks/9002430.segmentation_masks.raw"
    content = mask.read_bytes()
    mask.write_bytes(content[: len(content) // 2])
    assert convert_zib(tmp_path) == 3
    told = "".join(capsys.readouterr())
    assert "1 case failed" in told
    assert "9002430" in told
    dataset = tmp_path / "raw" / "Dataset501_OAIZIB"
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 2
    assert sorted(f.name for f in (dataset / "imagesTr").iterdir()) == ["9001104_0000.nii.gz", "9002817_0000.nii.gz"]
    with (dataset / "problems.csv").open(newline="") as stream:
        assert [row["case"] for row in csv.DictReader(stream)] == ["9002430"]
    before = (dataset / "imagesTr/9001104_0000.nii.gz").stat().st_mtime_ns
    # An interrupted run leaves this behind; nnU-Net would take it for a case.
    (dataset / "imagesTr" / "part_of_nnunetv2_anomaly_1_9002430_0000.nii.gz").write_bytes(b"half")
    mask.write_bytes(content)
    assert convert_zib(tmp_path) == 0
    assert "1 case converted, 2 kept from" in capsys.readouterr().out
    assert (dataset / "imagesTr/9001104_0000.nii.gz").stat().st_mtime_ns == before
    assert not list(dataset.rglob("part_*"))
    assert not (dataset / "problems.csv").exists()
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 3


def test_changed_file_is_kept_until_overwrite_is_given(tree, tmp_path, capsys):
    folder, knees = tree
    assert convert_zib(folder) == 0
    label = tmp_path / "raw/Dataset501_OAIZIB/labelsTr/9001104.nii.gz"
    shutil.copy(tmp_path / "raw/Dataset501_OAIZIB/labelsTr/9002817.nii.gz", label)
    edited = label.read_bytes()
    assert convert_zib(folder) == 3
    assert "labelsTr/9001104.nii.gz is not as it was then" in words_of(capsys)
    assert label.read_bytes() == edited
    assert convert_zib(folder, "--dry_run") == 3  # said of a case that is still there
    told = words_of(capsys)
    assert "1 case still there from an earlier run, with differences: 9001104 converted before, and labelsTr" in told
    assert "failed:" not in told
    assert convert_zib(folder, "--overwrite") == 0
    assert_same_voxels(label, knees["9001104"].labels)


def test_dry_run_checks_and_writes_nothing(tree, tmp_path, capsys):
    folder, _ = tree
    assert convert_zib(folder, "--dry_run") == 0
    told = "".join(capsys.readouterr())
    assert "3 cases would be converted" in told
    assert "mapping 1- 0+ 2-" in told
    assert files_of(tmp_path / "raw") == {}
    assert files_of(tmp_path / "preprocessed") == {}
    assert not list((tmp_path / "raw").iterdir())


def test_mask_of_another_knee_is_refused_and_the_number_told(tmp_path, capsys):
    write_tree(tmp_path)
    masks = tmp_path / "zib/segmentation/segmentation_masks"
    write_zib_mask(
        masks / "9001104.segmentation_masks.mhd", zib_labels(make_knee(77).labels), order=(1, 0, 2), flips=(0, 2)
    )
    assert convert_zib(tmp_path) == 3
    told = words_of(capsys)
    assert "9001104.segmentation_masks.mhd over" in told
    assert "no axis mapping wins clearly (evidence" in told
    assert set(manifest_of(tmp_path / "raw/Dataset501_OAIZIB")) == {"9002430", "9002817"}


def test_mask_that_is_stored_otherwise_than_the_rest_is_refused(tmp_path, capsys):
    knees = write_tree(tmp_path)
    masks = tmp_path / "zib/segmentation/segmentation_masks"
    write_zib_mask(masks / "9001104.segmentation_masks.mhd", knees["9001104"].labels, order=(0, 1, 2), flips=(1,))
    assert convert_zib(tmp_path) == 3
    told = words_of(capsys)
    assert "0+ 1- 2+ by the voxels" in told
    assert "1- 0+ 2- in 2 cases" in told
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    assert set(manifest_of(dataset)) == {"9002430", "9002817"}
    assert not (dataset / "imagesTr/9001104_0000.nii.gz").exists()
    assert convert_zib(tmp_path, "--differing_mappings") == 0
    assert_same_voxels(dataset / "labelsTr/9001104.nii.gz", knees["9001104"].labels)


def test_masks_stored_in_the_order_of_the_slices_names_agree(tmp_path):
    """Slice order follows the names: in space the axis runs to the right in one knee, to the left in the other."""
    knees = write_tree(tmp_path)
    masks = tmp_path / "zib/segmentation/segmentation_masks"
    write_zib_mask(masks / "9002430.segmentation_masks.mhd", knees["9002430"].labels, order=(1, 0, 2), flips=(0,))
    assert convert_zib(tmp_path) == 0
    rows = manifest_of(tmp_path / "raw/Dataset501_OAIZIB")
    assert rows["9001104"]["mapping"] != rows["9002430"]["mapping"]
    assert rows["9001104"]["slices_named_towards"] != rows["9002430"]["slices_named_towards"]


def test_left_knees_are_mirrored_on_request_alone(tree, tmp_path):
    folder, knees = tree
    assert convert_zib(folder, "--mirror_left") == 0
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    rows = manifest_of(dataset)
    assert {name: row["mirrored"] for name, row in rows.items()} == {
        "9001104": "no",
        "9002430": "yes",
        "9002817": "no",
    }
    for kind, truth in (("images", "image"), ("labels", "labels")):
        suffix = "_0000" if kind == "images" else ""
        written = sitk.ReadImage(str(dataset / f"{kind}Tr/9002430{suffix}.nii.gz"))
        expected = sitk.GetArrayFromImage(getattr(knees["9002430"], truth))[:, :, ::-1]
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), expected)
    assert "1 left knees were mirrored" in json.loads((dataset / "dataset.json").read_text())["description"]


def test_other_options_are_not_mixed_into_a_data_set(tree, tmp_path, capsys):
    folder, _ = tree
    assert convert_zib(folder) == 0
    before = files_of(tmp_path / "raw")
    assert convert_zib(folder, "--mirror_left") == 1
    assert "was converted otherwise" in capsys.readouterr().err
    assert files_of(tmp_path / "raw") == before
    assert convert_zib(folder, "--mirror_left", "--overwrite") == 0
    assert manifest_of(tmp_path / "raw/Dataset501_OAIZIB")["9002430"]["mirrored"] == "yes"


def test_side_conflict_shows_all_three(tree, tmp_path, capsys):
    folder, _ = tree
    table = tmp_path / "subjects.csv"
    table.write_text("SubjectID,KneeSide,KLGrade,Gender,Age,BMI,MRBarCode\n9001104,2,3.0,2,72,30.7,16610498212\n")
    assert convert_zib(folder, "--subjects", table) == 3
    told = words_of(capsys)
    assert "description" in told
    assert "table" in told
    assert "labels" in told
    assert "right" in told
    assert "left" in told


def test_table_goes_into_the_manifest_and_bar_codes_do_not(tree, tmp_path):
    folder, _ = tree
    table = tmp_path / "subjects.csv"
    table.write_text("SubjectID,KneeSide,KLGrade,Gender,Age,BMI,MRBarCode\n9001104,1,3.0,2,72,30.7,16610498212\n")
    assert convert_zib(folder, "--subjects", table) == 0
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    row = manifest_of(dataset)["9001104"]
    assert [row[k] for k in ("side_in_table", "kl_grade", "sex", "age_years", "bmi")] == [
        "right",
        "3",
        "female",
        "72",
        "30.7",
    ]
    assert manifest_of(dataset)["9002430"]["kl_grade"] == ""
    assert "16610498212" not in (dataset / "manifest.csv").read_text()


def test_table_that_comes_later_is_taken_over_and_one_that_says_nothing_is_told(tree, tmp_path, capsys):
    folder, _ = tree
    assert convert_zib(folder) == 0
    table = tmp_path / "subjects.csv"
    table.write_text("SubjectID,KneeSide,KLGrade\n9001104.0,1,2\n")
    assert convert_zib(folder, "--subjects", table) == 0
    assert manifest_of(tmp_path / "raw/Dataset501_OAIZIB")["9001104"]["kl_grade"] == "2"
    assert "has no line for 2 cases: 9002430, 9002817" in capsys.readouterr().out
    table.write_text("SubjectID,KneeSide\n9001104,2\n")
    assert convert_zib(folder, "--subjects", table) == 3


def test_of_a_table_of_knees_the_line_of_the_side_found_is_taken(tree, tmp_path, capsys):
    folder, _ = tree
    table = tmp_path / "kxr_sq_bu00.txt"
    lines = [
        f"{subject}|{side}|15|{grade}" for subject in SUBJECTS for side, grade in (("1: Right", 1), ("2: Left", 3))
    ]
    table.write_text("\n".join(["ID|SIDE|READPRJ|V00XRKL", *lines]))
    for _ in range(2):  # and again from what is there
        assert convert_zib(folder, "--subjects", table) == 0
        rows = manifest_of(tmp_path / "raw/Dataset501_OAIZIB")
        assert [rows[subject]["kl_grade"] for subject in SUBJECTS] == ["1", "3", "1"]
        assert {row["side_in_table"] for row in rows.values()} == {""}
    assert "which knee" not in capsys.readouterr().out


def test_of_a_table_of_knees_no_line_is_taken_where_the_side_is_unknown(tmp_path, capsys):
    write_tree(tmp_path, subjects=SUBJECTS[:1])
    for file in (tmp_path / "oai").rglob("10490000/*"):
        header = pydicom.dcmread(file)
        header.SeriesDescription = "SAG_3D_DESS"
        header.save_as(file)
    table = tmp_path / "table.csv"
    table.write_text("ID,SIDE,V00XRKL,SEX\n9001104,1,2,2\n9001104,2,3,2\n")
    assert convert_zib(tmp_path, "--subjects", table) == 0
    row = manifest_of(tmp_path / "raw/Dataset501_OAIZIB")["9001104"]
    assert (row["side"], row["kl_grade"], row["sex"]) == ("", "", "female")
    assert "nothing says which knee is in 1 case, so that their grades stay unknown: 9001104" in capsys.readouterr().out


def test_names_in_a_series_description_are_not_taken_over(tmp_path):
    knee = Knee(knee_of(0).image, zib_labels(knee_of(0).labels), "right")
    series = write_visit(tmp_path / "oai", "00m", "9001104", knee, description="SAG_3D_DESS_RIGHT Doe^Janet")
    write_zib_release(tmp_path / "zib", {"9001104": (knee, series.relative_to(tmp_path / "oai/00m").as_posix())})
    assert convert_zib(tmp_path) == 0
    row = manifest_of(tmp_path / "raw/Dataset501_OAIZIB")["9001104"]
    assert row["series_description"] == "SAG_3D_DESS_RIGHT ?^?"
    assert row["side"] == "right"


def test_two_packages_as_roots(tmp_path):
    release = {}
    for index, subject in enumerate(SUBJECTS[:2]):
        knee = Knee(knee_of(index).image, zib_labels(knee_of(index).labels), knee_of(index).side)
        series = write_visit(tmp_path / "oai", "00m", subject, knee, package=("0.C.2", "0.E.1")[index])
        release[subject] = (knee, series.relative_to(tmp_path / "oai/00m").as_posix())
    write_zib_release(tmp_path / "zib", release)
    roots = [tmp_path / "oai/00m/0.C.2", tmp_path / "oai/00m/0.E.1"]
    assert convert("oai_zib", "--zib", tmp_path / "zib", "--oai", *roots) == 0
    assert convert("oai_zib", "--zib", tmp_path / "zib", "--oai", *roots[:1], "-d", 601) == 3
    # Seen from another root, a finished case is the same.
    assert convert_zib(tmp_path) == 0


def test_overwriting_that_was_interrupted_is_completed_and_not_mixed(tree, tmp_path, monkeypatch):
    folder, _ = tree
    assert convert_zib(folder) == 0
    from nnunetv2_anomaly.conversion import run

    def killed(*_):
        raise KeyboardInterrupt

    write = run.write_manifest
    monkeypatch.setattr(run, "write_manifest", lambda *given: (write(*given), killed()))
    assert convert_zib(folder, "--mirror_left", "--overwrite") == 130
    monkeypatch.setattr(run, "write_manifest", write)
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    assert not (dataset / "dataset.json").exists()
    assert convert_zib(folder, "--mirror_left") == 0
    assert manifest_of(dataset)["9002430"]["mirrored"] == "yes"
    assert {row["options"] for row in manifest_of(dataset).values()} == {"mirror_left"}


def test_case_that_fails_after_it_was_lost_is_not_counted(tree, tmp_path):
    folder, _ = tree
    shutil.copytree(folder, tmp_path / "tree")
    assert convert_zib(tmp_path / "tree") == 0
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    (dataset / "labelsTr/9001104.nii.gz").unlink()
    _no_series(tmp_path / "tree")
    assert convert_zib(tmp_path / "tree") == 3
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 2
    assert set(manifest_of(dataset)) == {"9002430", "9002817"}
    assert not (dataset / "imagesTr/9001104_0000.nii.gz").exists()


def test_files_that_are_no_case_are_put_aside(tree, tmp_path, capsys):
    folder, _ = tree
    assert convert_zib(folder) == 0
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    shutil.copy(dataset / "imagesTr/9001104_0000.nii.gz", dataset / "imagesTr/mine_0000.nii.gz")
    assert convert_zib(folder) == 0
    assert "imagesTr/mine_0000.nii.gz" in capsys.readouterr().out
    assert (dataset / "unlisted/imagesTr/mine_0000.nii.gz").is_file()
    assert len(list((dataset / "imagesTr").iterdir())) == 3


def test_one_conversion_at_a_time(tree, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    folder, _ = tree
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    assert convert_zib(folder) == 0
    with (dataset / "conversion.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert convert_zib(folder) == 1
    assert "another conversion is writing" in capsys.readouterr().err


def test_odd_file_among_the_masks_fails_alone(tmp_path, capsys):
    write_tree(tmp_path)
    masks = tmp_path / "zib/segmentation/segmentation_masks"
    for ending in ("mhd", "raw"):
        shutil.copy(masks / f"9001104.segmentation_masks.{ending}", masks / f"average.{ending}")
    splits = tmp_path / "splits.txt"
    splits.write_text("Test set 1:\n9001104\n9002430\nTest set 2:\n9002817\n")
    assert convert_zib(tmp_path, "--splits", splits) == 3
    told = "".join(capsys.readouterr())
    assert "average.mhd does not name its subject" in " ".join(told.split())
    assert len(manifest_of(tmp_path / "raw/Dataset501_OAIZIB")) == 3


def test_dry_run_tells_what_the_splits_would_meet(tree, tmp_path, capsys):
    folder, _ = tree
    own = tmp_path / "preprocessed/Dataset501_OAIZIB/splits_final.json"
    own.parent.mkdir()
    own.write_text("[]")
    assert convert_zib(folder, "--dry_run") == 1
    assert "holds other splits" in capsys.readouterr().err


def test_changed_mask_is_noticed(tmp_path, capsys):
    knees = write_tree(tmp_path)
    assert convert_zib(tmp_path) == 0
    labels = sitk.GetArrayFromImage(knees["9001104"].labels)
    labels[tuple(np.argwhere(labels == 1)[0])] = 0
    changed = sitk.GetImageFromArray(labels)
    changed.CopyInformation(knees["9001104"].labels)
    masks = tmp_path / "zib/segmentation/segmentation_masks"
    write_zib_mask(masks / "9001104.segmentation_masks.mhd", changed, order=(1, 0, 2), flips=(0, 2))
    assert convert_zib(tmp_path) == 3
    assert "its label map 9001104.segmentation_masks.mhd is not as it was" in words_of(capsys)
    assert convert_zib(tmp_path, "--previews", "--overwrite") == 0


def test_previews_of_finished_cases(tree, tmp_path):
    folder, _ = tree
    assert convert_zib(folder) == 0
    assert convert_zib(folder, "--previews") == 0
    assert len(list((tmp_path / "raw/Dataset501_OAIZIB/previews").iterdir())) == 3


def test_split_file_becomes_splits(tree, tmp_path, capsys):
    folder, _ = tree
    file = tmp_path / "splits.txt"
    file.write_text(
        "Test set 1:\n9001104\n\nTest set 2:\n9002430\n9009999\n\nTest set 3:\n9002817\n\n"
        "Test set 4:\n9009998\n\nTest set 5:\n9009997\n"
    )
    assert convert_zib(folder, "--splits", file) == 0
    told = "".join(capsys.readouterr())
    assert "3 subjects of the split file were not converted" in told
    assert "9009998" in told
    assert "Fold 3, 4 has no case" in told
    splits = json.loads((tmp_path / "preprocessed/Dataset501_OAIZIB/splits_final.json").read_text())
    assert [split["val"] for split in splits] == [["9001104"], ["9002430"], ["9002817"], [], []]
    assert splits[0]["train"] == ["9002430", "9002817"]
    file.write_text(file.read_text() + "\n".join(str(9100000 + number) for number in range(484)))
    assert convert_zib(folder, "--splits", file, "--overwrite") == 0
    assert "9100004 and 479 more (all of them in conversion.json)." in capsys.readouterr().out
    record = json.loads((tmp_path / "raw/Dataset501_OAIZIB/conversion.json").read_text())
    assert len(record["subjects_not_converted"]) == 487
    file.write_text("Test set 1:\n9001104\nTest set 2:\n9002430\n")
    assert convert_zib(folder, "--splits", file, "-d", 601) == 1
    assert "in none of the 2 test sets (9002817)" in capsys.readouterr().err
    assert not (tmp_path / "raw/Dataset601_OAIZIB").exists()


def test_splits_of_the_user_are_not_replaced(tree, tmp_path, capsys):
    folder, _ = tree
    own = tmp_path / "preprocessed/Dataset501_OAIZIB/splits_final.json"
    own.parent.mkdir()
    own.write_text("[]")
    assert convert_zib(folder) == 1
    assert "holds other splits and was left alone" in words_of(capsys)
    assert own.read_text() == "[]"
    assert convert_zib(folder, "--overwrite") == 0
    assert len(json.loads(own.read_text())) == 3


def test_images_that_were_converted_before(tree, tmp_path):
    folder, knees = tree
    for index, (subject, knee) in enumerate(knees.items()):
        name = (f"{subject}.nii.gz", f"{subject}_00m_0000.nrrd", f"OAI_{subject}_V00_SAG_3D_DESS_RIGHT.mha")[index]
        (tmp_path / "images").mkdir(exist_ok=True)
        # Any orientation: this is how a DICOM reader stores a sagittal series.
        sitk.WriteImage(sitk.DICOMOrient(knee.image, "PIR"), str(tmp_path / "images" / name))
    masks = folder / "zib/segmentation/segmentation_masks"
    assert convert("oai_zib", "--labels", masks, "--images", tmp_path / "images") == 0
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    for subject, knee in knees.items():
        assert_same_voxels(dataset / f"imagesTr/{subject}_0000.nii.gz", knee.image)
        assert_same_voxels(dataset / f"labelsTr/{subject}.nii.gz", knee.labels)
    assert manifest_of(dataset)["9002817"]["side_in_description"] == "right"


def test_reference_points_to_the_images(tree, tmp_path):
    folder, knees = tree
    (tmp_path / "images").mkdir()
    for subject, knee in knees.items():
        sitk.WriteImage(sitk.DICOMOrient(knee.image, "PIR"), str(tmp_path / f"images/{subject}.nii.gz"))
    masks = folder / "zib/segmentation/segmentation_masks"
    assert convert("oai_zib", "--labels", masks, "--images", tmp_path / "images", "--reference") == 0
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    assert not list((dataset / "imagesTr").iterdir())
    described = json.loads((dataset / "dataset.json").read_text())
    files = get_filenames_of_train_images_and_targets(str(dataset), described)
    reader = determine_reader_writer_from_dataset_json(described)()
    assert convert("oai_zib", "--labels", masks, "--images", tmp_path / "images", "--reference") == 0
    for subject, knee in knees.items():
        image, _ = reader.read_images(files[subject]["images"])
        labels, _ = reader.read_seg(files[subject]["label"])
        np.testing.assert_array_equal(image[0], sitk.GetArrayFromImage(knee.image))
        np.testing.assert_array_equal(labels[0], sitk.GetArrayFromImage(knee.labels))
    shutil.copy(tmp_path / "images/9002430.nii.gz", tmp_path / "images/9002817.nii.gz")
    (tmp_path / "images/9001104.nii.gz").unlink()
    assert convert("oai_zib", "--labels", masks, "--images", tmp_path / "images", "--reference") == 3
    assert set(json.loads((dataset / "dataset.json").read_text())["dataset"]) == {"9002430", "9002817"}


def test_uq_takes_the_listed_series_and_keeps_lesions(tree, tmp_path, capsys):
    folder, _ = tree
    for index, subject in enumerate(SUBJECTS):
        write_uq_mask(tmp_path / "masks", subject, knee_of(index).labels)
    words = ("oai_zib_uq", "--labels", tmp_path / "masks", "--oai", folder / "oai")
    assert convert(*words, "--zib", folder / "zib") == 0
    dataset = tmp_path / "raw/Dataset502_OAIZIBUQ"
    for index, subject in enumerate(SUBJECTS):
        assert_same_voxels(dataset / f"labelsTr/{subject}.nii.gz", knee_of(index).labels)
        assert int(manifest_of(dataset)[subject]["voxels_femoral_lesion"]) == int(
            (sitk.GetArrayFromImage(knee_of(index).labels) == 7).sum()
        )
    assert convert(*words, "-d", 602) == 0  # without a list: the series on the mask's grid
    write_uq_mask(tmp_path / "masks", SUBJECTS[0], make_knee(50).labels)
    assert convert(*words, "--zib", folder / "zib", "-d", 603) == 3
    told = words_of(capsys)
    assert "candidate against mask: 00m/0.E.1/9001104" in told
    assert "mm apart" in told


@pytest.mark.parametrize("place", ["as the series", "in the series' folder", "as the package"])
def test_packed_series_are_to_be_unpacked(tmp_path, capsys, place):
    write_tree(tmp_path, subjects=SUBJECTS[:1])
    package = tmp_path / "oai/00m/0.E.1"
    series = package / "9001104/20050825/10490000"
    archive = {
        "as the series": series.with_name("10490000.tar.gz"),
        "in the series' folder": series / "10490000.tgz",
        "as the package": package.with_name("0.E.1.zip"),
    }[place]
    shutil.rmtree(package if place == "as the package" else series)
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(b"packed")
    told = f"an archive such as {archive} lie there: unpack each into a folder of its name"
    assert convert_zib(tmp_path) == (1 if place == "as the package" else 3)  # no package holds for all cases
    shown = capsys.readouterr()
    assert told in " ".join((shown.out + shown.err).split())


def test_packed_series_of_a_visit_are_to_be_unpacked(tmp_path, capsys):
    cases = akoa_tree(tmp_path)
    series = tmp_path / "oai/36m/5.E.1/9001104/20050825"
    for folder in list(series.iterdir()):
        shutil.rmtree(folder)
        folder.with_name(f"{folder.name}.tar.gz").write_bytes(b"packed")
    assert convert("oai_akoa", "--labels", tmp_path / "masks", "--oai", tmp_path / "oai") == 3
    told = words_of(capsys)
    assert "no series of subject 9001104 in visit 36m; looked in" in told
    assert f"6 archives such as {series / '10499998.tar.gz'} lie there: unpack each" in told
    assert len(manifest_of(tmp_path / "raw/Dataset503_OAIAKOA")) == len(cases) - 1


def akoa_tree(folder: Path) -> dict[str, Knee]:
    """Two patients at two visits, with the other knee's DESS and an older repeat beside the right one."""
    cases = {}
    for index, subject in enumerate(SUBJECTS[:2]):
        for month, visit in ((0, "00m"), (36, "36m")):
            knee = make_knee(10 * index + month, side="right" if index == 0 else "left")
            cases[f"{subject}_{visit}"] = knee
            write_akoa_mask(folder / "masks", subject, month, knee.labels)
            write_visit(folder / "oai", visit, subject, knee, barcode="10500000")
            other = make_knee(index, side="left" if index == 0 else "right")
            write_visit(folder / "oai", visit, subject, other, barcode="10500050", with_other_series=False)
    return cases


def test_another_series_in_the_same_place_is_noticed_by_its_uid(tmp_path, capsys):
    cases = akoa_tree(tmp_path)
    words = ["--labels", str(tmp_path / "masks"), "--oai", str(tmp_path / "oai"), "-np", "1"]
    assert main_of(Dataset503_OAIAKOA, words) == 0
    (series,) = (tmp_path / "oai" / "00m").glob("*/9001104/*/10500000")
    moved = series.rename(series.with_name("10500777"))
    assert main_of(Dataset503_OAIAKOA, words) == 0  # the same series, whatever its folder is called
    assert "0 cases converted, 4 kept from" in capsys.readouterr().out
    shutil.rmtree(moved)
    write_visit(tmp_path / "oai", "00m", "9001104", cases["9001104_00m"], barcode="10500888", with_other_series=False)
    assert main_of(Dataset503_OAIAKOA, words) == 3
    uid = uid_of("00m", "9001104", "20050825", "10500000")
    with (tmp_path / "raw/Dataset503_OAIAKOA/problems.csv").open(newline="") as stream:
        (problem,) = csv.DictReader(stream)
    assert problem["case"] == "9001104_00m"
    assert problem["problem"].startswith(f"converted before, and its image was 00m/0.E.1/9001104 {uid}; --overwrite")


def test_a_manifest_with_cells_like_formulas_comes_back(tmp_path):
    columns = ("case", "label_source", "side_in_labels_score")
    rows = [dict(zip(columns, cells, strict=True)) for cells in (("a", "=1+1.mhd", "-0.5"), ("b", "'@x.mhd", ""))]
    write_manifest(tmp_path, columns, rows)
    assert (tmp_path / "manifest.csv").read_text().splitlines()[1:] == ["a,'=1+1.mhd,-0.5", "b,''@x.mhd,"]
    assert read_manifest(tmp_path, columns) == {row["case"]: row for row in rows}


def test_akoa_finds_the_series_on_the_masks_grid(tmp_path):
    cases = akoa_tree(tmp_path)
    words = ["--labels", str(tmp_path / "masks"), "--oai", str(tmp_path / "oai"), "-np", "1"]
    assert main_of(Dataset503_OAIAKOA, words) == 0
    dataset = tmp_path / "raw/Dataset503_OAIAKOA"
    rows = manifest_of(dataset)
    assert set(rows) == set(cases)
    for name, knee in cases.items():
        assert_same_voxels(dataset / f"imagesTr/{name}_0000.nii.gz", knee.image)
        assert_same_voxels(dataset / f"labelsTr/{name}.nii.gz", knee.labels)
        visit = name[8:]
        package = {"00m": "0.E.1", "36m": "5.E.1"}[visit]
        expected = (knee.side, f"{visit}/{package}/{name[:7]}", uid_of(visit, name[:7], "20050825", "10500000"))
        assert (rows[name]["side"], rows[name]["image_source"], rows[name]["series_uid"]) == expected
    splits = json.loads((tmp_path / "preprocessed/Dataset503_OAIAKOA/splits_final.json").read_text())
    for split in splits:
        assert not {case[:7] for case in split["train"]} & {case[:7] for case in split["val"]}


def test_akoa_refuses_a_repeat_with_the_same_grid_until_one_is_named(tmp_path, capsys):
    cases = akoa_tree(tmp_path)
    knee = cases["9001104_36m"]
    repeat = write_visit(tmp_path / "oai", "36m", "9001104", knee, barcode="10500070", with_other_series=False)
    words = ("oai_akoa", "--labels", tmp_path / "masks", "--oai", tmp_path / "oai")
    assert convert(*words) == 3
    told = words_of(capsys)
    assert "10500000" in told
    assert "10500070" in told
    assert "2 of them have it" in told
    uid = pydicom.dcmread(repeat / "001").SeriesInstanceUID
    assert convert(*words, "--series", uid, "-d", 603) == 0  # the others have one candidate each
    assert convert(*words, "--series", uid) == 0
    assert manifest_of(tmp_path / "raw/Dataset503_OAIAKOA")["9001104_36m"]["series_uid"] == uid


def cm_tree(folder: Path) -> dict[str, Knee]:
    knees = {}
    for index, (subset, name) in enumerate((("Tr", "oaizib_001"), ("Tr", "oaizib_002"), ("Ts", "oaizib_405"))):
        knee = make_knee(index)
        array = sitk.GetArrayFromImage(zib_labels(knee.labels))
        # x runs to the patient's right: in a right knee the lateral compartment has the larger x.
        middle = np.median(np.nonzero(array == 4)[2])
        array[(array == 4) & (np.arange(array.shape[2]) > middle)] = 5
        labels = sitk.GetImageFromArray(array)
        labels.CopyInformation(knee.labels)
        knees[name] = Knee(knee.image, labels, knee.side)
        for kind, file, image in (("images", f"{name}_0000", knee.image), ("labels", name, labels)):
            (folder / f"{kind}{subset}").mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(folder / f"{kind}{subset}" / f"{file}.nii.gz"), True)
    return knees


@pytest.mark.parametrize("keep", [False, True])
def test_cm_merges_or_keeps_compartments(tmp_path, keep):
    knees = cm_tree(tmp_path / "cm")
    assert convert("oaizib_cm", "-i", tmp_path / "cm", *(["--keep_compartments"] if keep else [])) == 0
    dataset = tmp_path / "raw/Dataset504_OAIZIBCM"
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "labelsTr/oaizib_001.nii.gz")))
    truth = sitk.GetArrayFromImage(knees["oaizib_001"].labels)
    np.testing.assert_array_equal(written, truth if keep else np.minimum(truth, 4))
    described = json.loads((dataset / "dataset.json").read_text())
    assert described["numTraining"] == 2
    assert len(described["labels"]) == (6 if keep else 5)
    assert (dataset / "imagesTs/oaizib_405_0000.nii.gz").is_file()
    assert (dataset / "labelsTs/oaizib_405.nii.gz").is_file()
    assert {row["side"] for row in manifest_of(dataset).values()} == {"right"}
    assert manifest_of(dataset)["oaizib_405"]["subset"] == "test"


def test_cm_with_labels_of_another_table_is_refused(tmp_path, capsys):
    cm_tree(tmp_path / "cm")
    file = tmp_path / "cm/labelsTr/oaizib_002.nii.gz"
    mask = sitk.ReadImage(str(file))
    foreign = sitk.GetImageFromArray(np.array([0, 4, 1, 5, 2, 3], np.uint8)[sitk.GetArrayFromImage(mask)])
    foreign.CopyInformation(mask)
    sitk.WriteImage(foreign, str(file))
    assert convert("oaizib_cm", "-i", tmp_path / "cm") == 3
    told = " ".join("".join(capsys.readouterr()).split("1 case failed:")[1].split())
    assert "oaizib_002.nii.gz: its labels have not the shapes of what their values stand for" in told
    assert "tibial_cartilage is" in told
    assert "expected 1 femoral_bone, 2 femoral_cartilage, 3 tibial_bone, 4 medial_tibial_cartilage" in told


def test_cm_with_another_knees_mask_under_a_copied_header_is_refused(tmp_path, capsys):
    cm_tree(tmp_path / "cm")
    other = zib_labels(make_knee(77).labels)
    other.CopyInformation(sitk.ReadImage(str(tmp_path / "cm/labelsTr/oaizib_002.nii.gz")))
    sitk.WriteImage(other, str(tmp_path / "cm/labelsTr/oaizib_002.nii.gz"))
    assert convert("oaizib_cm", "-i", tmp_path / "cm") == 3
    told = words_of(capsys)
    assert "1 case failed: oaizib_002" in told
    assert "(evidence -" in told
    assert "it may be another knee's mask, 0.0" in told


def test_cm_whose_voxels_do_not_bear_out_the_header_is_named(tmp_path, capsys, monkeypatch):
    cm_tree(tmp_path / "cm")
    weigh = case.mapping_evidence

    def doubtful(*arrays):
        evidence = weigh(*arrays)
        return dataclasses.replace(evidence, rival_score=0.9 * evidence.score)

    monkeypatch.setattr(case, "mapping_evidence", doubtful)
    assert convert("oaizib_cm", "-i", tmp_path / "cm") == 0
    told = words_of(capsys)
    assert "voxels of 3 cases do not clearly bear out" in told
    assert "oaizib_002 (0.1" in told


def test_cm_whose_header_and_voxels_disagree_is_refused(tmp_path, capsys):
    knees = cm_tree(tmp_path / "cm")
    flipped = sitk.GetImageFromArray(sitk.GetArrayFromImage(knees["oaizib_002"].labels)[::-1].copy())
    flipped.CopyInformation(knees["oaizib_002"].labels)
    sitk.WriteImage(flipped, str(tmp_path / "cm/labelsTr/oaizib_002.nii.gz"))
    assert convert("oaizib_cm", "-i", tmp_path / "cm") == 3
    assert "by their voxels the mask's axes are 0- 1+ 2+" in words_of(capsys)


def _no_series(folder):
    shutil.rmtree(next((folder / "oai/00m/0.E.1/9001104/20050825").glob("10490000")))


def _truncated_slice(folder):
    file = next((folder / "oai/00m/0.E.1/9001104/20050825/10490000").glob("*5"))
    file.write_bytes(file.read_bytes()[:-500])


def _missing_slice(folder):
    (folder / "oai/00m/0.E.1/9001104/20050825/10490000/007").unlink()


def _two_echoes(folder):
    series = folder / "oai/00m/0.E.1/9001104/20050825/10490000"
    uid = pydicom.dcmread(series / "001").SeriesInstanceUID
    write_series(series, knee_of(0).image, first_name=101, series_uid=uid, echo_time=20.0, echo_number=2)


def _wrong_size(folder):
    target = folder / "zib/segmentation/segmentation_masks/9001104.segmentation_masks.mhd"
    write_zib_mask(target, zib_labels(make_knee(0, size=(40, 48, 44)).labels), order=(1, 0, 2), flips=(0, 2))


def _edited_mask(change):
    def edit(folder):
        file = folder / "zib/segmentation/segmentation_masks/9001104.segmentation_masks.mhd"
        mask = sitk.ReadImage(str(file))
        array = change(sitk.GetArrayFromImage(mask))
        result = sitk.GetImageFromArray(array)
        result.CopyInformation(mask)
        sitk.WriteImage(result, str(file))

    return edit


def _unknown(array):
    array[3, 4, 5:8] = 6
    return array


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_no_series, "10490000 is missing"),
        (_truncated_slice, "cut off"),
        (_missing_slice, "missing"),
        (_two_echoes, "lie at the same place"),
        (_wrong_size, "shape"),
        (_edited_mask(np.zeros_like), "is empty"),
        (_edited_mask(_unknown), "unknown labels: 6 (3 voxels)"),
        (_edited_mask(lambda array: array.astype(np.float32) / 2), "of its voxels are no whole numbers; expected a"),
    ],
)
def test_what_is_wrong_with_a_case_is_told_and_the_others_are_converted(tmp_path, capsys, spoil, expected):
    write_tree(tmp_path, subjects=SUBJECTS[:2])
    spoil(tmp_path)
    assert convert_zib(tmp_path) == 3
    told = words_of(capsys)
    assert expected in told.split("1 case failed:")[1]
    assert "unexpected" not in told
    dataset = tmp_path / "raw/Dataset501_OAIZIB"
    assert set(manifest_of(dataset)) == {"9002430"}
    assert [f.name for f in (dataset / "imagesTr").iterdir()] == ["9002430_0000.nii.gz"]


def test_whole_float_masks_are_converted_and_said_once(tmp_path, capsys):
    knees = write_tree(tmp_path, subjects=SUBJECTS[:2])
    _edited_mask(lambda array: array.astype(np.float64))(tmp_path)
    assert convert_zib(tmp_path) == 0
    assert_same_voxels(tmp_path / "raw/Dataset501_OAIZIB/labelsTr/9001104.nii.gz", knees["9001104"].labels)
    told = "".join(capsys.readouterr())
    assert told.count("floating-point") == 1
    assert "1 label map with floating-point numbers, taken as far as all of these are whole: " in told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--zib", "{tree}/zib", "--oai", "{tree}/nowhere"], "nowhere is no folder"),
        (["--zib", "{tree}/nowhere", "--oai", "{tree}/oai"], "nowhere is no folder"),
        (["--zib", "{tree}/zib", "--oai", "{tree}/zib"], "holds no OAI package"),
        (["--oai", "{tree}/oai"], "Give the segmentations"),
        (["--zib", "{tree}/zib", "--oai", "{tree}/oai", "--reference"], "--images"),
        (["--zib", "{tree}/zib", "--oai", "{tree}/oai", "--splits", "{tree}/none"], "none is no file"),
        (["--zib", "{tree}/zib", "--oai", "{tree}/oai", "-d", "0"], "from 1 to 999"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(tree, tmp_path, capsys, words, expected):
    folder, _ = tree
    status = convert("oai_zib", *(word.format(tree=folder) for word in words))
    shown = capsys.readouterr()
    assert status == 1
    assert expected in shown.err
    assert shown.err.count("\n") == 1
    assert not list((tmp_path / "raw").iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["oai_zib", "--zib", "zib"], "one of the arguments --oai --images is required"),
        (["oai_zib", "--zib", "zib", "--oai", "a", "--images", "b"], "not allowed with"),
        (["oai_akoa", "--oai", "a"], "the following arguments are required: --labels"),
    ],
)
def test_sources_that_are_missing_or_contradict_each_other_are_refused(capsys, words, expected):
    with pytest.raises(SystemExit) as ended:
        convert(*words)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_masks_given_as_images_are_refused(tree, tmp_path, capsys):
    folder, _ = tree
    assert convert("oai_zib", "--zib", folder / "zib", "--images", folder / "zib") == 3
    assert "is the label map itself" in words_of(capsys)
    assert not list((tmp_path / "raw").iterdir())


def test_number_that_is_taken_is_refused(tree, tmp_path, capsys):
    folder, _ = tree
    (tmp_path / "results" / "Dataset501_Other").mkdir()
    assert convert_zib(folder) == 1
    assert "taken by Dataset501_Other" in capsys.readouterr().err
    foreign = tmp_path / "raw" / "Dataset502_OAIZIB"
    foreign.mkdir()
    (foreign / "note.txt").write_text("mine")
    assert convert_zib(folder, "-d", 502, "--overwrite") == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert files_of(foreign) == {"note.txt": b"mine"}
