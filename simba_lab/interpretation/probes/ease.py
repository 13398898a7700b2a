"""How easily a layer gives something away, where every probe reads it perfectly in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from simba_lab.core.checks import Count, columns, whole_number
from simba_lab.core.compute import in_threads
from simba_lab.core.errors import SimbaError
from simba_lab.core.intervals import columns_of_central, counts_of
from simba_lab.core.rng import stream
from simba_lab.interpretation.probes.columns import Column, Grams
from simba_lab.interpretation.probes.designs import ProbeDesign, probe_design
from simba_lab.interpretation.probes.kernel_ridge import RidgeFit, fit_ridge, means_within
from simba_lab.interpretation.probes.resampling import resampled

# Shares of the training subjects in a learning curve.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


def learning_curve(
    recording: Grams,
    target: Column,
    *,
    given: Column | None = None,
    folds: int | Column | None = None,
    shares: Sequence[float] = SHARES,
    repeats: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how well a probe of a two-group target does after few and many training subjects.

    A layer from which few subjects suffice holds the target in a plainer form than one that needs
    many, also where both reach the same score in the end.

    Parameters
    ----------
    recording, target, given, folds
        As for `probe`.
    shares : sequence of float
        Shares of the training folds that the probe learns from.
    repeats : int
        Random choices of those subjects for each held-out fold.
    seed : int
        Of those choices, of random folds and of the bootstrap.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer and ``n`` (training subjects), with ``auroc`` and ``bits`` (mean code
        length of a held-out subject's group, in bits), with 95 % bootstrap intervals ``_low``,
        ``_high``, and ``bits_known`` (the same by the frequencies of the groups, within `given`,
        alone).

    References
    ----------
    Voita and Titov (2020), "Information-theoretic probing with minimum description length", sec.
    2.2.

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    >>> scenario = sb.Scenario(64, disease, bias, spacing_mm=8)
    >>> recording = sb.record(sb.SimBANet((4, 8), seed=0), sb.synthesise(scenario))
    >>> curve = sb.learning_curve(recording, "bias", given="label")
    >>> curve.columns.tolist()
    ['auroc', 'auroc_low', 'auroc_high', 'bits', 'bits_low', 'bits_high', 'bits_known']
    """
    if not len(shares) or min(shares) <= 0 or max(shares) > 1:
        raise SimbaError("shares", list(shares), "shares above 0 and at most 1")
    whole_number("repeats", repeats)
    design = probe_design(recording, target, given, folds, seed=seed)
    probed, values = design.target, design.target.coded
    samples = resampled(design.clusters, stream(seed, "probe", "bootstrap"))
    counts = counts_of(samples, len(values))

    def rows(layer: str) -> list[dict[str, object]]:
        gram, table = design.gram(recording, layer), []
        for share in shares:
            predictions, bits, known, size = _learnt_from(gram, design, share, repeats, seed)
            held_out = [repeat[:, None] for repeat in predictions]
            drawn = [probed.score(values, column, counts) for column in held_out]
            per_subject = bits.mean(axis=0)
            means = [per_subject[sample].mean() for sample in samples]
            entry: dict[str, object] = {"layer": layer, "n": size}
            entry["auroc"] = np.mean([probed.score(values, column) for column in held_out])
            entry |= columns_of_central("auroc", np.mean(drawn, axis=0))
            entry["bits"] = per_subject.mean()
            entry |= columns_of_central("bits", means)
            entry["bits_known"] = known.mean()
            table.append(entry)
        return table

    tables = in_threads(rows, ((layer,) for layer in recording))
    return pd.DataFrame([row for table in tables for row in table]).set_index(["layer", "n"])


