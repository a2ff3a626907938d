"""Draws docs/figures/data-flow.png:  python docs/figures/data_flow.py"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

BLUE, ORANGE, GREEN, GREY = "#dbe9f6", "#fde3cf", "#dcefdc", "#eeeeee"


def box(axis, x, y, width, height, text, colour):
    """A rounded box with text."""
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.05", facecolor=colour, edgecolor="#555"))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(axis, start, end, text="", offset=(0, 0.13)):
    """An arrow with a small text beside its middle."""
    axis.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": "#333", "lw": 1.2})
    if text:
        middle = ((start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1])
        axis.text(*middle, text, ha="center", va="bottom", fontsize=7.5, color="#333")


def main():
    """Draw and save."""
    figure = Figure(figsize=(12, 6.4))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axis.set_xlim(0, 12)
    axis.set_ylim(0, 6.4)
    axis.axis("off")

    # phase 1
    axis.text(0.1, 6.1, "AnomalyPreStageTrainer, phase 1: learn to inpaint (Eq. 1)", weight="bold", fontsize=10)
    box(axis, 0.2, 5.1, 1.7, 0.7, "image x", GREY)
    box(axis, 2.9, 5.1, 2.0, 0.7, "x with the anatomy\nerased", GREY)
    box(axis, 2.9, 4.0, 2.0, 0.7, "compressor C\n100 numbers", BLUE)
    box(axis, 6.0, 4.6, 1.9, 0.9, "inpainter G", BLUE)
    box(axis, 9.2, 4.7, 2.4, 0.7, "G(x): the knee as it\nwould be, healthy", GREY)
    arrow(axis, (1.95, 5.45), (2.85, 5.45), "foreground\n+ margin")
    arrow(axis, (1.5, 5.05), (2.85, 4.4), "whole image", (-0.45, -0.3))
    arrow(axis, (4.95, 5.45), (5.95, 5.15))
    arrow(axis, (4.95, 4.35), (5.95, 4.85), "bottleneck", (0.1, -0.35))
    arrow(axis, (7.95, 5.05), (9.15, 5.05))

    # phase 2
    axis.text(0.1, 3.45, "Phase 2: distil into a detector that needs no mask (Eq. 2)", weight="bold", fontsize=10)
    box(axis, 0.2, 2.45, 1.7, 0.7, "image x", GREY)
    box(axis, 2.9, 2.45, 2.0, 0.7, "detector A\n(with the frozen C)", ORANGE)
    box(axis, 6.0, 2.45, 1.9, 0.7, "A(x) ≈ G(x)", GREY)
    box(axis, 9.2, 2.45, 2.4, 0.7, "error image\nE = (x − A(x))²", ORANGE)
    arrow(axis, (1.95, 2.8), (2.85, 2.8))
    arrow(axis, (4.95, 2.8), (5.95, 2.8))
    arrow(axis, (7.95, 2.8), (9.15, 2.8))
    arrow(axis, (10.4, 4.65), (7.3, 3.22), "teaches", (0.5, 0.02))

    # phase 3
    axis.text(0.1, 1.75, "AnomalyAwareTrainer, and nnUNetv2_predict", weight="bold", fontsize=10)
    box(axis, 0.2, 0.6, 1.7, 0.7, "image x", GREY)
    box(axis, 2.9, 0.6, 2.0, 0.7, "frozen A:\nerror image E", ORANGE)
    box(axis, 6.0, 0.5, 1.9, 0.9, "nnU-Net's planned\nnetwork S", GREEN)
    box(axis, 9.2, 0.6, 2.4, 0.7, "segmentation", GREY)
    arrow(axis, (1.95, 0.95), (2.85, 0.95))
    arrow(axis, (4.95, 0.95), (5.95, 0.95), "[x, E]")
    arrow(axis, (7.95, 0.95), (9.15, 0.95))
    arrow(axis, (10.4, 2.4), (4.3, 1.37))
    note = "E is one more channel, and in training the focal weight F = 1 + 99 E (Eq. 4, 5)"
    axis.text(6.95, 0.2, note, ha="center", va="center", fontsize=7.5, color="#333")
    figure.savefig(Path(__file__).with_name("data-flow.png"), dpi=110)


if __name__ == "__main__":
    main()
