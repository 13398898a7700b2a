"""Audit of erasure: what it does to probes, to the prediction and to the rates of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch

from simba_lab.core.checks import choice
from simba_lab.core.cohort import TwinCohort
from simba_lab.core.compute import Compute
from simba_lab.core.intervals import bootstrap_rows, columns_of_mean
from simba_lab.core.rng import stream
from simba_lab.interpretation.hooks import edit
from simba_lab.interpretation.interventions.erasure import erase
from simba_lab.interpretation.interventions.twin_pairs import check_disjoint, chosen_layers
from simba_lab.interpretation.probes.probing import ProbeSettings, probe
from simba_lab.interpretation.recording import Recording, record
from simba_lab.training.metrics import evaluate
from simba_lab.training.predictions import logits, refuse_numbers
from simba_lab.training.twin_effects import twin_logits

CONTROLS = ("random", "disease")
NOTHING = "nothing"


def erasure_audit(
    model: torch.nn.Module,
    train: TwinCohort,
    test: TwinCohort,
    effect: str = "bias",
    *,
    layers: Sequence[str] | None = None,
    controls: Sequence[str] = CONTROLS,
    compute: Compute | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what erasing a bias from each layer, one at a time, does to probes and predictions.

    Erasures are fitted to `train`, and everything is measured on `test`. They may be incomplete: a
    layer with more features than `train` has volumes cannot be cleaned for good. A change of the
    twin effect says that the network uses what a probe reads only as far as the probe stops reading
    it, and only beside the controls, which change the layer as well.

    Parameters
    ----------
    model : torch.nn.Module
    train, test : TwinCohort
        Different subjects, usually ``cohort.train`` and ``cohort.test``.
    effect : str
        The bias.
    layers : sequence of str, optional
        Names or patterns; by default the network's blocks.
    controls : sequence of {"random", "disease"}
        What else is erased for comparison: numbers drawn for each volume, and the disease within
        the groups of the bias.
    compute : Compute, optional
        As for `erase`.
    seed : int
        Of the random concept and the bootstraps.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer and ``erased``: ``"nothing"`` (before), the bias, and the controls.
        ``bias`` (under the name of the bias), held-out AUROC of a probe for its group within the
        label, on the edited activations: erasure is complete if it is 0.5. ``disease``, that for
        the label within the groups: erasure is selective if it stays the same. ``twin_effect``
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

    Examples
    --------
    >>> import simba_lab as sb
    >>> bias = sb.Morphology("Putamen_L", 2.5)
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), bias, spacing_mm=8)
    >>> cohort, network = sb.synthesise(scenario), sb.SimBANet((4, 8), seed=0)
    >>> table = sb.interventions.erasure_audit(
    ...     network, cohort.train, cohort.test, layers=["block2"], controls=[]
    ... )
    >>> table["rank"].tolist()
    [0, 1]
    """
    choice("effect", effect, test.biases)
    for control in controls:
        choice("controls", control, CONTROLS)
    refuse_numbers(model, "erasure_audit")
    check_disjoint(train, test)
    compute = compute or Compute()
    bootstrap = bootstrap_rows(stream(seed, "erasure audit", "bootstrap"), len(test))
    before, table = None, {}
    for layer in chosen_layers(model, layers, test):
        for concept in (NOTHING, effect, *controls):
            edits, placed = {}, compute
            if concept != NOTHING:
                given = effect if concept == "disease" else None
                edits = erase(
                    model, train, concept, layers=[layer], given=given, compute=compute, seed=seed
                )
                placed = replace(compute, device="cpu")
            with edit(model, edits):
                recording = record(model, test, layers=[layer], pixels=False, compute=placed)
                off, on = twin_logits(model, test, effect=effect)
                rates = evaluate(logits(model, test), test, by=effect)
            change = on - off
            before = change if before is None else before
            table[layer, concept] = {
                **_auroc(recording, effect, effect, "label", seed),
                **_auroc(recording, "disease", "label", effect, seed),
                **columns_of_mean("twin_effect", change, bootstrap),
                **columns_of_mean("twin_effect_change", change - before, bootstrap),
                **{
                    f"{rate}_{group}": rates.loc[group, rate]
                    for rate in ("tpr", "fpr")
                    for group in ("NB", "B")
                },
                "rank": sum(erasure.rank for erasure in edits.values()),
            }
    index = pd.MultiIndex.from_tuples(list(table), names=["layer", "erased"])
    return pd.DataFrame(list(table.values()), index=index)


def _auroc(recording: Recording, name: str, target: str, given: str, seed: int) -> dict[str, float]:
    """Return the held-out AUROC of a probe of the only layer, with its interval, as columns."""
    settings = ProbeSettings(seed=seed)
    scores = probe(recording, target, given=given, permutations=0, settings=settings).iloc[0]
    return {name + end: scores["auroc" + end] for end in ("", "_low", "_high")}
