"""Whether attributions can be trusted: methods side by side, weights made random, and Captum's two measures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from captum.metrics import infidelity, sensitivity_max
from scipy.stats import rankdata

from simba_lab.core.errors import SimbaError
from simba_lab.core.intervals import PROBE_BOOTSTRAPS as BOOTSTRAPS
from simba_lab.core.rng import stream
from simba_lab.interpretation.attribution.gradients import seeded
from simba_lab.interpretation.attribution.maps import attribute
from simba_lab.interpretation.attribution.methods import METHODS, Settings, middles, plan_of
from simba_lab.interpretation.recording import layer_names

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort


def compare_attributions(
    model: torch.nn.Module,
    cohort: Cohort,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = METHODS,
    *,
    control: torch.nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Return the scores of several methods on the same subjects, each with its interval.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
    methods : sequence of str, or mapping of name to options of `attribute`
        Such as ``{"twin": {"method": "integrated_gradients", "baseline": twins}}``.
    control : torch.nn.Module, optional
        A network that ignores the bias, of the same accuracy: methods that point at the bias in it
        too accuse the innocent.
    seed : int
        Of the bootstrap over subjects.
    **options
        Of `attribute`, for all methods.

    Returns
    -------
    pandas.DataFrame
        Indexed by method and score (``enrichment_bias``, ...): ``mean`` over subjects, ``low`` and
        ``high`` (95 % bootstrap interval over subjects), and with a control ``control``,
        ``control_low``, ``control_high``, and the paired difference ``excess``, ``excess_low``,
        ``excess_high``.
    """
    chosen = (
        methods if isinstance(methods, Mapping) else {name: {"method": name} for name in methods}
    )
    if not chosen:
        raise SimbaError("methods", list(chosen), "at least one")
    draws = stream(seed, "subjects", "compare attributions").integers(
        0, len(cohort), (BOOTSTRAPS, len(cohort))
    )
    rows = {}
    for name, own in chosen.items():
        found = {"": _scores(model, cohort, {**options, **own})}
        if control is not None:
            found["control"] = _scores(control, cohort, {**options, **own})
            found["excess"] = found[""] - found["control"]
        for score in found[""]:
            rows[name, score] = {
                (f"{kind}_{end}" if kind and end != "mean" else kind or end): value
                for kind, table in found.items()
                for end, value in zip(
                    ("mean", "low", "high"), _mean(table[score].to_numpy(), draws), strict=True
                )
            }
    return pd.DataFrame(rows).T.rename_axis(["method", "score"])


def _scores(model: torch.nn.Module, cohort: Cohort, options: Mapping[str, Any]) -> pd.DataFrame:
    table = attribute(model, cohort, **options).table
    return table[
        [
            name
            for name in table
            if str(name).endswith(tuple(f"_{effect}" for effect in cohort.effects))
        ]
    ]


