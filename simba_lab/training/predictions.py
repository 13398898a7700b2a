"""What a network says about volumes: the logit of the disease."""

from __future__ import annotations

from collections.abc import Iterable, Sized

import numpy as np
import torch

from simba_lab.core.batches import batches
from simba_lab.core.checks import Count
from simba_lab.core.cohort import Cohort, TwinCohort
from simba_lab.core.compute import Compute, deterministic, evaluating
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.network_adapter import Adapter, refuse_probabilities, responded, unwrapped
from simba_lab.training.group_routed import GroupRouted
from simba_lab.training.networks import logit


def logits(
    model: torch.nn.Module,
    volumes: Cohort | Iterable[np.ndarray],
    *,
    groups: np.ndarray | None = None,
    batch_size: Count = 16,
    compute: Compute | None = None,
) -> np.ndarray:
    """Return the logit of the disease for each volume, float64, shape (n,).

    Parameters
    ----------
    model : torch.nn.Module
        Takes (N, 1, X, Y, Z) and returns logits of shape (N,), (N, 1) or (N, 2).
    volumes : Cohort or iterable of ndarray
        A cohort, or arrays of shape (X, Y, Z).
    groups : ndarray, shape (n,), optional
        Group of each volume, for a `GroupRouted`; a cohort knows it.
    batch_size : int
    compute : Compute, optional
        Device and threads; volumes are rendered on the same device.

    Raises
    ------
    SimbaError
        If the network fails, gives probabilities in the place of logits, NaN, or random numbers;
        if it needs groups that are not known, or no network was fitted for one of them.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> sb.logits(sb.SimBANet((4, 8)), cohort.test).shape
    (16,)
    """
    compute = compute or Compute()
    network, device, dtype = compute.placed(model)
    routes = _routes(network, volumes, groups) if isinstance(network, GroupRouted) else None
    answers: list[np.ndarray] = []
    count, judged = 0, set[int]()
    with evaluating(network), deterministic(compute.threads), torch.no_grad():
        for batch in batches(volumes, batch_size, device):
            batch_routes = (
                () if routes is None else (routes[count : count + len(batch)].to(device),)
            )
            count += len(batch)
            if routes is not None and count > len(routes):
                raise _not_one_each(len(routes), "the volumes")
            batch = batch.to(dtype)
            answer = responded(network, batch, *batch_routes)
            _refuse_probabilities(network, batch, answer, batch_routes, judged)
            answers.append(logit(answer).double().cpu().numpy())
    if routes is not None and count != len(routes):
        raise _not_one_each(len(routes), f"the {count} volumes")
    return finite(np.concatenate(answers)) if answers else np.zeros(0)


def _refuse_probabilities(
    network: torch.nn.Module,
    volumes: torch.Tensor,
    answer: torch.Tensor,
    routes: tuple[torch.Tensor, ...],
    judged: set[int],
) -> None:
    """Refuse probabilities in the first answer, of a `GroupRouted` in that of each network."""
    if not isinstance(network, GroupRouted):
        if not judged:
            refuse_probabilities(network, volumes, answer)
        judged.add(0)
        return
    for number in set(routes[0].tolist()) - judged:
        member, rows = network.networks[number], volumes[routes[0] == number][:2]
        refuse_probabilities(member, rows, responded(member, rows))
        judged.add(number)


def finite(values: np.ndarray) -> np.ndarray:
    """Return logits, or raise an error that counts those that are no numbers."""
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise SimbaError("logits", Words(f"values of type {values.dtype}"), "numbers")
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        remedy = "Check the weights of the network, and its input volumes."
        value = f"{wrong} of {values.size} that are NaN or infinite"
        raise SimbaError("logits", Words(value), "finite", remedy)
    return values


def gives_numbers(model: torch.nn.Module) -> bool:
    """Return whether a network gives numbers such as ages, as `adapt` was told."""
    network = unwrapped(model)
    return isinstance(network, Adapter) and network.gives_numbers


def refuse_numbers(model: object, verb: str) -> None:
    """Refuse a network of numbers, such as ages, for what counts decisions."""
    if isinstance(model, torch.nn.Module) and gives_numbers(model):
        allowed = f"one that decides, for {verb}"
        remedy = "Numbers have no rates: take twin_effect, interchange, attribute or probe."
        raise SimbaError("model", Words("a network that gives a number"), allowed, remedy)


def logits_of(model: torch.nn.Module | np.ndarray, cohort: Cohort) -> np.ndarray:
    """Return the logits of a cohort, from a network or as they were given."""
    refuse_numbers(model, "rates")
    if not isinstance(model, np.ndarray):
        return logits(model, cohort)
    if model.shape != (len(cohort),):
        raise SimbaError("logits", model.shape, f"of shape ({len(cohort)},), one per subject")
    return finite(model)


def _routes(
    model: GroupRouted, volumes: Cohort | Iterable[np.ndarray], groups: np.ndarray | None
) -> torch.Tensor:
    """Return the number of the network that judges each volume."""
    groups = _rendered_groups(model.by, volumes) if groups is None else np.asarray(groups)
    if isinstance(volumes, Sized) and len(groups) != len(volumes):
        raise _not_one_each(len(groups), f"the {len(volumes)} volumes")
    numbers = {group: number for number, group in enumerate(model.groups)}
    for group in groups.tolist():
        if group not in numbers:
            allowed = f"one of {', '.join(map(str, numbers))}"
            raise SimbaError("groups", group, allowed, "No network was fitted for it.")
    return torch.tensor([numbers[group] for group in groups.tolist()], dtype=torch.long)


def _rendered_groups(by: str, volumes: object) -> np.ndarray:
    """Return the group of each subject as its volume shows it: in twins, who shows the bias."""
    if not isinstance(volumes, Cohort):
        remedy = "A bare list of volumes does not say it."
        raise SimbaError("groups", None, f"the {by} of each volume", remedy)
    if isinstance(volumes, TwinCohort) and by in volumes.biases:
        return volumes.carriers(by).astype(int)
    return volumes[by]


def _not_one_each(count: int, volumes: str) -> SimbaError:
    return SimbaError("groups", Words(f"{count} values"), f"one for each of {volumes}")
