import pytest

from nnunetv2_anomaly.detectors.inpainting.schedule import learning_rate_of_phase


@pytest.mark.parametrize(
    ("steps", "distilling", "expected"),
    [
        (25_000, False, (5e-4, 0.0)),
        (24_999, False, (2e-3, 0.9)),
        (20_000, True, (5e-4, 0.0)),
        (19_999, True, (2e-3, 0.9)),
        (20_000, False, (2e-3, 0.9)),
    ],
)
def test_phase_of_the_published_length_runs_as_published_and_a_shorter_one_faster(steps, distilling, expected):
    assert learning_rate_of_phase(steps, distilling=distilling) == expected


@pytest.mark.parametrize(("steps", "exponent"), [(25_000, 0.0), (100, 0.9)])
def test_chosen_learning_rate_leaves_the_decay(steps, exponent):
    assert learning_rate_of_phase(steps, distilling=False, chosen=1e-4) == (1e-4, exponent)