def _mean(values: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval of values that may be NaN for some subjects."""
    if np.isnan(values).all():
        return np.nan, np.nan, np.nan
    known, size = np.nan_to_num(values), (~np.isnan(values)).astype(float)
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(
            known[draws].sum(axis=1) / size[draws].sum(axis=1), [0.025, 0.975]
        )
    return float(np.nanmean(values)), float(low), float(high)


def sanity_checks(
    model: torch.nn.Module,
    cohort: Cohort,
    *,
    others: Mapping[str, torch.nn.Module] | None = None,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Return how alike maps stay when the network forgets what it learnt, from the output downwards.

    A map that hardly changes shows edges of the image, not what was learnt.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
    others : mapping of name to torch.nn.Module, optional
        Networks to compare with in the same way: trained on shuffled labels, or without the bias.
    layers : sequence of str, optional
        Submodules to make random, one after the other; by default the read-out or whatever follows
        the blocks, then the blocks from the last to the first.
    seed : int
        Of the random weights, and of the bootstrap over subjects.
    **options
        Of `attribute`: the method, and so on.

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
    """
    blocks = layer_names(model)
    after = [
        name for name, child in model.named_children() if name not in blocks and _has_weights(child)
    ]
    names = list(layers) if layers is not None else [*after, *reversed(blocks)]
    shaken, original = copy.deepcopy(model), attribute(model, cohort, scored=False, **options).maps
    inside = [cohort.brain(index) for index in range(len(cohort))]
    draws = stream(seed, "subjects", "sanity checks").integers(
        0, len(cohort), (BOOTSTRAPS, len(cohort))
    )

    def row(network: torch.nn.Module) -> dict[str, float]:
        maps = attribute(network, cohort, scored=False, **options).maps
        pairs = zip(maps, original, inside, strict=True)
        mean, low, high = _mean(
            np.array([_alike(one[brain], other[brain]) for one, other, brain in pairs]), draws
        )
        return {"correlation": mean, "correlation_low": low, "correlation_high": high}

    rows = {}
    for name in names:
        randomise(shaken.get_submodule(name), seed)
        rows[name] = row(shaken)
    return pd.DataFrame(
        rows | {name: row(other) for name, other in (others or {}).items()}
    ).T.rename_axis("randomised")


def _has_weights(module: torch.nn.Module) -> bool:
    return any(True for _ in module.parameters())


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Draw the first weights of a submodule anew, in place.

    Raises
    ------
    SimbaError
        If none of its layers says how (``reset_parameters``).
    """
    layers = [layer for layer in module.modules() if hasattr(layer, "reset_parameters")]
    if not layers:
        raise SimbaError(
            "layer",
            type(module).__name__,
            "made of layers with reset_parameters",
            "Name one that is.",
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in layers:
            layer.reset_parameters()


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    first, second = (rankdata(np.abs(values)) for values in (one, other))
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale else np.nan


def faithfulness(
    model: torch.nn.Module,
    cohort: Cohort,
    *,
    method: str = "integrated_gradients",
    noise: float = 0.05,
    draws: int = 10,
    steps: int = 16,
    seed: int = 0,
    memory_gb: float = 4.0,
    device: str = "cpu",
) -> pd.DataFrame:
    """Return Captum's infidelity and sensitivity of a method, for each subject.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
    method : str
        Any method of `attribute` but Shapley values, which have regions of their own in each
        subject; those with a baseline start from a blank image.
    noise : float
        Standard deviation of the Gaussian noise added for the infidelity, and largest change of a
        voxel for the sensitivity, as a share of white matter.
    draws : int
        Noisy copies per subject.

    Returns
    -------
    pandas.DataFrame
        One row per subject: ``infidelity``, the mean squared error with which the map predicts what
        noise does to the score, as a share of the mean square of that change, after the map was
        scaled to fit best (0 is perfect, 1 is useless); and ``sensitivity``, the largest relative
        change of the map.

    References
    ----------
    Yeh et al. (2019), "On the (in)fidelity and sensitivity of explanations", NeurIPS, definitions
    2.1 (with the optimal scale of sec. 2.2) and 3.1.
    """
    if method == "shapley":
        raise SimbaError(
            "method", method, "any but shapley", "Its regions lie differently in each subject."
        )
    for name, value in (("noise", noise), ("draws", draws)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise SimbaError(name, value, "above 0")
    settings = Settings(method, None, steps, None, 8, 0.2, None, 32.0, seed, 16, memory_gb, device)
    plan = plan_of(model, cohort, settings, constant=True)
    scorer, rows = plan.reader.scorer, []
    for index in range(len(cohort)):
        place, volume = (
            np.array([index]),
            torch.from_numpy(cohort.array(index, keep=False))[None, None].to(plan.device),
        )
        explain = _explaining(plan, cohort, place, steps)
        with seeded(seed, cohort.table.index[index], "faithfulness"):
            change = (
                torch.stack([_noisy(scorer, volume, noise) for _ in range(draws)]).square().mean()
            )
        with seeded(seed, cohort.table.index[index], "faithfulness"):
            error = infidelity(
                scorer,
                lambda x: (disturbance := noise * torch.randn_like(x), x - disturbance),
                volume,
                explain(volume),
                n_perturb_samples=draws,
                max_examples_per_batch=min(plan.chunk, draws),
                normalize=True,
            )
            change_of_map = sensitivity_max(
                explain,
                volume,
                perturb_radius=noise,
                n_perturb_samples=min(draws, 5),
                max_examples_per_batch=1,
            )
        rows.append({"infidelity": float(error / change), "sensitivity": float(change_of_map)})
    return pd.DataFrame(rows, index=cohort.table.index)


def _noisy(scorer: torch.nn.Module, volume: torch.Tensor, noise: float) -> torch.Tensor:
    with torch.no_grad():
        return scorer(volume) - scorer(volume - noise * torch.randn_like(volume))


def _explaining(plan, cohort: Cohort, place: np.ndarray, steps: int) -> Callable:
    def explain(x: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        x = x[0] if isinstance(x, tuple) else x
        maps = [
            plan.attribute(one[None], torch.zeros_like(one[None]), cohort, place, middles(steps))[0]
            for one in x
        ]
        return torch.cat(maps).detach()

    return explain
