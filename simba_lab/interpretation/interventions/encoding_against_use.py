"""Encoding against use: what a probe reads from a layer, and how much of the answer hangs on what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from simba_lab.core.compute import Compute
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.rng import stream
from simba_lab.interpretation.hooks import edit
from simba_lab.interpretation.interventions.erasure import leaces, twin_concepts
from simba_lab.interpretation.interventions.twin_pairs import (
    chosen_layers,
    mean_with_interval,
    twins_of,
)
from simba_lab.interpretation.probes.probing import probe
from simba_lab.interpretation.recording import record
from simba_lab.training.identity import sources_digest
from simba_lab.training.predictions import logits

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

BOOTSTRAPS = 2000


def encoding_and_use(
    model: torch.nn.Module,
    audience: Cohort,
    test: Cohort,
    *,
    bias: str = "bias",
    untrained: Sequence[torch.nn.Module] = (),
    layers: Sequence[str] | None = None,
    memory_gb: float = 1.0,
    device: str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """Return, for each layer, how well the bias is read there and how much of its effect passes through what is read.

    *Encoded*: the held-out, class-conditional AUC of a linear probe, above that of the same probe
    on untrained networks. *Used*: the difference of exact twins is erased from the layer by LEACE
    while the network runs, and the effect of the bias on the answer is measured again, on other
    subjects. What the erasure takes away passed through what is linearly there; what it leaves
    passed beside it. Exchanging a whole layer cannot tell layers apart in a network without
    shortcut connections: everything passes through each of them.

    Parameters
    ----------
    model : torch.nn.Module
    audience : Cohort
        Subjects that the network has not seen, with the bias as common in both classes: probes are
        fitted and judged on them, fold by fold, and the erasure is fitted to their twins.
    test : Cohort
        Other subjects, on whose twins the effects are measured.
    bias : str
    untrained : sequence of torch.nn.Module
        Networks of the same make with first weights; without any there is no floor.
    layers : sequence of str, optional
        Names or patterns; by default the network's blocks.
    memory_gb : float
        For the activations of one layer for both twins of the audience.
    device : str
        As for `record`.
    seed : int
        Of the bootstrap over subjects, and of the random direction.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer: ``auc`` with 95 % interval, ``floor`` (mean of the untrained networks) and
        ``above_floor``; ``effect``, the change of the logit that the bias makes; ``removed``, by
        how much it falls when the bias is erased in this layer, with a 95 % interval over subjects,
        and ``removed_random``, the same for a random direction; ``disease``, the change of the
        logit that the disease makes between the mean control and the mean patient, for scale;
        ``use``, removed / disease, with interval (NaN if the network ignores the disease).

    Raises
    ------
    SimbaError
        If audience and test share subjects.

    References
    ----------
    Elazar et al. (2021), "Amnesic probing", TACL 9:160-175 (use as what erasure changes); Belrose
    et al. (2023), "LEACE", NeurIPS, theorem 4.3; Ravichander et al. (2021), "Probing the probing
    paradigm", EACL (encoded is not used).
    """
    names = chosen_layers(model, layers)
    if bias not in test.biases:
        raise UnknownNameError.among("bias", bias, test.biases)
    if len(audience.shared_subjects(test)):
        raise SimbaError(
            "audience",
            "subjects of the test",
            "other subjects",
            "Make them with another seed: synthesise(..., seed=1).",
        )
    compute = Compute(device, memory_gb=memory_gb)
    settings = {"layers": names, "pixels": False, "compute": compute}
    read = probe(
        record(model, audience, **settings),
        bias,
        given="label",
        floors=[record(network, audience, **settings) for network in untrained],
        permutations=0,
    )
    pairs = {
        effect: [twin.arrays() for twin in twins_of(test, effect)] for effect in (bias, "disease")
    }

    def response(effect: str) -> np.ndarray:
        off, on = pairs[effect]
        return logits(model, on) - logits(model, off)

    total, disease = response(bias), response("disease")
    magnitudes = np.array(
        [test.twin(carrying="disease").magnitudes(index)["disease"] for index in range(len(test))]
    )
    gap = float(np.diff([magnitudes[test["label"] == label].mean() for label in (0, 1)])[0])
    draws = stream(seed, "encoding and use", bias).integers(0, len(test), (BOOTSTRAPS, len(test)))
    # Least squares through zero: the response to one unit of the disease, times the distance
    # between the classes.
    scale = gap * (magnitudes * disease)[draws].mean(axis=1) / (magnitudes**2)[draws].mean(axis=1)
    whole = gap * float(magnitudes @ disease / (magnitudes @ magnitudes))
    if abs(whole) < 1e-6:  # nothing to compare with
        scale, whole = np.full(BOOTSTRAPS, np.nan), np.nan
    concepts = {concept: twin_concepts(audience, concept, seed) for concept in (bias, "random")}
    twins = list(twins_of(audience, bias))
    rows = []
    for name in names:
        features = record(model, twins, **settings | {"layers": [name]}, features=[name]).features[
            name
        ]
        removed = {}
        for concept, erasure in zip(
            concepts, leaces(features, list(concepts.values())), strict=True
        ):
            with edit(model, {name: erasure}):
                removed[concept] = total - response(bias)
        del features
        use = np.quantile(removed[bias][draws].mean(axis=1) / scale, [0.025, 0.975])
        rows.append(
            {column: read.loc[name, column] for column in ("auc", "auc_low", "auc_high")}
            | {"floor": read.loc[name, "floor_untrained"], "effect": total.mean()}
            | dict(mean_with_interval("removed", removed[bias], draws))
            | {
                "removed_random": removed["random"].mean(),
                "disease": whole,
                "use": removed[bias].mean() / whole,
            }
            | {"use_low": use[0], "use_high": use[1]}
        )
    table = pd.DataFrame(rows, index=pd.Index(names, name="layer"))
    table.insert(4, "above_floor", table["auc"] - table["floor"])
    return table


@cache
def encoding_version() -> str:
    """Return a digest of the code that this measure follows from."""
    room = Path(__file__).parents[1]
    return sources_digest(
        sorted(
            path
            for folder in ("probes", "interventions", ".")
            for path in (room / folder).glob("*.py")
        )
    )
