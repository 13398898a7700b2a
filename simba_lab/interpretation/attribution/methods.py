"""Which method runs how, on how many volumes at a time: settings checked, memory planned, subjects attributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from simba_lab.core.errors import SimbaError
from simba_lab.interpretation.attribution import captum_methods
from simba_lab.interpretation.attribution.gradients import (
    COPIES,
    GRAIN_BYTES,
    WORKSPACE,
    Reader,
    Scorer,
    check_differentiable,
    costs,
    integrated_gradients,
    reader_of,
    saliency,
    smooth_gradients,
)

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

METHODS = (
    "integrated_gradients",
    "saliency",
    "input_x_gradient",
    "smooth_grad",
    "deep_lift",
    "guided_backprop",
    "grad_cam",
    "guided_grad_cam",
    "occlusion",
    "shapley",
)
COMPARING = ("integrated_gradients", "deep_lift", "occlusion", "shapley")
NO_GRADIENT = ("occlusion", "shapley")
# Activations of a volume, in units of those of a gradient: DeepLift runs the start too and keeps
# what layers take and give.
TIMES = {"deep_lift": 6, "guided_backprop": 2, "grad_cam": 2, "guided_grad_cam": 2}
# Volumes this small, as a share of the memory, may be rendered ahead and kept.
SMALL = 1 / 64


@dataclass(frozen=True)
class Settings:
    """What `attribute` was asked for; see there."""

    method: str
    target: int | None
    steps: int
    tolerance: float | None
    samples: int
    noise: float
    layer: str | None
    window_mm: float
    seed: int
    batch_size: int
    memory_gb: float
    device: str

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise SimbaError(name, value, "an integer of at least 1")
        for name in ("noise", "window_mm", "memory_gb"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < np.inf:
                raise SimbaError(name, value, "a number above 0")
        if self.tolerance is not None and not (
            isinstance(self.tolerance, int | float) and self.tolerance > 0
        ):
            raise SimbaError("tolerance", self.tolerance, "a number above 0, or None")
        if self.target is not None and (
            isinstance(self.target, bool) or not isinstance(self.target, int | np.integer)
        ):
            raise SimbaError(
                "target", self.target, "an integer, the position of an output, or None"
            )
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int | np.integer)
            or self.seed < 0
        ):
            raise SimbaError("seed", self.seed, "an integer of at least 0")
        if self.layer is not None and self.method not in captum_methods.GRAD_CAM:
            raise SimbaError(
                "layer",
                self.layer,
                f"left out for {self.method}",
                "Only Grad-CAM looks at a layer.",
            )


@dataclass(frozen=True, eq=False)
class Plan:
    """A method ready to run: the private copy of the network, and how much of everything goes at a time.

    Parameters
    ----------
    settings : Settings
    reader : Reader
    device : torch.device
    chunk : int
        Volumes in one pass through the network.
    group : int
        Subjects that are held at a time.
    keep : bool
        Whether volumes are small enough to be rendered ahead.
    in_memory : bool
        Whether the maps of all subjects are.
    """

    settings: Settings
    reader: Reader
    device: torch.device
    chunk: int
    group: int
    keep: bool
    in_memory: bool
    layer: str | None

    @property
    def compares(self) -> bool:
        """Whether the method has a baseline."""
        return self.settings.method in COMPARING

    def attribute(
        self,
        images: torch.Tensor,
        starts: torch.Tensor | None,
        cohort: Cohort,
        places: np.ndarray,
        points: np.ndarray,
    ) -> tuple[torch.Tensor, list[dict]]:
        """Return maps of shape (N, 1, X, Y, Z) and what the table says of each subject.

        `points` are those of the path of integrated gradients; other methods have none.
        """
        rows: list[dict] = [{} for _ in places]
        if self.compares:
            with torch.no_grad():
                change = [
                    (
                        self.reader.scorer(image[None]).double()
                        - self.reader.scorer(start[None]).double()
                    ).item()
                    for image, start in zip(images, starts, strict=True)
                ]
            rows = [{"logit_change": value} for value in change]
        settings, scorer = self.settings, self.reader.scorer
        match settings.method:
            case "integrated_gradients":
                maps = integrated_gradients(
                    self.reader, images, starts, points=points, chunk=self.chunk
                )
            case "saliency":
                maps = saliency(self.reader, images)
            case "input_x_gradient":
                maps = images * saliency(self.reader, images)
            case "smooth_grad":
                names = cohort.table.index[places].tolist()
                maps = smooth_gradients(
                    self.reader,
                    images,
                    names,
                    samples=settings.samples,
                    noise=settings.noise,
                    seed=settings.seed,
                    chunk=self.chunk,
                )
            case "deep_lift":
                maps = captum_methods.deep_lift(scorer, images, starts)
            case "guided_backprop":
                maps = captum_methods.guided_backprop(scorer, images)
            case "grad_cam":
                maps = captum_methods.grad_cam(scorer, images, self.layer)
            case "guided_grad_cam":
                maps = captum_methods.guided_grad_cam(scorer, images, self.layer)
            case "occlusion":
                window = max(1, round(settings.window_mm / cohort.lattice.spacing_mm))
                maps = captum_methods.occlusion(
                    scorer, images, starts, window=min(window, *images.shape[2:]), chunk=self.chunk
                )
            case _:
                maps = self._shapley(images, starts, cohort, places, rows)
        return maps.detach(), rows

    def _shapley(
        self,
        images: torch.Tensor,
        starts: torch.Tensor,
        cohort: Cohort,
        places: np.ndarray,
        rows: list[dict],
    ) -> torch.Tensor:
        settings, maps = self.settings, torch.empty_like(images)
        names = {number: name for name, number in cohort.template.regions.items()} | {
            0: "elsewhere"
        }
        for row, place in enumerate(places):
            maps[row : row + 1], regional = captum_methods.shapley(
                self.reader.scorer,
                images[row : row + 1],
                starts[row : row + 1],
                regions_of(cohort, int(place)),
                samples=settings.samples,
                seed=settings.seed,
                subject=cohort.table.index[place],
                chunk=self.chunk,
            )
            rows[row]["regions"] = {names[number]: value for number, value in regional.items()}
        return maps


def middles(parts: int) -> np.ndarray:
    """Return the middles of equal parts of a path from 0 to 1, shape (parts,)."""
    return (np.arange(parts) + 0.5) / parts


def regions_of(cohort: Cohort, index: int) -> np.ndarray:
    """Return the region number of each voxel of a subject, shape (X, Y, Z): that of the nearest voxel of the template."""
    lattice, labels = cohort.template.lattice, cohort.template.labels
    where = (
        np.moveaxis(cohort.positions_mm(index), 0, -1) - np.float32(lattice.origin_mm)
    ) / lattice.spacing_mm
    nearest = np.round(where).astype(int)
    inside = ((nearest >= 0) & (nearest < labels.shape)).all(axis=-1)
    nearest = np.clip(nearest, 0, np.array(labels.shape) - 1)
    return np.where(inside, labels[tuple(np.moveaxis(nearest, -1, 0))], 0).astype(np.int64)


def plan_of(model: torch.nn.Module, cohort: Cohort, settings: Settings, *, constant: bool) -> Plan:
    """Check a network for a method, and plan how much fits into the memory.

    Raises
    ------
    SimbaError
        If the network does not go with the method, or not even one volume fits.
    """
    device = settings.device
    where = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )
    scorer = Scorer(model, settings.target).to(where)
    shape = cohort.lattice.shape
    method = settings.method
    captum_methods.check_layers(scorer, method)
    volume = torch.zeros((1, 1, *shape), device=where)
    saved, largest = costs(scorer, volume)
    allowed, image = settings.memory_gb * 1e9, float(volume.nbytes)
    needs_gradient = method not in NO_GRADIENT
    each = (
        TIMES.get(method, 1) * saved + WORKSPACE * largest
        if needs_gradient
        else 2 * WORKSPACE * largest + 4 * image
    )
    least = each + COPIES * image
    if least > allowed:
        raise SimbaError(
            "memory_gb",
            settings.memory_gb,
            f"at least {least / 1e9:.2g}, which one volume needs",
            "Use larger voxels or a smaller network.",
        )
    volume += torch.from_numpy(np.asarray(cohort.array(0, keep=False), np.float32)).to(where)
    if needs_gradient:
        check_differentiable(scorer, volume)
    layer = (
        captum_methods.grad_cam_layer(scorer, settings.layer, volume)
        if method in captum_methods.GRAD_CAM
        else None
    )
    split = method in ("integrated_gradients", "saliency", "input_x_gradient", "smooth_grad")
    # The head's results at both ends, their difference, the sum over the path and the next chunk's
    # input.
    reader = reader_of(scorer, volume, split=split and least + 5 * largest <= allowed)
    held = COPIES * image + (5 * largest if reader.stand_in is not None else 0)
    in_memory = len(cohort) * image <= allowed / 2
    left = allowed - (len(cohort) * image if in_memory else 0)
    in_memory = in_memory and each + held <= left
    left = left if in_memory else allowed
    grain = (
        max(1, int(GRAIN_BYTES // max(saved, 1))) if where.type == "cpu" else settings.batch_size
    )
    chunk = int(max(1, min(settings.batch_size, grain, (left - held) // each)))
    per_subject = {"integrated_gradients": settings.steps, "smooth_grad": settings.samples}.get(
        method, 1
    )
    group = max(1, chunk // per_subject)
    while group > 1 and chunk * each + group * held > left:
        group -= 1
    if not needs_gradient:
        group = 1
    return Plan(settings, reader, where, chunk, group, image <= SMALL * allowed, in_memory, layer)
