import functools
import operator

import pytest
from places import OAI_SPLITS

from nnunetv2_anomaly.conversion.splits import read_test_sets, seeded_test_sets, splits_from_test_sets
from nnunetv2_anomaly.errors import UserError


@pytest.mark.skipif(not OAI_SPLITS.is_dir(), reason="the published split files are not at hand")
@pytest.mark.parametrize(
    ("name", "sizes"), [("oai_zib.txt", [102, 102, 101, 101, 101]), ("oai_akoa.txt", [5, 5, 5, 5, 4])]
)
def test_published_files(name, sizes):
    assert [len(members) for members in read_test_sets(OAI_SPLITS / name)] == sizes


def test_form_of_the_published_files(tmp_path):
    file = tmp_path / "sets.txt"
    file.write_bytes(b"\xef\xbb\xbfTest set 1:\r\n9001104\r\n9002430,\r\n\r\nTest set 2:\r\n9002817\r\n")
    assert read_test_sets(file) == [["9001104", "9002430"], ["9002817"]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("9001104\n", "line 1: '9001104'; expected 'Test set N:'"),
        ("Test set 1:\n9001104\nTest set 2:\n9001104\n", "line 4: subject 9001104 is in test sets 1 and 2"),
        ("Test set 1:\nTest set 2:\n9001104\n", "some of them empty"),
        ("Test set 1:\ntwo words\n", "line 2: 'two words'"),
        ("", "holds 0 test sets"),
    ],
)
def test_faulty_files(tmp_path, content, expected):
    file = tmp_path / "sets.txt"
    file.write_text(content)
    with pytest.raises(UserError, match=expected):
        read_test_sets(file)


def test_every_case_validates_once_and_visits_stay_together():
    subjects = {"1_00m": "1", "1_36m": "1", "2_00m": "2", "3_00m": "3"}
    splits = splits_from_test_sets([["1"], ["2", "9"], ["3"]], subjects)
    assert [split["val"] for split in splits] == [["1_00m", "1_36m"], ["2_00m"], ["3_00m"]]
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(subjects)


def test_subject_in_no_test_set_is_refused():
    with pytest.raises(UserError, match=r"1 of the converted subjects are in none of the 1 test sets \(2\)"):
        splits_from_test_sets([["1"]], {"1": "1", "2": "2"})


def test_seeded_draw_is_even_repeatable_and_by_subject():
    subjects = {f"{subject}_{visit}": str(subject) for subject in range(24) for visit in ("00m", "36m")}
    sets = seeded_test_sets(subjects, 0)
    assert sorted(map(len, sets)) == [4, 5, 5, 5, 5]
    assert sorted(functools.reduce(operator.iadd, sets, [])) == sorted(set(subjects.values()))
    assert sets == seeded_test_sets(dict(reversed(subjects.items())), 0)
    assert sets != seeded_test_sets(subjects, 1)


@pytest.mark.parametrize(("number", "sizes"), [(1, []), (2, [1, 1]), (3, [1, 1, 1]), (6, [2, 1, 1, 1, 1])])
def test_few_subjects(number, sizes):
    assert [len(members) for members in seeded_test_sets({str(k): str(k) for k in range(number)}, 0)] == sizes
