import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.evaluation.groups import read_groups

CASES = ("knee_1", "knee_2", "knee_3", "knee_4")
GRADES = "case,KLGrade,sex,bmi\nknee_1,0,M,24.5\nknee_2,2,F,31\nknee_3,3,F,30\nknee_4,4,M,\n"


@pytest.fixture
def table(tmp_path):
    """Function that writes a table."""

    def write(text, encoding="utf-8"):
        file = tmp_path / "subjects.csv"
        file.write_bytes(text.encode(encoding))
        return file

    return write


def test_grades_up_to_two_and_from_three(table):
    groups = read_groups(table(GRADES), CASES)
    assert groups.names == ("KLGrade <= 2", "KLGrade >= 3")
    assert groups.of_case == {
        "knee_1": "KLGrade <= 2",
        "knee_2": "KLGrade <= 2",
        "knee_3": "KLGrade >= 3",
        "knee_4": "KLGrade >= 3",
    }
    assert (groups.column, groups.without) == ("KLGrade", ())


def test_another_limit_for_grades(table):
    assert read_groups(table(GRADES), CASES, limit=1).names == ("KLGrade <= 1", "KLGrade >= 2")
    assert read_groups(table(GRADES), CASES, limit=2.5).names == ("KLGrade <= 2.5", "KLGrade > 2.5")


@pytest.mark.parametrize("heading", ["KLGrade", "kl_grade", " KLGRADE ", "KL Grade"])
def test_spellings_of_a_column_are_one(table, heading):
    text = GRADES.replace("KLGrade", heading).replace("case", "Case")
    assert len(read_groups(table(text), CASES).names) == 2
    assert len(read_groups(table(text), CASES, column="kl_grade").names) == 2


def test_manifest_of_a_conversion(table):
    text = "case,subject,visit,kl_grade\nknee_1,1,00m,1\nknee_2,2,12m,3\n"
    assert read_groups(table(text), CASES[:2]).of_case == {"knee_1": "KLGrade <= 2", "knee_2": "KLGrade >= 3"}


def test_other_column_makes_a_group_of_each_value(table):
    groups = read_groups(table(GRADES), CASES, column="sex")
    assert groups.names == ("sex F", "sex M")
    assert groups.of_case["knee_1"] == "sex M"


def test_numbers_are_in_their_order(table):
    text = "case,site\nknee_1,10\nknee_2,9\nknee_3,b\nknee_4,a\n"
    assert read_groups(table(text), CASES, column="site").names == ("site 9", "site 10", "site a", "site b")


def test_limit_splits_numbers_in_two(table):
    groups = read_groups(table(GRADES), CASES, column="bmi", limit=30)
    assert groups.names == ("bmi <= 30", "bmi > 30")
    assert groups.of_case == {"knee_1": "bmi <= 30", "knee_2": "bmi > 30", "knee_3": "bmi <= 30"}
    assert groups.without == ("knee_4",)


def test_one_group_is_enough(table):
    assert read_groups(table(GRADES), CASES[:2]).names == ("KLGrade <= 2",)


@pytest.mark.parametrize("value", ["", " ", "NA", "nan", "NaN"])
def test_empty_cells_are_in_no_group(table, value):
    groups = read_groups(table(f"case,KLGrade\nknee_1,{value}\nknee_2,2\n"), CASES[:2])
    assert groups.of_case == {"knee_2": "KLGrade <= 2"}
    assert groups.without == ("knee_1",)


def test_cases_that_the_table_lacks_are_in_no_group(table):
    assert read_groups(table(GRADES), ("knee_9", "knee_1")).without == ("knee_9",)


def test_table_of_other_cases_is_told(table):
    with pytest.raises(UserError, match=r"has no KLGrade of any of the 3 cases, such as a, b$"):
        read_groups(table(GRADES), ("a", "b", "c"))
    with pytest.raises(UserError, match="has no KLGrade of any"):
        read_groups(table("case,KLGrade\n"), CASES)


SUBJECTS = "SubjectID,KLGrade\n9001104,1\n9001400.0,3\n"


@pytest.mark.parametrize("case", ["9001104_12m_right", "oai-9001104-V00", "9001104", "knee_9001104"])
def test_subject_is_found_in_the_name_of_a_case(table, case):
    assert read_groups(table(SUBJECTS), (case,)).of_case == {case: "KLGrade <= 2"}


