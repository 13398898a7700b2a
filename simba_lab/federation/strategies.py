"""Ways to train one network over many sites: plain functions over clients, the same in a notebook and deployed.

Each gives its steps one by one, so that a log, a checkpoint or an animation can follow. A step
depends on the weights before it and on numbers alone (`seed` and the place of the step), so any of
them can be taken up again from the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import Any

from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.federation.clients import Client, SiteError, Weights, checked
from simba_lab.federation.harmony import divided, initial_head

FAULTS = ("stop", "skip")


@dataclass(frozen=True, eq=False)
class Step:
    """A round, or a visit, that is over.

    Parameters
    ----------
    number : int
        From 1.
    phase : str
        ``"round"`` or ``"visit"``.
    sites : tuple of str
        Who trained.
    weights : dict of str to tensor
        After it.
    losses : dict of str to float
        Mean training loss at each site.
    faults : dict of str to str
        What went wrong at sites that were skipped.
    head : dict of str to tensor
        What travels beside the network: the scanner head of `harmonised`.
    """

    number: int
    phase: str
    sites: tuple[str, ...]
    weights: Weights
    losses: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    head: Weights = field(default_factory=dict)


def fedavg(
    clients: Sequence[Client],
    weights: Weights,
    *,
    rounds: int,
    seed: int = 0,
    proximal: float = 0.0,
    faults: str = "stop",
    done: int = 0,
) -> Iterator[Step]:
    """Train at all sites from the same weights, average by size, and repeat.

    Parameters
    ----------
    clients : sequence of Client
    weights : dict of str to tensor
        Where it starts (or where step `done` ended).
    rounds : int
    seed : int
    proximal : float
        FedProx's mu; 0 is plain averaging.
    faults : {"stop", "skip"}
        What to do if a site gives no usable answer: stop with its name, or go on without it in this
        round.
    done : int
        Steps that are over already.

    Yields
    ------
    Step
        One per round.

    References
    ----------
    McMahan et al. (2017), AISTATS, algorithm 1; Li et al. (2020), MLSys, eq. 2 (the proximal term).
    """
    clients = _checked_clients(clients, faults)
    _check_count("rounds", rounds)
    for number in range(done + 1, rounds + 1):
        replies, broken = _ask(clients, weights, faults, seed=seed, visit=number, proximal=proximal)
        if not replies:
            raise SimbaError(
                "clients",
                f"none of {len(clients)} answered",
                "able to train",
                "; ".join(broken.values()),
            )
        weights = average(list(replies.values()))
        losses = {name: reply["loss"] for name, reply in replies.items()}
        yield Step(number, "round", tuple(replies), weights, losses, broken)


def fedprox(
    clients: Sequence[Client],
    weights: Weights,
    *,
    rounds: int,
    proximal: float = 0.01,
    **options: Any,
) -> Iterator[Step]:
    """`fedavg` with a proximal term that keeps sites near the weights that they were sent."""
    if not isinstance(proximal, int | float) or not 0 < proximal < float("inf"):
        raise SimbaError(
            "proximal", proximal, "a finite number above 0", "Without it, it is fedavg."
        )
    return fedavg(clients, weights, rounds=rounds, proximal=proximal, **options)


def travelling(
    clients: Sequence[Client],
    weights: Weights,
    *,
    cycles: int,
    seed: int = 0,
    decay: float = 1.0,
    shuffled: bool = True,
    faults: str = "stop",
    done: int = 0,
) -> Iterator[Step]:
    """Let one model visit every site in turn, cycle after cycle (cyclic weight transfer).

    Parameters
    ----------
    clients, weights, seed, faults, done
        As for `fedavg`; a site that is skipped leaves the weights as they came.
    cycles : int
        Times that every site is visited.
    decay : float
        Factor on the learning rate after each cycle: not after each epoch, which would leave
        nothing for the last sites of the first cycle.
    shuffled : bool
        Whether each cycle has an order of its own.

    Yields
    ------
    Step
        One per visit.

    References
    ----------
    Chang et al. (2018), JAMIA 25:945-954 (cyclic weight transfer); Souza et al. (2022), JAMIA
    30:112-119.
    """
    return _travel(
        clients, weights, lambda client, cycle: {}, cycles, seed, decay, shuffled, faults, done
    )


def harmonised(
    clients: Sequence[Client],
    weights: Weights,
    *,
    cycles: int,
    scanners: Mapping[str, str] | None = None,
    strength: float = 1.0,
    width: int = 32,
    seed: int = 0,
    decay: float = 1.0,
    shuffled: bool = True,
    faults: str = "stop",
    done: int = 0,
) -> Iterator[Step]:
    """`travelling`, with a head on the way that learns which scanner it sees and features that keep it guessing.

    Parameters
    ----------
    clients, weights, cycles, seed, decay, shuffled, faults, done
        As for `travelling`; to go on from a step, its `weights` and its `head` together.
    scanners : mapping of site to scanner, optional
        By default every site has its own.
    strength : float
        Weight of the head's confusion. It grows to that from 0 over the cycles: a head that has not
        learnt anything has nothing to teach.
    width : int
        Hidden units of the head.

    Yields
    ------
    Step
        One per visit.

    References
    ----------
    Souza et al. (2024), "HarmonyTM", J. Med. Imaging (adversarial harmonisation in a travelling
    model); Dinsdale et al. (2021), NeuroImage 228:117689 (confusion); Ganin et al. (2016), JMLR
    17(59), section 5.2.2 (the growing weight).
    """
    clients = list(clients)
    names = [client.name for client in clients]
    scanners = {name: name for name in names} if scanners is None else scanners
    missing = [name for name in names if name not in scanners]
    if missing:
        raise SimbaError(
            "scanners", sorted(scanners), f"a scanner for every site; {missing[0]} has none"
        )
    kinds = sorted({scanners[name] for name in names})
    if len(kinds) < 2:
        raise SimbaError(
            "scanners",
            kinds,
            "at least two different ones",
            "With one there is nothing to harmonise.",
        )
    if (
        isinstance(strength, bool)
        or not isinstance(strength, int | float)
        or not 0 <= strength < math.inf
    ):
        raise SimbaError(
            "strength", strength, "a finite number of at least 0", "With 0 it is travelling."
        )
    _check_count("width", width)
    network, head = divided(weights)
    head = head or initial_head(network, len(kinds), width=width, seed=seed)

    def asked(client: Client, cycle: int) -> dict[str, Any]:
        growing = 2 / (1 + math.exp(-10 * cycle / cycles)) - 1
        return {"scanner": kinds.index(scanners[client.name]), "confusion": strength * growing}

    for step in _travel(
        clients, network | head, asked, cycles, seed, decay, shuffled, faults, done
    ):
        network, head = divided(step.weights)
        yield replace(step, weights=network, head=head)


def _travel(
    clients: Sequence[Client],
    weights: Weights,
    asked: Callable[[Client, int], dict[str, Any]],
    cycles: int,
    seed: int,
    decay: float,
    shuffled: bool,
    faults: str,
    done: int,
) -> Iterator[Step]:
    """Visit every site in each cycle; `asked` says what a site is told beyond seed, visit and rate."""
    clients = _checked_clients(clients, faults)
    _check_count("cycles", cycles)
    if not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise SimbaError("decay", decay, "above 0 and up to 1", "1 keeps the learning rate.")
    for number in range(done + 1, cycles * len(clients) + 1):
        cycle, place = divmod(number - 1, len(clients))
        order = (
            stream(seed, cycle, "order of sites").permutation(len(clients))
            if shuffled
            else range(len(clients))
        )
        client = clients[order[place]]
        visit = {"seed": seed, "visit": number, "rate": decay**cycle, **asked(client, cycle)}
        replies, broken = _ask([client], weights, faults, **visit)
        weights = replies[client.name]["weights"] if replies else weights
        losses = {name: reply["loss"] for name, reply in replies.items()}
        yield Step(number, "visit", tuple(replies), weights, losses, broken)


def fedtm(
    clients: Sequence[Client],
    weights: Weights,
    *,
    rounds: int,
    cycles: int,
    least: int,
    seed: int = 0,
    decay: float = 1.0,
    faults: str = "stop",
    done: int = 0,
) -> Iterator[Step]:
    """Average over the large sites for some rounds, then travel over all.

    Parameters
    ----------
    clients, weights, rounds, cycles, seed, decay, faults, done
        As for `fedavg` and `travelling`.
    least : int
        Training subjects from which a site takes part in the rounds.

    Yields
    ------
    Step
        One per round, then one per visit; numbers go on.

    References
    ----------
    "FedTM" (2026), npj Digit. Med.: sites of at least 40, 30 or 20 scans for 2, 5 or 10 rounds,
    then 20 to 28 cycles.
    """
    clients = _checked_clients(clients, faults)
    sizes = {}
    for client in clients:
        try:
            sizes[client.name] = client.info()["subjects"]
        except (
            Exception
        ) as error:  # also where faults are skipped: who warms up follows from all sizes
            raise SiteError(
                client.name, type(error).__name__, "able to say its number of subjects", str(error)
            ) from error
    large = [client for client in clients if sizes[client.name] >= least]
    if not large:
        raise SimbaError(
            "least", least, f"at most {max(sizes.values())}, the size of the largest site"
        )
    if done < rounds:
        for step in fedavg(large, weights, rounds=rounds, seed=seed, faults=faults, done=done):
            weights = step.weights
            yield step
    visits = travelling(
        clients,
        weights,
        cycles=cycles,
        seed=seed,
        decay=decay,
        faults=faults,
        done=max(0, done - rounds),
    )
    for step in visits:
        yield replace(step, number=step.number + rounds)


def local(
    clients: Sequence[Client], weights: Weights, *, cycles: int, seed: int = 0, decay: float = 1.0
) -> dict[str, Weights]:
    """Let each site train alone: the lower reference.

    The upper one, central training, is `travelling` over a single client that has the subjects of
    all.

    Returns
    -------
    dict of str to weights
        Of each site.
    """
    return {
        client.name: follow(
            travelling([client], weights, cycles=cycles, seed=seed, decay=decay)
        ).weights
        for client in clients
    }


def follow(steps: Iterator[Step], *watchers: Callable[[Step], Any]) -> Step:
    """Go through the steps of a strategy, show each to the watchers, and return the last."""
    last = None
    for last in steps:
        for watch in watchers:
            watch(last)
    if last is None:
        raise SimbaError("steps", 0, "at least one", "Is everything done already?")
    return last


def average(replies: Sequence[dict[str, Any]]) -> Weights:
    """Return the mean of the replies' weights, weighted by subjects: summed in their order in double precision.

    Whole numbers (the batches that a normalisation has counted) are rounded.
    """
    total = sum(reply["subjects"] for reply in replies)
    mean = {}
    for name, first in replies[0]["weights"].items():
        value = sum(
            reply["weights"][name].double() * (reply["subjects"] / total) for reply in replies
        )
        mean[name] = (value if first.is_floating_point() else value.round()).to(first.dtype)
    return mean


def _ask(
    clients: Sequence[Client], weights: Weights, faults: str, **visit: Any
) -> tuple[dict[str, dict], dict[str, str]]:
    """Let sites train from the same weights; return the replies in the order of the sites, and what went wrong."""

    def answer(client: Client) -> dict[str, Any] | SiteError:
        try:
            sent = {
                name: value.clone() for name, value in weights.items()
            }  # nobody writes to what others are sent
            return checked(client.train(sent, **visit), weights, client.name)
        except SiteError as error:
            return error
        except Exception as error:  # whatever a site, or the way to it, may raise
            named = SiteError(client.name, type(error).__name__, "able to train", str(error))
            named.__cause__ = error
            return named

    if len(clients) > 1 and all(getattr(client, "remote", False) for client in clients):
        with ThreadPoolExecutor(len(clients)) as pool:  # they wait for other machines
            calls = [pool.submit(copy_context().run, answer, client) for client in clients]
            answers = [call.result() for call in calls]
    else:
        answers = []
        for client in clients:
            answers.append(answer(client))
            if isinstance(answers[-1], SiteError) and faults == "stop":
                break
    replies, broken = {}, {}
    for client, given in zip(clients, answers, strict=False):
        if not isinstance(given, SiteError):
            replies[client.name] = given
        elif faults == "stop":
            raise given
        else:
            broken[client.name] = str(given)
    return replies, broken


def _checked_clients(clients: Sequence[Client], faults: str) -> list[Client]:
    clients = list(clients)
    names = [client.name for client in clients]
    if not clients:
        raise SimbaError("clients", 0, "at least one")
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise SiteError(double[0], "joined twice", "there once", "Give every site its own name.")
    if faults not in FAULTS:
        raise SimbaError("faults", faults, f"one of {', '.join(FAULTS)}")
    return clients


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SimbaError(name, value, "an integer of at least 1")


__all__ = [
    "Step",
    "average",
    "fedavg",
    "fedprox",
    "fedtm",
    "follow",
    "harmonised",
    "local",
    "travelling",
]
