from pathlib import Path

import pytest

from nnunetv2_anomaly.conversion.sources import (
    ImageFolder,
    OaiPackages,
    find_series_paths_file,
    read_series_paths,
    subject_of,
    visit_of,
)
from nnunetv2_anomaly.errors import UserError

SERIES = "00m/0.E.1/9001104/20050825/10498212"


def make(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).mkdir(parents=True)
    return folder


@pytest.mark.parametrize("root", [".", "00m", "00m/0.E.1", "..", "../.."])
def test_root_may_be_anywhere_from_the_package_to_two_folders_above_the_visits(tmp_path, root):
    oai = make(tmp_path / "download" / "oai", SERIES, "36m/5.E.1/9001104/20080901/10500000")
    packages = OaiPackages([(oai / root).resolve()])
    assert packages.series_at("0.E.1/9001104/20050825/10498212").path.resolve() == oai / SERIES
    found = packages.series_of_visit("9001104", "00m")
    assert [source.path.resolve() for source in found] == [oai / SERIES]
    assert found[0].relative.endswith("9001104/20050825/10498212")


def test_several_roots_make_one_collection_and_a_folder_counts_once(tmp_path):
    first = make(tmp_path / "a", SERIES)
    second = make(tmp_path / "b", "00m/0.C.2/9002817/20050330/10756612", SERIES)
    packages = OaiPackages([first, second, second])
    assert len(packages.series_of_visit("9001104", "00m")) == 1
    assert len(packages.series_of_visit("9002817", "00m")) == 1


def test_visits_are_told_apart_by_their_packages(tmp_path):
    visits = {"00m": 0, "12m": 1, "18m": 2, "24m": 3, "30m": 4, "36m": 5, "48m": 6, "72m": 8, "96m": 10}
    paths = {visit: f"{visit}/{number}.E.1/9001104/2005/{number}" for visit, number in visits.items()}
    packages = OaiPackages([make(tmp_path, *paths.values())])
    for visit, path in paths.items():
        assert [source.relative for source in packages.series_of_visit("9001104", visit)] == [path]


def test_package_in_another_visits_folder_is_not_taken(tmp_path):
    packages = OaiPackages([make(tmp_path, "36m/6.E.1/9001104/2005/1", "36m/5.E.1/9001104/2005/2")])
    assert [source.path.name for source in packages.series_of_visit("9001104", "36m")] == ["2"]
    with pytest.raises(UserError, match="no package of visit 48m"):
        packages.series_of_visit("9001104", "48m")


def test_what_is_missing_is_named(tmp_path):
    packages = OaiPackages([make(tmp_path, SERIES)])
    with pytest.raises(UserError, match=r"no series of subject 9002817 in visit 00m; looked in .*0\.E\.1"):
        packages.series_of_visit("9002817", "00m")
    with pytest.raises(UserError, match=r"0\.E\.1/9001104/1/2 is missing; expected its slices in"):
        packages.series_at("0.E.1/9001104/1/2")


@pytest.mark.parametrize(
    ("name", "subject", "visit"),
    [
        ("9001104.nii.gz", "9001104", None),
        ("9001104_0000.nii.gz", "9001104", None),
        ("9001104.segmentation_masks.mhd", "9001104", None),
        ("9001104_WB01_Femur+Tibia+Patella(Bone)_Femur+Tibia+Patella(Cartilage).nii.gz", "9001104", None),
        ("9001104_36m_WB01_Femur+Tibia.nii.gz", "9001104", "36m"),
        ("OAI9001104_V10_SAG_3D_DESS_LEFT.mha", "9001104", "96m"),
        ("9001104_00m_0000.nrrd", "9001104", "00m"),
        ("9001104_9002817.nii.gz", None, None),
        ("16610498212.nii.gz", None, None),
        ("9001104_00m_36m.nii", "9001104", None),
    ],
)
def test_subject_and_visit_in_file_names(name, subject, visit):
    assert (subject_of(Path(name)), visit_of(Path(name))) == (subject, visit)


def test_images_by_visit_and_without(tmp_path):
    for name in ("9001104_00m.nii.gz", "9001104_36m.nii.gz", "9002817.mha", "notes.txt", ".9001104_48m.nii.gz"):
        (tmp_path / name).touch()
    images = ImageFolder(tmp_path)
    assert [source.relative for source in images.images_of("9001104", "36m")] == ["9001104_36m.nii.gz"]
    assert [source.relative for source in images.images_of("9002817", "00m")] == ["9002817.mha"]
    with pytest.raises(UserError, match=r"which holds 9001104_00m.nii.gz, 9001104_36m.nii.gz"):
        images.images_of("9001104", "48m")


def test_list_of_series_in_every_form_that_goes_round(tmp_path):
    file = tmp_path / "oai_mri_paths.txt"
    file.write_bytes(
        b"\xef\xbb\xbf9001104: 0.E.1/9001104/20050825/10498212,\r\n\r\n9002430:00m/0.E.1/9002430/20050620/10934812/\r\n"
        b"9002817: 0.C.2\\9002817\\20050330\\10756612"
    )
    assert read_series_paths(file) == {
        "9001104": "0.E.1/9001104/20050825/10498212",
        "9002430": "0.E.1/9002430/20050620/10934812",
        "9002817": "0.C.2/9002817/20050330/10756612",
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("9001104 0.E.1/9001104/1/2", r"line 1: '9001104 0.E.1"),
        ("9001104: ../../9001104/x", "line 1"),
        ("9001104: 0.E.1/9002430/1/2", "line 1"),
        ("9001104: a/9001104/1\n9001104: b/9001104/1", "line 2: subject 9001104 is listed a second time"),
        ("\n", "is empty"),
    ],
)
def test_faulty_list_of_series(tmp_path, content, expected):
    file = tmp_path / "paths.txt"
    file.write_text(content)
    with pytest.raises(UserError, match=expected):
        read_series_paths(file)


def test_list_of_series_is_found_from_the_release_or_the_masks(tmp_path):
    file = make(tmp_path, "segmentation/doc", "segmentation/segmentation_masks") / "segmentation/doc/oai_mri_paths.txt"
    assert find_series_paths_file([tmp_path]) is None
    file.touch()
    for folder in (tmp_path, tmp_path / "segmentation", tmp_path / "segmentation/segmentation_masks"):
        assert find_series_paths_file([folder]).resolve() == file
