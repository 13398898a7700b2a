"""check_scans: what is wrong with somebody's scans before a network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nibabel.affines import apply_affine
from tqdm.auto import tqdm

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Count, choice, workers
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.core.pictures import NotebookFigure
from simba_lab.scans.checking.comparison import Measures, TemplateComparison
from simba_lab.scans.checking.mosaic import mosaic_of
from simba_lab.scans.planting.planted_cohort import PlantedCohort
from simba_lab.scans.preparation import PreparedImages, cover_of, reference_on
from simba_lab.synthesis.anatomy.nifti import open_nifti
from simba_lab.synthesis.anatomy.template import TEMPLATES, Template, load_template
from simba_lab.synthesis.anatomy.template_files import TemplateFiles
from simba_lab.synthesis.rendering.scanner import BACKGROUND

# Limits were set on a hundred synthetic people of the seed 100, at 4 and 8 mm, none of whom should
# be flagged. They are tested on other people and on a real head. Of those hundred, the brain
# overlaps by 0.87 and more;
LEAST_OVERLAP = 0.75
# the likeness, where it is greatest, is 0.61 and more;
LEAST_LIKENESS = 0.4
# the brain lies off by 3.4 mm and less: twice that is still well below 12 mm;
MOST_SHIFT_MM = 6.0
# of the voxels around the brain 10 % and less are bright, where scalp makes most of them bright;
MOST_SKULL = 0.3
# the template fits better than its mirror image, by 0.01 and more, and half of that is decisive;
LEAST_ASYMMETRY = -0.005
# outermost slices are 0.33 of the largest and less; those of a head fill the field of view;
MOST_FLAT = 0.4
# no slice between two others is darker than this share of them,
LEAST_DIP = 0.5
# and, as files have it, the field of view holds the template's brain but for this share.
MOST_OUTSIDE = 0.01

TURNED = {"y": "front to back", "z": "upside down", "yz": "upside down and front to back"}
ENDS = ("left", "right", "back", "front", "bottom", "top")
SHIFTS = ("shift_mm", "shift_right_mm", "shift_front_mm", "shift_up_mm")
COLUMNS = ("overlap", "likeness", "skull", "asymmetry", *SHIFTS, "outside")


@checks_arguments
@dataclass(frozen=True, eq=False)
class ScanChecks:
    """What `check_scans` found in each scan.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per scan, indexed as the cohort is. ``participant`` (if the cohort has it);
        ``overlap``: Dice of what is brighter than the background and the template's brain;
        ``likeness``: correlation with the template in its brain; ``skull``: share of bright voxels
        around the brain; ``asymmetry``: by how much the template explains the scan better than the
        scan's mirror image (half a log ratio of squared residuals; below 0 if sides are swapped,
        NaN for a symmetric template); ``shift_mm``, and its parts to the right, front and top;
        ``outside``: share of the template's brain, moved with the scan, beyond the image's field of
        view (NaN without files, or if they were centred); ``problems`` in
        words, and ``ok`` if there is none.
    cohort : Cohort
        The scans.

    Examples
    --------
    >>> import simba_lab as sb
    >>> cohort = sb.synthesise(sb.Scenario(16, sb.Morphology("Insula_L", 2.5), spacing_mm=8))
    >>> checks = sb.scans.check_scans(cohort.where(range(4)))
    >>> checks.table["ok"].all(), checks.bad.empty
    (np.True_, True)
    """

    table: pd.DataFrame
    cohort: Cohort

    @property
    def bad(self) -> pd.DataFrame:
        """The rows of the scans that have problems."""
        return self.table[~self.table["ok"]]

    def mosaic(
        self, worst: Count | None = None, *, columns: Count = 3, title: str = "Scans"
    ) -> NotebookFigure:
        """Draw middle slices of the scans; those with problems are framed, and say which.

        Parameters
        ----------
        worst : int, optional
            So many scans, those with most problems and least likeness first. By default all scans,
            in the order of the cohort.
        columns : int
            Scans in a row.
        title : str
            Above all.

        Returns
        -------
        matplotlib.figure.Figure
            Each scan from above, from the front and from the right, the patient's left on the left.
            Its `alt_text` says in words what it shows.
        """
        rows = np.arange(len(self.table))
        if worst is not None:
            counts = self.table["problems"].str.count(";") + ~self.table["ok"]
            rows = np.lexsort((self.table["likeness"].fillna(-1), -counts))[:worst]
        return mosaic_of(self.cohort, self.table.iloc[rows], rows, columns=columns, title=title)


def check_scans(scans: Cohort, *, n_jobs: int = -1, progress: bool = False) -> ScanChecks:
    """Look for scans that are mirrored, shifted, empty, cut off, unlike a brain or with a skull.

    Volumes are compared with the template as a network will see them, at 4 mm or coarser; of files
    the headers are looked at too. Where a brain is shifted, everything but overlap and likeness is
    looked at where it lies. Sides are told by the template's own asymmetry: it is fitted to the
    scan and to the scan's mirror image, under smooth deformations and changes of brightness.

    Parameters
    ----------
    scans : Cohort
        From `read_bids`, `read_table`, `plant` or a store.
    n_jobs : int
        Threads (-1 is one per core).
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    ScanChecks
        Its table has a row per scan, also for one that cannot be read.

    Raises
    ------
    SimbaError
        If there are no scans, or their template is not known.

    Notes
    -----
    Of 200 synthetic people at 8 mm, one is called mirrored and is not.

    A person whose brain is less asymmetric than most may not show which side is which; a mean
    asymmetry below 0 over a study says that all of it is mirrored. Nothing here sees motion,
    lesions or a wrong contrast that resembles a T1.

    Examples
    --------
    >>> import simba_lab as sb
    >>> cohort = sb.synthesise(sb.Scenario(16, sb.Morphology("Insula_L", 2.5), spacing_mm=8))
    >>> sb.scans.check_scans(cohort.where(range(2))).table["problems"].tolist()
    ['', '']
    """
    n_jobs = workers("n_jobs", n_jobs)
    if not len(scans):
        raise SimbaError("scans", len(scans), "at least one scan")
    reference = reference_on(_template_of(scans), scans.lattice)
    comparison = TemplateComparison(reference, scans.lattice.spacing_mm)
    points = apply_affine(scans.lattice.affine, np.argwhere(reference > BACKGROUND))
    files = _files_of(scans)

    def row(index: int) -> dict[str, Any]:
        try:
            volume = scans.array(index, keep=False)
            if not np.isfinite(volume).all():
                raise SimbaError("volume", "NaN or infinity", "an image without NaN or infinity")
            if comparison.is_empty(volume):
                raise SimbaError("volume", "one value", "an image that shows a brain: it is empty")
        except SimbaError as error:
            return dict.fromkeys(COLUMNS, np.nan) | {"problems": _unusable(error)}
        measures = comparison.measures(volume)
        outside = float("nan")
        if files is not None:
            outside = _outside(files, int(scans.table.index[index]), points, measures)
        right, front, up = measures.shift_mm
        return {
            "overlap": measures.overlap,
            "likeness": measures.likeness,
            "skull": measures.skull,
            "asymmetry": measures.asymmetry,
            "shift_mm": float(np.linalg.norm(measures.shift_mm)),
            "shift_right_mm": right,
            "shift_front_mm": front,
            "shift_up_mm": up,
            "outside": outside,
            "problems": "; ".join(_problems(measures, outside)),
        }

    bar = tqdm(range(len(scans)), unit="scan", disable=not progress)
    rows = Parallel(n_jobs=n_jobs, prefer="threads")(delayed(row)(index) for index in bar)
    table = pd.DataFrame(rows, index=scans.table.index)
    table["ok"] = table["problems"] == ""
    if "participant" in scans.table:
        table.insert(0, "participant", scans.table["participant"])
    return ScanChecks(table, scans)


def _template_of(scans: Cohort) -> Template:
    template = getattr(scans, "template", None) or getattr(
        getattr(scans, "source", None), "template", None
    )
    if isinstance(template, Template | TemplateFiles):
        return template if isinstance(template, Template) else load_template(template)
    name = template or scans.identity.get("cohort", scans.identity).get("template")
    return load_template(choice("template of the scans", name, TEMPLATES))


def _files_of(scans: Cohort) -> PreparedImages | None:
    """Return the files of a cohort, if they are where its volumes come from."""
    source = getattr(scans, "source", None)
    if isinstance(scans, PlantedCohort):
        source = scans.source.images
    return source if isinstance(source, PreparedImages) and source.centre_mm is None else None


def _outside(
    files: PreparedImages, subject: int, points_mm: np.ndarray, measures: Measures
) -> float:
    """Return the share of the template's brain, moved with a scan, beyond its field of view."""
    image = open_nifti(files.paths[subject], f"image of subject {subject}")
    return 1 - cover_of(image, points_mm + measures.shift_mm)


