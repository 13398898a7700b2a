"""Strategies: averages over many sites, and averages before a journey, here as deployed.

Each yields its steps one by one. A step depends only on the weights before it, the seed and its
number: a training resumes from any step with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from simba_lab.core.checks import not_negative, positive, whole_number
from simba_lab.core.errors import SimbaError
from simba_lab.federation.clients import Client, SiteError, Weights
from simba_lab.federation.journeys import checked_journey, travelling
from simba_lab.federation.steps import Step, ask, average, checked_clients, step_from


def fedavg(
    clients: Sequence[Client],
    start: Weights | Step,
    *,
    rounds: int,
    seed: int = 0,
    proximal: float = 0.0,
    faults: str = "stop",
) -> Iterator[Step]:
    """Train at all sites from the same weights, average by size, and repeat.

    Parameters
    ----------
    clients : sequence of Client
    start : dict of str to tensor, or Step
        First weights, or a finished step to resume from.
    rounds : int
    seed : int
    proximal : float
        FedProx's mu; 0 is plain averaging.
    faults : {"stop", "skip"}
        If a site gives no usable answer: stop with its name, or leave it out of this round.

    Yields
    ------
    Step
        One per round.

    Raises
    ------
    SiteError
        If a site gives no usable answer and `faults` is ``"stop"``.

    References
    ----------
    McMahan et al. (2017), AISTATS, algorithm 1; Li et al. (2020), MLSys, eq. 2 (the proximal term).

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort, model = sb.synthesise(scenario), sb.SimBANet((2, 2), norm="group", seed=0)
    >>> subjects, names = cohort.where(range(4)), ("north", "south")
    >>> clients = [sb.federation.LocalClient(name, model, subjects) for name in names]
    >>> steps = sb.federation.fedavg(clients, model.state_dict(), rounds=2)
    >>> [(step.number, step.sites) for step in steps]
    [(1, ('north', 'south')), (2, ('north', 'south'))]
    """
    clients, step = checked_clients(clients, faults), step_from(start)
    whole_number("rounds", rounds)
    proximal = not_negative("proximal", proximal, remedy="At 0 it is plain averaging.")
    seed = whole_number("seed", seed, least=0)
    return _average(clients, step, rounds, seed, proximal, faults)


def _average(
    clients: Sequence[Client], step: Step, rounds: int, seed: int, proximal: float, faults: str
) -> Iterator[Step]:
    """Run the rounds of `fedavg`, whose arguments were checked when it was called."""
    weights = step.weights
    for number in range(step.number + 1, rounds + 1):
        replies, broken = ask(clients, weights, faults, seed=seed, visit=number, proximal=proximal)
        if not replies:
            problem = f"In round {number} none of {len(clients)} sites could train."
            raise SimbaError.problem(problem, " ".join(broken.values()))
        weights = average(list(replies.values()))
        losses = {name: reply["loss"] for name, reply in replies.items()}
        yield Step(number, "round", tuple(replies), weights, losses, broken)


def fedprox(
    clients: Sequence[Client],
    start: Weights | Step,
    *,
    rounds: int,
    proximal: float = 0.01,
    **options: Any,
) -> Iterator[Step]:
    """Run `fedavg` with a proximal term that keeps sites near the weights that they were sent.

    Parameters
    ----------
    clients, start, rounds
        As for `fedavg`.
    proximal : float
        Above 0.
    **options
        Seed and faults, as for `fedavg`.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort, model = sb.synthesise(scenario), sb.SimBANet((2, 2), norm="group", seed=0)
    >>> subjects, names = cohort.where(range(4)), ("north", "south")
    >>> clients = [sb.federation.LocalClient(name, model, subjects) for name in names]
    >>> steps = sb.federation.fedprox(clients, model.state_dict(), rounds=1, proximal=0.1)
    >>> [step.phase for step in steps]
    ['round']
    """
    positive("proximal", proximal, remedy="At 0 it is fedavg.")
    return fedavg(clients, start, rounds=rounds, proximal=proximal, **options)


def fedtm(
    clients: Sequence[Client],
    start: Weights | Step,
    *,
    rounds: int,
    cycles: int,
    least: int,
    seed: int = 0,
    decay: float = 1.0,
    faults: str = "stop",
) -> Iterator[Step]:
    """Average over the large sites for some rounds, then travel over all.

    Parameters
    ----------
    clients, start, rounds, cycles, seed, decay, faults
        As for `fedavg` and `travelling`.
    least : int
        Training subjects from which a site takes part in the rounds.

    Yields
    ------
    Step
        One per round, then one per visit, numbered consecutively.

    References
    ----------
    "FedTM" (2026), npj Digit. Med.: sites of at least 40, 30 or 20 scans for 2, 5 or 10 rounds,
    then 20 to 28 cycles.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort, model = sb.synthesise(scenario), sb.SimBANet((2, 2), norm="group", seed=0)
    >>> subjects, names = cohort.where(range(4)), ("north", "south")
    >>> clients = [sb.federation.LocalClient(name, model, subjects) for name in names]
    >>> steps = sb.federation.fedtm(clients, model.state_dict(), rounds=1, cycles=1, least=4)
    >>> [step.phase for step in steps]
    ['round', 'visit', 'visit']
    """
    clients = checked_journey(clients, cycles, seed, decay, True, faults)
    whole_number("rounds", rounds)
    whole_number("least", least)
    first = step_from(start)

    def steps() -> Iterator[Step]:
        step, sizes = first, {client.name: _size_of(client) for client in clients}
        large = [client for client in clients if sizes[client.name] >= least]
        if not large:
            allowed = f"at most {max(sizes.values())}, the size of the largest site"
            raise SimbaError("least", least, allowed)
        if step.number < rounds:
            for averaged in fedavg(large, step, rounds=rounds, seed=seed, faults=faults):
                step = averaged
                yield step
        arrived = replace(step, number=step.number - rounds)
        visits = travelling(clients, arrived, cycles=cycles, seed=seed, decay=decay, faults=faults)
        for visit in visits:
            yield replace(visit, number=visit.number + rounds)

    return steps()


def _size_of(client: Client) -> int:
    # Never skipped: which sites take part in the rounds follows from the sizes of all.
    try:
        return client.info()["subjects"]
    except Exception as error:
        problem = f"{client.name} did not say its number of subjects: {type(error).__name__}."
        raise SiteError.problem(problem, str(error)) from error
