"""Erasure: make a concept linearly unreadable in a layer while the network runs (LEACE)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from concept_erasure import LeaceFitter
from sklearn.covariance import ledoit_wolf

from simba_lab.core.compute import Compute
from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.interpretation.hooks import edit
from simba_lab.interpretation.interventions.twin_pairs import chosen_layers, twins_of
from simba_lab.interpretation.probes.kernel_ridge import means_within
from simba_lab.interpretation.recording import record

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

# Singular values of the features below this share of the largest are rounding of single precision.
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Erasure:
    """An edit that takes a concept out of the activations of a layer: ``x - left right (x - mean)``.

    Parameters
    ----------
    left : tensor, shape (p, k)
        Along which activations are moved.
    right : tensor, shape (k, p)
        What is read to know how far.
    mean : tensor, shape (p,)
        Mean of the activations that it was fitted to, which does not move.
    """

    left: torch.Tensor
    right: torch.Tensor
    mean: torch.Tensor

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Return the activations without the concept; shape (N, ...)."""
        flat = output.flatten(1)
        if flat.shape[1] != len(self.mean):
            raise SimbaError(
                "activations",
                f"{flat.shape[1]} per volume",
                f"{len(self.mean)} per volume",
                "The concept was erased from another layer, or from volumes of another size.",
            )
        left, right, mean = (
            values.to(output.device, torch.float64) for values in (self.left, self.right, self.mean)
        )
        moved = flat.double() - (flat.double() - mean) @ right.T @ left.T
        return moved.to(output.dtype).reshape(output.shape)

    @property
    def rank(self) -> int:
        """Number of directions that are erased."""
        return self.left.shape[1]


def leace(
    features: np.ndarray,
    concept: np.ndarray,
    *,
    given: np.ndarray | None = None,
    shrinkage: bool = True,
) -> Erasure:
    """Return the erasure of a concept from features: the least change after which no linear probe reads it.

    No matrix of features by features is made. All that the fitted volumes tell lies in their span,
    of at most n - 1 dimensions: features are rotated into it (thin singular value decomposition),
    erased there, and rotated back. Without shrinkage that equals LEACE on the features themselves,
    where covariances are inverted in their own range.

    Parameters
    ----------
    features : ndarray, shape (n, ...)
    concept : ndarray, shape (n,) or (n, k)
        Numbers, or 0 and 1.
    given : ndarray, shape (n,), optional
        Features and concept are taken less their means within its values: the concept is erased
        where it is not known already from `given`.
    shrinkage : bool
        Shrink the covariance towards that of a sphere, as far as Ledoit and Wolf estimate to be
        best. Needed where features are more than volumes: without it the least change is fitted to
        these volumes alone, and others keep the rest of the bias.

    Notes
    -----
    In the volumes that it was fitted to the covariance of features and concept is zero afterwards,
    with and without shrinkage (any whitening gives that; the true one changes features least), so
    no linear probe beats a constant there. On other volumes that holds as far as the covariance is
    known from n volumes. With more features than volumes it is not complete: measure it, as
    `erasure_audit` does.

    References
    ----------
    Belrose et al. (2023), "LEACE: perfect linear concept erasure in closed form", NeurIPS, theorem
    4.3; Ledoit and Wolf (2004), "A well-conditioned estimator for large-dimensional covariance
    matrices", J. Multivar. Anal. 88:365-411.
    """
    return leaces(features, [concept], given=given, shrinkage=shrinkage)[0]


def leaces(
    features: np.ndarray,
    concepts: Sequence[np.ndarray],
    *,
    given: np.ndarray | None = None,
    shrinkage: bool = True,
) -> list[Erasure]:
    """Return the erasure of each of several concepts, each on its own; parameters are those of `leace`."""
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    asked = [np.asarray(concept, np.float64).reshape(len(concept), -1) for concept in concepts]
    for wanted in asked:
        if len(flat) != len(wanted):
            raise SimbaError(
                "concept", f"{len(wanted)} values", f"one for each of the {len(flat)} volumes"
            )
        if not np.isfinite(wanted).all():
            raise SimbaError("concept", "NaN or infinity", "finite")
    mean, (centred, *asked) = torch.from_numpy(flat.mean(axis=0)), _centred(given, flat, *asked)
    for wanted in asked:
        if np.abs(wanted).max() < 1e-12:
            what = "the same for everybody" if given is None else "known from `given`"
            raise SimbaError(
                "concept", what, "different between volumes", "There is nothing to erase."
            )
    vectors, sizes, basis = _span(centred)
    if not len(sizes):  # all volumes look alike in this layer
        return [Erasure(torch.zeros(len(mean), 0), torch.zeros(0, len(mean)), mean) for _ in asked]
    # Unit variance in all, so that the tolerance of the fitter means the same in every layer.
    scores = torch.from_numpy(
        vectors * (sizes / np.sqrt((sizes**2).sum() / len(flat) / len(sizes)))
    )
    rotation, found = torch.from_numpy(np.ascontiguousarray(basis)), []
    # Ledoit and Wolf's covariance is positive definite however many features there are; the
    # fitter's own shrinkage is not.
    covariance = (
        torch.from_numpy(ledoit_wolf(scores.numpy(), assume_centered=True)[0])
        if shrinkage
        else None
    )
    for wanted in asked:
        # A constraint of the trace would mix in a projection that leaves some of the concept.
        fitter = LeaceFitter(
            len(sizes),
            wanted.shape[1],
            dtype=torch.float64,
            shrinkage=False,
            constrain_cov_trace=False,
            svd_tol=1e-9,
        )
        fitter.update(scores, torch.from_numpy(wanted / np.abs(wanted).max()))
        if covariance is not None:
            fitter.sigma_xx_ = covariance * (len(flat) - 1)
        eraser = fitter.eraser
        kept = eraser.proj_left.norm(dim=0) > 0
        found.append(
            Erasure(
                rotation @ eraser.proj_left[:, kept], eraser.proj_right[kept] @ rotation.T, mean
            )
        )
    return found


