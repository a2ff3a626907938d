import subprocess
import sys

import pytest
from oai_tree import make_knee
from places import OAI_SPLITS, SHARED

from nnunetv2_anomaly.conversion.subjects import Subject, read_subjects
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.files import write_image

TABLE = OAI_SPLITS / "oai_zib_subject_info.csv"


@pytest.mark.skipif(not TABLE.is_file(), reason="the subject table of OAI ZIB is not at hand")
def test_table_of_oai_zib():
    table = read_subjects(TABLE)
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
        ("SubjectID,Age\n1,inf\n", "line 2: Age is inf; expected a number between 0 and 130, or nothing"),
        ("SubjectID,Age\n1,-5\n", "line 2: Age is -5; expected a number between 0 and 130"),
        ("SubjectID,BMI\n1,1e999\n", "line 2: BMI is 1e999; expected a number between 5 and 150"),
        ("SubjectID,KLGrade\n1,inf\n", "line 2: KLGrade is inf; expected a number"),
        ("SubjectID,Age\n,60\n", "line 2: SubjectID is empty"),
        ("SubjectID,Visit\n1,soon\n", "line 2: Visit is soon; expected one of 00m"),
    ],
)
def test_faulty_tables(tmp_path, content, expected):
    file = tmp_path / "table.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=expected):
        read_subjects(file)


#: as the OAI's own text files are
ENROLLEES = (
    "ID|VERSION|P02SEX|V00IMAGESC\n9001104|25|2: Female|3: Yes, Knee MR and knee xray\n"
    "9002430|25|1: Male|.: Missing Form/Incomplete Workbook\n"
)
CODES = "SubjectID,KneeSide,KLGrade,Gender\n9001104,1: Right,2: Minimal,2: Female\n9002430,2: Left,.: Missing,1: Male\n"
CLINICAL = "ID|V00AGE|P01BMI|V01AGE|V99AGE\n9001104|72|30.7|73|80\n9002430|.V: Missing|27.4|.|\n"
READINGS = (
    "ID|SIDE|READPRJ|V00XRKL\n9001104|1: Right|37|3\n9001104|1: Right|15|2\n9001104|2: Left|15|4\n"
    "9002430|1: Right|15|.A: Not Expected\n9002430|1: Right|42|1: Doubtful\n9002817|2: Left|15|0\n"
)


def read(tmp_path, text, encoding="utf-8"):
    (tmp_path / "table.txt").write_bytes(text.encode(encoding))
    return read_subjects(tmp_path / "table.txt")


def test_enrollees_and_codes_with_their_meaning(tmp_path):
    assert read(tmp_path, ENROLLEES).get("9002430", "36m") == Subject("9002430", sex="male")
    table = read(tmp_path, CODES)
    assert table.get("9001104", "00m") == Subject("9001104", side="right", kl_grade=2, sex="female")
    assert table.get("9002430", "00m") == Subject("9002430", side="left", sex="male")


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="the scripts that write these inputs are not at hand")
def test_tables_of_the_shared_script(tmp_path):
    for kind, name in (("labels", "a.nii.gz"), ("images", "a_0000.nii.gz")):
        (tmp_path / "sim" / kind).mkdir(parents=True)
        write_image(make_knee(0).labels, tmp_path / "sim" / kind / name)
    script = SHARED / "cases" / "tables_and_labels.py"
    subprocess.run([sys.executable, script, tmp_path / "out", tmp_path / "sim"], check=True, timeout=120)
    assert read_subjects(tmp_path / "out" / "enrollees.txt").get("9001104") == Subject("9001104", sex="female")
    assert read_subjects(tmp_path / "out" / "codes.csv").get("9001104").kl_grade == 2


def test_a_visit_in_a_columns_name_is_the_visit_of_the_value(tmp_path):
    table = read(tmp_path, CLINICAL)
    assert table.get("9001104", "00m") == Subject("9001104", "00m", age_years=72.0, bmi=30.7)
    assert table.get("9001104", "12m") == Subject("9001104", "12m", age_years=73.0)
    assert table.get("9002430", "00m") == Subject("9002430", "00m", bmi=27.4)
    assert table.get("9002430", "96m") == Subject("9002430")


