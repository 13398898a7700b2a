"""BidsImages: which image of each person of a BIDS dataset, raw or of a pipeline, and its mask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice
from simba_lab.core.errors import SimbaError, TemplateError
from simba_lab.core.files import inside

# The folder in ``derivatives``, how an image is called, and its mask, whose name has the second
# text in the place of the first. The mask of ``cat12`` may be missing: wm images are masked.
LAYOUTS = ("raw", "fmriprep", "fmriprep-native", "cat12", "cat12-native")
PREFIXES = {"cat12": "wm", "cat12-native": "m"}
MASKS = {
    "fmriprep": ("desc-preproc_T1w", "desc-brain_mask"),
    "fmriprep-native": ("desc-preproc_T1w", "desc-brain_mask"),
    "cat12": ("wm", "wp0"),
    "cat12-native": ("m", "p0"),
}
# The space of the lab's template, as fMRIPrep calls it, or the person's own.
SPACES: dict[str, dict[str, str | None]] = {
    "fmriprep": {"space": "MNI152NLin2009cAsym"},
    "fmriprep-native": {"space": None},
}


class ScanFiles(NamedTuple):
    """The image of a person, and the mask of the brain that it is cut to, if any."""

    image: Path
    mask: Path | None = None


@checks_arguments
@dataclass(frozen=True)
class BidsImages:
    """Which images of a BIDS dataset are read, for `read_bids`.

    Parameters
    ----------
    folder : path
        The dataset, whose ``participants.tsv`` names the subjects.
    entities : mapping of str to str, int or None
        Which image to take if subjects have several, such as ``{"ses": "01", "run": "1"}``; None
        stands for an image without that entity: ``{"space": None}``.
    layout : {"raw", "fmriprep", "fmriprep-native", "cat12", "cat12-native"}
        Whose images: the dataset's own, or preprocessed ones, set to 0 outside their brain masks.
        ``fmriprep``: ``space-MNI152NLin2009cAsym_desc-preproc_T1w`` with ``desc-brain_mask``.
        ``fmriprep-native``: ``desc-preproc_T1w`` in the person's own space, which needs transforms
        to be planted in (`itk_transforms`). ``cat12``: ``wm*``, masked by CAT12 itself, and by
        ``wp0*`` where that was written. ``cat12-native``: ``m*`` with the mask ``p0*``.
    images : path, optional
        Where the folders ``sub-01``, ... of the pipeline are; by default in
        ``derivatives/fmriprep`` or ``derivatives/CAT12*`` of the dataset.

    Raises
    ------
    SimbaError
        If there is no such layout.

    References
    ----------
    Esteban et al. 2019, "fMRIPrep: a robust preprocessing pipeline for functional MRI",
    https://doi.org/10.1038/s41592-018-0235-4. Gaser et al. 2024, "CAT: a computational anatomy
    toolbox for the analysis of structural MRI data", https://doi.org/10.1093/gigascience/giae049.

    Examples
    --------
    >>> import simba_lab as sb
    >>> images = sb.scans.BidsImages("study", layout="fmriprep", entities={"ses": "01"})
    >>> images.layout
    'fmriprep'
    """

    folder: str | Path
    entities: Mapping[str, str | int | None] = field(default_factory=dict)
    layout: str = "raw"
    images: str | Path | None = None

    def __post_init__(self) -> None:
        choice("layout", self.layout, LAYOUTS)

    def root(self) -> Path:
        """Return the folder with the folders of the subjects.

        Raises
        ------
        SimbaError
            If the folder of the pipeline is missing, or there are several.
        """
        if self.images is not None:
            return Path(self.images)
        if self.layout == "raw":
            return Path(self.folder)
        pipeline, derivatives = self.layout.partition("-")[0], Path(self.folder) / "derivatives"
        folders = [path for path in derivatives.glob("*") if path.is_dir()]
        chosen = [path for path in folders if path.name.casefold().startswith(pipeline)]
        if len(chosen) != 1:
            names = ", ".join(sorted(path.name for path in chosen or folders)) or "none"
            remedy = f"Found: {names}. Say which: BidsImages(images=...)."
            value = str(derivatives)
            raise SimbaError("derivatives", value, f"a folder with one of {pipeline}", remedy)
        return chosen[0]

    def of(self, participant: str) -> ScanFiles:
        """Return the one image of a participant, and its mask.

        Raises
        ------
        TemplateError
            If there is none, or more than one, or if a mask is missing.
        """
        root, prefix = self.root(), PREFIXES.get(self.layout, "")
        folder = root / participant
        if prefix:  # CAT12 writes to mri or not, by its settings
            images = list(folder.rglob(f"{prefix}{participant}*"))
        else:
            images = [*folder.glob("anat/*"), *folder.glob("ses-*/anat/*")]
        middle = "desc-preproc_" if self.layout.startswith("fmriprep") else ""
        pattern = rf"{prefix}{re.escape(participant)}_(.*_)?{middle}T1w\.nii(\.gz)?"
        candidates = sorted(path for path in images if re.fullmatch(pattern, path.name))
        chosen = [path for path in candidates if self._matches(path.name)]
        if len(chosen) != 1:
            names = ", ".join(path.name for path in candidates[:6]) or "none"
            remedy = f"Found: {names}. Check the table."
            if candidates:
                choose = "Choose with entities={'ses': '01', 'space': None}"
                remedy = f"Found: {names}. {choose}: None is an image without it."
            field = f"T1w image of {participant}"
            raise TemplateError(field, str(folder), "exactly one file", remedy)
        source = "a file named by participants.tsv"
        image = inside(root, chosen[0].relative_to(root).as_posix(), source)
        return ScanFiles(image, self._mask(participant, image))

    def _matches(self, name: str) -> bool:
        present = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
        wanted = {**SPACES.get(self.layout, {}), **self.entities}
        return all(
            present.get(key) == (None if value is None else str(value))
            for key, value in wanted.items()
        )

    def _mask(self, participant: str, image: Path) -> Path | None:
        if self.layout not in MASKS:
            return None
        path = image.with_name(image.name.replace(*MASKS[self.layout], 1))
        if path.is_file():
            return path
        if self.layout == "cat12":
            return None
        raise TemplateError(f"mask of {participant}", str(path), "an existing file")
