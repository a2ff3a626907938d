"""Effusion around a ball joint: volumes against the integral, and two readers through measure and agreement."""

import json

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from effusion_phantoms import Effusion, drawn_effusions

from nnunetv2_anomaly.command_line.main import main

CASES = 8
BALL = {"radius_mm": 24.0, "thickness_mm": 6.0, "direction": (0.0, 0.6, 0.8), "middle_mm": (1.0, 2.0, -3.0)}


def voxels_ml(labels):
    return sitk.GetArrayFromImage(labels).sum() * np.prod(labels.GetSpacing()) / 1000


def measured(folder, output, labels):
    folder.mkdir()
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "effusion": 1}, "file_ending": ".nii.gz"})
    )
    for number, image in enumerate(labels):
        sitk.WriteImage(image, str(folder / f"hip_{number}.nii.gz"))
    assert (
        main(["measure", "-i", str(folder), "-o", str(output), "--quantities", "volumes", "--no_reports", "-np", "1"])
        == 0
    )
    table = pd.read_csv(output / "measurements.csv")
    return table[table["quantity"] == "effusion_volume"].set_index("case")


def test_volume_by_hand():
    # A shell over half of all directions: (4/3 pi (outer^3 - inner^3)) / 2 would be its volume if it were even.
    even = Effusion(**{**BALL, "thickness_mm": 1e-3})
    # For thin fluid: inner^2 * thickness * 2 pi * mean of c^2 over 0 to 1 (1/3).
    assert even.volume_ml == pytest.approx(26.0**2 * 1e-3 * 2 * np.pi / 3 / 1000, rel=1e-3)


def test_voxels_have_the_volume_of_the_integral():
    for case in drawn_effusions(3, 6):
        assert voxels_ml(case.labels()) == pytest.approx(case.volume_ml, rel=0.05)


def test_two_readers_through_measure_and_agreement(tmp_path):
    cases = drawn_effusions(1, CASES)
    random = np.random.default_rng(5)
    readers = {
        name: measured(tmp_path / name, tmp_path / f"{name}_out", [of.labels(random, bias, 0.4) for of in cases])
        for name, bias in (("first", 0.0), ("second", 0.5))
    }
    exact = np.array([of.volume_ml for of in cases])
    assert (readers["first"]["unit"] == "mL").all()
    assert np.allclose(readers["first"]["value"], exact, rtol=0.12)
    words = ["-a", str(tmp_path / "first_out"), "-b", str(tmp_path / "second_out"), "-o", str(tmp_path / "agreement")]
    assert main(["agreement", *words, "--names", "A", "B"]) == 0
    found = pd.read_csv(tmp_path / "agreement" / "agreement.csv").set_index("quantity").loc["effusion_volume"]
    pairs = np.stack([readers[name]["value"].to_numpy() for name in readers], axis=1)
    differences = pairs[:, 1] - pairs[:, 0]
    assert found["n"] == CASES
    assert found["bias"] == pytest.approx(differences.mean())
    assert found["limit_high"] == pytest.approx(differences.mean() + 1.96 * differences.std(ddof=1))
    assert found["cov"] == pytest.approx((pairs.std(axis=1, ddof=1) / pairs.mean(axis=1)).mean())
    # A reader who draws half a millimetre too far out adds that times the fluid's outer surface, half a ball.
    surface = np.array([2 * np.pi * (of.radius_mm + 2 + of.thickness_mm / 3) ** 2 for of in cases])
    assert found["bias"] == pytest.approx((0.5 * surface / 1000).mean(), rel=0.15)
    assert (tmp_path / "agreement" / "report.html").is_file()
