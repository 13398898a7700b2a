"""plant: a cohort of somebody's scans with effects in them, and exact twins."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from simba_lab.core.checks import seed_number, workers
from simba_lab.core.cohort import Cohort, TwinCohort
from simba_lab.core.errors import SimbaError
from simba_lab.scans.planting.draws import completed, drawn
from simba_lab.scans.planting.placement import Registration
from simba_lab.scans.planting.planted_cohort import PlantedCohort
from simba_lab.scans.planting.planted_scans import PlantedScans, stamp_of
from simba_lab.scans.planting.transforms import by_subject
from simba_lab.scans.preparation import PreparedImages
from simba_lab.scans.scan_cohort import ScanCohort
from simba_lab.synthesis.effects import Effect, Morphology
from simba_lab.synthesis.rendering.flows import local_flow


def plant(
    scans: Cohort,
    effects: Mapping[str, Effect],
    *,
    transforms: Mapping[str | int, Registration] | None = None,
    seed: int = 0,
    n_jobs: int = -1,
    progress: bool = False,
) -> PlantedCohort:
    """Put effects into somebody's scans, and return them as a cohort whose twins are exact.

    Each scan is changed on its own grid as `inject` does it, and then brought to the lattice by
    the moves and the scaling of the untouched scan: twins differ in the effect alone. So
    `twin_effect`, `interchange`, `erase` and the scores of attributions work on files.

    Who carries an effect is drawn by its prevalence within each class of each split, and everybody
    does if it has none. Draws follow from the seed and from a person's own name: they depend on no
    order, and splits can be planted one by one.

    Every scan is read once here, so that what does not fit is known before anything is computed.
    Volumes are made when they are asked for: save the cohort (`save_cohort`) to have them made
    once.

    Parameters
    ----------
    scans : ScanCohort
        From `read_bids` or `read_table`: people with files. Labels are not needed.
    effects : mapping of name to Morphology or Intensity
        Applied in this order, `Morphology` before `Intensity`. Without `magnitude` an effect is as
        set (magnitude 1), without `prevalence` everybody carries it. Where people have no labels,
        both are one for all.
    transforms : mapping of participant to affine, path, image or DisplacementField, optional
        Where each scan lies in the template: the map from the scan to the template that `inject`
        takes as `to_template`, which warps template images onto the scan. None for a scan that lies
        in the template's space. By default all do, or are moved there by ``align="centre"``.
    seed : int
        Of groups, magnitudes, and the noise of an ``Intensity("noise", ...)``.
    n_jobs : int
        Threads that read the scans (-1 is one per core).
    progress : bool
        Whether to show a progress bar while they are read.

    Returns
    -------
    PlantedCohort
        The table of the scans, with the group of each effect under its name and its magnitude in
        ``NAME_magnitude``.

    Raises
    ------
    SimbaError
        If an effect, a name or a transform cannot be used, or a scan does not show the template's
        brain or an effect's region; `FoldingError` if a magnitude would fold the brain,
        `TemplateError` if a file cannot be read, `UnknownNameError` if there is no such region.

    Notes
    -----
    The pair is as exact as that of `inject`: where tissue moves, the scan's noise moves with it.
    Nothing is known of biases that the scans have of themselves, so the magnitude of a response to
    a planted effect says whether a network is sensitive to it. Whether it relies on it, a control
    network or a bound has to tell.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> world = sb.synthesise(sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8))
    >>> folder = sb.export_bids(world, tempfile.mkdtemp() + "/study", masks=False)
    >>> preparation = sb.scans.Preparation(spacing_mm=8)
    >>> scans = sb.read_bids(folder, label="label", disease="disease", preparation=preparation)
    >>> mark = sb.Intensity("contrast", 0.1, prevalence={"disease": 0.75, "control": 0.25})
    >>> marked = sb.plant(scans.test, {"scanner": mark})
    >>> marked.table.groupby("label")["scanner"].sum().tolist()
    [2, 6]
    >>> table = sb.twin_effect(sb.SimBANet((4, 8), seed=0), marked, effect="scanner")
    >>> int(table.loc["scanner", "n"])
    16
    """
    seed, n_jobs = seed_number("seed", seed), workers("n_jobs", n_jobs)
    images = _images_of(scans)
    whole = completed(effects, scans.table)
    registrations = by_subject(transforms, scans.table)
    table = drawn(scans.table, whole, seed)
    magnitudes = {name: table[f"{name}_magnitude"].to_numpy() for name in whole}
    source = PlantedScans(
        images,
        whole,
        {name: (float(values.min()), float(values.max())) for name, values in magnitudes.items()},
        registrations,
        {int(subject): stamp_of(images.paths[subject]) for subject in table.index},
        seed,
    )
    numbers = table.index.to_numpy()
    for name, effect in whole.items():
        if isinstance(effect, Morphology):
            local_flow(
                effect,
                source.template,
                magnitudes[name],
                field=f"effects[{name!r}]",
                subjects=numbers,
            )
    _ = source.flows  # made once, before threads ask for them
    bar = tqdm(numbers.tolist(), unit="scan", disable=not progress)
    Parallel(n_jobs=n_jobs, prefer="threads")(delayed(source.check)(subject) for subject in bar)
    return PlantedCohort(table, source)


def _images_of(scans: Cohort) -> PreparedImages:
    """Return the files of a cohort, or raise the error that says that it has none of its own."""
    allowed = "somebody's scans, from read_bids or read_table"
    if isinstance(scans, TwinCohort):
        remedy = "These have twins already: cohort.twin(without=...)."
        raise SimbaError("scans", type(scans).__name__, allowed, remedy)
    if not isinstance(scans, ScanCohort) or not isinstance(scans.source, PreparedImages):
        remedy = "A store has no files, which the effects go into: plant first, then save."
        raise SimbaError("scans", "a stored cohort", allowed, remedy)
    numbers = scans.table.index
    if not len(numbers) or np.unique(numbers).size != len(numbers):
        value = f"{len(numbers)} rows of {np.unique(numbers).size} people"
        raise SimbaError("scans", value, "at least one person, each in one row")
    return scans.source
