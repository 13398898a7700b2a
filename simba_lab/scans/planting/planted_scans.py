"""PlantedScans: somebody's files with effects put into them when a volume is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates

from simba_lab.core.errors import SimbaError
from simba_lab.core.lattice import Lattice
from simba_lab.core.rng import stream
from simba_lab.scans.planting.alteration import deformed, displacements_of, followed
from simba_lab.scans.planting.injection import altered
from simba_lab.scans.planting.placed_scan import PlacedScan, place
from simba_lab.scans.planting.placement import Registration, placement_of, transformed
from simba_lab.scans.planting.scan import Scan, open_scan
from simba_lab.scans.planting.transforms import described
from simba_lab.scans.preparation import Adjustment, PreparedImages
from simba_lab.synthesis.anatomy.template import Template, load_template
from simba_lab.synthesis.effects import Effect, Intensity, Morphology
from simba_lab.synthesis.rendering.flows import KNOT_SPACING, LocalFlow, local_flow
from simba_lab.synthesis.rendering.renderer import CACHE_BYTES
from simba_lab.synthesis.rendering.volume_cache import VolumeCache
from simba_lab.synthesis.scenario_values import plain

# The effects that show in a scan, with their magnitudes, none of which is 0.
Amounts = tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class PlantedScans:
    """Files of people, and what is planted in them. Made by `plant`.

    Parameters
    ----------
    images : PreparedImages
        The files, and how they are brought to the lattice.
    effects : mapping of name to effect
        In the order in which they are applied.
    reach : mapping of name to (float, float)
        The least and the greatest magnitude of each effect.
    transforms : mapping of int to affine, path, image or DisplacementField
        From each subject's scan to the template, as `inject` takes it; empty if positions of the
        volumes are positions in the template.
    stamps : mapping of int to (int, int)
        Size and time of change of each file when it was planted.
    seed : int
        Of groups, magnitudes and noise.
    """

    images: PreparedImages
    effects: Mapping[str, Effect]
    reach: Mapping[str, tuple[float, float]]
    transforms: Mapping[int, Registration]
    stamps: Mapping[int, tuple[int, int]]
    seed: int

    def __getstate__(self) -> dict[str, Any]:
        # A lock and large tables: another process makes its own.
        cached = ("_cache", "_adjustments", "flows", "template", "identity")
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    @cached_property
    def template(self) -> Template:
        """The brain whose regions are meant."""
        template = self.images.template
        return template if isinstance(template, Template) else load_template(template)

    @property
    def lattice(self) -> Lattice:
        """Where the voxels of the volumes are."""
        return self.images.lattice

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the volumes follow from: files, effects, transforms, seed."""
        return {
            "scans": self.images.identity,
            "planted": plain(self.effects),
            "transforms": {
                str(subject): described(transform, path=False)
                for subject, transform in sorted(self.transforms.items())
            },
            "seed": self.seed,
        }

    @cached_property
    def flows(self) -> dict[str, LocalFlow]:
        """The deformations of the template, over all magnitudes."""
        return {
            name: local_flow(
                effect, self.template, np.array(self.reach[name]), field=f"effects[{name!r}]"
            )
            for name, effect in self.effects.items()
            if isinstance(effect, Morphology)
        }

    @cached_property
    def _cache(self) -> VolumeCache:
        return VolumeCache(CACHE_BYTES)

    @cached_property
    def _adjustments(self) -> dict[int, Adjustment]:
        return {}

    # -- images --

    def volume(self, subject: int, amounts: Amounts = (), *, keep: bool = True) -> np.ndarray:
        """Return a volume with some effects: float32, (X, Y, Z); never write to one that is kept.

        The scan is changed on its own grid, then brought to the lattice as its untouched twin is.
        """
        if not keep:
            return self._rendered(subject, amounts)
        return self._cache.get((subject, amounts), partial(self._rendered, subject, amounts))

    def _rendered(self, subject: int, amounts: Amounts) -> np.ndarray:
        self._check_unchanged(subject)
        if not amounts:
            return self.images.array(subject)
        adjustment = self._adjustment(subject)
        image = self.planted(subject, amounts)
        # As `read_nifti` hands out the files that untouched scans are in.
        values = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
        canonical = nib.as_closest_canonical(nib.Nifti1Image(values, image.affine))
        volume = self.images.sampled(canonical, adjustment.offset_mm)
        if adjustment.factor is not None:
            volume *= adjustment.factor
        return volume

    def planted(self, subject: int, amounts: Amounts) -> nib.Nifti1Image:
        """Return a scan with some effects on its own grid; `inject` returns the same bytes."""
        with self._naming(subject):
            placed = self.placed(subject)
            effects = {name: self.effects[name] for name, _ in amounts}
            flows = {
                name: _narrowed(self.flows[name], amount)
                for name, amount in amounts
                if name in self.flows
            }
            stored = altered(placed, effects, dict(amounts), flows, self.noise_seed(subject))
        return placed.scan.with_stored(stored)

    def noise_seed(self, subject: int) -> int:
        """Return the seed of the noise that is added to a scan: the same in all its twins."""
        return int(stream(self.seed, subject, "planted noise").integers(2**62))

    def check(self, subject: int) -> None:
        """Raise unless all effects can be put into a scan. Reads it once."""
        with self._naming(subject):
            placed = self.placed(subject)
            for name, flow in self.flows.items():
                effect = self.effects[name]
                assert isinstance(effect, Morphology)
                placed.check_region(effect.region, flow.lattice)
            if self.flows and self.transforms.get(subject) is not None:
                # A field may end, or fold, where tissue moves.
                most = {name: max(self.reach[name], key=abs) for name in self.flows}
                deformed(placed, [(flow, most[name]) for name, flow in self.flows.items()])

    def placed(self, subject: int) -> PlacedScan:
        """Return a scan in its place in the template."""
        scan = open_scan(self.images.paths[subject], self.images.masks.get(subject))
        return place(scan, self._to_template(subject, scan), self.template)

    def _to_template(self, subject: int, scan: Scan | None = None) -> Registration:
        """Return the map from a scan to the template: its transform, or how it was moved."""
        if self.transforms:
            return self.transforms[subject]
        if self.images.centre_mm is None:
            return None
        offset = self._adjustment(subject).offset_mm
        return nib.affines.from_matvec(np.eye(3), offset)

    def _adjustment(self, subject: int) -> Adjustment:
        if subject not in self._adjustments:
            self._adjustments[subject] = self.images.adjusted(subject)[1]
        return self._adjustments[subject]

    def _check_unchanged(self, subject: int) -> None:
        path = self.images.paths[subject]
        if path.is_file() and stamp_of(path) != self.stamps[subject]:
            remedy = "It was changed since; plant the effects again."
            raise SimbaError(f"scan of subject {subject}", str(path), "the planted file", remedy)

    @contextmanager
    def _naming(self, subject: int) -> Iterator[None]:
        """Name the subject in errors about its scan or its transform."""
        try:
            yield
        except SimbaError as error:
            names = {"scan": "scan", "to_template": "transform"}
            owner = f"of subject {subject} ({self.images.paths[subject].name})"
            remedy = error.remedy.replace("give the transform as to_template", "give transforms")
            if not error.allowed:  # a problem in a sentence
                raise type(error).problem(f"The scan {owner}: {error.field}", remedy) from error
            if error.field not in names:
                raise
            field = f"{names[error.field]} {owner}"
            raise type(error)(field, error.value, error.allowed, remedy) from error

    # -- places --

    def positions_mm(self, subject: int, amounts: Amounts) -> np.ndarray:
        """Return where in the template each voxel's tissue comes from: (3, X, Y, Z), mm."""
        shape, affine = self.lattice.shape, self.lattice.affine
        if self.images.centre_mm is not None:
            offset = self._adjustment(subject).offset_mm
            assert offset is not None
            affine = nib.affines.from_matvec(np.eye(3), -offset) @ affine
        with self._naming(subject):
            placement = placement_of(affine, self._to_template(subject))
        points = placement.template_mm(np.indices(shape).reshape(3, -1))
        shown = [(self.flows[name], amount) for name, amount in amounts if name in self.flows]
        moved = followed(points, displacements_of(shown))
        return moved.reshape(3, *shape).astype(np.float32)

    def looked_up(
        self, image: np.ndarray, subject: int, amounts: Amounts, *, order: int
    ) -> np.ndarray:
        """Return an image of the template at each voxel's position; 0 outside. Shape (X, Y, Z)."""
        positions = self.positions_mm(subject, amounts)
        to_voxels = np.linalg.inv(self.template.lattice.affine)
        voxels = transformed(to_voxels, positions.reshape(3, -1).astype(float))
        values = map_coordinates(image, voxels, order=order, mode="constant")
        return np.asarray(values.reshape(self.lattice.shape))

    def noiseless(self, amounts: Amounts) -> Amounts:
        """Return the effects that add no noise."""
        return tuple((name, amount) for name, amount in amounts if not self._is_noise(name))

    def _is_noise(self, name: str) -> bool:
        effect = self.effects[name]
        return isinstance(effect, Intensity) and effect.kind == "noise"


def stamp_of(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file, in bytes and nanoseconds."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _narrowed(flow: LocalFlow, magnitude: float) -> LocalFlow:
    """Return a flow that is tabulated just as far as this magnitude, as `inject` has it.

    The last knot is reached from the one before it, which rounds otherwise than from itself.
    """
    zero = int(np.flatnonzero(flow.knots == 0)[0])
    below, above = (
        max(1, int(np.ceil(max(0.0, side) / KNOT_SPACING))) for side in (-magnitude, magnitude)
    )
    kept = slice(zero - below, zero + above + 1)
    return LocalFlow(flow.lattice, flow.knots[kept], flow.table[kept])
