"""audit: what a network does with marks that were planted in scans, and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch

from simba_lab.auditing.answers import LEAST_SCANS, answer_table, spread_of
from simba_lab.auditing.cautions import cautions_of
from simba_lab.auditing.inner_marks import classes_of, layers_of_mark, maps_of_mark
from simba_lab.auditing.marks import image_changes, mark_in_words
from simba_lab.auditing.real_groups import erased_of, left_out_of, rates_of, read_groups
from simba_lab.auditing.results import Audit
from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Positive, Seed, choice
from simba_lab.core.cohort import TwinCohort
from simba_lab.core.compute import Compute
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.fingerprint import NotFingerprintable, fingerprint, network_fingerprint
from simba_lab.core.intervals import delong
from simba_lab.interpretation.hooks import layer_names
from simba_lab.scans.bids_description import software_version
from simba_lab.training.predictions import gives_numbers, logits

# Beside how much two people differ; of a region that grows by 2.5 mm it is fifteen times as much.
LEAST_CHANGE = 1e-3
INSTRUMENTS = ("layers", "maps", "groups")
NOTES = [
    "Marks that were not planted were not tested, nor weaker or stronger ones.",
    "Each mark was switched on in everybody, alone, in scans without the others.",
    "Whether a real scanner leaves a mark like the planted one is not shown here.",
    "A mark that is read from a layer need not be used.",
]


@checks_arguments
@dataclass(frozen=True)
class AuditSettings:
    """How a network is audited.

    Parameters
    ----------
    bound : float
        Changes within this many standard deviations of the network's own answers do not matter.
    level : float
        Of all intervals of question A together.
    layers : tuple of str, optional
        Names or patterns; by default as `layers` lists them.
    without : tuple of str
        What is left out, of ``layers``, ``maps`` and ``groups``.
    seed : int
        Of folds, bootstrap samples, and who carries a mark where it is probed.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.auditing.AuditSettings(without=("maps",)).bound
    0.5
    """

    bound: Positive = 0.5
    level: float = 0.95
    layers: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not 0.5 <= self.level < 1:
            raise SimbaError("level", self.level, "at least 0.5 and below 1")
        for name in self.without:
            choice("without", name, INSTRUMENTS)


def audit(
    network: torch.nn.Module,
    marked: TwinCohort,
    *,
    groups: Sequence[str] = (),
    untrained: Sequence[torch.nn.Module] = (),
    control: torch.nn.Module | Sequence[torch.nn.Module] | None = None,
    settings: AuditSettings | None = None,
    compute: Compute | None = None,
) -> Audit:
    """Return whether a network's answer moves with planted marks, and where they are read and used.

    Parameters
    ----------
    network : torch.nn.Module
    marked : TwinCohort
        Scans with marks, from `plant` or a scenario with biases. Labels may be missing or numbers;
        real groups are then left out.
    groups : sequence of str
        Columns of real groups, such as the site. Each value with at least 8 people is compared with
        all others; numbers of more than 8 values are split at their median.
    untrained : sequence of torch.nn.Module
        Networks of the same architecture with random weights: floors of what is read.
    control : torch.nn.Module, or several
        Trained without the marks: the verdict is then about the excess over these.
    settings : AuditSettings, optional
    compute : Compute, optional

    Returns
    -------
    Audit
        ``marks`` are those of `answer_table`, and ``image_change``: how much a mark changes an
        image beside how much two people differ (root mean squares over the brain). An instrument
        that is not defined for this network is a sentence in ``notes``.

    Raises
    ------
    SimbaError
        If there are fewer than 16 scans, no marks or no such column, or answers do not vary.

    See Also
    --------
    simba_lab.auditing.answer_table : The verdict, and why it is made so.

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    >>> cohort = sb.synthesise(sb.Scenario(64, disease, bias, spacing_mm=8))
    >>> settings = sb.auditing.AuditSettings(without=("maps",))
    >>> audit = sb.audit(sb.SimBANet((2, 2), seed=0), cohort.test, settings=settings)
    >>> audit.marks["n"].to_dict()
    {'bias': 16}
    """
    settings = settings or AuditSettings()
    marks, controls = list(marked.biases), _networks(control)
    if not marks:
        raise SimbaError("marked", Words("no marks"), "scans with marks", "See sb.plant.")
    if len(marked) < LEAST_SCANS:
        value = Words(f"{len(marked)} scans")
        raise SimbaError("marked", value, f"at least {LEAST_SCANS} scans")
    groups = [groups] if isinstance(groups, str) else list(groups)
    for column in groups:
        _ = marked[column]  # refused before anything is computed
    layers = None if settings.layers is None else layer_names(network, settings.layers)
    base = marked.twin(without=marks)
    numbers = gives_numbers(network)
    if any(gives_numbers(other) != numbers for other in controls):
        remedy = "Adapt both alike: adapt(target=...)."
        raise SimbaError("control", Words("a network of another kind of answer"), "alike", remedy)
    off, on = _answers(network, base, marks, compute)
    spread = spread_of(off)
    table = answer_table(
        off,
        on,
        spread,
        marks=marks,
        controls=[_answers(other, base, marks, compute) for other in controls],
        bound=settings.bound,
        level=settings.level,
        decisions=not numbers,
    )
    tools = Instruments(network, list(untrained), layers, settings, compute)
    table.insert(0, "image_change", image_changes(base, marks))
    notes = _Notes([*NOTES, *_about(controls, tools)])
    pieces: dict[str, pd.DataFrame | None] = {}
    for name, measure in (("layers", layers_of_mark), ("maps", maps_of_mark)):
        if name not in settings.without:
            frames = [notes.tried(f"{name}, {m}", measure, tools, base, m) for m in marks]
            pieces[name] = _joined(frames)
    if groups and "groups" not in settings.without:
        pieces |= _question_c(tools, base, groups, off, notes)
    return Audit(
        table,
        **pieces,
        settings={
            "subtitle": f"{len(marked)} scans, {len(marks)} planted marks",
            "described": {mark: mark_in_words(marked.biases[mark]) for mark in marks},
            **asdict(settings),
            "scans": len(marked),
            "untrained networks": len(tools.untrained),
            "controls": len(controls),
            "spread of the answers": spread,
        },
        provenance=_provenance(network, marked),
        notes=notes.lines,
        cautions=_cautions(table, None if numbers else classes_of(marked), off, controls),
    )


@dataclass(frozen=True, eq=False)
class Instruments:
    """What every instrument needs: the network, its floors, layers and settings."""

    network: torch.nn.Module
    untrained: list[torch.nn.Module]
    layers: list[str] | None
    settings: AuditSettings
    compute: Compute | None


@dataclass(frozen=True, eq=False)
class _Notes:
    """Sentences, and what could not be measured as further ones."""

    lines: list[str]

    def tried(self, name: str, measure: Callable[..., pd.DataFrame], *args: object) -> object:
        """Return a table; None, and a note, where the instrument refuses this network."""
        try:
            return measure(*args)
        except SimbaError as error:
            self.lines.append(f"Left out ({name}): {error}")
            return None


def _question_c(
    tools: Instruments, base: TwinCohort, groups: Sequence[str], off: np.ndarray, notes: _Notes
) -> dict[str, pd.DataFrame | None]:
    """Return what is known of real groups; notes say what is not, and why."""
    if classes_of(base) is None:
        known = "label" in base.table
        reason = "Labels are numbers, not classes" if known else "Labels are missing"
        notes.lines.append(f"{reason}: question C was left out.")
        return {}
    notes.lines.extend(filter(None, (left_out_of(base, column) for column in groups)))
    read = [notes.tried(f"reading {c}", read_groups, tools, base, c) for c in groups]
    erased = [notes.tried(f"erasing {c}", erased_of, tools, base, c, off) for c in groups]
    pieces = {"groups": _joined(read), "erased": _joined(erased)}
    if gives_numbers(tools.network):
        notes.lines.append("The network gives a number: there are no rates by group.")
        return pieces
    rates = [notes.tried(f"rates by {c}", rates_of, tools, base, c, off) for c in groups]
    return pieces | {"rates": _joined(rates)}


def _joined(frames: Sequence[object]) -> pd.DataFrame | None:
    tables = [frame for frame in frames if isinstance(frame, pd.DataFrame)]
    return pd.concat(tables) if tables else None


def _networks(control: torch.nn.Module | Sequence[torch.nn.Module] | None) -> list:
    if control is None:
        return []
    return [control] if isinstance(control, torch.nn.Module) else list(control)


def _answers(
    network: torch.nn.Module, base: TwinCohort, marks: Sequence[str], compute: Compute | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of the untouched scans, (n,), and with each mark alone, (n, marks)."""
    off = logits(network, base, compute=compute)
    on = [logits(network, base.twin(carrying=mark), compute=compute) for mark in marks]
    return off, np.stack(on, axis=1)


