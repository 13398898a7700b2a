"""TemplateFiles: somebody's template by its files, as a scenario names it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import keep_plain
from simba_lab.core.errors import SimbaError, TemplateError

CHUNK_BYTES = 2**20


@checks_arguments
@dataclass(frozen=True)
class TemplateFiles:
    r"""The files of a template that is not the lab's, for `Scenario` and `Preparation`.

    A scenario is written to YAML and read back, so it names the files and remembers their content:
    files that changed are refused, not taken for what they were.

    Parameters
    ----------
    t1, labels, table : str
        The files that `Template.from_files` takes; relative paths start at the working folder.
    name : str, optional
        Name in figures and manifests; by default that of the file of the T1.
    sha256 : str, optional
        Digest of the three files, computed where it is left out.

    Raises
    ------
    TemplateError
        If a file is missing.
    SimbaError
        If the files are not those of the digest.

    Examples
    --------
    >>> import tempfile
    >>> import nibabel as nib
    >>> import simba_lab as sb
    >>> folder, lab = tempfile.mkdtemp(), sb.load_template()
    >>> nib.save(lab.image().slicer[::2, ::2, ::2], folder + "/t1.nii.gz")
    >>> labels = nib.Nifti1Image(lab.labels, lab.lattice.affine)
    >>> nib.save(labels.slicer[::2, ::2, ::2], folder + "/labels.nii.gz")
    >>> with open(folder + "/regions.csv", "w") as table:
    ...     _ = table.write(f"index,name\n{lab.regions['Insula_L']},left insula\n")
    >>> names = ("t1.nii.gz", "labels.nii.gz", "regions.csv")
    >>> files = sb.synthesis.TemplateFiles(*(f"{folder}/{name}" for name in names))
    >>> disease = sb.Morphology("left insula", 2.5)
    >>> scenario = sb.Scenario(64, disease, spacing_mm=8, template=files)
    >>> sb.Scenario.from_yaml(scenario.to_yaml()) == scenario
    True
    """

    t1: str
    labels: str
    table: str
    name: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        keep_plain(self)
        digest = sha256()
        for field in ("t1", "labels", "table"):
            digest.update(_digest(getattr(self, field), f"template.{field}"))
        found = digest.hexdigest()
        if self.sha256 not in (None, found):
            remedy = f"The files of {self.t1} changed. Leave sha256 out if that is right."
            raise SimbaError("template.sha256", self.sha256, repr(found), remedy)
        object.__setattr__(self, "sha256", found)


def _digest(path: str, field: str) -> bytes:
    """Return the digest of one file's bytes."""
    digest = sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except (OSError, ValueError) as error:
        remedy = "Relative paths start at the working folder."
        raise TemplateError(field, path, "an existing file", remedy) from error
    return digest.digest()
