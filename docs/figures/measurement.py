"""Draws docs/figures/measure-case.png, with chromium on the path:  python docs/figures/measurement.py

A simulated knee as `nnUNetv2_anomaly measure` shows it on its page: to be turned, and its thickness laid out on planes.
"""

import json
import subprocess
import tempfile
from pathlib import Path

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.images.dataset_description import read_dataset_description
from nnunetv2_anomaly.images.segmentations import SegmentationFiles, read_known
from nnunetv2_anomaly.labels import LABELS
from nnunetv2_anomaly.measurements.case import QUANTITIES, Options, measured
from nnunetv2_anomaly.measurements.maps import flat_figure, flattened
from nnunetv2_anomaly.measurements.scene import scene_of, write_script
from nnunetv2_anomaly.reporting.page import Picture, page
from nnunetv2_anomaly.reporting.table import in_words

FIGURE = Path(__file__).with_name("measure-case.png")


def draw(folder):
    """Simulate a knee in an empty folder, measure it, and take a picture of its page."""
    words = ["--phantoms", "1", "--seed", "3", "--size", "112", "192", "192"]
    assert main(["simulate", "-o", str(folder / "knees"), *words]) == 0
    description = folder / "dataset.json"
    description.write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    dataset = read_dataset_description(description)
    files = SegmentationFiles(dataset.file_ending, dataset.reader)
    (file,) = (folder / "knees" / "labels").glob("*.nii.gz")
    options = Options(side="right", quantities=tuple(QUANTITIES))
    _, found = measured(read_known(files, file, dataset), "knee", dataset, options, {})
    flat = [(in_words(bone), flattened([of])[0]) for bone, of in found.cartilages.items()]
    write_script(folder)
    shown = [scene_of(found), Picture(flat_figure(flat), "thickness of cartilage laid out on planes")]
    (folder / "page.html").write_text(page("A simulated knee", [], shown))
    words = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,1165", f"--screenshot={FIGURE}"]
    subprocess.run(["chromium", *words, f"file://{folder}/page.html"], check=True, capture_output=True, timeout=300)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name))
