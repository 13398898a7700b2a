"""export_planted: scans and their planted twins as files, for tools that only read files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nibabel.arrayproxy import is_proxy
from scipy.ndimage import map_coordinates
from tqdm.auto import tqdm

from simba_lab.core.checks import workers
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import atomic_write, read_json, strangers, write_json
from simba_lab.core.tables import table_text
from simba_lab.core.unfinished import disk_errors, is_unfinished, one_process
from simba_lab.core.yaml_files import to_yaml
from simba_lab.scans.bids_description import (
    BIDS_VERSION,
    PIPELINE,
    camel,
    in_words,
    software_version,
)
from simba_lab.scans.image_writing import nifti_bytes
from simba_lab.scans.planting.draws import AS_SET
from simba_lab.scans.planting.placed_scan import PlacedScan
from simba_lab.scans.planting.planted_cohort import PlantedCohort
from simba_lab.scans.planting.planted_scans import stamp_of
from simba_lab.synthesis.effects import Effect
from simba_lab.synthesis.scenario_values import plain

# What the image without a mark is called, in the table and in its file name.
UNMARKED = "none"
IMAGES, HEAD, PLAN = "images.tsv", "code/planting.json", "code/plan.yaml"
DESCRIPTION = "dataset_description.json"
# There is a skull if voxels around the brain that are brighter than this share of white matter are
# more than this share of the brain's: about 1.5 in heads, 0.1 where brains lie beside the template.
BRIGHT, MOST_AROUND = 0.2, 0.3
README = """# Scans and planted twins

{scans} scans, and each of them once more with each of {marks} marks in it that its scanner or its
anatomy might have left. Twins differ from the untouched scan (`desc-none`) in that mark alone.

{effects}

`images.tsv` lists all images. Let the tool that is to be audited score each of them, in any order;
write a table of `file` and `score`; then run

    simba-lab audit --answers answers.csv --planted THIS_FOLDER --out report.html