def _centred(given: np.ndarray | None, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return values less their means, within each value of `given`."""
    context = (
        np.zeros(len(values[0]), int)
        if given is None
        else np.unique(np.asarray(given), return_inverse=True)[1]
    )
    if len(context) != len(values[0]):
        raise SimbaError(
            "given", f"{len(context)} values", f"one for each of the {len(values[0])} volumes"
        )
    means = means_within(context, context)
    return tuple(value - means @ value for value in values)


def _span(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the thin singular value decomposition: vectors (n, r), sizes (r,) and basis (p, r), by the smaller side."""
    if centred.shape[1] <= len(centred):
        vectors, sizes, basis = np.linalg.svd(centred, full_matrices=False)
        kept = sizes > ROUNDING * max(sizes[0], 1e-30)
        return vectors[:, kept], sizes[kept], basis[kept].T
    # From the inner products of volumes: several times faster than a decomposition of features,
    # where these are many more.
    squares, vectors = np.linalg.eigh(centred @ centred.T)
    kept = squares > ROUNDING**2 * max(squares[-1], 1e-60)
    vectors, sizes = vectors[:, kept], np.sqrt(squares[kept])
    return vectors, sizes, centred.T @ (vectors / sizes)


def erase(
    model: torch.nn.Module,
    cohort: Cohort,
    concept: str | np.ndarray = "bias",
    *,
    layers: Sequence[str] | None = None,
    given: str | np.ndarray | None = None,
    shrinkage: bool = True,
    batch_size: int = 16,
    memory_gb: float = 1.0,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Erasure]:
    """Return edits that erase a concept from the activations of each layer, fitted to a cohort.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
        To fit to: usually ``cohort.train``. Judge on others.
    concept : str or ndarray, shape (n,)
        A bias, which is erased as the difference of exact twins, without it and with it: no
        confounder is erased with it. ``"disease"``, or another column of the table, or numbers of
        one's own: these are differences between subjects. ``"random"``: numbers drawn for each
        volume, the control.
    layers : sequence of str, optional
        Names or patterns, in the order in which they run; by default the network's blocks. Each is
        fitted to what arrives after the concept was erased from those before it.
    given : str or ndarray, shape (n,), optional
        Column or values within which the concept is erased; not for twins, whose difference has no
        confounder.
    shrinkage : bool
        See `leace`.
    batch_size, memory_gb, device
        As for `record`; the features of a layer for all volumes must fit into `memory_gb`.
    seed : int
        Of the random concept.

    Returns
    -------
    dict of str to Erasure
        For `edit`: ``with edit(model, erase(model, cohort.train, layers=["block2"])): ...``
    """
    names = chosen_layers(model, layers)
    parts, wanted, inside = _asked(cohort, concept, given, seed)
    edits: dict[str, Erasure] = {}
    for name in names:
        with edit(model, edits) if edits else nullcontext():
            found = record(
                model,
                parts,
                layers=[name],
                features=[name],
                pixels=False,
                batch_size=batch_size,
                compute=Compute("cpu" if edits else device, memory_gb=memory_gb),
            )
        edits[name] = leace(found.features[name], wanted, given=inside, shrinkage=shrinkage)
    return edits


def _asked(
    cohort: Cohort, concept: str | np.ndarray, given: str | np.ndarray | None, seed: int
) -> tuple[list[Cohort], np.ndarray, np.ndarray | None]:
    """Return the cohorts to record, the concept of each of their volumes, and what it is conditioned on."""
    inside = cohort[given] if isinstance(given, str) else given
    if not isinstance(concept, str):
        return [cohort], np.asarray(concept), inside
    if concept in cohort.biases or concept == "random":
        if given is not None:
            remedy = "Twins differ in nothing else. Pass the column's values as the concept to erase differences of groups."
            raise SimbaError("given", "a variable", f"None with concept={concept!r}", remedy)
        bias = next(iter(cohort.biases), None) if concept == "random" else concept
        if bias is None:
            return (
                [cohort],
                stream(seed, "erasure", "random concept").standard_normal(len(cohort)),
                None,
            )
        return list(twins_of(cohort, bias)), twin_concepts(cohort, concept, seed), None
    return [cohort], cohort["label" if concept == "disease" else concept], inside


def twin_concepts(cohort: Cohort, concept: str, seed: int = 0) -> np.ndarray:
    """Return the concept of twins, those without the effect first: 0 and 1, or any numbers (``"random"``); shape (2n,)."""
    if concept == "random":
        return stream(seed, "erasure", "random concept").standard_normal(2 * len(cohort))
    # Half a step from the mean of the two twins: subjects differ by more than that, and it is known
    # exactly.
    return np.repeat([0.0, 1.0], len(cohort))
