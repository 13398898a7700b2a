"""How easily a layer gives something away: measures that tell layers apart where every probe reads it perfectly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from simba_lab.core.compute import in_threads
from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.interpretation.probes.kernel_ridge import RidgeFit, fit_ridge, means_within
from simba_lab.interpretation.probes.questions import Grams, design_of
from simba_lab.interpretation.probes.resampling import counts_of, interval, resampled

# Shares of the training subjects in a learning curve.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


def learning_curve(
    grams: Grams,
    target: np.ndarray,
    *,
    given: np.ndarray | None = None,
    folds: int | np.ndarray = 5,
    groups: np.ndarray | None = None,
    shares: Sequence[float] = SHARES,
    repeats: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how well a probe of a two-group target does after few and many training subjects.

    A layer from which few subjects suffice holds the target in a plainer form than one that needs
    many, also where both reach the same score in the end.

    Parameters
    ----------
    grams, target, given, folds, groups, seed
        As for `probe`.
    shares : sequence of float
        Shares of the training folds that the probe learns from.
    repeats : int
        Random choices of those subjects for each held-out fold.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer and ``n`` (training subjects), with ``auc`` and ``bits`` (mean code length
        of a held-out subject's group, in bits), with 95 % bootstrap intervals ``_low``, ``_high``,
        and ``bits_known`` (the same by the frequencies of the groups, within `given`, alone).

    References
    ----------
    Voita and Titov (2020), "Information-theoretic probing with minimum description length", sec.
    2.2.
    """
    if not len(shares) or min(shares) <= 0 or max(shares) > 1:
        raise SimbaError("shares", list(shares), "shares above 0 and at most 1")
    if not isinstance(repeats, int) or repeats < 1:
        raise SimbaError("repeats", repeats, "an integer of at least 1")
    design = design_of(grams, target, given, kind="binary", folds=folds, groups=groups, seed=seed)
    question, values, context = design.question, design.question.target, design.question.context
    draws = resampled(design.clusters, stream(seed, "probe", "bootstrap"))
    counts = counts_of(draws, len(values))

    def rows(layer: str) -> list[dict[str, float]]:
        gram = design.gram(grams, layer)
        found = []
        for share in shares:
            scores, bits, known = (np.zeros((repeats, len(values))) for _ in range(3))
            sizes = []
            for fold, (train, test) in enumerate(design.split):
                for repeat in range(repeats):
                    few = _few(
                        train,
                        question.cells,
                        share,
                        stream(seed, f"{fold}/{repeat}", "learning curve"),
                    )
                    sizes.append(len(few))
                    fit = fit_ridge(
                        gram, few, values[few, None].astype(float), context, design.folds[few]
                    )
                    score = fit.predict(gram, test)[:, 0] / fit.scale[0]
                    scores[repeat, test] = score
                    bits[repeat, test], known[repeat, test] = _code(
                        fit, score, few, test, values, context
                    )
            areas = [question.score(values, one[:, None]) for one in scores]
            redrawn = np.mean(
                [question.score(values, one[:, None], counts) for one in scores], axis=0
            )
            each = bits.mean(axis=0)
            found.append(
                {
                    "layer": layer,
                    "n": round(np.mean(sizes)),
                    "auc": np.mean(areas),
                    **interval("auc", redrawn),
                    "bits": each.mean(),
                    **interval("bits", [each[take].mean() for take in draws]),
                    "bits_known": known.mean(),
                }
            )
        return found

    parts = in_threads(rows, ((layer,) for layer in grams))
    return pd.DataFrame([one for part in parts for one in part]).set_index(["layer", "n"])


