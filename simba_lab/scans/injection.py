"""Injection: the effects of a scenario in somebody's own T1 scan, with the untouched scan as its twin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy.ndimage import gaussian_filter, map_coordinates, maximum_filter, minimum_filter
from scipy.spatial import cKDTree

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.lattice import FWHM_PER_SIGMA
from simba_lab.core.rng import stream
from simba_lab.scans.placement import Placement, Survey, placement, survey, tissue
from simba_lab.scans.scan_files import Scan, open_scan, save_as_stored
from simba_lab.synthesis.anatomy.template import Template, load_template
from simba_lab.synthesis.anatomy.variability import Variability
from simba_lab.synthesis.effects import EXAMPLE, Effect, Intensity, Morphology
from simba_lab.synthesis.rendering.flows import LocalFlow, tabulate
from simba_lab.synthesis.rendering.scanner import Scanner, expose_points

# Order of the interpolating spline. Where tissue moves by more than half a voxel, white noise keeps
# 54 % of its standard deviation with order 1, 81 % with 3 and 86 % with 5: a region that is
# smoother than the rest of a scan gives itself away.
ORDER = 5
# The poles of that spline fade by 0.43 for each voxel: after so many there is nothing left of a
# voxel outside the crop.
MARGIN = 24
# Voxels that move less keep their bytes, in mm.
LEAST_MOVE_MM = 1e-3
# Share of a region that has to lie in the field of view.
LEAST_SEEN = 0.95
# Beyond this an effect should have another amplitude or strength.
MOST = 20
# Voxels that are treated at a time.
BATCH = 2**19


@dataclass(frozen=True, eq=False)
class Injected:
    """A scan with effects in it, beside the scan as it was; all three images are on the scan's grid.

    Parameters
    ----------
    image : nibabel image
        The scan with the effects; header, data type and scaling are those of the scan.
    twin : nibabel image
        The scan without them.
    mask : nibabel image of uint8
        1 where the two differ by more than the threshold.
    """

    image: nib.Nifti1Image
    twin: nib.Nifti1Image
    mask: nib.Nifti1Image

    def save(self, folder: str | Path) -> None:
        """Write ``image.nii.gz``, ``twin.nii.gz`` and ``mask.nii.gz``; the stored numbers of the scan stay as they are.

        (`nibabel.save` would choose a new scaling for scans that are stored as scaled integers.)

        Raises
        ------
        SimbaError
            If the folder cannot be written to.
        """
        save_as_stored({name: getattr(self, name) for name in ("image", "twin", "mask")}, folder)


def inject(
    scan: str | Path | nib.Nifti1Image,
    effects: Effect | Sequence[Effect] | Mapping[str, Effect],
    *,
    to_template: str | Path | nib.Nifti1Image | np.ndarray | None = None,
    vectors: str = "RAS",
    magnitudes: float | Mapping[str, float] | None = None,
    template: str | Template = "icbm2009c",
    variability: Variability | None = None,
    seed: int = 0,
    threshold: float = 0.02,
) -> Injected:
    """Put effects into a T1 scan of a real person.

    With T from the scan to the template and phi the deformation of the effects, the new scan is
    ``scan(T^-1 phi T x)``: each voxel is looked up in the template, moved there as a synthetic
    subject would be, and brought back. Voxels that do not move keep their bytes; the others are
    interpolated once, by a spline of fifth order held between the least and the greatest of the 27
    voxels around, so that background stays background. Intensity effects come after that, in the
    order of `simba_lab.synthesis.scanner`, and change the whole head.

    The pair is less exact than the twins of a synthetic cohort, which are rendered alike from one
    template. The twin is the scan itself and only the image is interpolated: the scan's noise moves
    with the tissue, and loses about a seventh of its standard deviation where tissue moves by more
    than half a voxel. Artefacts and pathology deform as anatomy does. The region is where the
    registration says it is, the amplitude holds in template millimetres (`to_template` may stretch
    it), and nothing is known about biases that the scan brought along.

    Parameters
    ----------
    scan : path or nibabel image
        A T1 in NIfTI-1 or NIfTI-2, in any orientation, voxel size or obliqueness, with or without
        the skull.
    effects : effect, sequence of effects, or mapping of name to effect
        Applied in this order, `Morphology` before `Intensity`. Effects without a name are called by
        their region or kind.
    to_template : array of shape (4, 4), path or nibabel image, optional
        The map T. By default world millimetres of the scan are template millimetres. An affine
        takes scan mm to template mm (RAS+). An image is a displacement field u in mm, of shape (X,
        Y, Z, 3) or (X, Y, Z, 1, 3), given over the scan: the scan's point x lies at x + u(x) in the
        template. This is also the field that warps *template images onto the scan*; with ANTs:
        ``antsApplyTransforms -r scan -i template -t [affine,1] -t inverse_warp -o
        [field.nii.gz,1]``.
    vectors : {"RAS", "LPS"}
        The axes of the field's vectors; fields of ITK and ANTs have LPS.
    magnitudes : float or mapping of name to float, optional
        How strong; 1 gives the amplitude itself. By default the mean of the effect's own
        distribution in the disease class (the carriers of a bias N(2, 1): 2), and 1 for effects
        that have none.
    template : str or Template
        Where the regions are.
    variability : model of subjects, optional
        Whose modes an effect with a `mode` follows; that of the scenario, if the effect comes from
        one.
    seed : int
        Of the noise of an ``Intensity("noise", ...)``; nothing else is random.
    threshold : float
        Least difference in `Injected.mask`, as a share of white matter: the 99th percentile of the
        scan over the template's brain.

    Returns
    -------
    Injected

    Raises
    ------
    SimbaError
        If an argument cannot be used; `TemplateError` if a file cannot be read, `FoldingError` if
        an amplitude would fold the brain, `UnknownNameError` if there is no such region.
    """
    named = _named(effects)
    amounts = _magnitudes(magnitudes, named)
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise SimbaError(
            "threshold", threshold, "between 0 and 1 (white matter)", "0.02 is the default."
        )
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise SimbaError("seed", seed, "an integer of at least 0")
    if not isinstance(template, str | Template):
        raise SimbaError("template", type(template).__name__, "a name or a Template")
    atlas = template if isinstance(template, Template) else load_template(template)
    flows = {
        name: tabulate(
            effect,
            atlas,
            np.array([amounts[name]]),
            field_name=f"effects[{name!r}]",
            variability=variability,
        )
        for name, effect in named.items()
        if isinstance(effect, Morphology)
    }
    patient = open_scan(scan)
    place = placement(patient.image.affine, to_template, vectors)
    seen = survey(patient, place)
    white, pivot = tissue(patient, seen, atlas)
    changed = patient.stored.copy()
    if flows:
        for name, flow in flows.items():
            _check_region(named[name].region, flow, patient, place, seen, atlas)
        index, source = _moved(
            patient, place, seen, [(flow, amounts[name]) for name, flow in flows.items()]
        )
        if source.size:
            changed[tuple(index)] = patient.fitting(_sampled(patient.stored, source))
    scanner = Scanner(pivot=pivot)
    for name, effect in named.items():
        if isinstance(effect, Intensity):
            scanner = scanner.carrying(effect, amounts[name], atlas)
    if scanner != Scanner(pivot=pivot):
        changed = _exposed(patient, changed, white, place, scanner, atlas, int(seed))
    # In float64: differences of unsigned integers would wrap around.
    difference = np.abs(np.subtract(changed, patient.stored, dtype=np.float64)) * abs(patient.slope)
    return Injected(
        patient.showing(changed),
        patient.showing(patient.stored),
        patient.mask(difference > threshold * white),
    )


def _named(effects: object) -> dict[str, Effect]:
    if isinstance(effects, Effect):
        effects = [effects]
    if isinstance(effects, Sequence) and not isinstance(effects, str):
        for number, effect in enumerate(effects):
            if not isinstance(effect, Effect):
                raise SimbaError(f"effects[{number}]", effect, EXAMPLE)
        names = [getattr(effect, "region", None) or effect.kind for effect in effects]
        if len(set(names)) < len(names):
            raise SimbaError(
                "effects",
                names,
                "different regions and kinds",
                "Give a mapping of names to effects.",
            )
        effects = dict(zip(names, effects, strict=True))
    if not isinstance(effects, Mapping) or not effects:
        raise SimbaError(
            "effects", effects, f"{EXAMPLE}, several, or a mapping of names to effects"
        )
    for name, effect in effects.items():
        if not isinstance(effect, Effect):
            raise SimbaError(f"effects[{name!r}]", effect, EXAMPLE)
    return dict(effects)


def _magnitudes(magnitudes: object, named: dict[str, Effect]) -> dict[str, float]:
    if magnitudes is None:
        magnitudes = {}
    given = magnitudes if isinstance(magnitudes, Mapping) else dict.fromkeys(named, magnitudes)
    for name in given:
        if name not in named:
            raise UnknownNameError.among("magnitudes", name, named)
    amounts = {
        name: given[name]
        if name in given
        else 1.0
        if effect.magnitude is None
        else effect.magnitude["disease"].mean
        for name, effect in named.items()
    }
    for name, amount in amounts.items():
        if (
            isinstance(amount, bool)
            or not isinstance(amount, int | float | np.number)
            or not abs(amount) <= MOST
        ):
            raise SimbaError(
                f"magnitudes[{name!r}]",
                amount,
                f"from -{MOST} to {MOST}",
                "1 is the nominal strength.",
            )
    return {name: float(amount) for name, amount in amounts.items()}


def _check_region(
    region: str, flow: LocalFlow, patient: Scan, place: Placement, seen: Survey, atlas: Template
) -> None:
    """Raise if a region is not in the field of view, or the transform does not reach it."""
    voxels = np.argwhere(atlas.region(region))
    points = apply_affine(atlas.lattice.affine, voxels[:: max(1, len(voxels) // 1000)]).T
    near, share = seen.within(flow.lattice), 0.0
    if near.any():
        _, nearest = cKDTree(seen.points_mm[:, near].T).query(points.T)
        found = place.back(points, seen.index[:, near][:, nearest])
        place.check(found)
        visible = ((found > -0.5) & (found < np.reshape(patient.stored.shape, (3, 1)) - 0.5)).all(
            axis=0
        )
        if not place.covers(found[:, visible]).all():
            raise SimbaError(
                "to_template",
                "a smaller field",
                f"a field that covers the region {region!r} of the scan",
            )
        share = float(visible.mean())
    if share < LEAST_SEEN:
        raise SimbaError(
            "scan",
            f"a field of view with {share:.0%} of it",
            f"an image that holds the region {region!r}",
            "Choose a region that the scan covers, or check to_template.",
        )


def _moved(
    patient: Scan, place: Placement, seen: Survey, flows: list[tuple[LocalFlow, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels that the effects move, (3, N), and the positions in voxels that they take their values from."""
    near = seen.index[:, np.any([seen.within(flow.lattice) for flow, _ in flows], axis=0)]
    reach = 2 * seen.strides
    low = np.maximum(near.min(axis=1) - reach, 0)
    high = np.minimum(near.max(axis=1) + reach + 1, patient.stored.shape)
    fields = [(np.moveaxis(flow.at(amount), -1, 0), flow.lattice) for flow, amount in flows]
    indices, sources = [], []
    for index in _batches(low, high):
        there = place.there(index)
        moved = there.copy()
        for field, lattice in reversed(
            fields
        ):  # sampling undoes the effect that was applied last first
            at = (moved - np.reshape(lattice.origin_mm, (3, 1))) / lattice.spacing_mm
            moved += [
                map_coordinates(component, at, order=1, mode="constant") for component in field
            ]
        far = np.linalg.norm(moved - there, axis=0) > LEAST_MOVE_MM
        indices.append(index[:, far])
        sources.append(place.back(moved[:, far], index[:, far]))
    index, source = np.concatenate(indices, axis=1), np.concatenate(sources, axis=1)
    if not place.covers(index).all():
        raise SimbaError(
            "to_template",
            "a smaller field",
            "a field that covers the surroundings of the effects' regions",
        )
    place.check(np.concatenate([index, source], axis=1))
    return index, source