@pytest.mark.parametrize("heading", ["ID|P01BMI|V00BMI", "ID|V00BMI|P01BMI"])
def test_the_baseline_goes_before_examinations_before_it(tmp_path, heading):
    lines = ["9001104|30.1|30.2", "9002430|27.4|27.4"]
    table = read(tmp_path, "\n".join([heading, *lines]))
    assert table.get("9001104", "00m").bmi == (30.2 if heading.endswith("V00BMI") else 30.1)
    assert read(tmp_path, f"{heading.replace('V00', 'V01')}\n{lines[0]}").get("9001104", "00m").bmi in (30.1, 30.2)


def test_of_a_table_of_knees_the_line_of_the_knee_is_taken(tmp_path):
    table = read(tmp_path, READINGS)
    # Project 15 before 37 whatever their order, and 42 where 15 has no grade.
    assert {side: line.kl_grade for side, line in table.knees("9001104", "00m").items()} == {"right": 2, "left": 4}
    assert table.get("9002430", "00m", "right").kl_grade == 1
    # Which knee was imaged is not in such a table, not even where there is one line.
    assert table.get("9002817", "00m") == Subject("9002817", "00m")
    assert table.knees("9002817", "00m").keys() == {"left"}
    assert read(tmp_path, CODES).knees("9001104", "00m") == {}


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda text: text.replace("|", ";"), "utf-8"),
        (lambda text: text.replace("|", "\t"), "utf-16"),
        (lambda text: text.replace("|", ","), "utf-8-sig"),
        (lambda text: text.replace("\n", "|\r\n"), "latin-1"),
        (lambda text: text.lower(), "utf-8"),
        (lambda text: text.replace("9001104", '"9001104"').replace("72", "72,0"), "utf-8"),
        (lambda text: text.replace("VERSION", "Größe"), "latin-1"),
    ],
)
def test_forms_in_which_tables_come(tmp_path, change, encoding):
    text = "ID|SIDE|V00AGE|BMI|VERSION\n9001104|1: Right|72|30.7|25\n"
    expected = Subject("9001104", "00m", "right", age_years=72.0, bmi=30.7)
    assert read(tmp_path, change(text), encoding).get("9001104", "00m") == expected


def test_decimals_with_a_comma(tmp_path):
    assert read(tmp_path, "ID;Age;BMI;KLGrade\n9001104;60,5;30,7;3,0\n").get("9001104") == Subject(
        "9001104", kl_grade=3, age_years=60.5, bmi=30.7
    )
    with pytest.raises(UserError, match="Age is 1,000; expected a number"):  # or is it a thousand?
        read(tmp_path, "ID;Age\n9001104;1,000\n")


@pytest.mark.parametrize("visit", ["36m", "36", "V05", "5", "v05: 36-month visit", "5.0"])
def test_names_of_a_visit(tmp_path, visit):
    table = read(tmp_path, f"ID,Visit,Age\n9001104,{visit},60\n9001104,V07,61\n")
    assert table.get("9001104", "36m") == Subject("9001104", "36m", age_years=60.0)


def test_a_sentence_about_a_wide_table_is_short(tmp_path):
    heading = "|".join(f"V00COLUMN{number}" for number in range(1200))
    with pytest.raises(UserError, match=r"its 1200 columns are V00COLUMN0, .* and 1192 more") as caught:
        read(tmp_path, f"{heading}\n{heading}\n")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08\x00rest", b"\xff\xfe\x00ID", b'ID,Age\n"9001104,60\n'])
def test_what_is_no_table(tmp_path, content):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"table\.csv cannot be read as a table \(.*\); expected text with a heading"):
        read_subjects(tmp_path / "table.csv")


def test_two_values_of_one_reading_are_told(tmp_path):
    with pytest.raises(UserError, match=r"line 3: subject 9001104 is listed a second time .*kl_grade 2 and 3"):
        read(tmp_path, "ID|SIDE|READPRJ|V00XRKL\n9001104|1|15|2\n9001104|1|15|3\n")
    with pytest.raises(UserError, match="line 2: 9001104,Knee,left,1 has more cells than the heading"):
        read(tmp_path, "ID,Remark,KLGrade\n9001104,Knee, left,1\n")
