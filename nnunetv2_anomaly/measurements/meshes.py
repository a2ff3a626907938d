"""Triangle meshes of label maps, in millimetres of patient space; needs vtk, which the extra ``measure`` brings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.measurements.frame import Space, means_of_cubes

#: of the smoothing: as many steps, and the pass band of vtk's windowed sinc
_STEPS, _PASS_BAND = 20, 0.1


def load_vtk() -> ModuleType:
    """The module vtk. Raises: UserError naming the extra if it is not installed."""
    try:
        import vtk
    except ImportError as error:
        without = "--no_reports --quantities volumes lesions cartilage"
        advice = f'install it with: pip install "nnunetv2-anomaly[measure]", or give {without}'
        raise UserError(f"vtk is not installed ({error}), but surfaces and thickness need it; {advice}") from error
    module: ModuleType = vtk
    return module


@dataclass(frozen=True)
class Mesh:
    """A closed surface; seen from outside, the corners of a face run counter-clockwise."""

    vertices: NDArray[np.float64]  # (N, 3) mm
    faces: NDArray[np.int64]  # (M, 3)

    @cached_property
    def face_normals(self) -> NDArray[np.float64]:
        """(M, 3): outward, as long as the face's area in mm2."""
        a, b, c = (self.vertices[self.faces[:, corner]] for corner in range(3))
        return np.cross(b - a, c - a) / 2

    @cached_property
    def vertex_areas(self) -> NDArray[np.float64]:
        """(N,) mm2: a third of the faces around each vertex."""
        return self._at_vertices(np.linalg.norm(self.face_normals, axis=1) / 3)

    def _at_vertices(self, of_faces: NDArray[np.float64]) -> NDArray:
        """(M,) -> (N,): sums over the faces around each vertex."""
        return np.bincount(self.faces.ravel(), weights=np.repeat(of_faces, 3), minlength=len(self.vertices))

    @cached_property
    def neighbours(self) -> sparse.csr_array:
        """(N, N): 1 where an edge joins two vertices."""
        both = np.concatenate([self.faces[:, of] for of in ([0, 1], [1, 2], [2, 0], [1, 0], [2, 1], [0, 2])])
        size = len(self.vertices)
        joined = sparse.coo_array((np.ones(len(both)), tuple(both.T)), shape=(size, size)).tocsr()
        joined.data[:] = 1
        return joined

    def normals(self, smoothing: int = 0) -> NDArray[np.float64]:
        """(N, 3) outward unit vectors at vertices. Args: smoothing: means over neighbours, so many times."""
        sums = np.stack([self._at_vertices(axis) for axis in self.face_normals.T], axis=1)
        around = self.neighbours + sparse.eye_array(len(self.vertices))
        for _ in range(smoothing):
            sums = around @ (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)

    def grown(self, mask: NDArray[np.bool_], rings: int) -> NDArray[np.bool_]:
        """A set of vertices and all that are so many edges away; less of it for a number below 0."""
        wanted = mask if rings >= 0 else ~mask
        for _ in range(abs(rings)):
            wanted = wanted | (self.neighbours @ wanted.astype(np.float64) > 0)
        return wanted if rings >= 0 else ~wanted

    def parts(self, mask: NDArray[np.bool_]) -> tuple[int, NDArray[np.intp]]:
        """Number of connected parts of a set of vertices, and the part of each of them."""
        places = np.flatnonzero(mask)
        own = self.neighbours[places][:, places]
        return sparse.csgraph.connected_components(own, directed=False)

    def sub(self, mask: NDArray[np.bool_]) -> tuple[Mesh, NDArray[np.int64]]:
        """The faces whose corners are all in a set of vertices, and which vertices theirs are."""
        kept = self.faces[mask[self.faces].all(axis=1)]
        used, numbers = np.unique(kept, return_inverse=True)
        return Mesh(self.vertices[used], numbers.reshape(kept.shape)), used


