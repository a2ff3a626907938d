"""Synthetic anomalies pasted into healthy structures while training; the labels stay as they are.

A network that has met bright, dark and uneven patches within a bone keeps calling them bone.
The shapes are unlike lesions on purpose: what is learnt is that the host goes on beneath, not how a lesion looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.label_roles import LabelRoles, with_their_lesions
from nnunetv2_anomaly.plans.settings import SHARE, is_list, is_positive, is_text, is_whole

#: voxels of a patch that are looked at to find the host, its middle intensity and its spread
_SAMPLES = 10_000
#: fewer of them in a host tell nothing of it
_LEAST_SAMPLES = 20
#: median absolute deviation -> standard deviation of a normal distribution
_MAD = 1.4826
#: share of the way from a host's median to the darkest voxel that an anomaly may go: what is as dark as air is no host
_NOT_AS_DARK = 0.8
#: how far a soft edge reaches, mm (standard deviation of the Gaussian)
_SOFT_EDGE_MM = (0.5, 2.0)


def _is_range(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: is_list(check, 2)(value) and value[0] <= value[1]


# ------------------------------------------------------------------------ shapes

#: (random numbers, places in mm from the middle, (n, *box); half of the extent in mm) -> mask (*box)
Shape = Callable[[Generator, NDArray[np.float64], float], NDArray[np.bool_]]


def turned_box(rng: Generator, places_mm: NDArray[np.float64], half_mm: float) -> NDArray[np.bool_]:
    """A turned box of unequal edges."""
    return _within_box(rng, places_mm, half_mm * rng.uniform(0.4, 1, len(places_mm)))


def slab(rng: Generator, places_mm: NDArray[np.float64], half_mm: float) -> NDArray[np.bool_]:
    """A turned box of which one edge is a fifth of the others."""
    return _within_box(rng, places_mm, half_mm * np.array([0.2, *[1.0] * (len(places_mm) - 1)]))


def noise(rng: Generator, places_mm: NDArray[np.float64], half_mm: float) -> NDArray[np.bool_]:
    """The upper part of smoothed noise, within a ball."""
    field, ball = _smooth_field(rng, places_mm, half_mm / 3), np.linalg.norm(places_mm, axis=0) <= half_mm
    return ball & (field > np.quantile(field[ball], rng.uniform(0.3, 0.7)))


def tube(rng: Generator, places_mm: NDArray[np.float64], half_mm: float) -> NDArray[np.bool_]:
    """What is near a random walk."""
    radius = half_mm * rng.uniform(0.15, 0.35)
    steps = rng.normal(size=(16, len(places_mm)))
    walk = np.cumsum(radius * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    walk -= walk.mean(axis=0)
    distances = [np.linalg.norm(places_mm - point.reshape(-1, *[1] * len(point)), axis=0) for point in walk]
    return np.minimum.reduce(distances) <= radius


SHAPES: tuple[Shape, ...] = (turned_box, slab, noise, tube)


def _within_box(rng: Generator, places_mm: NDArray, half_axes_mm: NDArray) -> NDArray[np.bool_]:
    turn = np.linalg.qr(rng.normal(size=(len(places_mm),) * 2))[0]
    turned = np.tensordot(turn, places_mm, axes=1)
    inside: NDArray[np.bool_] = np.abs(turned) <= half_axes_mm.reshape(-1, *[1] * len(half_axes_mm))
    return np.logical_and.reduce(inside)


def _smooth_field(rng: Generator, places_mm: NDArray, sigma_mm: float) -> NDArray[np.float64]:
    """Noise smoothed by a Gaussian."""
    shape = places_mm.shape[1:]
    steps = [np.ptp(places) / max(1, n - 1) for places, n in zip(places_mm, shape, strict=True)]
    return ndimage.gaussian_filter(rng.normal(size=shape), [sigma_mm / step if step else 0 for step in steps])


# -------------------------------------------------------------------------- laws


@dataclass(frozen=True)
class Host:
    """What a law may know: the voxels in the box (C, *box), elsewhere (C, *box), and per channel (C, 1, ...)."""

    here: Tensor
    elsewhere: Tensor
    median: Tensor
    darkest: Tensor
    shift: Tensor  # how far the anomaly is to lie from the median, with its sign


def constant(_rng: Generator, host: Host, _places_mm: NDArray) -> Tensor:
    """One value."""
    return (host.median + host.shift).expand_as(host.here)


def gain(_rng: Generator, host: Host, _places_mm: NDArray) -> Tensor:
    """The host's texture, multiplied from the darkest of the image on."""
    above = (host.median - host.darkest).clamp(min=1e-6)
    return host.darkest + (host.here - host.darkest) * ((above + host.shift) / above).clamp(min=0, max=10)