def _about(controls: Sequence[object], tools: Instruments) -> list[str]:
    lines = []
    if not controls:
        lines.append("Without a control network it is not shown that training taught the mark.")
    if not tools.untrained and "layers" not in tools.settings.without:
        lines.append("No untrained networks were given: what is read has no floor.")
    return lines


def _cautions(
    table: pd.DataFrame, label: np.ndarray | None, off: np.ndarray, controls: Sequence[object]
) -> list[str]:
    """Return what a reader of the verdicts alone has to know."""
    lines = []
    if label is not None and (area := delong(label, off)).low < 0.5 < area.high:
        lines.append(
            "On the untouched scans the network does not tell the classes apart (AUROC "
            f"{area.estimate:.2f}, {area.low:.2f} to {area.high:.2f}). If its answers to different "
            "people hardly differ, any change is many spreads; compare with control networks."
        )
    lines += cautions_of(table, len(controls))
    unseen = table.index[table["image_change"] < LEAST_CHANGE].tolist()
    if unseen:
        lines.append(
            f"In these images nothing is to be seen of {', '.join(map(str, unseen))}: a verdict "
            "says nothing there. Plant a stronger one."
        )
    return lines


def _provenance(network: torch.nn.Module, marked: TwinCohort) -> dict[str, object]:
    digests = {}
    for name, digest in (
        ("network", lambda: network_fingerprint(network)),
        ("scans", lambda: fingerprint(marked.identity, marked.table)),
    ):
        try:
            digests[f"fingerprint of the {name}"] = digest()
        except NotFingerprintable as error:
            digests[f"fingerprint of the {name}"] = f"none: {error}"
    parameters = sum(math.prod(values.shape) for values in network.parameters())
    return {
        "network": f"{type(network).__name__}, {parameters} parameters",
        **digests,
        "software": f"simba-lab {software_version()}, PyTorch {torch.__version__}",
    }
