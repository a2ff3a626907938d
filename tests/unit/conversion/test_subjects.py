import pytest
from places import OAI_SPLITS

from nnunetv2_anomaly.conversion.subjects import Subject, read_subjects
from nnunetv2_anomaly.errors import UserError

SHARED = OAI_SPLITS / "oai_zib_subject_info.csv"


@pytest.mark.skipif(not SHARED.is_file(), reason="the subject table of OAI ZIB is not at hand")
def test_table_of_oai_zib():
    table = read_subjects(SHARED)
    assert len(table) == 507
    assert len(table.series_paths()) == 507
    assert table.get("9001104") == Subject(
        "9001104", None, "right", 3, "female", 72.0, 30.7, "0.E.1/9001104/20050825/10498212"
    )


def test_columns_in_any_order_and_unknown_cells(tmp_path):
    file = tmp_path / "table.csv"
    file.write_bytes(b"\xef\xbb\xbfklgrade,SubjectID,Other,KneeSide\r\n,9001104,secret,2\r\n4,9002430,,\r\n\r\n")
    table = read_subjects(file)
    assert table.get("9001104") == Subject("9001104", side="left")
    assert table.get("9002430", "00m") == Subject("9002430", kl_grade=4)
    # A line without a visit is of the baseline: the grade may have changed since.
    assert table.get("9002430", "36m") == Subject("9002430")
    assert table.get("9999999") is None


def test_lines_by_visit(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("SubjectID,Visit,KLGrade\n9001104,V00,2\n9001104,36m,3\n")
    table = read_subjects(file)
    assert [table.get("9001104", visit).kl_grade for visit in ("00m", "36m")] == [2, 3]
    assert table.get("9001104", "48m") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Subject,KneeSide\n1,1\n", "no column SubjectID"),
        ("SubjectID\n", "no column SubjectID, or no line"),
        ("SubjectID,KneeSide\n1,3\n", "line 2: KneeSide is 3; expected 1"),
        ("SubjectID,KLGrade\n1,5\n", "line 2: KLGrade is 5; expected 0 to 4"),
        ("SubjectID,KLGrade\n1,two\n", "line 2: KLGrade is two; expected a number"),
        ("SubjectID,Age\n1,60\n1,61\n", "line 3: subject 1 is listed a second time"),
        ("SubjectID,Age\n,60\n", "line 2: SubjectID is empty"),
        ("SubjectID,Visit\n1,soon\n", "line 2: Visit is soon; expected one of 00m"),
    ],
)
def test_faulty_tables(tmp_path, content, expected):
    file = tmp_path / "table.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=expected):
        read_subjects(file)