def _unusable(error: SimbaError) -> str:
    """Return what is wrong with a scan that has no volume."""
    for word, problem in (
        ("NaN", "not finite: it holds NaN or infinity"),
        ("existing", "missing: there is no such file"),
        ("brighter than 0", "empty where the template has its brain"),
        ("empty", "empty where the template has its brain"),
        ("above 0", "empty: nothing is above 0"),
    ):
        if word in error.allowed:
            return problem
    return f"unreadable: {error}"


def _problems(measures: Measures, outside: float) -> list[str]:
    """Return what is wrong with a scan, in words."""
    shifted = float(np.linalg.norm(measures.shift_mm)) > MOST_SHIFT_MM
    alike, skull = measures.best_likeness >= LEAST_LIKENESS, measures.skull > MOST_SKULL
    if measures.turned:
        return [f"turned {TURNED[measures.turned]}"]
    if not alike:
        return ["unlike the template: wrong orientation, size or contrast, or no brain"]
    problems = []
    if skull:
        problems.append(f"skull left on: {measures.skull:.0%} around the brain is bright")
    whole = max(measures.flat) <= MOST_FLAT and measures.dip >= LEAST_DIP
    if whole and measures.asymmetry < LEAST_ASYMMETRY:  # what is missing has no sides
        problems.append("left and right are swapped: the mirror image is more like the template")
    if shifted:
        problems.append(f"shifted by {_direction(measures.shift_mm)}")
    flat = [end for end, area in zip(ENDS, measures.flat, strict=True) if area > MOST_FLAT]
    if flat:
        problems.append(f"cut off at the {' and the '.join(flat)}")
    elif outside > MOST_OUTSIDE:
        problems.append(f"cut off: the image ends before {outside:.0%} of the brain")
    if measures.dip < LEAST_DIP:
        problems.append("slices are missing within the brain")
    if measures.overlap < LEAST_OVERLAP and not skull and not shifted:
        problems.append("the brain has another size or shape, or its background is bright")
    return problems


def _direction(shift_mm: tuple[float, float, float]) -> str:
    """Return a shift in words: 12 mm to the right, and its other parts if they count."""
    names = (("left", "right"), ("back", "front"), ("bottom", "top"))
    parts = [
        f"{abs(value):.0f} mm to the {names[axis][value > 0]}"
        for axis, value in enumerate(shift_mm)
        if abs(value) >= max(2.0, 0.3 * max(map(abs, shift_mm)))
    ]
    return ", ".join(parts)