def code_length(curve: pd.DataFrame) -> pd.DataFrame:
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
    """
    table = {}
    for layer, part in curve.sort_index(level="n", sort_remaining=False).groupby(
        level="layer", sort=False
    ):
        sizes = part.index.get_level_values("n").to_numpy()
        blocks = np.diff(sizes, prepend=0)
        # The first block cannot be learnt from anything; each later one is coded with what came
        # before it.
        bits, known = (
            float(
                blocks @ np.append(part["bits_known"].iloc[0], part[column].iloc[:-1]) / sizes[-1]
            )
            for column in ("bits", "bits_known")
        )
        table[layer] = {"bits": bits, "bits_known": known, "compression": known / bits}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("layer")


def prominence(
    grams: Grams,
    target: np.ndarray,
    *,
    given: np.ndarray | None = None,
    folds: int | np.ndarray = 5,
    groups: np.ndarray | None = None,
    components: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how much of a layer's variation is about a two-group target, held out.

    Probes that read a target perfectly from two layers do not tell whether it is the loudest thing
    there or the faintest.

    Parameters
    ----------
    grams, target, given, folds, groups, seed
        As for `probe`.
    components : int
        Principal components (of the training folds, within `given`) to look at.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer: ``variance_share``, the share of the held-out variance that lies along the
        direction of the probe; ``typical_share``, that along a random direction drawn with the
        covariance of the layer; ``group_share``, the share of the variance between the group means
        (less what chance would give); ``d_prime``, the distance of the groups along the probe in
        standard deviations; and ``d_prime_pc1`` and on for each component.
    """
    design = design_of(grams, target, given, kind="binary", folds=folds, groups=groups, seed=seed)
    values, context = design.question.target, design.question.context

    def row(layer: str) -> dict[str, float]:
        gram = design.gram(grams, layer)
        scores, leading = np.zeros(len(values)), np.zeros((len(values), components))
        along, total, typical = 0.0, 0.0, []
        for train, test in design.split:
            fit = fit_ridge(
                gram, train, values[train, None].astype(float), context, design.folds[train]
            )
            score = fit.predict(gram, test)[:, 0]
            scores[test] = score / fit.scale[0]
            along += (score**2).sum() / fit.norm[0] ** 2
            total += fit.residual(gram, test).sum()
            typical.append((fit.spectrum**2).sum() / fit.spectrum.sum() ** 2)
            coordinates = fit.coordinates(gram, test)[:, :components]
            # A component has no sign of its own: it points to where the training members of the
            # group lie.
            signs = np.sign((fit.vectors[:, : coordinates.shape[1]] * fit.targets).sum(axis=0))
            leading[test, : coordinates.shape[1]] = (
                coordinates * signs / np.sqrt(fit.spectrum[: coordinates.shape[1]])
            )
        entry = {"variance_share": along / total, "typical_share": np.mean(typical)}
        entry["group_share"] = _group_share(gram, values, context)
        entry["d_prime"] = _d_prime(scores, values, context)
        return entry | {
            f"d_prime_pc{k + 1}": _d_prime(leading[:, k], values, context)
            for k in range(components)
        }

    rows = in_threads(row, ((layer,) for layer in grams))
    return pd.DataFrame(rows, index=pd.Index(list(grams), name="layer"))


def _few(
    train: np.ndarray, cells: np.ndarray, share: float, generator: np.random.Generator
) -> np.ndarray:
    """Return some of the training rows, at least two of each cell."""
    order = generator.permutation(train)  # the same for all shares: fewer are part of more
    members = [order[cells[order] == cell] for cell in np.unique(cells)]
    return np.concatenate([rows[: max(2, round(share * len(rows)))] for rows in members])


def _code(
    fit: RidgeFit,
    score: np.ndarray,
    few: np.ndarray,
    test: np.ndarray,
    values: np.ndarray,
    context: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Code length in bits of each held-out subject's group: by the probe, and by the frequencies within contexts.

    Scores become probabilities by a logistic curve through the leave-one-out predictions of the
    training subjects (Platt).
    """
    frequency = means_within(context[test], context[few]) @ values[few]
    counts = (context[test][:, None] == context[few]).sum(axis=1)
    frequency = (frequency * counts + 0.5) / (counts + 1)  # Krichevsky-Trofimov: never certain
    offsets = (context[:, None] == np.unique(context)[1:]).astype(float)
    ready = np.column_stack([fit.left_out[:, 0] / fit.scale[0], offsets[few]])
    curve = LogisticRegression(C=1.0).fit(ready, values[few])
    probability = curve.predict_proba(np.column_stack([score, offsets[test]]))[:, 1]
    right, base = (np.where(values[test] == 1, p, 1 - p) for p in (probability, frequency))
    return -np.log2(np.clip(right, 1e-6, 1)), -np.log2(base)


def _d_prime(scores: np.ndarray, values: np.ndarray, context: np.ndarray) -> float:
    """Distance of the groups in standard deviations within them, averaged over contexts."""
    distances = []
    for value in np.unique(context):
        one, zero = (
            scores[(context == value) & (values == 1)],
            scores[(context == value) & (values == 0)],
        )
        spread = (
            np.sqrt((one.var(ddof=1) + zero.var(ddof=1)) / 2)
            if min(len(one), len(zero)) > 1
            else 0.0
        )
        distances.append((one.mean() - zero.mean()) / spread if spread else np.nan)
    return float(np.mean(distances))


def _group_share(gram: np.ndarray, values: np.ndarray, context: np.ndarray) -> float:
    """Share of the variance within contexts that lies between the groups, without what noise adds to the means.

    The squared distance of two sample means exceeds that of the true ones by the variances of the
    means.
    """
    between, total = 0.0, 0.0
    for value in np.unique(context):
        rows = [np.flatnonzero((context == value) & (values == group)) for group in (0, 1)]
        sizes = [len(part) for part in rows]
        inner = [gram[np.ix_(part, part)] for part in rows]
        spreads = [
            (np.trace(block) - block.sum() / n) / (n - 1)
            for block, n in zip(inner, sizes, strict=True)
        ]
        apart = sum(block.mean() for block in inner) - 2 * gram[np.ix_(*rows)].mean()
        apart -= sum(spread / n for spread, n in zip(spreads, sizes, strict=True))
        share = sizes[1] / sum(sizes)
        between += sum(sizes) * share * (1 - share) * apart
        total += sum(sizes) * (
            share * (1 - share) * apart + share * spreads[1] + (1 - share) * spreads[0]
        )
    return float(between / total)
