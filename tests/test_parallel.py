import os
import signal

import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.parallel import run_jobs


def double_or_fail(number: int) -> int:
    if number == 3:
        raise UserError("three is too many")
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.parametrize("num_processes", [1, 2])
def test_each_job_comes_back_with_its_result_or_its_error(num_processes):
    results = dict(run_jobs(double_or_fail, [1, 2, 3], num_processes))
    assert (results[1].result(), results[2].result()) == (2, 4)
    with pytest.raises(UserError, match="three is too many"):
        results[3].result()


def test_a_process_that_dies_is_told():
    with pytest.raises(UserError, match=r"memory ran out; run again with fewer at a time \(-np 1\)"):
        list(run_jobs(double_or_fail, [4, 4], 2))
