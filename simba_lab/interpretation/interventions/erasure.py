"""Erasure: make a concept linearly unreadable in a layer while the network runs (LEACE)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from concept_erasure import LeaceFitter
from sklearn.covariance import ledoit_wolf

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Numbers
from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import Compute
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.rng import stream
from simba_lab.interpretation.hooks import edit
from simba_lab.interpretation.interventions.twin_pairs import chosen_layers, twins_of
from simba_lab.interpretation.probes.kernel_ridge import means_within
from simba_lab.interpretation.recording import record

# Singular values of activations below this share of the largest are rounding of single precision.
ROUNDING = 1e-5


@checks_arguments
@dataclass(frozen=True, eq=False)
class Erasure:
    """An edit that takes a concept out of the activations of a layer.

    It returns ``x - left right (x - mean)``.

    Parameters
    ----------
    left : tensor, shape (p, k)
        The directions along which activations move.
    right : tensor, shape (k, p)
        What is read from activations to know how far they move.
    mean : tensor, shape (p,)
        Mean of the activations that it was fitted to, which does not move.

    Examples
    --------
    >>> import torch
    >>> import simba_lab as sb
    >>> axis = torch.eye(3, dtype=torch.float64)[:, :1]
    >>> erasure = sb.interventions.Erasure(axis, axis.T, torch.zeros(3, dtype=torch.float64))
    >>> erasure(torch.ones(1, 3)).tolist()
    [[0.0, 1.0, 1.0]]
    """

    left: torch.Tensor
    right: torch.Tensor
    mean: torch.Tensor

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Return the activations without the concept; shape (N, ...)."""
        flat = output.flatten(1)
        if flat.shape[1] != len(self.mean):
            given, allowed = f"{flat.shape[1]} per volume", f"{len(self.mean)} per volume"
            remedy = "The concept was erased from another layer, or volumes had another size."
            raise SimbaError("activations", Words(given), allowed, remedy)
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
    activations: Numbers,
    concept: Numbers,
    *,
    given: np.ndarray | None = None,
    shrinkage: bool = True,
) -> Erasure:
    """Return the least change of activations after which no linear probe reads a concept.

    No matrix of features by features is made. All that is known from the volumes lies in their
    span, of at most n - 1 dimensions: activations are rotated into it (thin singular value
    decomposition), erased in it, and rotated back. Without shrinkage that equals LEACE on the
    activations themselves, with covariances inverted in their own range.

    Parameters
    ----------
    activations : ndarray, shape (n, ...)
    concept : ndarray, shape (n,) or (n, k)
        Numbers, or 0 and 1.
    given : ndarray, shape (n,), optional
        Activations and concept are taken less their means within its values: what is known of the
        concept from `given` is not erased.
    shrinkage : bool
        Shrink the covariance towards that of a sphere, as far as Ledoit and Wolf estimate to be
        best. Needed if there are more features than volumes: without it the least change is fitted
        to these volumes alone, and other volumes keep a part of the concept.

    Raises
    ------
    SimbaError
        If numbers of volumes differ, or the concept is not finite or has nothing to erase.

    Notes
    -----
    In the volumes that it was fitted to the covariance of activations and concept is zero
    afterwards, with and without shrinkage (any whitening gives that; the true one changes
    activations least), so no linear probe beats a constant. On other volumes that holds as far as
    the covariance is known from n volumes. With more features than volumes it is not complete:
    measure it, as `erasure_audit` does.

    References
    ----------
    Belrose et al. (2023), "LEACE: perfect linear concept erasure in closed form", NeurIPS, theorem
    4.3; Ledoit and Wolf (2004), "A well-conditioned estimator for large-dimensional covariance
    matrices", J. Multivar. Anal. 88:365-411.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> activations = np.random.default_rng(0).standard_normal((40, 3))
    >>> sb.interventions.leace(activations, activations[:, 0] > 0).rank
    1
    """
    return leaces(activations, [concept], given=given, shrinkage=shrinkage)[0]


def _rows(values: np.ndarray) -> np.ndarray:
    """Return values as float64, one row for each volume."""
    rows = np.atleast_1d(np.asarray(values, np.float64))
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def leaces(
    activations: np.ndarray,
    concepts: Sequence[np.ndarray],
    *,
    given: np.ndarray | None = None,
    shrinkage: bool = True,
) -> list[Erasure]:
    """Return the erasure of each of several concepts alone; parameters are those of `leace`."""
    flat = _rows(activations)
    targets = [_rows(concept) for concept in concepts]
    for target in targets:
        if len(flat) != len(target):
            allowed = f"one for each of the {len(flat)} volumes"
            raise SimbaError("concept", Words(f"{len(target)} values"), allowed)
        if not np.isfinite(target).all():
            raise SimbaError("concept", Words("NaN or infinity"), "finite")
    mean = torch.from_numpy(flat.mean(axis=0))
    centred, *targets = _centred(given, flat, *targets)
    for target in targets:
        if np.abs(target).max() < 1e-12:
            reason = "is the same for all volumes" if given is None else "is known from `given`"
            raise SimbaError.problem(f"concept {reason}.", "There is nothing to erase.")
    vectors, sizes, basis = _span(centred)
    if not len(sizes):  # all volumes look alike in this layer
        count = len(mean)
        return [Erasure(torch.zeros(count, 0), torch.zeros(0, count), mean) for _ in targets]
    # Unit variance in all, so that the tolerance of the fitter means the same in every layer.
    scale = np.sqrt((sizes**2).sum() / len(flat) / len(sizes))
    coordinates = torch.from_numpy(vectors * (sizes / scale))
    rotation = torch.from_numpy(np.ascontiguousarray(basis))
    # Ledoit and Wolf's covariance is positive definite however many features there are; the
    # fitter's own shrinkage is not.
    covariance = (
        torch.from_numpy(ledoit_wolf(coordinates.numpy(), assume_centered=True)[0])
        if shrinkage
        else None
    )
    erasures = []
    for target in targets:
        left, right = _projection(
            coordinates, torch.from_numpy(target / np.abs(target).max()), covariance
        )
        erasures.append(Erasure(rotation @ left, right @ rotation.T, mean))
    return erasures


