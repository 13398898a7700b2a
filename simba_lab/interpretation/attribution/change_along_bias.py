"""What training on a bias, or a repair, changed: the part along the bias, and the residual."""

from __future__ import annotations

import numpy as np
import pandas as pd

from simba_lab.core.checks import Numbers
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.intervals import ENDS, PROBE_BOOTSTRAPS, bootstrap_rows
from simba_lab.core.rng import stream


def split_change(
    before: Numbers, after: Numbers, direction: Numbers, *, seed: int = 0
) -> pd.DataFrame:
    """Split a change of maps or activations into a part along the bias and a residual.

    With u the direction of length 1, the change c = after - before of each subject is (c . u) u
    plus a residual at right angles to it.

    Parameters
    ----------
    before, after : ndarray, shape (n, ...)
        Maps or activations of the same subjects in two networks: the unbiased control and the
        biased one, or the biased one and a repaired one.
    direction : ndarray, shape (...) or (n, ...)
        How the bias looks: for maps, the change of the image (twin less volume, or its size in each
        voxel); for activations, the mean change that the twins cause. One for all subjects, or one
        for each.
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
          ``residual``: size of the residual;
        - ``amplification``: size along the bias after, divided by that before (1: as before;
          NaN if the interval of the mean size before contains zero).

    Raises
    ------
    SimbaError
        If shapes differ, numbers are not finite, or a direction is zero.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> control, bias = np.zeros((5, 3)), np.array([1.0, 0.0, 0.0])
    >>> table = sb.attribution.split_change(control, control + [3.0, 4.0, 0.0], bias)
    >>> float(table.loc["direction", "value"].round(2))
    0.6
    """
    first, last, bias = _checked(before, after, direction)
    length = np.linalg.norm(bias, axis=1)
    if not length.all():
        remedy = "Leave out subjects that the bias does not change."
        raise SimbaError.problem("The direction of a subject is zero.", remedy)
    old, new = (np.einsum("ij,ij->i", values, bias) / length for values in (first, last))
    total = np.square(last - first).sum(axis=1)
    aligned = new - old
    residual = np.sqrt(np.maximum(total - aligned**2, 0))

    def measures(rows: np.ndarray) -> list[np.ndarray]:
        size = np.sqrt(total[rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            return [
                (aligned[rows] ** 2).sum(axis=-1) / total[rows].sum(axis=-1),
                aligned[rows].sum(axis=-1) / size.sum(axis=-1),
                aligned[rows].mean(axis=-1),
                residual[rows].mean(axis=-1),
                new[rows].mean(axis=-1) / old[rows].mean(axis=-1),
            ]

    generator = stream(seed, "subjects", "split change")
    rows = bootstrap_rows(generator, len(first), PROBE_BOOTSTRAPS)
    value = np.array(measures(np.arange(len(first))))
    low, high = np.quantile(np.array(measures(rows)), ENDS, axis=1)
    old_low, old_high = np.quantile(old[rows].mean(axis=1), ENDS)
    if old_low <= 0 <= old_high:  # the ratio has no bounded interval
        value[-1] = low[-1] = high[-1] = np.nan
    names = ["effectiveness", "direction", "aligned", "residual", "amplification"]
    index = pd.Index(names, name="part")
    table = pd.DataFrame({"value": value, "low": low, "high": high}, index=index)
    return table.assign(floor=[1 / first.shape[1], 0.0, 0.0, np.nan, 1.0])


def _checked(
    before: np.ndarray, after: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three as float64, each of shape (n, features)."""
    first, last, bias = (np.asarray(values, np.float64) for values in (before, after, direction))
    if first.shape != last.shape or first.ndim < 2 or not len(first):
        allowed = f"of the shape of before, {first.shape}: (subjects, ...)"
        raise SimbaError("after", last.shape, allowed)
    if bias.shape not in (first.shape, first.shape[1:]):
        raise SimbaError("direction", bias.shape, f"of shape {first.shape[1:]} or {first.shape}")
    for name, values in (("before", first), ("after", last), ("direction", bias)):
        if not np.isfinite(values).all():
            remedy = "Leave out subjects without a value."
            raise SimbaError(name, Words("NaN or infinity"), "finite", remedy)
    first, last = first.reshape(len(first), -1), last.reshape(len(first), -1)
    return first, last, np.broadcast_to(bias.reshape(-1, first.shape[1]), first.shape)
