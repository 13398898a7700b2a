"""Linear probes: what can be read from a layer, beside what can be read without it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.metrics import roc_auc_score

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import MOST_PERMUTATIONS, choice, whole_number
from simba_lab.core.compute import in_threads
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.intervals import columns_of_central, counts_of
from simba_lab.core.rng import stream
from simba_lab.interpretation.probes.columns import Column, Floors, Grams, floors_by_name, values_of
from simba_lab.interpretation.probes.designs import KINDS, ProbeDesign, ProbeTarget, probe_design
from simba_lab.interpretation.probes.kernel_ridge import means_within, predict_held_out
from simba_lab.interpretation.probes.resampling import labellings_of, resampled, shuffled_within


@checks_arguments
@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is made.

    Parameters
    ----------
    kind : {"auto", "binary", "classes", "regression"}
        By default a target of two values is binary; other numbers are regressed if one has a
        fraction or if there are more than ten, such as ages; anything else is several classes.
    estimator : scikit-learn estimator, optional
        In the place of ridge regression, such as ``LogisticRegressionCV()``; it is fitted to the
        kernel coordinates.
    seed : int
        Of random folds, bootstrap samples and permutations.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.probes.ProbeSettings(kind="regression")
    ProbeSettings(kind='regression', estimator=None, seed=0)
    """

    kind: str = "auto"
    estimator: BaseEstimator | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choice("kind", self.kind, KINDS)


def probe(
    recording: Grams,
    target: Column,
    *,
    given: Column | None = None,
    floors: Floors | None = None,
    types: Column | None = None,
    folds: int | Column | None = None,
    permutations: int = 50,
    settings: ProbeSettings | None = None,
) -> pd.DataFrame:
    """Return how well a linear probe reads a target from each layer, on held-out subjects.

    Probes are ridge regressions on exact kernel coordinates of the Gram matrix, which equal probes
    on the full activations. Folds are held out; the penalty is chosen by holding out each of the
    training folds in turn (nested cross-validation). Volumes of one subject (twins) are held out
    together.

    Parameters
    ----------
    recording : Recording, or mapping of layer to ndarray, shape (n, n)
        From `record`, or Gram matrices of anybody's activations.
    target : str or ndarray, shape (n,)
        What to read, as a column of the recording's table or as values: a group of two (the bias,
        the disease), several classes (the site), or numbers (a component of the anatomy).
    given : str or ndarray, shape (n,), optional
        A variable that may leak the target, such as the label. The probe is then class-conditional:
        it is fitted to differences within each value of `given` (Frisch-Waugh-Lovell), and only
        subjects of equal `given` are compared.
    floors : sequence of recordings, or mapping of name to recordings, optional
        Other networks, probed in the same way. A sequence is called ``untrained``: ``[record(
        SimBANet(seed=s), test) for s in range(3)]``.
    types : str or ndarray, shape (n,), optional
        A type for each subject, for the control task: types get random labels, and the same probe
        learns those. `octants` makes types from anatomical components.
    folds : int, str or ndarray, shape (n,), optional
        Number of random folds, or the fold of each subject. By default the column ``fold`` of the
        recording's table, else 5. Subjects of a cohort are matched within the folds of its design:
        with random folds scores fall below chance where there is nothing to read.
    permutations : int
        Shuffles of the target, within `given`, for the null distribution; 0 for none.
    settings : ProbeSettings, optional
        Kind of target, another estimator, seed.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer. With SCORE being ``auroc`` (mean over one-against-rest for several
        classes) or ``r2``: ``SCORE`` (class-conditional if `given`) with its 95 % interval
        ``SCORE_low``, ``SCORE_high`` (bootstrap over subjects); ``null_high``, the 95th percentile
        of the permutation null, and ``p``; ``balanced_accuracy`` with interval (not for numbers);
        ``SCORE_plain``, of a probe that is not conditioned on `given`; ``SCORE_leak``, what that
        would be for somebody who knows `given` and nothing else; ``auroc_through_given``, what it
        would be for a probe that reads `given` from this layer (both of two groups); ``control``
        and ``selectivity`` (score less control) with `types`; ``floor_<name>`` for each floor, with
        ``_min`` and ``_max`` for several networks; and ``floor_pixels`` if pixels were recorded.

    Raises
    ------
    UnknownNameError
        If the recording's table has no such column.
    SimbaError
        If a column is named but there is no table, the target is constant, a group is smaller than
        the number of folds, a subject lies in two folds, or shapes differ.

    References
    ----------
    Alain and Bengio (2016), "Understanding intermediate layers using linear classifier probes";
    Hewitt and Liang (2019), "Designing and interpreting probes with control tasks", sec. 2 (control
    task, selectivity).

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    >>> scenario = sb.Scenario(64, disease, bias, spacing_mm=8)
    >>> recording = sb.record(sb.SimBANet((4, 8), seed=0), sb.synthesise(scenario))
    >>> sb.probe(recording, "bias", given="label", permutations=0).index.tolist()
    ['pixels', 'block1', 'block2']
    """
    if not recording:
        raise SimbaError("recording", Words("no layers"), "at least one layer")
    settings = settings or ProbeSettings()
    whole_number("permutations", permutations, least=0, most=MOST_PERMUTATIONS)
    design = probe_design(recording, target, given, folds, kind=settings.kind, seed=settings.seed)
    controls = _Controls.drawn(
        design,
        None if types is None else values_of(recording, types, "types"),
        permutations,
        settings.seed,
    )
    networks = floors_by_name(floors)

    def row(layer: str) -> dict[str, float]:
        gram = design.gram(recording, layer)
        entry = _scores(gram, design, controls, settings.estimator)
        if controls.labellings:
            entry |= _control_task(gram, design, controls, settings.estimator)
            entry["selectivity"] = entry[design.target.score_name] - entry["control"]
        return entry | _floors(layer, networks, design, settings.estimator)

    table = pd.DataFrame(
        in_threads(row, ((layer,) for layer in recording)),
        index=pd.Index(list(recording), name="layer"),
    )
    if "pixels" in table.index and len(table) > 1:
        table["floor_pixels"] = table.loc["pixels", design.target.score_name]
    return table


