"""What a simulated image costs beside reading its label map and writing image and labels alone, in one run.

    python -m benchmarks.simulation --labels SEGMENTATIONS --cases 5

Every label map is simulated on its own grid in two ways, in turn: the plain way, which reads the map and writes an
image and two label maps compressed, and ours. Without --labels, phantoms of the OAI's size are drawn first. Printed
are medians, quartiles and the ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from benchmarks.timing import label_maps, shown, timed
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.simulation.simulate import simulate_folder


def write_plainly(label_file: Path, image: sitk.Image, target: Path) -> None:
    """Read a label map, write an image and two label maps; nothing is computed."""
    labels = sitk.ReadImage(str(label_file))
    sitk.WriteImage(image, str(target / "image.nii.gz"), True)
    for name in ("labels", "anomalies"):
        sitk.WriteImage(labels, str(target / f"{name}.nii.gz"), True)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, help="folder of label maps with labels 0 to 9 (default: phantoms)")
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--extra_lesions", type=float, default=1.5)
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, one process, SimpleITK {sitk.Version_VersionString()}")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            files = label_maps(args.labels, folder, args.cases)
        except UserError as error:
            raise SystemExit(str(error)) from error
        for number, file in enumerate(files):
            own = folder / f"case{number}"
            own.mkdir()
            (own / file.name).symlink_to(file.resolve())
            simulated = own / "simulated"
            ours.append(
                timed(lambda own=own, simulated=simulated: simulate_folder(
                    simulated, labels_folder=own, extra_lesions=args.extra_lesions, num_processes=1
                ))
            )  # fmt: skip
            image = sitk.ReadImage(str(next((simulated / "images").iterdir())))
            plain.append(timed(write_plainly, file, image, own))
    print(f"{len(ours)} cases of {image.GetSize()} voxels, in turn:")
    print(f"  reading and writing alone      {shown(plain)}")
    print(f"  simulation, with its overview  {shown(ours)}")
    print(f"  ratio of the medians           {np.median(ours) / np.median(plain):.2f}")


if __name__ == "__main__":
    main()