def test_subject_that_a_spreadsheet_made_a_decimal(table):
    assert read_groups(table(SUBJECTS), ("9001400_00m",)).names == ("KLGrade >= 3",)


@pytest.mark.parametrize("case", ["90011045_12m", "x9001104", "9001", "_"])
def test_part_of_a_number_is_not_the_subject(table, case):
    assert read_groups(table(SUBJECTS), (case, "9001104")).without == (case,)


VISITS = "SubjectID,Visit,KLGrade\n1,00m,1\n1,12m,3\n2,,0\n3,12m,4\n3,,2\n"


@pytest.mark.parametrize(
    ("case", "group"),
    [
        ("1_00m", "KLGrade <= 2"),
        ("1_12m", "KLGrade >= 3"),
        ("2_12m", "KLGrade <= 2"),  # told of the subject at any visit
        ("3_12m", "KLGrade >= 3"),
        ("3_24m", "KLGrade <= 2"),
    ],
)
def test_visit_is_found_in_the_name_of_a_case(table, case, group):
    assert read_groups(table(VISITS), (case,)).of_case == {case: group}


def test_another_visit_tells_nothing(table):
    assert read_groups(table(VISITS), ("1_24m", "1_00m")).without == ("1_24m",)


def test_column_case_goes_before_subjects(table):
    text = "SubjectID,case,KLGrade\n1,knee_2,0\n2,knee_1,4\n"
    assert read_groups(table(text), CASES[:2]).of_case == {"knee_1": "KLGrade >= 3", "knee_2": "KLGrade <= 2"}


def test_rows_that_repeat_themselves_are_fine(table):
    assert read_groups(table("case,KLGrade\nknee_1,1\nknee_1,1\n"), ("knee_1",)).names == ("KLGrade <= 2",)


@pytest.mark.parametrize("text", ["case,KLGrade\nknee_1,1\nknee_1,3\n", "SubjectID,KLGrade\n1,1\n1,3\n"])
def test_rows_that_contradict_each_other_are_told(table, text):
    with pytest.raises(UserError, match=r"has several KLGrade of knee_1 \(1, 3\).*column case"):
        read_groups(table(text), ("knee_1",))


def test_grade_that_is_no_number_is_told(table):
    with pytest.raises(UserError, match="KLGrade of knee_1 is two; expected a number"):
        read_groups(table("case,KLGrade\nknee_1,two\n"), ("knee_1",))


def test_too_many_values_are_no_groups(table):
    cases = [f"knee_{number}" for number in range(9)]
    text = "case,age\n" + "".join(f"{case},{50 + number}\n" for number, case in enumerate(cases))
    assert len(read_groups(table(text), cases[:8], column="age").names) == 8
    with pytest.raises(UserError, match=r"age has 9 different values .*--group_limit"):
        read_groups(table(text), cases, column="age")
    assert read_groups(table(text), cases, column="age", limit=55).names == ("age <= 55", "age > 55")


def test_missing_columns_are_told(table):
    with pytest.raises(UserError, match=r"has no columns age; expected one of case, KLGrade, sex, bmi"):
        read_groups(table(GRADES), CASES, column="age")
    with pytest.raises(UserError, match=r"has no columns case or SubjectID; expected one of knee, KLGrade"):
        read_groups(table(GRADES.replace("case", "knee")), CASES)


def test_columns_of_one_name_are_told(table):
    with pytest.raises(UserError, match=r"has 2 columns KLGrade"):
        read_groups(table("case,KLGrade,kl_grade\nknee_1,1,3\n"), ("knee_1",))


@pytest.mark.parametrize("name", ["READPRJ", "SIDE", "Visit", "V00XRKL"])
def test_two_columns_of_one_meaning_are_told(table, name):
    columns = ["READPRJ", "SIDE", "Visit", "V00XRKL", "V01XRKL", name]
    with pytest.raises(UserError, match=r"has 2 columns \w+; expected one of ID, READPRJ"):
        read_groups(table(f"ID|{'|'.join(columns)}\n1|15|1|V00|2|3|1\n"), ("1_00m_right",))


def test_the_baseline_goes_before_examinations_before_it(table):
    text = "ID|P01BMI|V00BMI\n1|30|20\n2|30|\n"
    groups = read_groups(table(text), ("1_00m", "2_00m"), column="BMI", limit=25)
    assert groups.of_case == {"1_00m": "BMI <= 25", "2_00m": "BMI > 25"}


