"""What training on a bias, or a repair, changed: the part along the bias, and the rest."""

from __future__ import annotations

import numpy as np
import pandas as pd

from simba_lab.core.errors import SimbaError
from simba_lab.core.intervals import PROBE_BOOTSTRAPS as BOOTSTRAPS
from simba_lab.core.rng import stream


def split_change(
    before: np.ndarray, after: np.ndarray, direction: np.ndarray, *, seed: int = 0
) -> pd.DataFrame:
    """Split the change of attribution maps or activations into a part along the bias and a residual.

    With u the direction of length 1, the change c = after - before of each subject is (c . u) u
    plus a residual at right angles to it.

    Parameters
    ----------
    before, after : ndarray, shape (n, ...)
        Maps or activations of the same subjects in two networks: the unbiased control and the
        biased one, or the biased one and a repaired one.
    direction : ndarray, shape (...) or (n, ...)
        What the bias looks like there: for maps, the change of the image (twin less volume, or its
        size in each voxel); for activations, the mean change that the twins cause. One for all, or
        one per subject.
    seed : int
        Of the bootstrap over subjects.

    Returns
    -------
    pandas.DataFrame
        Columns ``value``, ``low``, ``high`` (95 % bootstrap interval over subjects) and ``floor``
        (of a change that points anywhere), rows

        - ``effectiveness``: part of the squared size of the change that lies along the bias, from 0
          to 1;
        - ``direction``: cosine between change and bias, positive towards it;
        - ``aligned``: size of the part along the bias, signed, in the units of the input;
          ``residual``: size of the rest;
        - ``amplification``: size along the bias after, divided by that before (1: as before;
          missing where the sizes before are not told from zero).

    Raises
    ------
    SimbaError
        If shapes differ, numbers are not finite, or a direction is zero.
    """
    first, last, along = (np.asarray(values, np.float64) for values in (before, after, direction))
    if first.shape != last.shape or first.ndim < 2 or not len(first):
        raise SimbaError(
            "after", last.shape, f"of the shape of before, {first.shape}: (subjects, ...)"
        )
    if along.shape not in (first.shape, first.shape[1:]):
        raise SimbaError("direction", along.shape, f"{first.shape[1:]} or {first.shape}")
    for name, values in (("before", first), ("after", last), ("direction", along)):
        if not np.isfinite(values).all():
            raise SimbaError(
                name, "NaN or infinity", "finite", "Leave out subjects without a value."
            )
    count = len(first)
    first, last = first.reshape(count, -1), last.reshape(count, -1)
    along = np.broadcast_to(along.reshape(-1, first.shape[1]), first.shape)
    length = np.linalg.norm(along, axis=1)
    if not length.all():
        raise SimbaError(
            "direction", "zero", "not zero", "Leave out subjects that the bias does not change."
        )
    old, new = (np.einsum("ij,ij->i", values, along) / length for values in (first, last))
    total = np.square(last - first).sum(axis=1)
    aligned = new - old
    rest = np.sqrt(np.maximum(total - aligned**2, 0))

    def measured(rows: np.ndarray) -> list[np.ndarray]:
        size = np.sqrt(total[rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            return [
                (aligned[rows] ** 2).sum(axis=-1) / total[rows].sum(axis=-1),
                aligned[rows].sum(axis=-1) / size.sum(axis=-1),
                aligned[rows].mean(axis=-1),
                rest[rows].mean(axis=-1),
                new[rows].mean(axis=-1) / old[rows].mean(axis=-1),
            ]

    draws = stream(seed, "subjects", "split change").integers(0, count, (BOOTSTRAPS, count))
    value = np.array(measured(np.arange(count)))
    low, high = np.quantile(np.array(measured(draws)), [0.025, 0.975], axis=1)
    spread = np.quantile(old[draws].mean(axis=1), [0.025, 0.975])
    if spread[0] <= 0 <= spread[1]:  # a ratio to nothing
        value[-1] = low[-1] = high[-1] = np.nan
    names = ["effectiveness", "direction", "aligned", "residual", "amplification"]
    table = pd.DataFrame(
        {"value": value, "low": low, "high": high}, index=pd.Index(names, name="part")
    )
    return table.assign(floor=[1 / first.shape[1], 0.0, 0.0, np.nan, 1.0])
