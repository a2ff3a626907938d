import errno
import os

import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_failures_as_user_errors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_failure_to_write_becomes_one_sentence(number):
    with (
        pytest.raises(UserError) as told,
        write_failures_as_user_errors("/out", lambda: "make room"),
    ):
        raise OSError(number, os.strerror(number), "/out/a.csv")
    assert str(told.value) == f"/out cannot be written to ({os.strerror(number)}); make room"


def test_error_of_a_library_becomes_one_sentence_with_its_first_line():
    with (
        pytest.raises(UserError, match=r"^/out cannot be written to \(short write\); give another folder with -o$"),
        write_failures_as_user_errors("/out", kinds=(RuntimeError,)),
    ):
        raise RuntimeError("short write\nat 0x1234")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "no such file"), ConnectionError(errno.EPIPE, "broken"), ValueError("x")]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)), write_failures_as_user_errors("/out"):
        raise error


def test_sentence_from_within_is_kept():
    with (
        pytest.raises(UserError, match="ours"),
        write_failures_as_user_errors("/out", kinds=(OSError, ValueError)),
    ):
        raise UserError("ours")
