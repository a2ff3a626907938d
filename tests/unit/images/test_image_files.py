import gzip
import os
import subprocess

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import label_source_sha256
from nnunetv2_anomaly.images.files import check_whole, image_stem, read_image, write_image
from nnunetv2_anomaly.images.label_maps import count_values, note_of_floats, read_label_map
from nnunetv2_anomaly.images.segmentations import SegmentationFiles


def noise(shape=(20, 30, 40)) -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16))
    image.SetSpacing((0.7, 0.4, 0.5))
    return image


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_what_is_written_is_read(tmp_path, ending):
    write_image(noise(), tmp_path / f"image{ending}")
    image = read_image(tmp_path / f"image{ending}")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(noise()))
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.4, 0.5), rtol=1e-6)
    assert image.GetMetaDataKeys() == ()


def test_an_image_in_two_files_is_not_written(tmp_path):
    """Its header would name a temporary file, which the next run deletes."""
    with pytest.raises(UserError, match=r"image\.mhd is MetaImage in two files; expected an ending of one"):
        write_image(noise(), tmp_path / "image.mhd")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("missing", [30, 2000])
def test_file_that_is_cut_short_is_refused(tmp_path, ending, missing):
    path = tmp_path / f"image{ending}"
    write_image(noise(), path)
    os.truncate(path, path.stat().st_size - missing)
    with pytest.raises(UserError, match=f"image{ending}"):
        read_image(path)


@pytest.mark.parametrize("place", [b"LOCAL", b"Local"])
def test_a_checksum_is_compared_however_a_header_is_spelled(tmp_path, place):
    path = tmp_path / "image.mha"
    sitk.WriteImage(noise(), str(path), True)
    content = path.read_bytes().replace(b"CompressedData = True", b"CompressedData = true").replace(b"LOCAL", place)
    path.write_bytes(content)
    check_whole(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="cut short or damaged"):
        check_whole(path)


def test_gzip_of_several_members_is_whole(tmp_path):
    plain, path = tmp_path / "image.nii", tmp_path / "image.nii.gz"
    sitk.WriteImage(noise(), str(plain))
    content = plain.read_bytes()
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    check_whole(path)
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:-2]))
    with pytest.raises(UserError, match="cut short"):
        check_whole(path)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".mhd", ".nrrd"])
def test_no_flipped_bit_passes_unnoticed(tmp_path, ending, kind):
    """ITK reads a damaged .nii.gz with millions of wrong voxels."""
    path = tmp_path / f"image{ending}"
    write = (
        noise((10, 20, 30))
        if kind is np.float32
        else sitk.GetImageFromArray((np.indices((10, 20, 30))[2] // 5).astype(kind))
    )
    sitk.WriteImage(write, str(path), True)
    check_whole(path)
    packed = path.with_suffix(".zraw") if ending == ".mhd" else path
    content = packed.read_bytes()
    text = {".mha": content.find(b"LOCAL") + 6, ".nrrd": content.find(b"\n\n") + 2}.get(ending, 0)
    random = np.random.default_rng(0)
    for _ in range(20):
        spoiled = bytearray(content)
        spoiled[random.integers(text, len(content))] ^= 1 << int(random.integers(8))
        packed.write_bytes(spoiled)
        try:
            check_whole(path)
        except UserError:
            continue
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (sitk.ReadImage(str(path)), write)))