@dataclass(frozen=True)
class _Controls:
    """Random draws that a score is compared with: shuffled targets, labelled types, samples."""

    shuffled: list[np.ndarray]
    labellings: list[np.ndarray]
    counts: np.ndarray

    @classmethod
    def drawn(
        cls, design: ProbeDesign, types: np.ndarray | None, permutations: int, seed: int
    ) -> _Controls:
        target, clusters = design.target, design.clusters
        labellings = (
            []
            if types is None
            else labellings_of(types, design.split, stream(seed, "probe", "types"))
        )
        generators = [stream(seed, number, "permutation") for number in range(permutations)]
        shuffled = [
            shuffled_within(target.coded, target.given, clusters, generator)
            for generator in generators
        ]
        samples = resampled(clusters, stream(seed, "probe", "bootstrap"))
        return cls(shuffled, labellings, counts_of(samples, len(clusters)))


def _scores(
    gram: np.ndarray, design: ProbeDesign, controls: _Controls, estimator: BaseEstimator | None
) -> dict[str, float]:
    """Return the score of a layer with interval, null distribution, and what leaks."""
    target, name = design.target, design.target.score_name
    targets = [target.coded, *controls.shuffled]
    (predictions, decided), *null = predict_held_out(gram, design.split, target, targets, estimator)
    score = target.score(target.coded, predictions)
    drawn = target.score(target.coded, predictions, controls.counts)
    entry = {name: score} | columns_of_central(name, drawn)
    pairs = zip(controls.shuffled, null, strict=True)
    chance = np.array([target.score(values, predicted) for values, (predicted, _) in pairs])
    entry["null_high"] = np.quantile(chance, 0.95) if len(chance) else np.nan
    entry["p"] = (1 + (chance >= score).sum()) / (1 + len(chance)) if len(chance) else np.nan
    if target.kind != "regression":
        entry["balanced_accuracy"] = target.balanced_accuracy(decided)
        drawn = target.balanced_accuracy(decided, controls.counts)
        entry |= columns_of_central("balanced_accuracy", drawn)
    return entry | _leaks(gram, design, estimator, score)


def _control_task(
    gram: np.ndarray, design: ProbeDesign, controls: _Controls, estimator: BaseEstimator | None
) -> dict[str, float]:
    """Return the mean score of probes for random labels of the types."""
    labellings = controls.labellings
    target = ProbeTarget("binary", labellings[0], np.zeros(len(labellings[0]), int))
    answers = predict_held_out(gram, design.split, target, labellings, estimator)
    pairs = zip(labellings, answers, strict=True)
    scores = [target.score(labels, predicted) for labels, (predicted, _) in pairs]
    return {"control": float(np.mean(scores))}


def _floors(
    layer: str, floors: dict[str, list[Grams]], design: ProbeDesign, estimator: BaseEstimator | None
) -> dict[str, float]:
    """Return the score of the same layer in other networks: mean, and range of several."""
    target = design.target
    entry: dict[str, float] = {}
    for name, networks in floors.items():
        scores = []
        for number, network in enumerate(networks):
            if layer in network:
                gram = design.gram(network, layer, f"floors[{name!r}][{number}]")
                answers = predict_held_out(gram, design.split, target, [target.coded], estimator)
                scores.append(target.score(target.coded, answers[0][0]))
        entry[f"floor_{name}"] = float(np.mean(scores)) if scores else np.nan
        if len(networks) > 1:
            entry[f"floor_{name}_min"] = min(scores, default=np.nan)
            entry[f"floor_{name}_max"] = max(scores, default=np.nan)
    return entry


def _leaks(
    gram: np.ndarray, design: ProbeDesign, estimator: BaseEstimator | None, score: float
) -> dict[str, float]:
    """Return what an unconditional probe scores, and what knowing `given` alone would score."""
    target = design.target
    name, values, given = target.score_name, target.coded, target.given
    if not given.any():
        chance = 0.0 if target.kind == "regression" else 0.5
        return {f"{name}_plain": score, f"{name}_leak": chance}

    def read(alone: ProbeTarget) -> np.ndarray:
        return predict_held_out(gram, design.split, alone, [alone.coded], estimator)[0][0]

    plain = target.unconditional()
    entry = {f"{name}_plain": plain.score(values, read(plain))}
    if target.kind == "regression":
        errors = values - means_within(given, given) @ values
        return entry | {"r2_leak": 1 - (errors**2).sum() / ((values - values.mean()) ** 2).sum()}
    if target.kind == "binary" and given.max() == 1:
        leak = roc_auc_score(values, given)
        read_given = read(ProbeTarget("binary", given, np.zeros_like(given)))[:, 0]
        through = roc_auc_score(values, read_given * (1 if leak >= 0.5 else -1))
        return entry | {"auroc_leak": max(leak, 1 - leak), "auroc_through_given": through}
    return entry
