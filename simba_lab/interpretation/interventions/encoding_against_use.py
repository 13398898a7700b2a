"""Encoding against use: what a probe reads from a layer, and how much the answer depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from simba_lab.core.checks import choice
from simba_lab.core.cohort import TwinCohort
from simba_lab.core.compute import Compute
from simba_lab.core.intervals import ENDS, bootstrap_rows, columns_of_mean
from simba_lab.core.rng import stream
from simba_lab.interpretation.hooks import edit
from simba_lab.interpretation.interventions.erasure import leaces, twin_concept
from simba_lab.interpretation.interventions.twin_pairs import (
    check_disjoint,
    chosen_layers,
    twins_of,
)
from simba_lab.interpretation.probes.probing import probe
from simba_lab.interpretation.recording import record
from simba_lab.training.predictions import logits

# What a network does with the disease is zero below this (logit).
NO_RESPONSE = 1e-6


def encoding_and_use(
    model: torch.nn.Module,
    audience: TwinCohort,
    test: TwinCohort,
    *,
    effect: str = "bias",
    untrained: Sequence[torch.nn.Module] = (),
    layers: Sequence[str] | None = None,
    compute: Compute | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return, for each layer, how well a bias is read and how much of its effect passes through it.

    *Encoded*: the held-out, class-conditional AUROC of a linear probe, above that of the same probe
    on untrained networks. *Used*: the difference of exact twins is erased from the layer by LEACE
    while the network runs, and the effect of the bias on the answer is measured again, on other
    subjects. What the erasure takes away passed through what is linearly encoded; what it leaves
    passed beside it. Exchanging a whole layer does not separate layers in a network without
    shortcut connections: everything passes through each of them.

    Parameters
    ----------
    model : torch.nn.Module
    audience : TwinCohort
        Subjects that the network has not seen, with the bias as common in both classes: probes are
        fitted and judged on them, fold by fold, and the erasure is fitted to their twins.
    test : TwinCohort
        Other subjects, on whose twins the effects are measured.
    effect : str
        The bias.
    untrained : sequence of torch.nn.Module
        Networks of the same architecture with first weights; without any there is no floor.
    layers : sequence of str, optional
        Names or patterns; by default the network's blocks.
    compute : Compute, optional
        Device and memory (1 GB by default, which the activations of one layer for both twins of
        the audience must fit into).
    seed : int
        Of the bootstrap over subjects, and of the random direction.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer: ``auroc`` with 95 % interval, ``floor`` (mean of untrained networks) and
        ``above_floor``; ``effect``, the change of the logit that the bias makes; ``removed``, by
        how much it falls when the bias is erased in this layer, with a 95 % interval over subjects,
        and ``removed_random``, the same for a random direction; ``disease``, the change of the
        logit that the disease makes between the mean control and the mean patient, for scale;
        ``use``, removed / disease, with interval (NaN if the network ignores the disease). These
        are NaN for scans whose disease has no twins: nobody planted it.

    Raises
    ------
    SimbaError
        If audience and test share subjects.

    References
    ----------
    Elazar et al. (2021), "Amnesic probing", TACL 9:160-175 (use as what erasure changes); Belrose
    et al. (2023), "LEACE", NeurIPS, theorem 4.3; Ravichander et al. (2021), "Probing the probing
    paradigm", EACL (encoded is not used).

    Examples
    --------
    >>> import simba_lab as sb
    >>> bias = sb.Morphology("Putamen_L", 2.5)
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), bias, spacing_mm=8)
    >>> audience, test = (sb.synthesise(scenario, seed=seed).test for seed in (1, 0))
    >>> table = sb.encoding_and_use(sb.SimBANet((4, 8), seed=0), audience, test)
    >>> table.index.tolist()
    ['block1', 'block2']
    """
    names = chosen_layers(model, layers, test)
    choice("effect", effect, test.biases)
    check_disjoint(test, audience, "audience")
    layers_of = partial(record, layers=names, pixels=False, compute=compute)
    encoded = probe(
        layers_of(model, audience),
        effect,
        given="label",
        floors=[layers_of(network, audience) for network in untrained],
        permutations=0,
    )
    known = [name for name in (effect, "disease") if name in test.effects]
    pairs = {name: [twin.arrays() for twin in twins_of(test, name)] for name in known}

    def response(name: str) -> np.ndarray:
        off, on = pairs[name]
        return logits(model, on) - logits(model, off)

    total = response(effect)
    bootstrap = bootstrap_rows(stream(seed, "encoding and use", effect), len(test))
    disease, disease_draws = np.nan, np.full(len(bootstrap), np.nan)
    if "disease" in known:
        disease, disease_draws = _class_difference(test, response("disease"), bootstrap)
    concepts = {name: twin_concept(audience, name, seed) for name in (effect, "random")}
    twins, rows = list(twins_of(audience, effect)), []
    for layer in names:
        recording = record(
            model, twins, layers=[layer], activations=[layer], pixels=False, compute=compute
        )
        activations = recording.activations.pop(layer)
        removed = {}
        for concept, erasure in zip(
            concepts, leaces(activations, [*concepts.values()]), strict=True
        ):
            with edit(model, {layer: erasure}):
                removed[concept] = total - response(effect)
        del activations
        low, high = np.quantile(removed[effect][bootstrap].mean(axis=1) / disease_draws, ENDS)
        rows.append(
            {
                **_encoded_columns(encoded.loc[layer]),
                "effect": total.mean(),
                **columns_of_mean("removed", removed[effect], bootstrap),
                "removed_random": removed["random"].mean(),
                "disease": disease,
                "use": removed[effect].mean() / disease,
                "use_low": low,
                "use_high": high,
            }
        )
    return pd.DataFrame(rows, index=pd.Index(names, name="layer"))


def _encoded_columns(scores: Mapping[str, float]) -> dict[str, float]:
    columns = {name: scores[name] for name in ("auroc", "auroc_low", "auroc_high")}
    floor = scores["floor_untrained"]
    return columns | {"floor": floor, "above_floor": columns["auroc"] - floor}


def _class_difference(
    test: TwinCohort, response: np.ndarray, bootstrap: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return what the disease does to the logit between the classes, and that of bootstrap samples.

    Least squares through zero give the response to one unit of the disease, which is multiplied by
    the distance between the mean magnitudes of the classes. NaN if the network ignores the disease.
    """
    carrying = test.twin(carrying="disease")
    magnitudes = np.array([carrying.magnitudes(index)["disease"] for index in range(len(test))])
    control, patient = (magnitudes[test["label"] == label].mean() for label in (0, 1))
    distance = float(patient - control)
    difference = distance * float(magnitudes @ response / (magnitudes @ magnitudes))
    if abs(difference) < NO_RESPONSE:
        return np.nan, np.full(len(bootstrap), np.nan)
    products, squares = (magnitudes * response)[bootstrap], (magnitudes**2)[bootstrap]
    return difference, distance * products.mean(axis=1) / squares.mean(axis=1)
