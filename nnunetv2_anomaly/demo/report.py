"""report.html: tables, overlays, curves and commands in one file that opens without a network."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunetv2_anomaly.demo.comparison import mean_and_count
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.labels import ANATOMY, BONES

if TYPE_CHECKING:
    from nnunetv2_anomaly.demo.run import DemoLayout

MODELS = {"naive": "naive nnU-Net", "aware": "anomaly-aware"}
NUM_PICTURES = 4

_STYLE = """
body { font-family: sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 0.7rem 0 1.4rem; }
th, td { border: 1px solid #bbb; padding: 0.25rem 0.6rem; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
td.better { font-weight: bold; }
img { max-width: 100%; }
code { background: #f2f2f2; padding: 0.1rem 0.3rem; overflow-wrap: anywhere; }
caption { text-align: left; padding: 0.3rem 0; color: #555; }
"""


def write_report(path: Path, layout: DemoLayout, state: Mapping[str, Any], trainers: Mapping[str, str]) -> Path:
    """Write the demonstration's report from what its steps left behind.

    Args:
        path: file to write, beside and renamed.
        layout: where the steps left their results.
        state: of the chain: arguments, and per step title, command and seconds.
        trainers: trainer class behind "prestage", "naive" and "aware".
    """
    comparison = json.loads(layout.comparison.read_text())
    detector = json.loads((layout.detector / "summary.json").read_text())
    manifest = json.loads((layout.simulated / "manifest.json").read_text())
    subset = {
        "All test cases": comparison,
        "Test cases with a lesion": [row for row in comparison if row["has_lesion"]],
        "Test cases without a lesion": [row for row in comparison if not row["has_lesion"]],
    }
    parts = [
        "<h1>Anomaly-aware segmentation: demonstration</h1>",
        f"<p>{_introduction(state, manifest, comparison)}</p>",
        "<h2>Segmentation, naive against anomaly-aware</h2>",
        *(_comparison_table(title, rows) for title, rows in subset.items()),
        "<h2>Does the error image find the lesions?</h2>",
        _detector_table(detector["mean"]),
        "<h2>Slices through lesions</h2>",
        "<p>Reference and predictions as outlines of bones (blue) and cartilages (green), lesions in red. The error "
        "image is what the segmenter gets as a further channel.</p>",
        *_pictures(layout, trainers, manifest),
        "<h2>Training</h2>",
        _image(_training_curves(layout, trainers)),
        "<h2>What was run</h2>",
        _commands_table(state),
    ]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>nnunetv2-anomaly demonstration</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )
    write_text(path, page)
    return path


def _introduction(state: Mapping[str, Any], manifest: Mapping[str, Any], comparison: Sequence[Mapping]) -> str:
    cases = {row["case"] for row in comparison}
    lesions = {row["case"] for row in comparison if row["has_lesion"]}
    size, spacing = manifest["arguments"]["size"], manifest["arguments"]["spacing_mm"]
    quick = (
        " This was the quick run: its networks have hardly been trained, and it shows that the chain works, no more."
        if state["arguments"]["quick"]
        else ""
    )
    return html.escape(
        f"Simulated knees of {' x '.join(map(str, size))} voxels of {' x '.join(map(str, spacing))} mm. "
        f"{len(manifest['cases']) - len(cases)} for training, {len(cases)} for testing, of which {len(lesions)} hold a "
        f"lesion. The training labels are the anatomy, lesions counted as bone; no network was told where lesions are. "
        f"Both segmenters have the same planned network, data and number of iterations. The naive one is nnU-Net's own "
        f"trainer, which mirrors images in training and at prediction; the anomaly-aware one does not. Both have had "
        f"a fraction of nnU-Net's 1000 epochs, and the weightier loss of Eq. 5 alone lets a network learn faster at "
        f"first: the tables show what each has learnt in this time, not what either is worth in the end. "
        f"Whatever came out is reported.{quick}"
    )


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    note = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _comparison_table(title: str, rows: Sequence[Mapping]) -> str:
    num_cases = len({row["case"] for row in rows})
    heading = f"<h3>{html.escape(title)} ({num_cases})</h3>"
    if not rows:
        return heading + "<p>None.</p>"
    measures = (
        ("Dice", "dsc", 4, max),
        ("Hausdorff distance [mm]", "hausdorff_mm", 2, min),
        ("islands", "islands", 2, min),
    )
    header = ["label", *(f"{name}, {MODELS[model]}" for name, *_ in measures for model in MODELS)]
    body = []
    undefined_total = 0
    for label in (name for name, value in ANATOMY.items() if value != 0):
        cells = [html.escape(label.replace("_", " "))]
        for _, key, digits, better in measures:
            means = {}
            for model in MODELS:
                values = [row[key] for row in rows if row["label"] == label and row["model"] == model]
                means[model], _, undefined = mean_and_count([math.nan if v is None else v for v in values])
                undefined_total += undefined
            best = better((m for m in means.values() if math.isfinite(m)), default=math.nan)
            for model in MODELS:
                text = _number(means[model], digits)
                wins = means[model] == best and len(set(means.values())) > 1
                cells.append(f'<td class="better">{text}</td>' if wins else f"<td>{text}</td>")
        body.append(cells)
    caption = "Means over cases; the better one in bold. Islands: components of a label beyond its largest."
    if undefined_total:
        caption += (
            f" {undefined_total} value(s) are undefined, because the label is missing from the reference or the "
            f"prediction, and are left out of the means."
        )
    return heading + _table(header, body, caption)


def _detector_table(mean: Mapping[str, Any]) -> str:
    header = [
        "test cases", "AUC for lesions in bone", "away from its surface", "MSE in erased region", "of a constant",
        "of a blurred image",
    ]  # fmt: skip
    rows = []
    for name, title in (
        ("intensity", "raw intensity"),
        ("inpainter", "error image of G (mask known)"),
        ("detector", "error image of A (no mask)"),
    ):
        entry = mean[name]
        areas = [_number(entry[key], 3) for key in ("lesion_auc", "lesion_auc_interior")]
        keys = ("mse_erased", "mse_constant", "mse_blurred")
        errors = [_number(entry[key], 5) if key in entry else "" for key in keys]
        rows.append([title, *areas, *errors])
    caption = (
        f"Voxel-wise AUC, lesion against all other bone, mean over the {mean['num_cases_with_lesion']} test cases with "
        f"a lesion. 0.5 is chance. Away from its surface: bone at least one voxel inside, because at the surface every "
        f"reconstruction is a little off."
    )
    return _table(header, rows, caption)


def _commands_table(state: Mapping[str, Any]) -> str:
    rows = []
    for entry in state["steps"].values():
        command = entry.get("command")
        what = f"<code>{html.escape(command)}</code>" if command else "in the demo's own process"
        rows.append(
            [html.escape(entry["title"]), f'<td style="text-align:left">{what}</td>', f"{entry['seconds']:.0f}"]
        )
    total = sum(entry["seconds"] for entry in state["steps"].values())
    rows.append(["total", "", f"{total:.0f}"])
    return _table(["step", "command", "seconds"], rows)


def _image(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _pictures(layout: DemoLayout, trainers: Mapping[str, str], manifest: Mapping[str, Any]) -> list[str]:
    """The test cases with the most lesion volume, each on the sagittal slice through most of it."""
    volumes = {}
    for path in sorted((layout.raw / "anomaliesTs").glob("*.nii.gz")):
        anomalies = _read(path)
        if anomalies.any():
            volumes[path.name.removesuffix(".nii.gz")] = int((anomalies > 0).sum())
    chosen = sorted(volumes, key=lambda case: -volumes[case])[:NUM_PICTURES]
    return [_image(_case_figure(layout, trainers, case, manifest)) for case in chosen] or ["<p>No lesions.</p>"]


def _case_figure(layout: DemoLayout, trainers: Mapping[str, str], case: str, manifest: Mapping[str, Any]) -> Figure:
    anomalies = _read(layout.raw / "anomaliesTs" / f"{case}.nii.gz")
    # SimpleITK's array is (z, y, x) with x from slice to slice: a sagittal slice is one x, superior is up.
    index = int((anomalies > 0).sum(axis=(0, 1)).argmax())

    def sagittal(path: Path) -> np.ndarray:
        return _read(path)[:, :, index]

    image = sagittal(layout.raw / "imagesTs" / f"{case}_0000.nii.gz")
    maps = {
        "reference": sagittal(layout.raw / "labelsTs" / f"{case}.nii.gz"),
        **{MODELS[model]: sagittal(layout.predictions(trainers[model]) / f"{case}.nii.gz") for model in MODELS},
    }
    spacing = manifest["arguments"]["spacing_mm"]
    aspect = spacing[2] / spacing[1]
    figure = Figure(figsize=(14, 3.3), layout="constrained")
    figure.suptitle(f"{case}, slice {index}", fontsize=9)
    axes = figure.subplots(1, 5)
    axes[0].imshow(image, cmap="gray", origin="lower", aspect=aspect)
    axes[0].set_title("image")
    for axis, (title, labels) in zip(axes[1:4], maps.items(), strict=True):
        axis.imshow(image, cmap="gray", origin="lower", aspect=aspect)
        axis.set_title(title)
        for value in (value for value in ANATOMY.values() if value != 0):
            if (labels == value).any():
                colour = "deepskyblue" if value in BONES else "lime"
                axis.contour(labels == value, levels=[0.5], colors=colour, linewidths=0.9)
    error = sagittal(layout.error_images / f"{case}_error.nii.gz")
    limit = max(float(np.quantile(error, 0.99)), 1e-6)
    shown = axes[4].imshow(error, cmap="inferno", origin="lower", aspect=aspect, vmin=0, vmax=limit)
    figure.colorbar(shown, ax=axes[4], fraction=0.046)
    axes[4].set_title("error image of A")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.contour(anomalies[:, :, index] > 0, levels=[0.5], colors="red", linewidths=0.9)
    return figure


def _training_curves(layout: DemoLayout, trainers: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    prestage, loss, dice = figure.subplots(1, 3)
    logged = _logged(layout, trainers["prestage"])
    for key, style in (("mse_erased", "k-o"), ("mse_constant", "--"), ("mse_blurred", ":")):
        prestage.plot(logged[key], style, label=key.replace("_", " "))
    prestage.set_title("pre-stage: validation MSE in the erased region")
    for model, colour in (("naive", "tab:gray"), ("aware", "tab:red")):
        logged = _logged(layout, trainers[model])
        loss.plot(logged["train_losses"], "-o", color=colour, label=f"{MODELS[model]}, training")
        loss.plot(logged["val_losses"], "--o", color=colour, label=f"{MODELS[model]}, validation")
        dice.plot(logged["mean_fg_dice"], "-o", color=colour, label=MODELS[model])
    loss.set_title("segmentation loss (not comparable: Eq. 5 weighs more)")
    dice.set_title("pseudo Dice on validation patches")
    for axis in (prestage, loss, dice):
        axis.set_xlabel("epoch")
        axis.legend(fontsize=7)
    return figure


def _logged(layout: DemoLayout, trainer: str) -> dict[str, list[float]]:
    checkpoint = torch.load(
        layout.model(trainer) / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False
    )
    return checkpoint["logging"]