def _learnt_from(
    gram: np.ndarray, design: ProbeDesign, share: float, repeats: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return held-out predictions and code lengths after a share of the subjects: (repeats, n).

    Lengths are those by the probe and those by the frequencies alone; then the mean number of
    training subjects.
    """
    values, given = design.target.coded, design.target.given
    predictions, bits, known = (np.zeros((repeats, len(values))) for _ in range(3))
    sizes = []
    for fold, (train, test) in enumerate(design.split):
        for repeat in range(repeats):
            generator = stream(seed, f"{fold}/{repeat}", "learning curve")
            rows = _subset(train, design.target.cells, share, generator)
            sizes.append(len(rows))
            goal = values[rows, None].astype(float)
            fit = fit_ridge(gram, rows, goal, given, design.folds[rows])
            predicted = fit.predict(gram, test)[:, 0] / fit.scale[0]
            predictions[repeat, test] = predicted
            bits[repeat, test], known[repeat, test] = _code(fit, predicted, test, values, given)
    return predictions, bits, known, round(np.mean(sizes))


def code_length(
    curve: Annotated[pd.DataFrame, columns("layer", "n", "bits", "bits_known")],
) -> pd.DataFrame:
    """Return the online code length of a target per layer, from its learning curve.

    Subjects are sent one block after another; what is known of those already sent shortens the code
    of the next. The expected length of each block is the held-out code length at that number of
    training subjects.

    Parameters
    ----------
    curve : pandas.DataFrame
        From `learning_curve`.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer: ``bits`` per subject over all blocks, ``bits_known`` (by the frequencies
        alone), and ``compression``, the ratio of the latter to the former: 1 where the layer is of
        no use.

    References
    ----------
    Voita and Titov (2020), "Information-theoretic probing with minimum description length", eq. 3.

    Examples
    --------
    >>> import pandas as pd
    >>> import simba_lab as sb
    >>> steps = pd.MultiIndex.from_product([["block1"], [10, 20]], names=["layer", "n"])
    >>> curve = pd.DataFrame({"bits": [0.5, 0.4], "bits_known": [1.0, 1.0]}, index=steps)
    >>> sb.probes.code_length(curve)["bits"].tolist()
    [0.75]
    """
    table = {}
    ordered = curve.sort_index(level="n", sort_remaining=False)
    for layer, steps in ordered.groupby(level="layer", sort=False):
        sizes = steps.index.get_level_values("n").to_numpy()
        blocks = np.diff(sizes, prepend=0)
        # The first block cannot be learnt from anything; each later one is probed with what came
        # before it.
        first_bits = steps["bits_known"].iloc[0]
        bits, known = (
            float(blocks @ np.append(first_bits, steps[column].iloc[:-1]) / sizes[-1])
            for column in ("bits", "bits_known")
        )
        table[layer] = {"bits": bits, "bits_known": known, "compression": known / bits}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("layer")


def prominence(
    recording: Grams,
    target: Column,
    *,
    given: Column | None = None,
    folds: int | Column | None = None,
    components: Count = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how much of a layer's variation is about a two-group target, held out.

    Probes that read a target perfectly from two layers do not tell whether it is the loudest signal
    there or the faintest.

    Parameters
    ----------
    recording, target, given, folds
        As for `probe`.
    components : int
        Principal components (of the training folds, within `given`) to look at.
    seed : int
        Of random folds.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer: ``variance_share``, the share of the held-out variance that lies along the
        direction of the probe; ``typical_share``, that along a random direction drawn with the
        covariance of the layer; ``group_share``, the share of the variance between the group means
        (less what chance would give); ``d_prime``, the distance of the groups along the probe in
        standard deviations; and ``d_prime_pc1`` and on for each component.

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    >>> scenario = sb.Scenario(64, disease, bias, spacing_mm=8)
    >>> recording = sb.record(sb.SimBANet((4, 8), seed=0), sb.synthesise(scenario))
    >>> sb.probes.prominence(recording, "bias", given="label", components=1).columns.tolist()
    ['variance_share', 'typical_share', 'group_share', 'd_prime', 'd_prime_pc1']
    """
    design = probe_design(recording, target, given, folds, seed=seed)
    values, known = design.target.coded, design.target.given

    def row(layer: str) -> dict[str, float]:
        gram = design.gram(recording, layer)
        predictions, leading = np.zeros(len(values)), np.zeros((len(values), components))
        probe_variance, total, typical = 0.0, 0.0, []
        for train, test in design.split:
            goal = values[train, None].astype(float)
            fit = fit_ridge(gram, train, goal, known, design.folds[train])
            predicted = fit.predict(gram, test)[:, 0]
            predictions[test] = predicted / fit.scale[0]
            probe_variance += (predicted**2).sum() / fit.norm[0] ** 2
            total += fit.residual(gram, test).sum()
            typical.append((fit.spectrum**2).sum() / fit.spectrum.sum() ** 2)
            coordinates = fit.coordinates(gram, test)[:, :components]
            width = coordinates.shape[1]
            # The sign of a component is arbitrary: turn it to where the training members of the
            # group lie.
            signs = np.sign((fit.vectors[:, :width] * fit.targets).sum(axis=0))
            leading[test, :width] = coordinates * signs / np.sqrt(fit.spectrum[:width])
        entry = {"variance_share": probe_variance / total, "typical_share": np.mean(typical)}
        entry["group_share"] = _group_share(gram, values, known)
        entry["d_prime"] = _d_prime(predictions, values, known)
        for k in range(components):
            entry[f"d_prime_pc{k + 1}"] = _d_prime(leading[:, k], values, known)
        return entry

    rows = in_threads(row, ((layer,) for layer in recording))
    return pd.DataFrame(rows, index=pd.Index(list(recording), name="layer"))


def _subset(
    train: np.ndarray, cells: np.ndarray, share: float, generator: np.random.Generator
) -> np.ndarray:
    """Return a share of the training rows, at least two of each cell."""
    order = generator.permutation(train)  # the same for all shares: smaller subsets are nested
    members = [order[cells[order] == cell] for cell in np.unique(cells)]
    return np.concatenate([rows[: max(2, round(share * len(rows)))] for rows in members])


def _code(
    fit: RidgeFit, predicted: np.ndarray, test: np.ndarray, values: np.ndarray, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return code lengths in bits of held-out groups: by the probe, and by frequencies alone.

    Predictions become probabilities by a logistic curve through those of the left-out
    training subjects (Platt).
    """
    train = fit.train
    frequency = means_within(given[test], given[train]) @ values[train]
    counts = (given[test][:, None] == given[train]).sum(axis=1)
    frequency = (frequency * counts + 0.5) / (counts + 1)  # Krichevsky-Trofimov: never certain
    offsets = (given[:, None] == np.unique(given)[1:]).astype(float)
    predictors = np.column_stack([fit.left_out[:, 0] / fit.scale[0], offsets[train]])
    curve = LogisticRegression(C=1.0).fit(predictors, values[train])
    probability = curve.predict_proba(np.column_stack([predicted, offsets[test]]))[:, 1]
    by_probe, by_frequency = (
        np.where(values[test] == 1, p, 1 - p) for p in (probability, frequency)
    )
    return -np.log2(np.clip(by_probe, 1e-6, 1)), -np.log2(by_frequency)


def _d_prime(predictions: np.ndarray, values: np.ndarray, given: np.ndarray) -> float:
    """Distance of the groups in standard deviations within them, averaged over `given`."""
    distances = []
    for value in np.unique(given):
        members = predictions[(given == value) & (values == 1)]
        non_members = predictions[(given == value) & (values == 0)]
        spread = 0.0
        if min(len(members), len(non_members)) > 1:
            spread = np.sqrt((members.var(ddof=1) + non_members.var(ddof=1)) / 2)
        distances.append((members.mean() - non_members.mean()) / spread if spread else np.nan)
    return float(np.mean(distances))


def _group_share(gram: np.ndarray, values: np.ndarray, given: np.ndarray) -> float:
    """Share of the variance within `given` that lies between the groups, corrected for noise.

    The squared distance of two sample means exceeds that of the true ones by the variances of the
    means.
    """
    between, total = 0.0, 0.0
    for value in np.unique(given):
        rows = [np.flatnonzero((given == value) & (values == group)) for group in (0, 1)]
        sizes = [len(members) for members in rows]
        blocks = [gram[np.ix_(members, members)] for members in rows]
        spreads = [
            (np.trace(block) - block.sum() / n) / (n - 1)
            for block, n in zip(blocks, sizes, strict=True)
        ]
        distance = sum(block.mean() for block in blocks) - 2 * gram[np.ix_(*rows)].mean()
        distance -= sum(spread / n for spread, n in zip(spreads, sizes, strict=True))
        share, count = sizes[1] / sum(sizes), sum(sizes)
        between += count * share * (1 - share) * distance
        total += count * (
            share * (1 - share) * distance + share * spreads[1] + (1 - share) * spreads[0]
        )
    return float(between / total)