def _batches(low: np.ndarray, high: np.ndarray) -> Iterator[np.ndarray]:
    """Iterate over the voxels of a box, some planes at a time: indices of shape (3, N)."""
    planes = max(1, BATCH // int(np.prod(high[1:] - low[1:])))
    for start in range(low[0], high[0], planes):
        axes = [
            np.arange(start, min(start + planes, high[0])),
            *(np.arange(low[a], high[a]) for a in (1, 2)),
        ]
        yield np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)


def _sampled(stored: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Interpolate the stored numbers at positions in voxels, shape (3, N)."""
    last = np.reshape(stored.shape, (3, 1)) - 1
    source = np.clip(source, 0, last)
    low = np.maximum(np.floor(source.min(axis=1)).astype(int) - MARGIN, 0)
    high = np.ceil(source.max(axis=1)).astype(int) + MARGIN + 1
    crop = stored[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    source = source - low[:, None]
    scale = (
        float(np.abs(crop.astype(np.float64)).max()) or 1.0
    )  # sums of the largest floats would overflow
    with np.errstate(over="ignore"):
        values = map_coordinates(crop / scale, source, order=ORDER, mode="nearest") * scale
    nearest = tuple(np.rint(source).astype(int))
    least, most = minimum_filter(crop, 3, mode="nearest"), maximum_filter(crop, 3, mode="nearest")
    return np.clip(values, least[nearest], most[nearest])


def _exposed(
    patient: Scan,
    stored: np.ndarray,
    white: float,
    place: Placement,
    scanner: Scanner,
    atlas: Template,
    seed: int,
) -> np.ndarray:
    """Return stored numbers as a scanner with other settings would have recorded them."""
    before = stored * (patient.slope / white) + patient.inter / white
    values = before
    if scanner.blur_mm:
        sigma = scanner.blur_mm / FWHM_PER_SIGMA / voxel_sizes(place.affine)
        values = gaussian_filter(before, sigma, truncate=3.0, mode="nearest")
    after, generator = np.empty_like(values), stream(seed, "injection", "noise")
    low, high = (np.reshape(corner, (3, 1)) for corner in atlas.box_mm)
    for index in _batches(np.zeros(3, int), np.array(stored.shape)):
        # Beyond the template's field of view the polynomial of a bias field would run away.
        points = np.clip(place.there(index), low, high)
        with np.errstate(over="ignore"):  # what overflows is brought back into range by `fitting`
            after[tuple(index)] = expose_points(values[tuple(index)], points, scanner, generator)
    changed = after != before
    result = stored.copy()
    result[changed] = patient.fitting((after[changed] * white - patient.inter) / patient.slope)
    return result
