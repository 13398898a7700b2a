"""Steps: what happens at the sites in one round or one visit, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Annotated, Any

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice
from simba_lab.core.errors import SimbaError
from simba_lab.core.kinds import Rule
from simba_lab.federation.clients import Client, SiteError, Weights, checked

FAULTS = ("stop", "skip")
Loss = Annotated[float, Rule("a number, or NaN from a site that does not tell", lambda value: True)]


@checks_arguments
@dataclass(frozen=True, eq=False)
class Step:
    """A finished round or visit: what a strategy yields, and what it can resume from.

    Parameters
    ----------
    number : int
        From 1; 0 is the start.
    phase : {"start", "round", "visit"}
    sites : tuple of str
        The sites that trained.
    weights : dict of str to tensor
        After the step.
    losses : dict of str to float
        Mean training loss at each site.
    faults : dict of str to str
        What went wrong at sites that were skipped.
    head : dict of str to tensor
        The scanner head that travels beside the network (`harmonised`).

    Examples
    --------
    >>> import simba_lab as sb
    >>> step = sb.federation.Step(0, "start", (), sb.SimBANet(seed=0).state_dict())
    >>> step.number, step.phase
    (0, 'start')
    """

    number: int
    phase: str
    sites: tuple[str, ...]
    weights: Weights
    losses: dict[str, Loss] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    head: Weights = field(default_factory=dict)


def step_from(start: Weights | Step) -> Step:
    """Return the step that a strategy starts after: number 0 for plain weights."""
    return Step(0, "start", (), dict(start)) if isinstance(start, Mapping) else start


def follow(steps: Iterator[Step], *watchers: Callable[[Step], Any]) -> Step:
    """Run the steps of a strategy, show each to the watchers, and return the last.

    Parameters
    ----------
    steps : iterator of Step
        From a strategy such as `travelling`.
    *watchers : callable
        Called with every step, such as a `TravelLog` or a `Ledger`.

    Raises
    ------
    SimbaError
        If there are no steps.

    Examples
    --------
    >>> import simba_lab as sb
    >>> step = sb.federation.Step(1, "round", ("north",), {}, {"north": 0.5})
    >>> sb.federation.follow(iter([step]), lambda step: print(step.losses)).number
    {'north': 0.5}
    1
    """
    last = None
    for last in steps:
        for watch in watchers:
            watch(last)
    if last is None:
        raise SimbaError.problem("There are no steps to follow.", "Is the training complete?")
    return last


def average(replies: Sequence[dict[str, Any]]) -> Weights:
    """Return the mean of the replies' weights, weighted by subjects.

    Sums are in the order of the replies and in double precision. Whole numbers (the batches that a
    normalisation has counted) are rounded.
    """
    total = sum(reply["subjects"] for reply in replies)
    mean = {}
    for name, first in replies[0]["weights"].items():
        value = sum(
            reply["weights"][name].double() * (reply["subjects"] / total) for reply in replies
        )
        mean[name] = (value if first.is_floating_point() else value.round()).to(first.dtype)
    return mean


def ask(
    clients: Sequence[Client], weights: Weights, faults: str, **visit: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Let sites train from the same weights.

    Returns
    -------
    replies : dict of site to reply
        In the order of the sites.
    broken : dict of site to str
        What went wrong, if faults are skipped.

    Raises
    ------
    SiteError
        The first fault, if `faults` is ``"stop"``.
    """

    def answer(client: Client) -> dict[str, Any] | SiteError:
        try:
            # A copy each: no site can change the weights that others are sent.
            sent = {name: value.clone() for name, value in weights.items()}
            return checked(client.train(sent, **visit), weights, client.name)
        except SiteError as error:
            return error
        except Exception as error:  # whatever a site, or the way to it, may raise
            problem = f"{client.name} could not train: {type(error).__name__}."
            site_error = SiteError.problem(problem, str(error))
            site_error.__cause__ = error
            return site_error

    replies: dict[str, dict[str, Any]] = {}
    broken: dict[str, str] = {}
    for client, reply in zip(clients, _answers(answer, clients, faults), strict=False):
        if not isinstance(reply, SiteError):
            replies[client.name] = reply
        elif faults == "stop":
            raise reply
        else:
            broken[client.name] = str(reply)
    return replies, broken


def _answers(
    answer: Callable[[Client], dict[str, Any] | SiteError], clients: Sequence[Client], faults: str
) -> list[dict[str, Any] | SiteError]:
    if len(clients) > 1 and all(getattr(client, "remote", False) for client in clients):
        with ThreadPoolExecutor(len(clients)) as pool:  # they wait for other machines
            calls = [pool.submit(copy_context().run, answer, client) for client in clients]
            return [call.result() for call in calls]
    answers = []
    for client in clients:
        answers.append(answer(client))
        if isinstance(answers[-1], SiteError) and faults == "stop":
            break
    return answers


def checked_clients(clients: Sequence[Client], faults: str) -> list[Client]:
    """Return clients whose names differ, if `faults` is a known policy too."""
    clients = list(clients)
    names = [client.name for client in clients]
    if not clients:
        raise SimbaError("clients", 0, "at least one")
    duplicates = [name for name in names if names.count(name) > 1]
    if duplicates:
        problem = f"Two clients are called {duplicates[0]}."
        raise SiteError.problem(problem, "Give every site its own name.")
    choice("faults", faults, FAULTS)
    return clients
