"""Simulated folders: what is written, kept, resumed and refused."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_anomaly.command_line import main as command
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.simulation.phantom import draw_phantom, phantom_image, render_label_map
from nnunetv2_anomaly.simulation.resampling import resample_labels
from nnunetv2_anomaly.simulation.simulate import case_names, simulate_folder

SIZE, SPACING_MM = (24, 32, 32), (4.0, 3.5, 3.5)  # SimpleITK order
GRID = {"size": SIZE, "spacing_mm": SPACING_MM, "num_processes": 1}


def label_image(seed=1, side="right"):
    return phantom_image(
        draw_phantom(np.random.default_rng(seed), side=side, lesion_share=1.0), size=SIZE, spacing_mm=SPACING_MM
    )


def read(path):
    return sitk.ReadImage(str(path))


def array(path):
    return sitk.GetArrayFromImage(read(path))


def assert_same_geometry(image, reference):
    assert image.GetSize() == reference.GetSize()
    assert image.GetSpacing() == pytest.approx(reference.GetSpacing(), rel=1e-6)
    assert image.GetOrigin() == pytest.approx(reference.GetOrigin(), rel=1e-6, abs=1e-4)
    assert image.GetDirection() == pytest.approx(reference.GetDirection(), abs=1e-6)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "knees"
    manifest = simulate_folder(folder, num_phantoms=4, seed=3, **GRID)
    return folder, manifest


def test_a_phantom_folder_is_written_whole(simulated):
    folder, manifest = simulated
    cases = [f"phantom_{index:04d}" for index in range(4)]
    assert sorted(manifest["cases"]) == cases
    assert sorted(p.name for p in folder.iterdir()) == [
        "anomalies",
        "cases.csv",
        "images",
        "labels",
        "labels_3dslicer.ctbl",
        "labels_itksnap.txt",
        "manifest.json",
        "overview.png",
    ]
    assert sorted(p.name for p in (folder / "images").iterdir()) == [f"{case}_0000.nii.gz" for case in cases]
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    for case in cases:
        image, labels = read(folder / "images" / f"{case}_0000.nii.gz"), read(folder / "labels" / f"{case}.nii.gz")
        anomalies = read(folder / "anomalies" / f"{case}.nii.gz")
        assert_same_geometry(image, labels)
        assert_same_geometry(anomalies, labels)
        assert labels.GetSize() == SIZE
        assert (image.GetPixelID(), labels.GetPixelID()) == (sitk.sitkInt16, sitk.sitkUInt8)
        voxels = sitk.GetArrayFromImage(image)
        assert 0 <= voxels.min() < voxels.max() <= 1000
        entry = manifest["cases"][case]
        assert entry["side"] in ("left", "right")
        assert entry["seed"] == [3, zlib.crc32(case.encode())]
        volume_mm3 = (sitk.GetArrayFromImage(anomalies) == 8).sum() * np.prod(SPACING_MM)
        assert entry["anomaly_volumes_mm3"]["tibial_lesion"] == pytest.approx(volume_mm3, abs=0.01)


def test_a_case_depends_on_seed_and_name_only(simulated, tmp_path):
    folder, _ = simulated
    simulate_folder(tmp_path / "two", num_phantoms=2, seed=3, **{**GRID, "num_processes": 2})
    for name in ("images/phantom_0001_0000.nii.gz", "labels/phantom_0001.nii.gz"):
        assert np.array_equal(array(folder / name), array(tmp_path / "two" / name))
    simulate_folder(tmp_path / "other", num_phantoms=1, seed=4, **GRID)
    first = "labels/phantom_0000.nii.gz"
    assert not np.array_equal(array(folder / first), array(tmp_path / "other" / first))


def test_a_run_is_resumed_and_grows(tmp_path):
    simulate_folder(tmp_path / "o", num_phantoms=2, **GRID)
    kept, lost = (tmp_path / "o" / "images" / f"phantom_000{index}_0000.nii.gz" for index in (0, 1))
    written = kept.stat().st_mtime_ns
    before = array(lost)
    lost.unlink()
    manifest = simulate_folder(tmp_path / "o", num_phantoms=3, **GRID)
    assert kept.stat().st_mtime_ns == written
    assert np.array_equal(array(lost), before)
    assert len(manifest["cases"]) == 3


def test_a_damaged_case_is_made_again(tmp_path):
    simulate_folder(tmp_path / "o", num_phantoms=2, **GRID)
    damaged = tmp_path / "o" / "labels" / "phantom_0001.nii.gz"
    before, content = array(damaged), bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    simulate_folder(tmp_path / "o", num_phantoms=2, **GRID)
    assert np.array_equal(array(damaged), before)


@pytest.mark.parametrize("change", [dict.clear, lambda m: m.update(arguments=5), lambda m: m["cases"].update(a=None)])
def test_a_damaged_manifest_is_told(tmp_path, change):
    manifest = simulate_folder(tmp_path / "o", num_phantoms=1, **GRID)
    change(manifest)
    (tmp_path / "o" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*; restore it, or delete its folder"):
        simulate_folder(tmp_path / "o", num_phantoms=1, **GRID)


def test_what_killed_runs_left_half_written_is_deleted_and_their_images_are_no_cases(tmp_path):
    (tmp_path / "o" / "images").mkdir(parents=True)
    half = [tmp_path / "o" / f"part_of_nnunetv2_anomaly_1_{name}" for name in ("manifest.json", "overview.png")]
    half.append(tmp_path / "o" / "images" / "part_of_nnunetv2_anomaly_1_phantom_0000_0000.nii.gz")
    for file in half[:2]:  # before the manifest was there
        file.touch()
    (tmp_path / "o" / "images").rmdir()
    simulate_folder(tmp_path / "o", num_phantoms=1, **GRID)
    half[2].touch()
    simulate_folder(tmp_path / "o", num_phantoms=1, **GRID)
    assert not any(file.exists() for file in half)
    (tmp_path / "o" / "images" / "phantom_0001_0000.nii.gz").touch()  # of a case that is in no manifest yet
    with pytest.raises(UserError, match=r"holds 1 case that these arguments do not make \(phantom_0001\)"):
        simulate_folder(tmp_path / "o", num_phantoms=1, **GRID)
    assert sorted(simulate_folder(tmp_path / "o", num_phantoms=2, **GRID)["cases"]) == ["phantom_0000", "phantom_0001"]


def test_other_arguments_in_one_folder_are_refused(tmp_path):
    simulate_folder(tmp_path / "o", num_phantoms=2, **GRID)
    with pytest.raises(UserError, match=r"other arguments \(seed 0 there, 7 now\)"):
        simulate_folder(tmp_path / "o", num_phantoms=2, seed=7, **GRID)
    with pytest.raises(UserError, match=r"other arguments \(size 24, 32, 32 there, 16, 32, 32 now\)"):
        simulate_folder(tmp_path / "o", num_phantoms=2, **(GRID | {"size": (16, 32, 32)}))
    with pytest.raises(UserError, match=r"extra_lesions 0\.0 there, 2\.0 now"):
        simulate_folder(tmp_path / "o", num_phantoms=2, extra_lesions=2, **GRID)
    with pytest.raises(UserError, match=r"1 case that these arguments do not make \(phantom_0001\)"):
        simulate_folder(tmp_path / "o", num_phantoms=1, **GRID)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd", ".mhd"])
def test_the_geometry_and_labels_of_a_map_are_kept_exactly(tmp_path, ending):
    source = sitk.Cast(label_image(), sitk.sitkUInt16)
    source.SetOrigin((-22.7568, 80.6991, -80.2891))
    (tmp_path / "maps").mkdir()
    sitk.WriteImage(source, str(tmp_path / "maps" / f"9001104_WB01_Femur+Tibia(Bone){ending}"))
    manifest = simulate_folder(tmp_path / "o", labels_folder=tmp_path / "maps", num_processes=1)
    assert list(manifest["cases"]) == ["9001104_WB01"]
    assert manifest["cases"]["9001104_WB01"]["side"] is None
    for name in ("images/9001104_WB01_0000.nii.gz", "labels/9001104_WB01.nii.gz", "anomalies/9001104_WB01.nii.gz"):
        assert_same_geometry(read(tmp_path / "o" / name), source)
    assert np.array_equal(array(tmp_path / "o" / "labels" / "9001104_WB01.nii.gz"), sitk.GetArrayFromImage(source))


def test_a_map_in_another_axis_order_gives_an_upright_leg(tmp_path):
    source = label_image()
    (tmp_path / "maps").mkdir()
    turned = sitk.Flip(sitk.PermuteAxes(source, (2, 0, 1)), (True, False, True))
    sitk.WriteImage(turned, str(tmp_path / "maps" / "turned.nii.gz"))
    simulate_folder(tmp_path / "o", labels_folder=tmp_path / "maps", num_processes=1)
    image = read(tmp_path / "o" / "images" / "turned_0000.nii.gz")
    assert_same_geometry(image, turned)
    upright = sitk.Resample(image, source, sitk.Transform(), sitk.sitkNearestNeighbor)
    voxels = sitk.GetArrayFromImage(upright)
    # Air in front of the tibia, muscle behind it: only if the simulation knew where anterior is.
    assert voxels[:4, -4:, 8:16].mean() < 80 < voxels[:4, 3:6, 8:16].mean()


def test_a_changed_label_map_is_simulated_anew(tmp_path):
    (tmp_path / "maps").mkdir()
    file = tmp_path / "maps" / "knee.nii.gz"
    sitk.WriteImage(label_image(1), str(file))
    simulate_folder(tmp_path / "o", labels_folder=tmp_path / "maps", num_processes=1)
    sitk.WriteImage(label_image(2), str(file))
    simulate_folder(tmp_path / "o", labels_folder=tmp_path / "maps", num_processes=1)
    assert np.array_equal(array(tmp_path / "o" / "labels" / "knee.nii.gz"), sitk.GetArrayFromImage(label_image(2)))


def test_extra_lesions_are_in_the_truth_and_not_in_the_labels(tmp_path):
    manifest = simulate_folder(tmp_path / "o", num_phantoms=3, extra_lesions=6, **GRID)
    more = 0
    for case, entry in manifest["cases"].items():
        labels, anomalies = (array(tmp_path / "o" / kind / f"{case}.nii.gz") for kind in ("labels", "anomalies"))
        assert (anomalies[labels >= 7] == labels[labels >= 7]).all()
        more += ((anomalies > 0) & (labels < 7)).sum()
        assert sum(entry["anomaly_volumes_mm3"].values()) >= sum(entry["lesion_volumes_mm3"].values())
    assert more > 0


def test_case_names_are_short_where_unique_and_safe_always():
    names = case_names(
        [
            "9001104_WB01_Femur+Tibia+Patella(Bone).nii.gz",
            "9001105_00m_WB01_a+b.nii.gz",
            "9001105_36m_WB01_a+b.nii.gz",
            "9001106_WB01_left+x.nii",
            "9001106_WB01_right+x.nii",
            "knee 1 (right).mha",
        ]
    )
    assert list(names) == [
        "9001104_WB01",
        "9001105_00m_WB01",
        "9001105_36m_WB01",
        "9001106_WB01_left_x",
        "9001106_WB01_right_x",
        "knee_1_right",
    ]
    with pytest.raises(UserError, match="would both be the case knee_1"):
        case_names(["knee 1.nii.gz", "knee+1.nii.gz"])


def test_resampling_keeps_extent_places_and_volumes():
    parameters = dataclasses.replace(
        draw_phantom(np.random.default_rng(1)), cartilage_mm=(2.4, 2.6, 3.2), focal_losses=()
    )
    fine = phantom_image(parameters, size=(60, 96, 96), spacing_mm=(1.6, 1.2, 1.2))
    coarse = resample_labels(fine, size=(30, 48, 48))
    assert coarse.GetSpacing() == pytest.approx((3.2, 2.4, 2.4))
    assert_same_geometry(resample_labels(fine, spacing_mm=(3.2, 2.4, 2.4)), coarse)
    corners = [
        image.TransformContinuousIndexToPhysicalPoint(
            [-0.5 + far * n for far, n in zip(ends, image.GetSize(), strict=True)]
        )
        for ends in ((0, 0, 0), (1, 1, 1), (0, 1, 0))
        for image in (fine, coarse)
    ]
    for one, other in zip(corners[::2], corners[1::2], strict=True):
        assert one == pytest.approx(other)
    for label in (1, 2, 3, 5):
        statistics = [sitk.LabelShapeStatisticsImageFilter() for _ in range(2)]
        for image, measured in zip((fine, coarse), statistics, strict=True):
            measured.Execute(image)
        before, after = statistics
        assert after.GetPhysicalSize(label) == pytest.approx(before.GetPhysicalSize(label), rel=0.12)
        assert after.GetCentroid(label) == pytest.approx(before.GetCentroid(label), abs=0.6)


def test_resampling_counted_by_hand():
    labels = np.zeros((2, 2, 4), np.uint8)
    labels[:, :, 0] = 1  # half of the first block of eight voxels ...
    labels[0, 0, 1] = 1  # ... and one more
    labels[0, 0, 2:] = 7  # a quarter of the second block
    coarse = resample_labels(sitk.GetImageFromArray(labels), size=(2, 1, 1))
    assert sitk.GetArrayFromImage(coarse).tolist() == [[[1, 0]]]
    assert coarse.GetSpacing() == (2.0, 2.0, 2.0)
    assert coarse.GetOrigin() == (0.5, 0.5, 0.5)


def test_resampling_takes_the_median_of_bone_cartilage_and_background():
    # Four voxels become one; the cartilage fills least, and lies where the middle is.
    for column, expected in (
        ((1, 1, 1, 2), 1),
        ((1, 1, 2, 0), 2),
        ((3, 4, 0, 0), 0),
        ((7, 7, 1, 2), 7),
        ((1, 1, 7, 2), 1),
    ):
        image = sitk.GetImageFromArray(np.array(column, np.uint8).reshape(4, 1, 1))
        assert sitk.GetArrayFromImage(resample_labels(image, size=(1, 1, 1))).item() == expected


def test_size_and_spacing_together_cut_and_pad_about_the_centre():
    labels = np.ones((4, 4, 4), np.uint8)
    both = resample_labels(sitk.GetImageFromArray(labels), size=(2, 4, 6), spacing_mm=(1, 1, 1))
    expected = np.ones((6, 4, 2))
    expected[[0, -1]] = 0
    assert np.array_equal(sitk.GetArrayFromImage(both), expected)
    assert both.GetOrigin() == (1.0, 0.0, -1.0)


def test_phantoms_keep_the_fov_of_the_oai_when_one_of_size_and_spacing_is_given(tmp_path):
    manifest = simulate_folder(tmp_path / "o", num_phantoms=1, size=(16, 20, 20), num_processes=1)
    assert manifest["cases"]["phantom_0000"]["spacing_mm"] == pytest.approx([7.0, 7.0003, 7.0003], abs=1e-3)


def write_map(folder, labels, name="knee.nii.gz", spacing=(1.0, 1.0, 1.0)):
    folder.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(folder / name))
    return folder


def test_user_mistakes_are_told_in_one_sentence(tmp_path):
    output, cube = tmp_path / "o", np.zeros((8, 8, 8), np.uint8)
    with pytest.raises(UserError, match="nothing to simulate"):
        simulate_folder(output)
    with pytest.raises(UserError, match="missing is no folder"):
        simulate_folder(output, labels_folder=tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no label map"):
        simulate_folder(output, labels_folder=tmp_path / "empty")
    with pytest.raises(UserError, match="size is 0, 4, 4; expected"):
        simulate_folder(output, num_phantoms=1, size=(0, 4, 4))
    with pytest.raises(UserError, match="spacing is 1, 1, -1; expected"):
        simulate_folder(output, num_phantoms=1, spacing_mm=(1, 1, -1))
    for lesions in (-1, 1e9, float("nan")):
        with pytest.raises(UserError, match=r"extra_lesions is .*; expected a mean number from 0 to 100, as"):
            simulate_folder(output, num_phantoms=1, extra_lesions=lesions)
    with pytest.raises(UserError, match=r"1000000000 phantoms, .* expected 0 to 100000 phantoms"):
        simulate_folder(output, num_phantoms=10**9)
    # 10^15 voxels of 40 bytes, and the OAI's field of view in voxels of 0.05 mm.
    with pytest.raises(UserError, match=r"take about 37252903 GiB of memory; expected at most 268,435,456 voxels"):
        simulate_folder(output, num_phantoms=1, size=(100_000, 100_000, 100_000))
    with pytest.raises(UserError, match=r"2240 x 2800 x 2800 voxels take about 654 GiB of memory; .* larger --spacing"):
        simulate_folder(output, num_phantoms=1, spacing_mm=(0.05, 0.05, 0.05))
    assert not output.exists()
    large = write_map(tmp_path / "large", np.ones((8, 8, 8), np.uint8), spacing=(20.0, 20.0, 20.0))
    with pytest.raises(UserError, match=r"1 of 1 case could not be .*:\n  knee: 3200 x 3200 x 3200 voxels take"):
        simulate_folder(tmp_path / "o1", labels_folder=large, spacing_mm=(0.05, 0.05, 0.05), num_processes=1)

    unknown = cube.copy()
    unknown[0, 0, :3] = 12
    with pytest.raises(UserError, match=r"odd\.nii\.gz holds unknown labels: 12 \(3 voxels\)"):
        simulate_folder(output, labels_folder=write_map(tmp_path / "odd", unknown, "odd.nii.gz"), num_processes=1)
    (tmp_path / "four").mkdir()
    four = sitk.GetImageFromArray(np.zeros((2, 8, 8, 8), np.uint8), isVector=False)
    sitk.WriteImage(four, str(tmp_path / "four" / "knee.nii.gz"))
    with pytest.raises(UserError, match=r"knee\.nii\.gz has 4 dimensions"):
        simulate_folder(tmp_path / "o4", labels_folder=tmp_path / "four", num_processes=1)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no manifest"):
        simulate_folder(tmp_path / "home", num_phantoms=1, **GRID)


def test_an_error_in_a_worker_process_reaches_the_user(tmp_path):
    folder = write_map(tmp_path / "maps", np.full((8, 8, 8), 10, np.uint8), "one.nii.gz")
    write_map(folder, np.full((8, 8, 8), 10, np.uint8), "two.nii.gz")
    with pytest.raises(UserError, match=r"10 \(512 voxels\)"):
        simulate_folder(tmp_path / "o", labels_folder=folder, num_processes=2)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_maps_that_cannot_be_read_or_written_do_not_stop_the_others(tmp_path, num_processes):
    folder = tmp_path / "maps"
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz", f"{'l' * 247}.nii.gz"):
        write_map(folder, np.ones((8, 8, 8), np.uint8), name)
    (folder / "a.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes()[:50])
    (folder / "c.nii.gz").rename(folder / os.fsdecode(b"c\xff.nii.gz"))
    with pytest.raises(UserError) as caught:
        simulate_folder(tmp_path / "o", labels_folder=folder, num_processes=num_processes)
    first, *told = str(caught.value).splitlines()
    assert first == "3 of 5 cases could not be simulated:"
    assert [line.split(": ")[0].strip() for line in told] == ["a", "c", "l" * 247]
    assert "a.nii.gz is cut short or damaged" in told[0]
    assert "holds bytes that are no text" in told[1]
    assert told[2].endswith("at most 255 bytes, its ending included, so shorten it")
    assert sorted(json.loads((tmp_path / "o" / "manifest.json").read_text())["cases"]) == ["b", "d"]
    assert sorted(path.name for path in (tmp_path / "o" / "images").iterdir()) == ["b_0000.nii.gz", "d_0000.nii.gz"]


def test_the_command_writes_knees_and_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    arguments = ["simulate", "-o", str(tmp_path / "o"), "--phantoms", "3", "--size", "24", "32", "32"]
    arguments += ["--spacing", "4", "3.5", "3.5", "-np", "1", "-d", "501", "--num_test", "1"]
    assert run_verb(arguments) == 0
    out = capsys.readouterr().out
    assert "2 training and 1 test case." in out
    assert out.startswith(
        "Taken as lesions: femoral_lesion in femoral_bone, tibial_lesion in tibial_bone, patellar_lesion in"
    )
    dataset = tmp_path / "raw" / "Dataset501_SimulatedKnees"
    assert len(list((dataset / "imagesTr").iterdir())) == 2
    before = (dataset / "dataset.json").stat().st_mtime_ns
    assert run_verb(arguments) == 0  # as after a kill at the very end
    assert (dataset / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="exists and is not empty"):
        run_verb([*arguments, "--keep_lesion_labels"])
    with pytest.raises(UserError, match="give its number with -d"):
        run_verb([*arguments[:4], "3", "--num_test", "1"])


def run_verb(arguments):
    """The verb alone, so that this test does not depend on the other verbs' modules."""
    import argparse

    from nnunetv2_anomaly.command_line import simulate

    assert arguments[0] in command.VERBS
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    return simulate.run(parser.parse_args(arguments[1:]))


def test_the_documented_frames_agree():
    """GetArrayFromImage of the phantom image is the rendered map, size and spacing in reverse order."""
    parameters = draw_phantom(np.random.default_rng(0))
    image = phantom_image(parameters, size=SIZE, spacing_mm=SPACING_MM)
    labels = render_label_map(parameters, shape=SIZE[::-1], spacing_mm=SPACING_MM[::-1])
    assert np.array_equal(sitk.GetArrayFromImage(image), labels)