def test_a_code_is_one_group_with_its_meaning_or_without(table):
    text = "ID|P02SEX\n1|1: Male\n2|2: Female\n3|1\n4|2.0\n4|2\n"
    groups = read_groups(table(text), ("1", "2", "3", "4"), column="SEX")
    assert groups.of_case == {"1": "SEX 1: Male", "2": "SEX 2: Female", "3": "SEX 1: Male", "4": "SEX 2: Female"}
    assert groups.names == ("SEX 1: Male", "SEX 2: Female")


@pytest.mark.parametrize("value", ["inf", "1e400"])
def test_infinite_grades_are_told(table, value):
    with pytest.raises(UserError, match=f"KLGrade of knee_1 is {value}; expected a number"):
        read_groups(table(f"case,KLGrade\nknee_1,{value}\n"), ("knee_1",))


def test_byte_order_mark_of_spreadsheets(table):
    assert len(read_groups(table(GRADES, "utf-8-sig"), CASES).names) == 2


@pytest.mark.parametrize("end", ["\r\n", "\n\n"])
def test_line_ends_and_empty_lines(table, end):
    assert len(read_groups(table(GRADES.replace("\n", end)), CASES).without) == 0


def test_commas_at_the_ends_of_lines(table):
    """As spreadsheets write them; the columns must not move."""
    groups = read_groups(table("case,KLGrade\nknee_1,1,\nknee_2,3,\n"), CASES[:2])
    assert groups.of_case == {"knee_1": "KLGrade <= 2", "knee_2": "KLGrade >= 3"}


def test_cell_with_a_comma_that_moves_the_others_is_told(table):
    with pytest.raises(UserError, match=r"knee_1,Knee,left,1 has more cells than the heading"):
        read_groups(table("case,remark,KLGrade\nknee_1,Knee, left,1\n"), ("knee_1",))
    assert read_groups(table('case,remark,KLGrade\nknee_1,"Knee, left",1\n'), ("knee_1",)).without == ()


def test_line_that_is_too_short_tells_nothing(table):
    assert read_groups(table("case,sex,KLGrade\nknee_1,M\nknee_2,F,3\n"), CASES[:2]).without == ("knee_1",)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00case", b'case,KLGrade\n"knee_1,1\n'])
def test_what_is_no_table(tmp_path, content):
    file = tmp_path / "subjects.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"subjects\.csv (cannot be read as a table|has no columns)"):
        read_groups(file, CASES)


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match=r"subjects\.csv cannot be read as a table"):
        read_groups(tmp_path / "subjects.csv", CASES)


READINGS = (
    "ID|SIDE|READPRJ|V00XRKL|V05XRKL|P02SEX\n9001104|1: Right|37|4|4|1: Male\n"
    "9001104|1: Right|15|2: Minimal|3|1: Male\n9001104|2: Left|15|4|4|1: Male\n"
    "9002430|1: Right|15|.: Missing|3|2: Female\n"
)


@pytest.mark.parametrize(
    ("case", "group"),
    [
        ("9001104_right", "KLGrade <= 2"),
        ("9001104_V05_RIGHT", "KLGrade >= 3"),
        ("9001104_36m_left", "KLGrade >= 3"),
        ("9002430_36m", "KLGrade >= 3"),
    ],
)
def test_tables_of_the_oai_by_knee_visit_and_reading(table, case, group):
    assert read_groups(table(READINGS), (case,)).of_case == {case: group}


def test_none_is_a_value_like_any_other(table):
    text = "case,treatment\nknee_1,none\nknee_2,surgery\nknee_3,n/a\n"
    groups = read_groups(table(text), CASES[:3], column="treatment")
    assert (groups.names, groups.without) == (("treatment none", "treatment surgery"), ("knee_3",))


def test_tables_of_the_oai_say_nothing_of_other_visits_and_missing_values(table):
    cases = ("9001104_right", "9001104_12m_right", "9002430_00m")
    assert read_groups(table(READINGS), cases).without == cases[1:]
    assert read_groups(table(READINGS), cases, column="sex").names == ("sex 1: Male", "sex 2: Female")
    with pytest.raises(UserError, match=r"several KLGrade of 9001104 \(2: Minimal, 4\)"):
        read_groups(table(READINGS), ("9001104",))
