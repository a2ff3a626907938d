"""A knee in three dimensions: bones translucent, lesions solid, thickness of cartilage in colour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.measurements.bones import Found
from nnunetv2_anomaly.measurements.cartilage import CartilageMap
from nnunetv2_anomaly.measurements.frame import Mask
from nnunetv2_anomaly.measurements.maps import COLOURS, SCALE_MM
from nnunetv2_anomaly.measurements.meshes import Mesh, simplified, surface_of
from nnunetv2_anomaly.reporting.page import Scene
from nnunetv2_anomaly.reporting.table import in_words

#: name of the script beside the pages that show scenes
SCRIPT = "plotly.min.js"
#: edge of the cubes that become one vertex, mm
_BONE_MM, _CARTILAGE_MM, _LESION_MM = 2.0, 1.0, 0.8
#: cartilage is drawn so far above its bone, mm, and takes the thickness of a vertex so near
_ABOVE_MM, _NEAR_MM = 0.8, 3.0
#: the front of the knee, from somewhat above and medial
_EYE = {"x": -0.9, "y": 1.5, "z": 0.5}
_BONE_COLOUR, _LESION_COLOUR, _BARE_COLOUR = "#c9c2b4", "#e21a28", "#6f6f6f"


def check_plotly() -> None:
    """Raises: UserError naming the extra if plotly is not installed."""
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        advice = 'install it with: pip install "nnunetv2-anomaly[measure]", or leave them out with --no_reports'
        raise UserError(f"plotly is not installed ({error}), but the reports need it; {advice}") from error


def write_script(folder: Path) -> None:
    """Write plotly's script, which the pages of a folder share."""
    from plotly.offline import get_plotlyjs

    if not (folder / SCRIPT).is_file():
        write_text(folder / SCRIPT, get_plotlyjs())


def scene_of(found: Found) -> Scene:
    """The bones, lesions and cartilages of one knee, in a page beside ``SCRIPT``."""
    import plotly.io

    traces: list[dict[str, Any]] = []
    for name, bone in found.bones.items():
        cartilage = found.cartilages.get(name)
        whole = surface_of(*bone.mask)
        if cartilage:
            traces += _cartilage_traces(name, cartilage, first=not traces)
        if whole is not None:
            traces.append(_trace(simplified(whole, _BONE_MM)[0], name, color=_BONE_COLOUR, opacity=0.2))
        own = [of for row, of in zip(found.lesions, found.lesion_indices, strict=True) if row["bone"] == name]
        if own:
            indices = np.concatenate(own)
            low = indices.min(axis=0)
            mask = np.zeros(indices.max(axis=0) + 1 - low, bool)
            mask[tuple((indices - low).T)] = True
            if (surface := surface_of(mask, bone.space.part(low))) is not None:
                lesions = simplified(surface, _LESION_MM)[0]
                traces.append(_trace(lesions, f"lesions of {name}", color=_LESION_COLOUR))
    hidden = {axis: {"visible": False} for axis in ("xaxis", "yaxis", "zaxis")}
    layout: dict[str, Any] = {"height": 640, "margin": dict.fromkeys("lrtb", 0), "legend": {"x": 0, "y": 1}}
    layout["scene"] = {"aspectmode": "data", "camera": {"eye": _EYE}, **hidden}
    figure = {"data": traces, "layout": layout}
    made = plotly.io.to_html(figure, include_plotlyjs=SCRIPT, full_html=False, validate=False, div_id="knee")
    return Scene(made, "Drag to turn, scroll to zoom, click a name to hide or show it.")


def _cartilage_traces(name: str, of: CartilageMap, *, first: bool) -> list[dict[str, Any]]:
    """Subchondral bone, in the colour of the thickness above it, and its bare part."""
    if not len(of.measured):
        return []
    bone = of.plate.bone
    lifted = Mesh(bone.vertices + _ABOVE_MM * bone.normals(2), bone.faces)
    distance, nearest = cKDTree(of.points_mm).query(bone.vertices, distance_upper_bound=_NEAR_MM)
    known = np.isfinite(distance) & of.plate.subchondral
    thickness = np.full(len(bone.vertices), np.nan)
    thickness[known] = of.thickness_mm[nearest[known]]
    bar = {"title": {"text": "thickness [mm]"}, "len": 0.6}
    scale = [[float(at), to_hex(colormaps[COLOURS](at))] for at in np.linspace(0, 1, 16)]
    coloured: dict[str, Any] = {"colorscale": scale, "cmin": SCALE_MM[0], "cmax": SCALE_MM[1], "showscale": first}
    traces = _traces_of_part(lifted, known, f"cartilage of {name}", thickness, **coloured, colorbar=bar)
    bare = of.plate.denuded & ~known
    return traces + _traces_of_part(lifted, bare, f"bare part of {name}", None, color=_BARE_COLOUR)


def _traces_of_part(mesh: Mesh, mask: Mask, name: str, values: NDArray | None, **style: Any) -> list[dict[str, Any]]:
    """The faces of some vertices, as one surface; none where there is no whole face."""
    part, used = mesh.sub(mask)
    if not len(part.faces):
        return []
    coarse, cluster = simplified(part, _CARTILAGE_MM)
    if values is not None:
        style["intensity"] = (np.bincount(cluster, weights=values[used]) / np.bincount(cluster)).astype(np.float32)
    return [_trace(coarse, name, **style)]


def _trace(mesh: Mesh, name: str, **style: Any) -> dict[str, Any]:
    """A surface as plotly takes it."""
    places: Mapping[str, NDArray] = dict(zip("xyz", mesh.vertices.T.round(1).astype(np.float32), strict=True))
    corners = dict(zip("ijk", mesh.faces.T.astype(np.int32), strict=True))
    shown = {"type": "mesh3d", "name": in_words(name), "showlegend": True, "hoverinfo": "name"}
    return {**shown, "flatshading": False, **places, **corners, **style}