def simplified(mesh: Mesh, edge_mm: float) -> tuple[Mesh, NDArray[np.intp]]:
    """A coarse form for the screen: one vertex per cube of that edge.

    Returns: it, and the new vertex of each old one.
    """
    vertices, cluster = means_of_cubes(mesh.vertices, edge_mm)
    faces = np.unique(cluster[mesh.faces], axis=0)
    return Mesh(vertices, faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]), cluster


def surface_of(mask: NDArray[np.bool_], space: Space) -> Mesh | None:
    """The smoothed surface of a mask: marching cubes at one half, then Taubin's smoothing by vtk's windowed sinc.

    Args: mask: (Z, Y, X). space: of its voxels.
    Returns: None where the mask is empty.
    """
    vtk = load_vtk()
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    (box,) = ndimage.find_objects(mask.view(np.uint8), max_label=1)
    if box is None:
        return None
    part = np.pad(mask[box].view(np.uint8), 1)
    image = vtk.vtkImageData()
    image.SetDimensions(*part.shape[::-1])
    image.SetSpacing(*space.spacing_mm[::-1].tolist())  # smoothing looks at lengths
    image.GetPointData().SetScalars(numpy_to_vtk(part.ravel(), deep=False))
    contour = vtk.vtkFlyingEdges3D()
    contour.SetInputData(image)
    contour.SetValue(0, 0.5)
    contour.ComputeNormalsOff()
    contour.ComputeGradientsOff()
    smooth = vtk.vtkWindowedSincPolyDataFilter()
    smooth.SetInputConnection(contour.GetOutputPort())
    smooth.SetNumberOfIterations(_STEPS)
    smooth.SetPassBand(_PASS_BAND)
    smooth.BoundarySmoothingOff()
    smooth.FeatureEdgeSmoothingOff()
    smooth.NonManifoldSmoothingOn()
    smooth.NormalizeCoordinatesOn()
    smooth.Update()
    made = smooth.GetOutput()
    places = vtk_to_numpy(made.GetPoints().GetData()).astype(np.float64) / space.spacing_mm[::-1]
    faces = vtk_to_numpy(made.GetPolys().GetConnectivityArray()).reshape(-1, 3).astype(np.int64)
    indices = places[:, ::-1] + [of.start - 1 for of in box]
    mesh = Mesh(space.origin_mm + indices @ space.steps_mm.T, faces)
    # The volume that the faces enclose is above 0 where they are seen from outside.
    volume = np.einsum("ij,ij->", mesh.vertices[mesh.faces[:, 0]] - mesh.vertices.mean(axis=0), mesh.face_normals)
    return mesh if volume > 0 else Mesh(mesh.vertices, mesh.faces[:, ::-1])


def polydata_of(mesh: Mesh, **values: NDArray) -> Any:
    """The mesh as vtk's, with values at its vertices by name."""
    vtk = load_vtk()
    from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

    points = vtk.vtkPoints()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(mesh.vertices), deep=True))
    cells = vtk.vtkCellArray()
    offsets = numpy_to_vtkIdTypeArray(np.arange(0, 3 * len(mesh.faces) + 1, 3, dtype=np.int64), deep=True)
    cells.SetData(offsets, numpy_to_vtkIdTypeArray(np.ascontiguousarray(mesh.faces).ravel(), deep=True))
    made = vtk.vtkPolyData()
    made.SetPoints(points)
    made.SetPolys(cells)
    for name, of in values.items():
        array = numpy_to_vtk(np.ascontiguousarray(of), deep=True)
        array.SetName(name)
        made.GetPointData().AddArray(array)
    return made


def signed_distances(mesh: Mesh, other: Mesh) -> NDArray[np.float64]:
    """Distance of each vertex of a surface from another one, mm: above 0 outside of that, below 0 within."""
    vtk = load_vtk()
    distance = vtk.vtkImplicitPolyDataDistance()
    distance.SetInput(polydata_of(other))
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    found = vtk.vtkDoubleArray()
    distance.FunctionValue(numpy_to_vtk(np.ascontiguousarray(mesh.vertices), deep=True), found)
    return vtk_to_numpy(found).copy()