def test_full_disk_is_noticed_and_what_was_there_stays(tmp_path):
    """ITK writes NIfTI to a full disk without a word."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone; the twin below runs everywhere")
    try:
        write_image(noise((5, 10, 10)), disk / "image.nii.gz")
        before = (disk / "image.nii.gz").read_bytes()
        for ending in (".nii.gz", ".nii", ".mha"):
            with pytest.raises(OSError, match="image"):
                write_image(noise((60, 60, 60)), disk / f"image{ending}")
        assert (disk / "image.nii.gz").read_bytes() == before
        assert [f.name for f in disk.iterdir()] == ["image.nii.gz"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_file_that_came_out_short_does_not_take_the_place_of_a_good_one(tmp_path, monkeypatch):
    path = tmp_path / "image.nii.gz"
    write_image(noise(), path)
    before = path.read_bytes()
    write = sitk.WriteImage

    def cut(image, name, *options):
        write(image, name, *options)
        os.truncate(name, os.path.getsize(name) // 2)

    monkeypatch.setattr(sitk, "WriteImage", cut)
    with pytest.raises(OSError, match="too short"):
        write_image(noise(), path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["image.nii.gz"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("missing", [500, None])
def test_voxels_beside_a_header(tmp_path, compressed, missing):
    sitk.WriteImage(noise(), str(tmp_path / "mask.mhd"), compressed)
    voxels = tmp_path / ("mask.zraw" if compressed else "mask.raw")
    if missing is None:
        voxels.unlink()
    else:
        os.truncate(voxels, voxels.stat().st_size - missing)
    told = (
        "or its file of voxels is cut short"
        if compressed and missing
        else r"cannot be read as an image .*: and its \.raw\) is"
    )
    with pytest.raises(UserError, match=rf"mask\.mhd {told}"):
        read_image(tmp_path / "mask.mhd")


def test_checksum_of_a_header_covers_its_voxels(tmp_path):
    sitk.WriteImage(noise(), str(tmp_path / "mask.mhd"))
    before = label_source_sha256(tmp_path / "mask.mhd")
    voxels = tmp_path / "mask.raw"
    voxels.write_bytes(voxels.read_bytes()[::-1])
    assert label_source_sha256(tmp_path / "mask.mhd") != before


def test_metaimage_in_capitals(tmp_path):
    sitk.WriteImage(noise(), str(tmp_path / "mask.mhd"))
    (tmp_path / "mask.mhd").rename(tmp_path / "MASK.MHD")
    assert read_image(tmp_path / "MASK.MHD").GetSize() == (40, 30, 20)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(tmp_path, value):
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 1, 1] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "image.nii.gz"))
    with pytest.raises(UserError, match="infinite voxels or NaN"):
        read_image(tmp_path / "image.nii.gz")


def test_stem_of_image_files():
    from pathlib import Path

    assert image_stem(Path("a.b.nii.gz")) == "a.b"
    with pytest.raises(ValueError, match="ends in none"):
        image_stem(Path("a.png"))


def write_labels(path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def test_label_map_comes_back_as_uint8(tmp_path):
    array = np.zeros((3, 4, 5), np.int32)
    array[1, 2, 3] = 2
    write_labels(tmp_path / "a.nii.gz", array)
    labels = read_label_map(tmp_path / "a.nii.gz", {"background": 0, "bone": 2})
    assert labels.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), array)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 2, 2), 7, np.uint8), r"unknown labels: 7 \(8 voxels\); expected 0 background, 1 bone"),
        (np.full((2, 2, 2), -1, np.int16), r"unknown labels: -1 \(8 voxels\)"),
        (np.full((2, 2, 2), 7, np.float32), r"unknown labels: 7 \(8 voxels\)"),
        (np.full((2, 2, 2), 0.5, np.float32), "8 of its voxels are no whole numbers; .* that was not interpolated"),
        (np.zeros((2, 2), np.uint8), "2 dimensions"),
    ],
)
def test_what_is_no_label_map(tmp_path, array, expected):
    write_labels(tmp_path / "a.nii.gz", array)
    with pytest.raises(UserError, match=expected):
        read_label_map(tmp_path / "a.nii.gz", {"background": 0, "bone": 1})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_floats_are_a_label_map_and_said_once(tmp_path, dtype):
    for name, kind in (("a", dtype), ("b", dtype), ("c", np.uint8)):
        write_labels(tmp_path / f"{name}.nii.gz", np.ones((2, 2, 2), kind))
    labels = read_label_map(tmp_path / "a.nii.gz", {"background": 0, "bone": 1})
    assert labels.GetPixelID() == sitk.sitkUInt8
    assert (sitk.GetArrayFromImage(labels) == 1).all()
    files = [tmp_path / f"{name}.nii.gz" for name in ("a", "b", "c", "missing")]
    taken = "2 label maps with floating-point numbers, taken as far as all of these are whole"
    assert note_of_floats(files) == [f"{taken}: {files[0]}, {files[1]}."]
    assert note_of_floats(files[2:]) == []


@pytest.mark.parametrize(("slope", "inter"), [(1.0000001, 0.0), (0.9882, 0.0), (1.0, 0.25), (1.0, 1e-6)])
def test_scale_of_the_header_is_named_where_labels_are_no_whole_numbers(tmp_path, slope, inter):
    image = nibabel.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4))
    image.header.set_slope_inter(slope, inter)
    nibabel.save(image, tmp_path / "a.nii.gz")
    content = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    content[112:120] = np.array([slope, inter], np.float32).tobytes()
    content[352:] = np.ones(8, np.int16).tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    told = f"8 of its voxels are no whole numbers.*by scl_slope {slope} and scl_inter {inter}: set them to 1 and 0"
    for read in (lambda path: read_label_map(path, {"background": 0, "bone": 1}), SegmentationFiles(".nii.gz").read):
        with pytest.raises(UserError, match=told):
            read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
def test_counts_of_values(dtype):
    assert count_values(np.array([[3, 0], [3, 200 % 128]], dtype)) == {0: 1, 3: 2, 72: 1}
