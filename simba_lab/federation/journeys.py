"""Journeys: one network visits the sites one after the other, the same here and deployed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from simba_lab.core.checks import whole_number
from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.federation.clients import Client, Weights
from simba_lab.federation.harmony import Harmonisation, divided, initial_head
from simba_lab.federation.steps import Step, ask, checked_clients, follow, step_from


def travelling(
    clients: Sequence[Client],
    start: Weights | Step,
    *,
    cycles: int,
    seed: int = 0,
    decay: float = 1.0,
    shuffled: bool = True,
    faults: str = "stop",
) -> Iterator[Step]:
    """Let one model visit every site in turn, cycle after cycle (cyclic weight transfer).

    Parameters
    ----------
    clients, start, seed, faults
        As for `fedavg`. A site that is skipped leaves the weights unchanged.
    cycles : int
        Times that every site is visited.
    decay : float
        Factor on the learning rate after each cycle. (After each epoch, as published, the last
        sites of the first cycle would learn almost nothing.)
    shuffled : bool
        Whether each cycle has its own order of sites.

    Yields
    ------
    Step
        One per visit.

    References
    ----------
    Chang et al. (2018), JAMIA 25:945-954 (cyclic weight transfer); Souza et al. (2022), JAMIA
    30:112-119.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort, model = sb.synthesise(scenario), sb.SimBANet((2, 2), norm="group", seed=0)
    >>> subjects, names = cohort.where(range(4)), ("north", "south")
    >>> clients = [sb.federation.LocalClient(name, model, subjects) for name in names]
    >>> steps = sb.federation.travelling(clients, model.state_dict(), cycles=1, shuffled=False)
    >>> [step.sites for step in steps]
    [('north',), ('south',)]
    """
    clients = checked_journey(clients, cycles, seed, decay, shuffled, faults)
    return _travel(
        clients, step_from(start), lambda client, cycle: {}, cycles, seed, decay, shuffled, faults
    )


def harmonised(
    clients: Sequence[Client],
    start: Weights | Step,
    *,
    cycles: int,
    harmony: Harmonisation | None = None,
    seed: int = 0,
    decay: float = 1.0,
    shuffled: bool = True,
    faults: str = "stop",
) -> Iterator[Step]:
    """Run `travelling` with a head that learns the scanner, and features that confuse the head.

    Parameters
    ----------
    clients, start, cycles, seed, decay, shuffled, faults
        As for `travelling`. A step to resume from has a `head`.
    harmony : Harmonisation, optional
        Scanners of the sites, size of the head, weight of its confusion.

    Yields
    ------
    Step
        One per visit.

    References
    ----------
    Souza et al. (2024), "HarmonyTM", J. Med. Imaging (adversarial harmonisation in a travelling
    model); Dinsdale et al. (2021), NeuroImage 228:117689 (confusion); Ganin et al. (2016), JMLR
    17(59), section 5.2.2 (the growing weight).

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort, model = sb.synthesise(scenario), sb.SimBANet((2, 2), norm="group", seed=0)
    >>> subjects, names = cohort.where(range(4)), ("north", "south")
    >>> clients = [sb.federation.LocalClient(name, model, subjects) for name in names]
    >>> steps = sb.federation.harmonised(clients, model.state_dict(), cycles=1)
    >>> len(list(steps)[-1].head)
    4
    """
    harmony = Harmonisation() if harmony is None else harmony
    clients = checked_journey(clients, cycles, seed, decay, shuffled, faults)
    step = step_from(start)
    numbers = harmony.scanner_numbers([client.name for client in clients])
    network, head = divided(step.weights | step.head)
    scanners = 1 + max(numbers.values())
    head = head or initial_head(network, scanners, width=harmony.width, seed=seed)

    def options(client: Client, cycle: int) -> dict[str, Any]:
        growth = 2 / (1 + math.exp(-10 * cycle / cycles)) - 1
        return {"scanner": numbers[client.name], "confusion": harmony.strength * growth}

    def parted(step: Step) -> Step:
        network, head = divided(step.weights)
        return replace(step, weights=network, head=head)

    first = replace(step, weights=network | head)
    return map(parted, _travel(clients, first, options, cycles, seed, decay, shuffled, faults))


def checked_journey(
    clients: Sequence[Client], cycles: int, seed: int, decay: float, shuffled: bool, faults: str
) -> list[Client]:
    """Return the clients, if these are settings of a journey."""
    whole_number("cycles", cycles)
    whole_number("seed", seed, least=0)
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise SimbaError("decay", decay, "above 0 and up to 1", "1 keeps the learning rate.")
    if not isinstance(shuffled, bool):
        raise SimbaError("shuffled", shuffled, "true or false")
    return checked_clients(clients, faults)


def _travel(
    clients: Sequence[Client],
    step: Step,
    options: Callable[[Client, int], dict[str, Any]],
    cycles: int,
    seed: int,
    decay: float,
    shuffled: bool,
    faults: str,
) -> Iterator[Step]:
    """Visit every site in each cycle; `options` gives what a site is told beside seed and rate."""
    weights = step.weights
    for number in range(step.number + 1, cycles * len(clients) + 1):
        cycle, place = divmod(number - 1, len(clients))
        if shuffled:
            place = stream(seed, cycle, "order of sites").permutation(len(clients))[place]
        client = clients[place]
        visit = {"seed": seed, "visit": number, "rate": decay**cycle, **options(client, cycle)}
        replies, broken = ask([client], weights, faults, **visit)
        weights = replies[client.name]["weights"] if replies else weights
        losses = {name: reply["loss"] for name, reply in replies.items()}
        yield Step(number, "visit", tuple(replies), weights, losses, broken)


def local(
    clients: Sequence[Client],
    start: Weights | Step,
    *,
    cycles: int,
    seed: int = 0,
    decay: float = 1.0,
) -> dict[str, Weights]:
    """Let each site train alone: the lower reference.

    The upper reference, central training, is `travelling` over a single client with all subjects.

    Returns
    -------
    dict of site to weights

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort, model = sb.synthesise(scenario), sb.SimBANet((2, 2), norm="group", seed=0)
    >>> subjects, names = cohort.where(range(4)), ("north", "south")
    >>> clients = [sb.federation.LocalClient(name, model, subjects) for name in names]
    >>> sorted(sb.federation.local(clients, model.state_dict(), cycles=1))
    ['north', 'south']
    """
    weights = {}
    for client in clients:
        steps = travelling([client], start, cycles=cycles, seed=seed, decay=decay)
        weights[client.name] = follow(steps).weights
    return weights
