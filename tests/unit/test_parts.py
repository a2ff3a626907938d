"""Verbs in parts: several jobs share a folder, and the verb without parts then writes the tables of one run."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.files import temporary_beside
from nnunetv2_anomaly.labels import LABELS

CASES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    """Five label maps of a bone with strays, each another one."""
    folder = tmp_path_factory.mktemp("predictions")
    for number, case in enumerate(CASES):
        voxels = np.zeros((12, 14, 60), np.uint8)
        voxels[2:8, 2:9, 2 : 9 + number] = 1
        voxels[4, 4, 50 + number] = 1
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing((1.0, 1.0, 1.0))
        sitk.WriteImage(image, str(folder / f"{case}.nii.gz"))
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    return folder


def words(verb, folder, output):
    if verb == "postprocess":
        return ["postprocess", "-i", str(folder), "-o", str(output), "-np", "1"]
    if verb == "measure":
        quantities = ["--quantities", "volumes", "--no_reports", "--no_maps", "--side", "right"]
        return ["measure", "-i", str(folder), "-o", str(output), "-np", "1", *quantities]
    return ["evaluate", "-ref", str(folder), "-pred", f"same={folder}", "-o", str(output), "-np", "1"]


TABLES = {
    "postprocess": ("removed.csv", "b.nii.gz"), "measure": ("measurements.csv", "summary.csv"),
    "evaluate": ("tables/cases.csv",),
}  # fmt: skip


@pytest.mark.parametrize("verb", TABLES)
def test_parts_and_then_all_make_what_one_run_makes(predictions, tmp_path, verb):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(words(verb, predictions, whole)) == 0
    seen = []
    for part in ("1", "0"):
        assert main([*words(verb, predictions, parts), "-num_parts", "2", "-part_id", part]) == 0
        seen.append({file.stem for file in (parts / "cases").glob("?.json")})
        if part == "1":
            half_written = temporary_beside(parts / "cases" / "of_another_part.json")
            half_written.touch()
        assert half_written.exists()
        assert not (parts / TABLES[verb][0]).exists()
    assert seen == [{"b", "d"}, set(CASES)]
    records = {file: file.stat().st_mtime_ns for file in (parts / "cases").glob("?.json")}
    assert main(words(verb, predictions, parts)) == 0
    assert not half_written.exists()
    assert records == {file: file.stat().st_mtime_ns for file in (parts / "cases").glob("?.json")}
    for table in TABLES[verb]:
        assert (parts / table).read_bytes() == (whole / table).read_bytes()


def test_a_part_that_does_not_exist_is_reported(predictions, tmp_path, capsys):
    assert main([*words("postprocess", predictions, tmp_path / "o"), "-num_parts", "2", "-part_id", "2"]) == 1
    assert "-part_id 2; expected at least one part, and its number from 0 to 1" in capsys.readouterr().err
