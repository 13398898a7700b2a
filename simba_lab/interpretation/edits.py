"""What `edit` may do to activations: put others in place, add a direction, take directions away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from simba_lab.core.errors import SimbaError


def replacing(values: np.ndarray | torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an edit that puts other activations in place, batch after batch, in the order of the rows of `values`.

    Parameters
    ----------
    values : ndarray or tensor, shape (n, ...)
        Such as ``record(...).features["block2"]`` of the twins. The edit is used up when all n rows
        were put in place.
    """
    rows, place = _tensor(values), 0

    def call(output: torch.Tensor) -> torch.Tensor:
        nonlocal place
        part = rows[place : place + len(output)]
        if part.shape != output.shape:
            raise SimbaError(
                "values",
                f"shape {tuple(part.shape)} from row {place} of {len(rows)}",
                f"of shape {tuple(output.shape)}",
                "They replace as many volumes as they were recorded from, once; make the edit anew for another pass.",
            )
        place += len(part)
        return part.to(output)

    return call


def adding(
    direction: np.ndarray | torch.Tensor, scale: float = 1.0
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an edit that adds ``scale * direction`` to the activations of every volume; shape without the batch."""
    step = _tensor(direction)

    def call(output: torch.Tensor) -> torch.Tensor:
        if step.shape != output.shape[1:]:
            raise SimbaError("direction", tuple(step.shape), f"of shape {tuple(output.shape[1:])}")
        return output + scale * step.to(output)

    return call


def projecting_out(directions: np.ndarray | torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an edit that removes what lies along some directions from the activations of every volume.

    Parameters
    ----------
    directions : ndarray or tensor, shape (...) of the activations of one volume, or (k, ...)
        Need not be orthogonal.
    """
    given = _tensor(directions).double()
    if given.numel() == 0 or given.ndim == 0:
        raise SimbaError("directions", f"shape {tuple(given.shape)}", "at least one direction")

    def call(output: torch.Tensor) -> torch.Tensor:
        shape = output.shape[1:]
        if given.shape not in (shape, (len(given), *shape)):
            raise SimbaError(
                "directions",
                tuple(given.shape),
                f"of shape {tuple(shape)} or (k, {', '.join(map(str, shape))})",
            )
        left, sizes, _ = torch.linalg.svd(given.reshape(-1, shape.numel()).T, full_matrices=False)
        basis = left[:, sizes > 1e-9 * sizes[0]].to(output)
        flat = output.flatten(1)
        return (flat - (flat @ basis) @ basis.T).reshape(output.shape)

    return call


def _tensor(values: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu()
    return torch.as_tensor(np.asarray(values))