The folder is complete when `images.tsv` is there. Until then, the command that began it resumes.
"""


def export_planted(
    cohort: PlantedCohort, folder: str | Path, *, n_jobs: int = -1, progress: bool = False
) -> Path:
    """Write scans and their planted twins as a BIDS derivative, for tools that read files.

    For each scan the untouched image, ``sub-01_desc-none_T1w.nii.gz``, and an image for each mark,
    such as ``sub-01_desc-scanner_T1w.nii.gz``, with that mark alone, on the scan's own grid and in
    its data type. Everybody gets every mark, whoever was drawn to carry it. A JSON file beside each
    image says what was planted, how strongly, with which seed, and in which file of which checksum.
    ``images.tsv``, with ``file``, ``participant``, ``mark`` and ``magnitude``, is written last.

    An interrupted call can be repeated: it resumes.

    Parameters
    ----------
    cohort : PlantedCohort
        From `plant`: its people, and its effects as marks.
    folder : path
        New, or left behind by an interrupted call for the same cohort.
    n_jobs : int
        Threads (-1 is one per core); as many scans are in memory at a time.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    pathlib.Path
        `folder`.

    Raises
    ------
    SimbaError
        If names of marks do not differ in letters and digits, if the folder holds something else,
        is being written by another process or cannot be written, or if a file was changed since.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> world = sb.synthesise(sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8))
    >>> study = sb.export_bids(world.where(range(16)), tempfile.mkdtemp() + "/study", masks=False)
    >>> preparation = sb.scans.Preparation(spacing_mm=8)
    >>> scans = sb.read_bids(study, label="label", disease="disease", preparation=preparation)
    >>> marked = sb.plant(scans.where([0, 1]), {"scanner": sb.Intensity("contrast", 0.1)})
    >>> folder = sb.scans.export_planted(marked, tempfile.mkdtemp() + "/planted")
    >>> len(list(folder.glob("sub-*/anat/*_desc-scanner_T1w.nii.gz")))
    2
    """
    folder, n_jobs = Path(folder), workers("n_jobs", n_jobs)
    if not folder.absolute().parent.is_dir():
        raise SimbaError("folder", str(folder), "in a folder that exists")
    planted = _PlantedImages(cohort, folder)
    head = planted.head
    problem = f"Another process is writing {str(folder)!r}."
    with one_process(folder, problem), disk_errors("folder", folder, "call again: it resumes."):
        _begin(folder, head)
        planted.describe()
        _ = cohort.source.flows  # made once, before threads ask for them
        rows = tqdm(range(len(cohort)), unit="scan", disable=not progress)
        made = Parallel(n_jobs=n_jobs, prefer="threads")(
            delayed(planted.write)(index) for index in rows
        )
        table = pd.DataFrame([row for rows in made for row in rows])
        atomic_write(folder / IMAGES, table_text(table, sep="\t", index=False))
    return folder


def _begin(folder: Path, head: dict[str, Any]) -> None:
    """Make the folder, or raise unless it was begun for the same scans and marks."""
    if (folder / HEAD).is_file():
        if read_json(folder / HEAD, "folder") != head:
            remedy = "It holds other scans or marks, or those of another version."
            allowed = "new, or begun for these scans and marks"
            raise SimbaError("folder", str(folder), allowed, f"{remedy} Nothing is overwritten.")
        return
    if folder.exists():
        entries = strangers(folder, ("code",)) if folder.is_dir() else [folder.name]
        if entries or any(not is_unfinished(path) for path in (folder / "code").glob("*")):
            remedy = f"It holds {(entries or ['code'])[0]!r}; nothing is overwritten."
            raise SimbaError("folder", str(folder), "new, or begun by this command", remedy)
    (folder / "code").mkdir(parents=True, exist_ok=True)
    write_json(folder / HEAD, head)


@dataclass(frozen=True, eq=False)
class _PlantedImages:
    """The images of a planted cohort, and what is said of them."""

    cohort: PlantedCohort
    folder: Path

    @cached_property
    def labels(self) -> dict[str, str]:
        """The BIDS label of each mark."""
        labels = {mark: camel(mark) for mark in self.cohort.effects}
        lower = [UNMARKED, *(label.lower() for label in labels.values())]
        if "" in lower or len(set(lower)) < len(lower):
            allowed = f"named by different letters and digits, and not {UNMARKED!r}"
            raise SimbaError("effects", list(labels), allowed)
        return labels

    @cached_property
    def people(self) -> list[str]:
        """The BIDS name of each person: their own as far as it may be one, or else a number."""
        table = self.cohort.table
        owners = [str(name) for name in table.get("participant", table.index)]
        short = ["".join(filter(_in_label, name.removeprefix("sub-"))) for name in owners]
        if "" in short or len({name.lower() for name in short}) < len(short):
            short = [f"{int(number):04d}" for number in table.index]
        return [f"sub-{name}" for name in short]

    @cached_property
    def head(self) -> dict[str, Any]:
        """What the images follow from, as a JSON file has it."""
        source, table = self.cohort.source, self.cohort.table
        values = {
            "software": f"simba-lab {software_version()}",
            "marks": {name: plain(effect) for name, effect in self.cohort.effects.items()},
            "labels": self.labels,
            "seed": source.seed,
            "people": {
                person: {
                    "file": source.images.paths[int(subject)].name,
                    "bytes": source.stamps[int(subject)][0],
                    "changed": source.stamps[int(subject)][1],
                    "transform": source.identity["transforms"].get(str(subject)),
                    "magnitudes": self._magnitudes(index),
                }
                for index, (person, subject) in enumerate(
                    zip(self.people, table.index.tolist(), strict=True)
                )
            },
        }
        plain_values: dict[str, Any] = json.loads(json.dumps(values))
        return plain_values

    def _magnitudes(self, index: int) -> dict[str, float]:
        row = self.cohort.table.iloc[index]
        return {mark: float(row[f"{mark}_magnitude"]) for mark in self.cohort.effects}

    def describe(self) -> None:
        """Write description, plan and README of the folder."""
        effects, data = self.cohort.effects, self._dataset
        lines = [f"- `desc-{self.labels[m]}`: {in_words(m, e)}" for m, e in effects.items()]
        readme = README.format(scans=len(self.cohort), marks=len(effects), effects="\n".join(lines))
        generated = {
            "Name": PIPELINE,
            "Version": software_version(),
            "Description": "Marks planted in scans, one at a time (simba-lab plant)",
        }
        description: dict[str, Any] = {
            "Name": "Scans and planted twins",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [generated],
        }
        if data is not None:
            link = Path(os.path.relpath(data, self.folder.absolute())).as_posix()
            description |= {"SourceDatasets": [{"URL": link}], "DatasetLinks": {"raw": link}}
        _write_described(self.folder / DESCRIPTION, description)
        marks = {name: _words(effect) for name, effect in effects.items()}
        atomic_write(self.folder / PLAN, to_yaml({"marks": marks, "seed": self.cohort.source.seed}))
        atomic_write(self.folder / "README.md", readme)
        atomic_write(self.folder / ".bidsignore", f"{IMAGES}\n")

    @cached_property
    def _dataset(self) -> Path | None:
        """The BIDS dataset that the first file is in."""
        first = next(iter(self.cohort.source.images.paths.values())).absolute()
        return next((up for up in first.parents if (up / DESCRIPTION).is_file()), None)

    def write(self, index: int) -> list[dict[str, Any]]:
        """Write the images of one person that are missing; return their rows of the table."""
        person, subject = self.people[index], int(self.cohort.table.index[index])
        anat = self.folder / person / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        table, facts = self.cohort.table, None
        owner = str(table["participant"].iloc[index]) if "participant" in table else person
        rows = []
        for mark, magnitude in self._versions(index):
            label = self.labels.get(mark, UNMARKED)
            stem = anat / f"{person}_desc-{label}_T1w"
            image = stem.with_name(f"{stem.name}.nii.gz")
            side = stem.with_name(f"{stem.name}.json")
            # The JSON file is written after its image.
            if not (side.is_file() and image.is_file()):
                facts = facts or self._facts(subject)
                atomic_write(image, self._image(subject, mark, magnitude))
                _write_described(side, self._sidecar(subject, mark, magnitude, facts))
            name = image.relative_to(self.folder).as_posix()
            rows.append({"file": name, "participant": owner, "mark": mark, "magnitude": magnitude})
        return rows

    def _versions(self, index: int) -> Iterator[tuple[str, float]]:
        yield UNMARKED, 0.0
        yield from self._magnitudes(index).items()

    def _image(self, subject: int, mark: str, magnitude: float) -> bytes:
        amounts = ((mark, magnitude),) if magnitude else ()
        image = self.cohort.source.planted(subject, amounts)
        proxy: Any = image.dataobj
        if is_proxy(proxy):  # nibabel would choose a scaling of its own
            image = type(image)(proxy.get_unscaled(), image.affine, image.header)
            image.header.set_slope_inter(proxy.slope, proxy.inter)
        return nifti_bytes(image)

    def _facts(self, subject: int) -> tuple[str, bool]:
        """Return the SHA-256 of a file, and whether it shows a brain without its skull."""
        source = self.cohort.source
        path = source.images.paths[subject]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if stamp_of(path) != source.stamps[subject]:
            remedy = "It was changed since; plant the marks again."
            raise SimbaError(f"scan of subject {subject}", str(path), "the planted file", remedy)
        return digest, _is_stripped(source.placed(subject))

    def _sidecar(
        self, subject: int, mark: str, magnitude: float, facts: tuple[str, bool]
    ) -> dict[str, Any]:
        source, (checksum, stripped) = self.cohort.source, facts
        path = source.images.paths[subject].absolute()
        name = path.name
        if self._dataset is not None and path.is_relative_to(self._dataset):
            name = f"bids:raw:{path.relative_to(self._dataset).as_posix()}"
        planted: dict[str, Any] = {"Mark": mark}
        text = "The untouched scan, as its planted twins are written."
        if mark != UNMARKED:
            effect = self.cohort.effects[mark]
            planted |= {"Effect": _words(effect), "Magnitude": magnitude}
            planted |= {"Seed": source.seed, "NoiseSeed": source.noise_seed(subject)}
            text = (
                f"Planted twin: the same scan with the mark {mark!r} in it, put there by SimBA Lab."
            )
        return {
            "Description": text,
            "Sources": [name],
            "SourceSha256": checksum,
            "SkullStripped": stripped,
            "Planted": planted,
        }


def _words(effect: Effect) -> dict[str, Any]:
    """Return an effect as a plan has it: who carries it does not matter there."""
    words: dict[str, Any] = plain(replace(effect, prevalence=None))
    if set(effect.magnitude.values() if isinstance(effect.magnitude, dict) else ()) <= {AS_SET}:
        del words["magnitude"]
    del words["prevalence"]
    return words


def _is_stripped(placed: PlacedScan) -> bool:
    """Tell whether a scan shows little around the brain of the template."""
    template, survey = placed.template, placed.survey
    origin = np.reshape(template.lattice.origin_mm, (3, 1))
    voxels = (survey.points_mm - origin) / template.lattice.spacing_mm
    brain = map_coordinates(template.t1, voxels, order=0, mode="constant") > 0
    stored = placed.scan.stored[tuple(survey.voxels)].astype(np.float64)
    bright = stored * placed.scan.slope + placed.scan.inter > BRIGHT * placed.white
    return bool((bright & ~brain).sum() < MOST_AROUND * brain.sum())


def _in_label(letter: str) -> bool:
    return letter.isascii() and letter.isalnum()


def _write_described(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
