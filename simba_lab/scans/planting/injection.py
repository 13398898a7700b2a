"""inject: effects of a scenario in somebody's own T1 scan, with the untouched scan as its twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice, is_number, seed_number
from simba_lab.core.errors import SimbaError
from simba_lab.scans.planting.alteration import deformed, exposed
from simba_lab.scans.planting.placed_scan import PlacedScan, place
from simba_lab.scans.planting.placement import Registration
from simba_lab.scans.planting.scan import open_scan, save_as_stored
from simba_lab.synthesis.anatomy.template import Template, load_template
from simba_lab.synthesis.anatomy.template_files import TemplateFiles
from simba_lab.synthesis.anatomy.variability import Variability
from simba_lab.synthesis.effects import EXAMPLE, Effect, Intensity, Morphology, magnitude_in
from simba_lab.synthesis.rendering.flows import LocalFlow, local_flow
from simba_lab.synthesis.rendering.scanner import Scanner

# Beyond this magnitude an effect should have another amplitude or strength.
MOST = 20


@checks_arguments
@dataclass(frozen=True, eq=False)
class Injected:
    """A scan with effects in it, and the scan without them; all images are on the scan's grid.

    Parameters
    ----------
    image : nibabel image
        The scan with the effects; header, data type and scaling are those of the scan.
    twin : nibabel image
        The scan without them.
    mask : nibabel image of uint8
        1 where the two differ by more than the threshold.

    Examples
    --------
    >>> import simba_lab as sb
    >>> template = sb.load_template()
    >>> scan = template.image().slicer[::4, ::4, ::4]
    >>> injected = sb.scans.inject(scan, sb.Morphology("Putamen_L", 2.5))
    >>> injected.image.shape == injected.twin.shape == injected.mask.shape == scan.shape
    True
    """

    image: nib.Nifti1Image
    twin: nib.Nifti1Image
    mask: nib.Nifti1Image

    def save(self, folder: str | Path) -> None:
        """Write ``image.nii.gz``, ``twin.nii.gz`` and ``mask.nii.gz``.

        The stored numbers of the scan stay as they are; `nibabel.save` would choose a new scaling
        for scans that are stored as scaled integers.

        Raises
        ------
        SimbaError
            If one of the files is there already, or if the folder cannot be written.
        """
        save_as_stored({name: getattr(self, name) for name in ("image", "twin", "mask")}, folder)


def inject(
    scan: str | Path | nib.spatialimages.SpatialImage,
    effects: Effect | Sequence[Effect] | Mapping[str, Effect],
    *,
    to_template: Registration = None,
    magnitudes: float | Mapping[str, float] | None = None,
    template: str | Template | TemplateFiles = "icbm2009c",
    variability: Variability | None = None,
    seed: int = 0,
    threshold: float = 0.02,
) -> Injected:
    """Put effects into a T1 scan of a real person.

    With T from the scan to the template and phi the deformation of the effects, the new scan is
    ``scan(T^-1 phi T x)``: each voxel is looked up in the template, moved there as a synthetic
    subject would be, and brought back. Voxels that do not move keep their bytes; the others are
    interpolated once, by a spline of fifth order. Its values are kept between the least and the
    greatest of the 27 voxels around, so that background stays background. Intensity effects come
    after that, in the order of `simba_lab.synthesis.rendering.scanner`, and change the whole head.

    The pair is less exact than the twins of a synthetic cohort, which are rendered alike from one
    template. The twin is the scan itself and only the image is interpolated: the scan's noise moves
    with the tissue, and loses about a seventh of its standard deviation where tissue moves by more
    than half a voxel. Artefacts and pathology deform as anatomy does. The region is where the
    registration says it is. The amplitude holds in template millimetres; `to_template` may stretch
    it. Nothing is known about biases that the scan already has.

    Parameters
    ----------
    scan : path or nibabel image
        A T1 in NIfTI-1 or NIfTI-2, in any orientation, voxel size or obliqueness, with or without
        the skull.
    effects : effect, sequence of effects, or mapping of name to effect
        Applied in this order, `Morphology` before `Intensity`. Effects without a name are called by
        their region or kind.
    to_template : array of shape (4, 4), path, nibabel image or DisplacementField, optional
        The map T. By default world millimetres of the scan are template millimetres. An affine
        takes scan mm to template mm (RAS+). An image is a displacement field u in mm, of shape (X,
        Y, Z, 3) or (X, Y, Z, 1, 3), given over the scan: the scan's point x lies at x + u(x) in the
        template. The same field warps *template images onto the scan*. ANTs writes it with
        ``antsApplyTransforms -r scan -i template -t [affine,1] -t inverse_warp -o
        [field.nii.gz,1]``; give it as ``DisplacementField("field.nii.gz", vectors="LPS")``.
    magnitudes : float or mapping of name to float, optional
        How strong; 1 gives the amplitude itself. By default the mean of the effect's own
        distribution in the disease class (the carriers of a bias N(2, 1): 2), and 1 for effects
        that have none.
    template : str, Template or TemplateFiles
        Where the regions are.
    variability : model of subjects, optional
        An effect with a `mode` follows its modes. Give that of the scenario that the effect comes
        from.
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

    Examples
    --------
    >>> import simba_lab as sb
    >>> scan = sb.load_template().image().slicer[::4, ::4, ::4]
    >>> injected = sb.scans.inject(scan, sb.Morphology("Putamen_L", 2.5), magnitudes=0.0)
    >>> int(injected.mask.get_fdata().sum())
    0
    """
    named = _named(effects)
    amounts = _magnitudes_of(named, magnitudes)
    if not is_number(threshold) or not 0 < threshold < 1:
        allowed = "between 0 and 1 (white matter)"
        raise SimbaError("threshold", threshold, allowed, "0.02 is the default.")
    seed = seed_number("seed", seed)
    if not isinstance(template, str | Template | TemplateFiles):
        raise SimbaError("template", type(template).__name__, "a name, Template or TemplateFiles")
    template = template if isinstance(template, Template) else load_template(template)
    shapes = {name: value for name, value in named.items() if isinstance(value, Morphology)}
    flows = {
        name: local_flow(
            effect,
            template,
            np.array([amounts[name]]),
            field=f"effects[{name!r}]",
            variability=variability,
        )
        for name, effect in shapes.items()
    }
    original = open_scan(scan)
    placed = place(original, to_template, template)
    for name, flow in flows.items():
        placed.check_region(shapes[name].region, flow.lattice)
    stored = altered(placed, named, amounts, flows, seed)
    # In float64: differences of unsigned integers would wrap around.
    difference = np.subtract(stored, original.stored, dtype=np.float64)
    changed = np.abs(difference) * abs(original.slope) > threshold * placed.white
    return Injected(
        original.with_stored(stored),
        original.with_stored(original.stored),
        original.mask_image(changed),
    )


def altered(
    placed: PlacedScan,
    effects: Mapping[str, Effect],
    magnitudes: Mapping[str, float],
    flows: Mapping[str, LocalFlow],
    seed: int,
) -> np.ndarray:
    """Return the stored numbers of a scan with effects in it: of its type, shape (X, Y, Z).

    Parameters
    ----------
    placed : PlacedScan
    effects : mapping of name to effect
        In the order in which they are applied.
    magnitudes : mapping of name to float
    flows : mapping of name to LocalFlow
        Those of the `Morphology` effects.
    seed : int
        Of the noise of an ``Intensity("noise", ...)``.
    """
    stored = placed.scan.stored.copy()
    if flows:
        stored = deformed(placed, [(flow, magnitudes[name]) for name, flow in flows.items()])
    scanner = usual = Scanner(pivot=placed.brain_mean)
    for name, effect in effects.items():
        if isinstance(effect, Intensity):
            scanner = scanner.with_effect(effect, magnitudes[name], placed.template)
    return stored if scanner == usual else exposed(placed, stored, scanner, seed)


def _named(effects: object) -> dict[str, Effect]:
    """Return the effects by name: their region or kind, unless they come with names."""
    if isinstance(effects, Effect):
        effects = [effects]
    if isinstance(effects, Sequence) and not isinstance(effects, str):
        for number, effect in enumerate(effects):
            _check_effect(f"effects[{number}]", effect)
        names = [getattr(effect, "region", None) or effect.kind for effect in effects]
        if len(set(names)) < len(names):
            allowed = "different regions and kinds"
            raise SimbaError("effects", names, allowed, "Give a mapping of names to effects.")
        effects = dict(zip(names, effects, strict=True))
    if not isinstance(effects, Mapping) or not effects:
        allowed = f"{EXAMPLE}, several, or a mapping of names to effects"
        raise SimbaError("effects", effects, allowed)
    for name, effect in effects.items():
        _check_effect(f"effects[{name!r}]", effect)
    return dict(effects)


def _check_effect(field: str, effect: object) -> None:
    if not isinstance(effect, Effect):
        raise SimbaError(field, effect, EXAMPLE)


def _magnitudes_of(
    effects: Mapping[str, Effect], magnitudes: float | Mapping[str, float] | None
) -> dict[str, float]:
    """Return the magnitude of each effect: as given, else its mean in the disease class, else 1."""
    amounts = {
        name: 1.0 if effect.magnitude is None else magnitude_in(effect, "disease").mean
        for name, effect in effects.items()
    }
    if isinstance(magnitudes, Mapping):
        for name in magnitudes:
            choice("magnitudes", name, effects)
        amounts |= magnitudes
    elif magnitudes is not None:
        amounts = dict.fromkeys(effects, magnitudes)
    for name, amount in amounts.items():
        number = isinstance(amount, int | float | np.number) and not isinstance(amount, bool)
        if not number or not abs(amount) <= MOST:
            field, allowed = f"magnitudes[{name!r}]", f"from -{MOST} to {MOST}"
            raise SimbaError(field, amount, allowed, "1 is the nominal strength.")
    return {name: float(amount) for name, amount in amounts.items()}
