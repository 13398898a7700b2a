"""Fit a network on a cohort: deterministic, resumed after a kill, remembered by content."""

from __future__ import annotations

import dataclasses
import platform
import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simba_lab.core.cohort import Cohort, TwinCohort, with_twins
from simba_lab.core.compute import laid_out
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.fingerprint import fingerprint
from simba_lab.core.network_adapter import copied, trainable, with_gradients
from simba_lab.core.remember import remembered
from simba_lab.core.source_code import NotFingerprintable
from simba_lab.core.unfinished import one_process, part_of
from simba_lab.training import trainer
from simba_lab.training.config import FitConfig
from simba_lab.training.group_routed import GroupRouted
from simba_lab.training.identity import code_of, identity_of
from simba_lab.training.mitigation.objective import Mitigation
from simba_lab.training.mitigation.registry import mitigation_from
from simba_lab.training.run import Fitted, Run


@with_gradients()
def fit(
    model: torch.nn.Module,
    cohort: Cohort,
    config: FitConfig | None = None,
    *,
    mitigation: Mitigation | Mapping[str, Any] | str | None = None,
    cache: str | Path | bool = True,
    checkpoint: str | Path | None = None,
    memory_gb: float = 4.0,
    progress: bool = False,
) -> Run:
    """Train a copy of a network to tell disease from control on a cohort.

    The same model, cohort, config and mitigation give the same weights, bit for bit, on one
    machine. So a run that was made before is read back instead of being trained again, and a fit
    that was interrupted goes on where it was.

    Parameters
    ----------
    model : torch.nn.Module
        Takes (N, 1, X, Y, Z) and returns logits of shape (N,), (N, 1) or (N, 2). It is not changed.
    cohort : Cohort
        Its train part is fitted, its validation part chooses the epoch; its test part is not looked
        at.
    config : FitConfig, optional
        How to train, and on which device.
    mitigation : Mitigation, str or mapping, optional
        What to do against a shortcut, such as ``Reweighing()`` or ``"reweighing"``.
    cache : bool or path
        Where runs are kept: True for the user's cache folder (or ``$SIMBA_LAB_CACHE``), False for
        nowhere.
    checkpoint : path, optional
        File that progress is written to, and taken up from if it exists; it is removed when the run
        is safe. With a cache it lies there by default.
    memory_gb : float
        Larger cohorts are not kept in memory; their volumes are rendered, or read from a store, for
        each batch.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Run

    Raises
    ------
    SimbaError
        If a split is empty or lacks a class, if a group lacks a class and a mitigation needs it, if
        the checkpoint is damaged, of another fit, cannot be written or is in use, or if the loss is
        no longer finite.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> run = sb.fit(sb.SimBANet((4, 8)), cohort, sb.FitConfig(epochs=2), cache=False)
    >>> len(run.history)
    2
    """
    config, mitigation = config or FitConfig(), mitigation_from(mitigation)
    model = trainable(model)
    _check_classes(cohort)
    if mitigation is not None:
        mitigation.check(cohort, config)
    used: list[Path] = []
    conditions = trainer.Conditions(None, checkpoint is None, memory_gb, progress)
    train = partial(_fit, model, cohort, config, mitigation, conditions, used)
    if cache is False and checkpoint is None:
        return train(None)
    try:
        key = fingerprint(identity_of(model, cohort, config, mitigation))
    except NotFingerprintable as error:
        warnings.warn(f"This run is neither kept nor resumed: {error}.", stacklevel=2)
        return train(None)
    with _own(checkpoint):
        run = remembered(
            "runs",
            key,
            lambda unfinished: train(checkpoint or unfinished),
            cache=cache,
            save=Run.write,
            load=partial(Run.load, model=model),
            # Some mitigations train several networks, each with a checkpoint in the cache.
            kept=lambda path: _forget([*used, *path.parent.glob(f"{path.name}*")]),
        )
    if cache is False:
        _forget(used)
    return run


def _own(checkpoint: str | Path | None) -> AbstractContextManager[None]:
    """Keep other processes from a named checkpoint, and see that it can be written."""
    if checkpoint is None:
        return nullcontext()
    problem = f"Another process is fitting with the checkpoint {str(checkpoint)!r}."
    return one_process(Path(checkpoint), problem)


def _forget(checkpoints: list[Path]) -> None:
    """Remove checkpoints, and what a killed process left of them; a read-only folder keeps them."""
    for path in checkpoints:
        with suppress(OSError):
            path.unlink(missing_ok=True)
            part_of(path).unlink(missing_ok=True)


class Pair(NamedTuple):
    """Two runs that differ in one respect: whether the bias was correlated with the disease."""

    biased: Run
    control: Run


def fit_pair(
    model: torch.nn.Module, cohort: TwinCohort, config: FitConfig | None = None, **options: Any
) -> Pair:
    """Fit a network on a cohort and on its unbiased control.

    Both start from the same weights and see the same order of batches and the same noise.

    Parameters
    ----------
    model, config
        As for `fit`.
    cohort : TwinCohort
    **options
        Further arguments of `fit`, for both.

    Returns
    -------
    Pair
        ``biased`` and ``control``. In the control cohort (`TwinCohort.unbiased`) the same effects
        are as common in one class as in the other.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> pair = sb.fit_pair(sb.SimBANet((4, 8)), cohort, sb.FitConfig(epochs=1), cache=False)
    >>> pair._fields
    ('biased', 'control')
    """
    if not with_twins(cohort).biases:
        remedy = "Give the scenario a bias, or fit the network alone: fit(model, cohort)."
        raise SimbaError(
            "cohort", Words("one without a bias"), "a cohort that has a control", remedy
        )
    control = cohort.unbiased()
    _check_classes(control)
    return Pair(fit(model, cohort, config, **options), fit(model, control, config, **options))


def _check_classes(cohort: Cohort) -> None:
    """Raise an error unless both classes are in the train and the validation part."""
    for split in ("train", "validation"):
        classes = cohort["label"][cohort["split"] == split].tolist()
        if len(set(classes)) < 2:
            value = f"{len(classes)} subjects of classes {sorted(set(classes))}"
            remedy = "Pass a whole cohort, with its train and validation parts."
            raise SimbaError(f"cohort.{split}", Words(value), "of both classes", remedy)


def _fit(
    model: torch.nn.Module,
    cohort: Cohort,
    config: FitConfig,
    mitigation: Mitigation | None,
    conditions: trainer.Conditions,
    used: list[Path],
    checkpoint: str | Path | None,
) -> Run:
    """Train and return the run; note the checkpoints that were used."""
    start = time.perf_counter()

    def train_on(subjects: Cohort, remedy: Mitigation | None, name: str = "") -> Fitted:
        path = None if checkpoint is None else Path(f"{checkpoint}{name}")
        used.extend([path] if path else [])
        settings = dataclasses.replace(conditions, checkpoint=path)
        return trainer.train(model, subjects, config, remedy, settings)

    if mitigation is None:
        network, fitted = copied(model), train_on(cohort, None)
    else:
        network, fitted = mitigation.network(model, cohort), mitigation.fitted(cohort, train_on)
    network.load_state_dict(fitted.weights)
    routed = isinstance(network, GroupRouted)
    provenance = {
        "cohort": cohort.identity,
        "mitigation": mitigation and mitigation.to_dict(),
        "routed": {"by": network.by, "groups": network.groups} if routed else None,
        "code": code_of(cohort),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **fitted.facts,
        "seconds": round(time.perf_counter() - start, 2),
    }
    network = laid_out(network.cpu(), torch.contiguous_format).eval()
    return Run(network, fitted.history, config, provenance, fitted.snapshots)
