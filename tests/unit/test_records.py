import json
import os

import pytest

from nnunetv2_anomaly import records
from nnunetv2_anomaly.records import fingerprint, load_record, save_record


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "case.nii.gz"
    file.write_bytes(b"voxels")
    return file


def test_fingerprint_is_the_same_for_the_same_files_and_options(source):
    assert fingerprint([source], {"a": 1, "b": 2}) == fingerprint([source], {"b": 2, "a": 1})


def test_fingerprint_does_not_hang_on_how_a_path_is_spelled(source, monkeypatch):
    monkeypatch.chdir(source.parent)
    assert fingerprint([source], {}) == fingerprint([source.parent / ".." / source.parent.name / source.name], {})
    assert fingerprint([source], {}) == fingerprint([type(source)(source.name)], {})


@pytest.mark.parametrize("change", ["content", "gone", "other path", "one more"])
def test_fingerprint_changes_with_a_file(source, change):
    before, files = fingerprint([source], {}), [source]
    if change == "content":  # with size and time as before
        status = source.stat()
        source.write_bytes(b"others")
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert source.stat().st_size == status.st_size
    elif change == "gone":
        source.unlink()
    else:
        other = source.with_name("other.nii.gz")
        other.write_bytes(source.read_bytes())
        os.utime(other, ns=(0, source.stat().st_mtime_ns))
        files = [other] if change == "other path" else [source, other]
    assert fingerprint(files, {}) != before


def test_fingerprint_knows_the_voxels_beside_a_header(tmp_path):
    header, voxels = tmp_path / "a.mhd", tmp_path / "a.raw"
    header.write_text("ElementDataFile = a.raw\n")
    voxels.write_bytes(b"1")
    before = fingerprint([header], {})
    voxels.write_bytes(b"2")
    assert fingerprint([header], {}) != before


def test_fingerprint_changes_with_an_option_and_with_the_version(source, monkeypatch):
    before = fingerprint([source], {"distance": 50})
    assert fingerprint([source], {"distance": 51}) != before
    monkeypatch.setattr(records, "__version__", "0.0.0")
    assert fingerprint([source], {"distance": 50}) != before


def test_record_comes_back_under_its_fingerprint_alone(tmp_path):
    file = tmp_path / "cases" / "case.json"
    save_record(file, "abc", {"rows": [{"dsc": 0.5, "distance": None}]})
    assert load_record(file, "abc") == {"rows": [{"dsc": 0.5, "distance": None}]}
    assert load_record(file, "abd") is None
    assert [entry.name for entry in file.parent.iterdir()] == ["case.json"]


@pytest.mark.parametrize(
    "content", [b"", b'{"fingerprint": "abc", "fou', b"[]", b'"abc"', b"{}", b'{"fingerprint": "abc"}', b"\xff\xfe\x00"]
)
def test_broken_record_counts_as_none(tmp_path, content):
    file = tmp_path / "case.json"
    file.write_bytes(content)
    assert load_record(file, "abc") is None


def test_missing_record_is_none(tmp_path):
    assert load_record(tmp_path / "no folder" / "case.json", "abc") is None
    assert load_record(tmp_path, "abc") is None


def test_record_takes_the_place_of_an_older_one(tmp_path):
    file = tmp_path / "case.json"
    save_record(file, "abc", {"rows": [1]})
    save_record(file, "abd", {"rows": [2]})
    assert json.loads(file.read_text()) == {"fingerprint": "abd", "found": {"rows": [2]}}
