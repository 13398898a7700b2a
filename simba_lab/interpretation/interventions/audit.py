"""Audit of erasure: what taking the bias out of a layer does to probes, to the prediction and to the rates of groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from simba_lab.core.compute import Compute
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.intervals import BOOTSTRAPS
from simba_lab.core.rng import stream
from simba_lab.interpretation.hooks import edit
from simba_lab.interpretation.interventions.erasure import Erasure, erase
from simba_lab.interpretation.interventions.twin_pairs import chosen_layers, mean_with_interval
from simba_lab.interpretation.probes.probing import ProbeSettings, probe
from simba_lab.interpretation.recording import Recording, record
from simba_lab.training.metrics import evaluate
from simba_lab.training.predictions import logits
from simba_lab.training.twins import twin_logits

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

CONTROLS = ("random", "disease")
NOTHING = "nothing"


def erasure_audit(
    model: torch.nn.Module,
    train: Cohort,
    test: Cohort,
    concept: str = "bias",
    *,
    layers: Sequence[str] | None = None,
    controls: Sequence[str] = CONTROLS,
    shrinkage: bool = True,
    batch_size: int = 16,
    memory_gb: float = 1.0,
    device: str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """Return what erasing the bias from each layer, one at a time, does to probes, to the prediction and to group rates.

    Erasures are fitted to `train`, and everything is measured on `test`, where they may be
    incomplete: a layer with more features than `train` has volumes cannot be cleaned for good.
    Whether the network uses what a probe reads is answered by the change in the twin effect only as
    far as the probe stops reading it, and only beside the controls, which change the layer as well.

    Parameters
    ----------
    model : torch.nn.Module
    train, test : Cohort
        Different subjects, usually ``cohort.train`` and ``cohort.test``.
    concept : str
        The bias.
    layers : sequence of str, optional
        Names or patterns; by default the network's blocks.
    controls : sequence of {"random", "disease"}
        What else is erased for comparison: numbers drawn for each volume, and the disease within
        the groups of the bias.
    shrinkage, batch_size, memory_gb, device, seed
        As for `erase`; the seed is also of the bootstraps.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer and ``erased``: ``"nothing"`` (before), the bias, and the controls.
        ``bias`` (under the name of the bias), held-out AUC of a probe for its group within the
        label, on the edited activations: erasure is complete where it is 0.5. ``disease``, that for
        the label within the groups: erasure is selective where it stays as it was. ``twin_effect``
        (logit) and ``twin_effect_change``, from before; these four with 95 % intervals ``_low``,
        ``_high``, over subjects. ``tpr_NB``, ``tpr_B``, ``fpr_NB``, ``fpr_B``, at a logit of 0.
        ``rank``, of directions.

    Raises
    ------
    SimbaError
        If a subject is in both cohorts.

    References
    ----------
    Elazar et al. (2021), "Amnesic probing", TACL 9:160-175 (erasure as a test of use, with random
    directions as control); Belrose et al. (2023), "LEACE: perfect linear concept erasure in closed
    form", NeurIPS.
    """
    if concept not in test.biases:
        raise UnknownNameError.among("concept", concept, test.biases)
    for control in controls:
        if control not in CONTROLS:
            raise UnknownNameError.among("controls", control, CONTROLS)
    both = train.shared_subjects(test)
    if len(both):
        raise SimbaError(
            "test", f"subject {both[0]}, who is in train too", "other subjects than train"
        )
    draws = stream(seed, "erasure audit", "bootstrap").integers(
        0, len(test), (BOOTSTRAPS, len(test))
    )
    before: np.ndarray | None = None
    rows = {}
    for layer in chosen_layers(model, layers):
        for what in (NOTHING, concept, *controls):
            edits: dict[str, Erasure] = {}
            if what != NOTHING:
                edits = erase(
                    model,
                    train,
                    what,
                    layers=[layer],
                    given=concept if what == "disease" else None,
                    shrinkage=shrinkage,
                    batch_size=batch_size,
                    memory_gb=memory_gb,
                    device=device,
                    seed=seed,
                )
            with edit(model, edits):
                grams = record(
                    model,
                    test,
                    layers=[layer],
                    pixels=False,
                    batch_size=batch_size,
                    compute=Compute("cpu" if edits else device, memory_gb=memory_gb),
                )
                off, on = twin_logits(model, test, effect=concept)
                rates = evaluate(logits(model, test), test, by=concept)
            effect = on - off
            before = effect if before is None else before
            rows[layer, what] = {
                **_read(grams, concept, concept, "label", seed),
                **_read(grams, "disease", "label", concept, seed),
                **mean_with_interval("twin_effect", effect, draws),
                **mean_with_interval("twin_effect_change", effect - before, draws),
                **{
                    f"{rate}_{group}": rates.loc[group, rate]
                    for rate in ("tpr", "fpr")
                    for group in ("NB", "B")
                },
                "rank": sum(found.rank for found in edits.values()),
            }
    index = pd.MultiIndex.from_tuples(list(rows), names=["layer", "erased"])
    return pd.DataFrame(list(rows.values()), index=index)


def _read(recording: Recording, name: str, target: str, given: str, seed: int) -> dict[str, float]:
    """Return the held-out AUC of a probe of the only layer, with its interval."""
    settings = ProbeSettings(seed=seed)
    found = probe(recording, target, given=given, permutations=0, settings=settings).iloc[0]
    return {name + end: found["auc" + end] for end in ("", "_low", "_high")}