def uneven(rng: Generator, host: Host, places_mm: NDArray) -> Tensor:
    """The host's texture, and a shift that varies from place to place between 0.3 and 1 of its strength."""
    field = _smooth_field(rng, places_mm, float(np.abs(places_mm).max()) / 2)
    field = 0.3 + 0.7 * (field - field.min()) / max(float(np.ptp(field)), 1e-9)
    return host.here + host.shift * torch.from_numpy(field).to(host.here)


def foreign(rng: Generator, host: Host, _places_mm: NDArray) -> Tensor:
    """A patch from elsewhere in the image, brought to the strength that was drawn, and interpolated with the host."""
    axes = tuple(range(1, host.here.ndim))
    texture = host.elsewhere - host.elsewhere.mean(dim=axes, keepdim=True)
    return torch.lerp(host.here, texture + host.median + host.shift, float(rng.uniform(0.5, 1)))


LAWS: tuple[Callable[[Generator, Host, NDArray], Tensor], ...] = (foreign, constant, gain, uneven)

#: sign of an anomaly's shift by polarity; for "both" it is drawn
POLARITIES: dict[str, float | None] = {"both": None, "bright": 1.0, "dark": -1.0}

#: option of the setting paste_anomalies -> whether a value is acceptable; its default is ``PasteAnomalies``'s
OPTIONS: dict[str, Callable[[Any], bool]] = {
    "probability": SHARE[1],
    "count": _is_range(is_whole(1, 100)),
    "strength": _is_range(is_positive),
    "size_mm": _is_range(is_positive),
    "polarity": lambda value: is_text(value) and value in POLARITIES,
    "hosts": lambda value: value is None or is_list(is_text)(value),
    "until": SHARE[1],
    "as_lesions": lambda value: isinstance(value, bool),
}


#: the setting that pastes where that does no harm: see ``why_not_pasted``
AUTO = "auto"


def is_pasting(value: Any) -> bool:
    """Whether a value is a dictionary of ``OPTIONS``, or ``AUTO``."""
    if isinstance(value, Mapping):
        return all(name in OPTIONS and OPTIONS[name](of) for name, of in value.items())
    return is_text(value) and value == AUTO


def why_not_pasted(roles: LabelRoles) -> str | None:
    """Why ``AUTO`` pastes nothing into a data set with these labels; None where it does."""
    if not roles.bones:
        return "no label is a bone"
    # What is pasted keeps the bone's label: a network that is to tell lesions from bone would learn the contrary.
    return "lesions are labels of their own" if roles.lesions else None


# --------------------------------------------------------------------- transform


@dataclass(frozen=True)
class _Structure:
    """A host as a patch shows it: places of some of its voxels, and intensities per channel, (C,)."""

    number: int  # among the hosts
    values: tuple[int, ...]
    places: NDArray[np.integer]  # (n,), in the flattened patch
    median: Tensor
    spread: Tensor  # robust standard deviation
    darkest: Tensor  # of the whole patch, as is brightest
    brightest: Tensor


@dataclass(frozen=True)
class PastedAnomaly:
    """One anomaly: its box in the patch, and there how much of each voxel it is, and what it is."""

    box: tuple[slice, ...]
    weight: Tensor  # (*box), from 0 to 1
    content: Tensor  # (C, *box), in the image's unit
    brighter: bool  # than its host, over all channels
    host: int  # its number among the hosts