def _projection(
    coordinates: torch.Tensor, target: torch.Tensor, covariance: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return LEACE's factors, (r, k) and (k, r), from coordinates (n, r) and a target (n, k)."""
    # A constraint of the trace would mix in a projection that leaves some of the concept.
    fitter = LeaceFitter(
        coordinates.shape[1],
        target.shape[1],
        dtype=torch.float64,
        shrinkage=False,
        constrain_cov_trace=False,
        svd_tol=1e-9,
    )
    fitter.update(coordinates, target)
    if covariance is not None:
        fitter.sigma_xx_ = covariance * (len(coordinates) - 1)
    eraser = fitter.eraser
    kept = eraser.proj_left.norm(dim=0) > 0
    return eraser.proj_left[:, kept], eraser.proj_right[kept]


def _centred(given: np.ndarray | None, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return values less their means, within each value of `given`."""
    count = len(values[0])
    known = np.zeros(count, int)
    if given is not None:
        known = np.unique(np.asarray(given), return_inverse=True)[1]
    if len(known) != count:
        allowed = f"one for each of the {count} volumes"
        raise SimbaError("given", Words(f"{len(known)} values"), allowed)
    means = means_within(known, known)
    return tuple(value - means @ value for value in values)


def _span(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the thin singular value decomposition: vectors (n, r), sizes (r,), basis (p, r)."""
    if centred.shape[1] <= len(centred):
        vectors, sizes, basis = np.linalg.svd(centred, full_matrices=False)
        kept = sizes > ROUNDING * max(sizes[0], 1e-30)
        return vectors[:, kept], sizes[kept], basis[kept].T
    # From the inner products of volumes: several times faster than a decomposition of activations,
    # if these are many more.
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
    compute: Compute | None = None,
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
        confounder is erased with it. ``"disease"``, another column of the table, or numbers: these
        are differences between subjects. ``"random"``: numbers drawn for each volume, the control.
    layers : sequence of str, optional
        Names or patterns, in the order in which they run; by default the network's blocks. Each is
        fitted to what arrives after the concept was erased from those before it.
    given : str or ndarray, shape (n,), optional
        Column or values within which the concept is erased; not for twins, whose difference has no
        confounder.
    compute : Compute, optional
        Device and memory (1 GB by default, which the activations of a layer for all volumes must
        fit into).
    seed : int
        Of the random concept.

    Returns
    -------
    dict of str to Erasure
        For `edit`: ``with edit(model, erase(model, cohort.train, layers=["block2"])): ...``

    Raises
    ------
    SimbaError
        If `given` is named for a bias, whose twins differ in nothing else.

    References
    ----------
    Belrose et al. (2023), "LEACE: perfect linear concept erasure in closed form", NeurIPS, sec. 6
    (concept scrubbing, layer by layer).

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort = sb.synthesise(scenario)
    >>> edits = sb.erase(sb.SimBANet((4, 8), seed=0), cohort.train, "disease", layers=["block2"])
    >>> edits["block2"].rank
    1
    """
    cohorts, target, known = _concept(cohort, concept, given, seed)
    compute = compute or Compute()
    edits: dict[str, Erasure] = {}
    for layer in chosen_layers(model, layers, cohort):
        with edit(model, edits):
            # The edits stay on the network that was given, which is on the processor.
            placed = replace(compute, device="cpu") if edits else compute
            recording = record(
                model, cohorts, layers=[layer], activations=[layer], pixels=False, compute=placed
            )
        edits[layer] = leace(recording.activations[layer], target, given=known)
    return edits


def _concept(
    cohort: Cohort, concept: str | np.ndarray, given: str | np.ndarray | None, seed: int
) -> tuple[list[Cohort], np.ndarray, np.ndarray | None]:
    """Return the cohorts to record, the concept of each of their volumes, and what is given."""
    known = cohort[given] if isinstance(given, str) else given
    if not isinstance(concept, str):
        return [cohort], np.asarray(concept), known
    if concept not in cohort.biases and concept != "random":
        return [cohort], cohort["label" if concept == "disease" else concept], known
    if given is not None:
        remedy = "Twins differ in nothing else. To erase differences of groups pass the column."
        raise SimbaError("given", Words("a variable"), f"None with concept={concept!r}", remedy)
    bias = next(iter(cohort.biases), None) if concept == "random" else concept
    if bias is None:
        return [cohort], random_concept(len(cohort), seed), None
    return list(twins_of(cohort, bias)), twin_concept(cohort, concept, seed), None


def twin_concept(cohort: Cohort, concept: str, seed: int = 0) -> np.ndarray:
    """Return the concept of twins, shape (2n,): 0 without the effect, then 1; or random numbers."""
    if concept == "random":
        return random_concept(2 * len(cohort), seed)
    # Half a step from the mean of the two twins: subjects differ by more than that, and it is known
    # exactly.
    return np.repeat([0.0, 1.0], len(cohort))


def random_concept(count: int, seed: int) -> np.ndarray:
    """Return normal numbers, shape (count,): a concept that means nothing."""
    return stream(seed, "erasure", "random concept").standard_normal(count)
