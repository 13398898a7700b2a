"""Where a mark is read, where its effect passes, and whether maps point at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from simba_lab.auditing.answers import Difference
from simba_lab.core.cohort import Cohort, TwinCohort
from simba_lab.core.rng import stream
from simba_lab.interpretation.attribution.maps import attribute
from simba_lab.interpretation.attribution.methods.gradient_based import IntegratedGradients
from simba_lab.interpretation.interventions.interchanges import interchange
from simba_lab.interpretation.probes.probing import ProbeSettings, probe
from simba_lab.interpretation.recording import Recording, record

if TYPE_CHECKING:
    from simba_lab.auditing.network_audit import Instruments

FOLDS = 5
# Maps take as many passes as they have steps: of so many scans they are enough to be judged, and
# with so many steps their ranks hardly change.
MAPPED, STEPS = 8, 16


def layers_of_mark(tools: Instruments, base: TwinCohort, mark: str) -> pd.DataFrame:
    """Return for each layer how well a mark is read, its floor, and the share that passes.

    Half of the scans of each class carry the mark where it is probed, so that neither label nor
    person tells who does.
    """
    on = base.twin(carrying=mark)
    half = half_of_each_class(base, tools.settings.seed, f"carriers/{mark}")
    pair = [base.where(~half), on.where(half)]
    carries = np.repeat([0, 1], [int((~half).sum()), int(half.sum())])

    def recorded(network: torch.nn.Module) -> Recording:
        return record(network, pair, layers=tools.layers, pixels=False, compute=tools.compute)

    label = None
    if classes_of(base) is not None:
        label = np.concatenate([part["label"] for part in pair])
    read = probe(
        recorded(tools.network),
        carries,
        given=label if label is not None and set(label) == {0, 1} else None,
        floors=[recorded(network) for network in tools.untrained] or None,
        folds=FOLDS,
        permutations=0,
        settings=ProbeSettings(kind="binary", seed=tools.settings.seed),
    )
    passes = interchange(
        tools.network,
        (base, on),
        effect=mark,
        layers=tools.layers,
        compute=tools.compute,
        seed=tools.settings.seed,
    ).loc[read.index]
    table = pd.DataFrame(
        {
            "read": read["auroc"],
            "read_low": read["auroc_low"],
            "read_high": read["auroc_high"],
            "floor": read.get("floor_untrained", np.nan),
            # A share of an effect that may be none is no share.
            "passes": passes["share"].where(passes["share_low"].notna()),
            "passes_low": passes["share_low"],
            "passes_high": passes["share_high"],
        }
    )
    return pd.concat({mark: table}, names=["mark", "layer"])


def classes_of(cohort: Cohort) -> np.ndarray | None:
    """Return the labels, shape (n,), if they are 0 and 1; None if they are numbers or missing."""
    if "label" not in cohort.table or not cohort.table["label"].isin([0, 1]).all():
        return None
    return cohort["label"]


def half_of_each_class(base: TwinCohort, seed: int, purpose: str) -> np.ndarray:
    """Return half of the people of each class, drawn at random: bool, shape (n,).

    Without classes it is half of all.
    """
    generator, classes = stream(seed, "audit", purpose), classes_of(base)
    label = np.full(len(base), -1) if classes is None else classes
    half = np.zeros(len(base), bool)
    of_class = [label == value for value in (0, 1)]
    for members in (*of_class, ~np.any(of_class, axis=0)):
        rows = generator.permutation(np.flatnonzero(members))
        half[rows[: len(rows) // 2]] = True
    return half


def maps_of_mark(tools: Instruments, base: TwinCohort, mark: str) -> pd.DataFrame:
    """Return how well integrated gradients find the voxels of a mark: AUROC over scans.

    The baseline is the mean scan. With the twin as baseline a map is zero wherever the mark changed
    nothing, whatever the network does: it would always find it.
    """
    count, method = min(len(base), MAPPED), IntegratedGradients(STEPS, tolerance=None)
    on = base.twin(carrying=mark).where(np.arange(count))
    maps = attribute(tools.network, on, method, baseline="mean", compute=tools.compute).maps
    scores = []
    for index in range(count):
        changed = on.changed(index, mark)
        voxels = on.brain(index) | changed
        truth, size = changed[voxels], np.abs(maps[index])[voxels]
        if 0 < truth.sum() < truth.size and size.any():
            scores.append(roc_auc_score(truth, size))
    row = {"auroc": np.nan, "auroc_low": np.nan, "auroc_high": np.nan}
    if len(scores) > 2:
        row = Difference(np.array(scores), 0.05).columns("auroc")
        row |= {"auroc_low": max(0.0, row["auroc_low"]), "auroc_high": min(1.0, row["auroc_high"])}
    row |= {"chance": 0.5, "n": len(scores)}
    return pd.DataFrame([row], index=pd.Index([mark], name="mark"))