class PasteAnomalies(BasicTransform):
    """Pastes anomalies into hosts; for after the spatial transforms and before those of intensity.

    Images are (C, X, Y) or (C, X, Y, Z), segmentations alike, of which the first channel counts. It stays as it is,
    unless what is pasted is to be a lesion. Where nothing is pasted, no random number is drawn but one; with
    probability 0 none.
    """

    def __init__(
        self,
        spacing_mm: Sequence[float],
        hosts: Sequence[Collection[int]],
        *,
        probability: float = 0.5,
        count: Sequence[int] = (1, 5),
        strength: Sequence[float] = (1.0, 10.0),
        size_mm: Sequence[float] = (4.0, 40.0),
        polarity: str = "both",
        until: float = 0.8,
        mark: bool = False,
        lesions: Sequence[int] | None = None,
    ) -> None:
        """Set what is drawn.

        Args:
            spacing_mm: distance of voxels along each axis of a patch.
            hosts: values of each structure that anomalies are pasted into; each has a spread of its own.
            probability: that a patch gets any.
            count: fewest and most anomalies of a patch.
            strength: least and largest distance from the host's median, in its own robust standard deviations; never
                beyond the brightest voxel of the patch, or near its darkest.
            size_mm: least and largest extent; sizes between are drawn evenly on a logarithmic scale.
            polarity: of ``POLARITIES``.
            until: share of a training after which nothing is pasted (``set_progress``).
            mark: whether the segmentation gets one more channel: 1 where brighter, 2 where darker was pasted, else 0.
            lesions: the label that what is pasted gets, for each host; None: the labels stay.
        """
        super().__init__()
        self.spacing_mm, self.hosts = np.array(spacing_mm, dtype=float), [tuple(values) for values in hosts]
        self.probability, self.until = float(probability), until
        # Shared with the loader's workers, so that a schedule reaches them.
        self.now = torch.tensor(self.probability).share_memory_()
        self.count, self.strength, self.size_mm = tuple(count), tuple(strength), tuple(size_mm)
        self.sign = POLARITIES[polarity]
        self.mark, self.lesions = mark, lesions

    def get_parameters(self, **data_dict: Any) -> dict[str, list[PastedAnomaly]]:
        """The anomalies of a patch, empty where there are none."""
        probability = float(self.now)
        if probability == 0 or np.random.uniform() >= probability:
            return {"anomalies": []}
        rng = np.random.default_rng(np.random.randint(2**31))
        return {"anomalies": self.draw_some(rng, data_dict["image"], data_dict["segmentation"][0])}

    def set_progress(self, share: float) -> None:
        """Say how much of the training is over, from 0 to 1; loaded batches follow a few later."""
        self.now.fill_(self.probability if share < self.until else 0.0)

    def draw_some(self, rng: Generator, image: Tensor, labels: Tensor) -> list[PastedAnomaly]:
        """Draw a number of anomalies, none where no host is in the patch. Args: image: (C, *axes). labels: (*axes)."""
        structures = self._structures(rng, image, labels)
        number = rng.integers(self.count[0], self.count[1] + 1) if structures else 0
        return [self._draw(rng, image, labels, structures[rng.integers(len(structures))]) for _ in range(number)]

    def _structures(self, rng: Generator, image: Tensor, labels: Tensor) -> list[_Structure]:
        places = rng.integers(0, labels.numel(), _SAMPLES)
        found, seen = labels.flatten()[places].numpy(), image.flatten(1)[:, places]
        structures = []
        for host, values in enumerate(self.hosts):
            own = np.isin(found, values)
            if own.sum() >= _LEAST_SAMPLES:
                within = seen[:, own]
                median = within.median(dim=1).values
                spread = _MAD * (within - median[:, None]).abs().median(dim=1).values
                structures.append(
                    _Structure(host, values, places[own], median, spread, seen.amin(dim=1), seen.amax(dim=1))
                )
        return structures

    def _draw(self, rng: Generator, image: Tensor, labels: Tensor, structure: _Structure) -> PastedAnomaly:
        size, every = np.array(labels.shape), slice(None)
        centre = np.array(np.unravel_index(structure.places[rng.integers(len(structure.places))], size))
        half_mm = math.exp(rng.uniform(math.log(self.size_mm[0]), math.log(self.size_mm[1]))) / 2
        edge_mm = float(rng.uniform(*_SOFT_EDGE_MM)) if rng.uniform() < 0.5 else 0.0
        reach = np.ceil((half_mm + 2 * edge_mm) / self.spacing_mm).astype(int)
        start, stop = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, size)
        box, other = tuple(map(slice, start, stop)), rng.integers(0, size - (stop - start) + 1)
        broadcast = (-1, *[1] * len(size))
        grid = np.stack(np.meshgrid(*map(np.arange, start - centre, stop - centre), indexing="ij"))
        places_mm = grid * self.spacing_mm.reshape(broadcast)

        weight = SHAPES[rng.integers(len(SHAPES))](rng, places_mm, half_mm).astype(np.float32)
        if edge_mm:
            weight = ndimage.gaussian_filter(weight, edge_mm / self.spacing_mm)
        weight *= np.isin(labels[box].numpy(), structure.values)

        low, high = self.strength
        signs = rng.choice((-1.0, 1.0), len(image)) if self.sign is None else self.sign
        shift = torch.from_numpy(signs * rng.uniform(low, high, len(image))).to(image) * structure.spread
        darkest = -_NOT_AS_DARK * (structure.median - structure.darkest)
        shift = shift.clamp(darkest, structure.brightest - structure.median)
        here, elsewhere = (every, *box), (every, *map(slice, other, other + stop - start))
        known = (of.view(broadcast) for of in (structure.median, structure.darkest, shift))
        host = Host(image[here], image[elsewhere], *known)
        content = LAWS[rng.integers(len(LAWS))](rng, host, places_mm)
        brighter = bool((shift / structure.spread.clamp(min=1e-9)).sum() > 0)
        return PastedAnomaly(box, torch.from_numpy(weight).to(image), content.clone(), brighter, structure.number)

    def _apply_to_image(self, img: Tensor, anomalies: Sequence[PastedAnomaly] = ()) -> Tensor:
        img = img.clone() if anomalies else img
        for anomaly in anomalies:
            place = (slice(None), *anomaly.box)
            img[place] = torch.lerp(img[place], anomaly.content, anomaly.weight)
        return img

    def _apply_to_segmentation(self, segmentation: Tensor, anomalies: Sequence[PastedAnomaly] = ()) -> Tensor:
        if self.lesions is not None and anomalies:
            segmentation = segmentation.clone()
            for anomaly in anomalies:
                segmentation[0][anomaly.box][anomaly.weight > 0.5] = self.lesions[anomaly.host]
        if not self.mark:
            return segmentation
        marks = torch.zeros_like(segmentation[:1])
        for anomaly in anomalies:
            marks[0][anomaly.box][anomaly.weight > 0.5] = 1 if anomaly.brighter else 2
        return torch.cat((segmentation, marks))


