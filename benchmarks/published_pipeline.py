"""The published way to make a volume, written anew with SimpleITK: baseline of `synthesis.py`.

Stanley et al. (2023) render a subject on the lattice of the SRI24 atlas, 173 x 211 x 155 voxels of
1 mm, from three stationary velocity fields: healthy anatomy ``s``, disease ``d`` and bias ``b``.
All are dense and at full resolution. Effects are defined on the template and have to act on the
subject, so they are carried over by the conjugate action ``exp(-s) o exp(e) o exp(s)``, one image
after the other. To move anatomy along ``v``, an image is sampled at ``exp(-v)``:

1. ``exp(-s)``; the template is sampled at it (first warp). That is the healthy subject. 2.
``exp(s)``; the subject is sampled at it (second warp). Back to the template, where the effects are
defined. 3. ``exp(d)`` and ``exp(b)``, composed to one displacement: both effects, as a map that
pushes tissue forward. 4. That displacement is inverted by iteration, for images are pulled back,
and a composition of two exponentials has no
   velocity at hand whose sign could be changed.
5. The image is sampled at the inverse (third warp): disease and bias.
6. ``exp(-s)``; the image is sampled at it (fourth warp). To the subject again.

In all five exponentials, four interpolations of the image and one inversion. Exponentials are by
scaling and squaring, with a first step of at most a quarter of a voxel: the rule of ITK's own
filter for them, which SimpleITK does not wrap. Composition, inversion and warps are SimpleITK's
filters at their defaults, on float32 fields, with its default number of threads.

References
----------
Stanley, Wilms, Forkert (2023), "A flexible framework for simulating and evaluating biases in deep
learning-based medical image analysis", MICCAI (the method; none of its code is used here). Arsigny,
Commowick, Pennec, Ayache (2006), "A log-Euclidean framework for statistics on diffeomorphisms",
MICCAI, sec. 3 (exponential).
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk

from simba_lab.core import Lattice

# The extent of the SRI24 atlas at 1 mm.
SHAPE = (173, 211, 155)
FIRST_STEP_VOXELS = 0.25


@dataclass(frozen=True)
class Published:
    """What the pipeline makes, and how long it takes.

    Parameters
    ----------
    volume : ndarray of float32, shape (X, Y, Z)
    seconds : dict of str to float
        Time in ``exponentials``, ``warps``, ``composition`` and ``inversion``.
    counts : dict of str to int
        How often each was done.
    processor_seconds : float
        Processor time of all threads together.
    """

    volume: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    processor_seconds: float = 0.0

    @property
    def total_seconds(self) -> float:
        """Time of all steps together."""
        return sum(self.seconds.values())


def sri24_lattice(centre_mm) -> Lattice:
    """Return the 173 x 211 x 155 lattice of 1 mm around a point, its voxel centres at whole mm."""
    return Lattice(
        SHAPE,
        1.0,
        tuple(float(np.round(c) - n // 2) for c, n in zip(centre_mm, SHAPE, strict=True)),
    )


def to_image(array: np.ndarray, lattice: Lattice) -> sitk.Image:
    """Return an array (X, Y, Z), or interleaved (X, Y, Z, 3), as a SimpleITK image.

    Image and fields are all given in the lab's axes, so none needs the change of sign to
    SimpleITK's LPS.
    """
    image = sitk.GetImageFromArray(
        np.ascontiguousarray(np.swapaxes(array, 0, 2), dtype=np.float32), isVector=array.ndim == 4
    )
    image.SetOrigin(lattice.origin_mm)
    image.SetSpacing([lattice.spacing_mm] * 3)
    return image


def sampled(image: sitk.Image, displacement: sitk.Image) -> sitk.Image:
    """Return an image, or a field, interpolated at displaced positions; 0 outside."""
    return sitk.Warp(
        image,
        displacement,
        outputSize=displacement.GetSize(),
        outputSpacing=displacement.GetSpacing(),
        outputOrigin=displacement.GetOrigin(),
    )


def compose(outer: sitk.Image, inner: sitk.Image) -> sitk.Image:
    """Return the displacement of ``outer o inner``; outside a field nothing moves, as in ITK."""
    return inner + sampled(outer, inner)


def exponential(velocity: np.ndarray, lattice: Lattice) -> sitk.Image:
    """Return the displacement of the flow of a velocity in mm at time 1: scaling and squaring."""
    longest = np.sqrt(np.einsum("xyzd,xyzd->xyz", velocity, velocity).max()) / lattice.spacing_mm
    squarings = max(0, int(np.ceil(np.log2(max(longest, 1e-6) / FIRST_STEP_VOXELS))))
    displacement = to_image(velocity / np.float32(2**squarings), lattice)
    for _ in range(squarings):
        displacement = compose(displacement, displacement)
    return displacement


def render(
    template: np.ndarray,
    lattice: Lattice,
    subject: np.ndarray,
    disease: np.ndarray,
    bias: np.ndarray,
) -> Published:
    """Render one subject with a disease and a bias.

    Parameters
    ----------
    template : ndarray, shape (X, Y, Z), on `lattice`
    subject, disease, bias : ndarray, shape (X, Y, Z, 3)
        Velocities along which anatomy moves, in mm on `lattice`.

    Returns
    -------
    Published
        Without the time to hand arrays to SimpleITK and back.
    """
    seconds, counts, started = {}, {}, time.process_time()

    @contextmanager
    def timed(stage: str):
        start = time.perf_counter()
        yield
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
        counts[stage] = counts.get(stage, 0) + 1

    def flowed(velocity: np.ndarray) -> sitk.Image:
        with timed("exponentials"):
            return exponential(velocity, lattice)

    def warped(image: sitk.Image, displacement: sitk.Image) -> sitk.Image:
        with timed("warps"):
            return sampled(image, displacement)

    forth, back = np.float32(subject), -np.float32(subject)
    healthy = warped(to_image(template, lattice), flowed(back))
    on_template = warped(healthy, flowed(forth))
    grown, pushed = flowed(np.float32(disease)), flowed(np.float32(bias))
    with timed("composition"):
        forward = compose(pushed, grown)
    with timed("inversion"):
        backward = sitk.InvertDisplacementField(forward)
    affected = warped(on_template, backward)
    final = warped(affected, flowed(back))
    spent = time.process_time() - started
    return Published(np.swapaxes(sitk.GetArrayFromImage(final), 0, 2), seconds, counts, spent)
