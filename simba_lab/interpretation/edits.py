"""What `edit` may do to activations: put others in place, add a direction, take directions away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from simba_lab.core.errors import SimbaError, Words


def replacing(values: np.ndarray | torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an edit that puts other activations in place, batch by batch, row after row.

    Parameters
    ----------
    values : ndarray or tensor, shape (n, ...)
        Such as ``record(...).activations["block2"]`` of the twins. The edit is used up when all n
        rows were put in place.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> import torch
    >>> sb.interpretation.replacing(np.ones((2, 3)))(torch.zeros(2, 3)).sum()
    tensor(6.)
    """
    rows, start = _tensor(values), 0

    def replaced(output: torch.Tensor) -> torch.Tensor:
        nonlocal start
        batch = rows[start : start + len(output)]
        if batch.shape != output.shape:
            value = f"shape {tuple(batch.shape)} from row {start} of {len(rows)}"
            remedy = "Each row replaces one volume, once; make the edit anew for another pass."
            raise SimbaError("values", Words(value), f"of shape {tuple(output.shape)}", remedy)
        start += len(batch)
        return batch.to(output)

    return replaced


def adding(
    direction: np.ndarray | torch.Tensor, scale: float = 1.0
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an edit that adds ``scale * direction`` to the activations of every volume.

    The direction has the shape of the activations of one volume.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> import torch
    >>> sb.interpretation.adding(np.ones(3), scale=2.0)(torch.zeros(1, 3))
    tensor([[2., 2., 2.]])
    """
    step = _tensor(direction)

    def added(output: torch.Tensor) -> torch.Tensor:
        if step.shape != output.shape[1:]:
            raise SimbaError("direction", tuple(step.shape), f"of shape {tuple(output.shape[1:])}")
        return output + scale * step.to(output)

    return added


def projecting_out(directions: np.ndarray | torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an edit that removes some directions from the activations of every volume.

    Parameters
    ----------
    directions : ndarray or tensor, shape (...) of the activations of one volume, or (k, ...)
        Need not be orthogonal.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> import torch
    >>> sb.interpretation.projecting_out(np.array([1.0, 0.0]))(torch.ones(1, 2))
    tensor([[0., 1.]])
    """
    rows = _tensor(directions).double()
    if rows.numel() == 0 or rows.ndim == 0:
        raise SimbaError(
            "directions", Words(f"shape {tuple(rows.shape)}"), "at least one direction"
        )

    def projected(output: torch.Tensor) -> torch.Tensor:
        shape = output.shape[1:]
        if rows.shape not in (shape, (len(rows), *shape)):
            allowed = f"of shape {tuple(shape)} or (k, {', '.join(map(str, shape))})"
            raise SimbaError("directions", tuple(rows.shape), allowed)
        left, sizes, _ = torch.linalg.svd(rows.reshape(-1, shape.numel()).T, full_matrices=False)
        basis = left[:, sizes > 1e-9 * sizes[0]].to(output)
        flat = output.flatten(1)
        return (flat - (flat @ basis) @ basis.T).reshape(output.shape)

    return projected


def _tensor(values: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise SimbaError("values", array, "an array of real numbers")
    return torch.as_tensor(array)