def with_pasting(transforms: ComposeTransforms, pasting: PasteAnomalies) -> ComposeTransforms:
    """nnU-Net's training transforms with the pasting after the spatial ones, or first where there are none."""
    spatial = (SpatialTransform, Convert2DTo3DTransform)
    last = max((place for place, of in enumerate(transforms.transforms) if isinstance(of, spatial)), default=-1)
    transforms.transforms.insert(last + 1, pasting)
    return transforms


def pasting_of(
    options: Mapping[str, Any],
    labels: Mapping[str, Any],
    roles: LabelRoles,
    spacing_mm: Sequence[float],
    *,
    setting: str = "paste_anomalies",
    mark: bool = False,
) -> PasteAnomalies:
    """The pasting that a setting asks for.

    Args:
        options: of ``OPTIONS``; what is missing has its default.
        labels: name -> value, or values of a region.
        roles: of the labels; where no hosts are given they are the bones, each with the lesions in it.
        spacing_mm: distance of voxels along each axis of a patch.
        setting: its name, for the error.
        mark: as ``PasteAnomalies`` takes it.
    Raises: UserError if a host is no label, or there is none.
    """
    hosts = options.get("hosts")
    hosts = list(roles.bones) if hosts is None else hosts
    unknown = [name for name in hosts if name not in labels]
    if unknown or not hosts:
        fault = f"names {', '.join(unknown)} among its hosts" if unknown else "has no host, as no label is a bone"
        raise UserError(f"the setting '{setting}' {fault}; expected some of {', '.join(labels)} as 'hosts'")
    lesions = None
    if options.get("as_lesions"):
        of_hosts = [next((name for name, bone in roles.lesions.items() if bone == host), None) for host in hosts]
        if without := [host for host, lesion in zip(hosts, of_hosts, strict=True) if lesion is None]:
            fault = f"is to label what it pastes, and no label is a lesion of {', '.join(without)}"
            raise UserError(f"the setting '{setting}' {fault}; give other 'hosts', or leave out 'as_lesions'")
        lesions = [int(np.ravel(labels[name])[0]) for name in of_hosts if name is not None]
    options = {name: of for name, of in options.items() if name not in ("hosts", "as_lesions")}
    return PasteAnomalies(spacing_mm, with_their_lesions(hosts, labels, roles), mark=mark, lesions=lesions, **options)


def example_of(
    pasting: PasteAnomalies, image: NDArray[np.float32], labels: NDArray[np.integer], seed: int
) -> tuple[NDArray, NDArray, NDArray] | None:
    """A patch with anomalies, for a picture.

    Args: image: (C, *axes). labels: (*axes). seed: of what is pasted.
    Returns: first channel of the pasted image, labels, and share of an anomaly in each voxel, in the plane of the last
        two axes with most of it; None where the patch has no host.
    """
    patch, rng = torch.from_numpy(image), np.random.default_rng(seed)
    anomalies = pasting.draw_some(rng, patch, torch.from_numpy(labels.astype(np.int64)))
    weight = torch.zeros(labels.shape)
    for anomaly in anomalies:
        weight[anomaly.box] = torch.maximum(weight[anomaly.box], anomaly.weight.float())
    if not weight.any():
        return None
    pasted = pasting.apply({"image": patch}, anomalies=anomalies)["image"][0].numpy()
    planes = [volume.reshape(-1, *labels.shape[-2:]) for volume in (pasted, labels, weight.numpy())]
    best = int(planes[2].sum(axis=(1, 2)).argmax())
    return planes[0][best], planes[1][best], planes[2][best]
