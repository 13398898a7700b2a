"""Whether maps show what a network learnt: they are compared with those of random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.core.intervals import PROBE_BOOTSTRAPS, bootstrap_rows
from simba_lab.core.layer_naming import core_of, layers_by_name
from simba_lab.core.network_adapter import copied, unwrapped
from simba_lab.core.rng import stream
from simba_lab.interpretation.attribution.comparison import columns_of_known_mean
from simba_lab.interpretation.attribution.localisation import spearman
from simba_lab.interpretation.attribution.maps import attribute
from simba_lab.interpretation.attribution.methods.method import Method
from simba_lab.interpretation.hooks import layer_names
from simba_lab.interpretation.layer_table import default_layers, first_volume


def sanity_checks(
    model: torch.nn.Module,
    cohort: Cohort,
    method: str | Method = "integrated_gradients",
    *,
    others: Mapping[str, torch.nn.Module] | None = None,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Return how similar maps stay when the network forgets what it learnt, from the output down.

    A map that hardly changes shows edges of the image, not what was learnt.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
    method : str or Method
        As for `attribute`.
    others : mapping of name to torch.nn.Module, optional
        Networks to compare with in the same way: trained on shuffled labels, or without the bias.
    layers : sequence of str, optional
        Submodules to make random, one after the other; by default the read-out or whatever follows
        the blocks, then the blocks from the last to the first.
    seed : int
        Of the random weights, and of the bootstrap over subjects.
    **options
        Of `attribute`.

    Returns
    -------
    pandas.DataFrame
        Indexed by what was made random (each row keeps what the rows above made random) and by
        `others`: ``correlation`` (Spearman's, of absolute maps within the brain; mean over
        subjects) with 95 % interval ``_low``, ``_high``.

    References
    ----------
    Adebayo et al. (2018), "Sanity checks for saliency maps", NeurIPS, sec. 3 and 4 (cascading
    randomisation; absolute rank correlation).

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> test = sb.synthesise(scenario).test.where(range(2))
    >>> sb.attribution.sanity_checks(sb.SimBANet((4, 8), seed=0), test, "saliency").index.tolist()
    ['readout', 'block2', 'block1']
    """
    names = _from_the_output(model, cohort) if layers is None else layer_names(model, layers)
    randomised = copied(unwrapped(model))
    modules = layers_by_name(randomised)
    learnt = attribute(model, cohort, method, **options).maps
    brains = [cohort.brain(index) for index in range(len(cohort))]
    rows = bootstrap_rows(stream(seed, "subjects", "sanity checks"), len(cohort), PROBE_BOOTSTRAPS)

    def similarity(network: torch.nn.Module) -> dict[str, float]:
        maps = attribute(network, cohort, method, **options).maps
        correlations = [
            spearman(np.abs(values[brain]), np.abs(original[brain]))
            for values, original, brain in zip(maps, learnt, brains, strict=True)
        ]
        return columns_of_known_mean("correlation", np.array(correlations), rows)

    table = {}
    for name in names:
        randomise(modules[name], seed)
        table[name] = similarity(randomised)
    for name, network in (others or {}).items():
        table[name] = similarity(network)
    return pd.DataFrame(table).T.rename_axis("randomised")


def _from_the_output(model: torch.nn.Module, cohort: Cohort) -> list[str]:
    """Return what has weights after the blocks, then the blocks from the last to the first."""
    blocks, names = default_layers(model, first_volume(cohort)), layers_by_name(model)
    modules = {child for block in blocks for child in names[block].modules()}
    prefix, core = core_of(model)
    later = [
        name if names.get(name) is child else f"{prefix}{name}"
        for name, child in core.named_children()
        if not modules & {*child.modules()} and any(True for _ in child.parameters())
    ]
    return [*later, *reversed(blocks)]


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Draw the first weights of a submodule anew, in place.

    Raises
    ------
    SimbaError
        If none of its layers says how (``reset_parameters``).
    """
    layers = [layer for layer in module.modules() if hasattr(layer, "reset_parameters")]
    if not layers:
        allowed = "made of layers with reset_parameters"
        raise SimbaError("layer", type(module).__name__, allowed, "Name one that is.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in layers:
            cast(Callable[[], None], layer.reset_parameters)()
