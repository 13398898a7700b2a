"""Job: the code of a federated training at the server (`main`) and at the sites (`info`, `train`).

Every role runs the package that is installed on its own machine; no code is sent. A site reads the
store named by ``SIMBA_LAB_FOLDER`` in its environment, and the server writes its ledger to the
folder named there. Weights, numbers of subjects and losses travel, and for errors their text and
traceback, which contain paths.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Optimisers load this at their first step, where the limit of a visit would count the seconds.
import torch._dynamo  # noqa: F401
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from nvflare.collab import collab

from simba_lab.core.errors import SimbaError
from simba_lab.federation.clients import LocalClient, SiteError, Weights
from simba_lab.federation.flare.processes import FOLDER
from simba_lab.federation.ledger import Ledger
from simba_lab.federation.plan import Plan
from simba_lab.federation.privacy import POLICY, Change, guarded, read_policy, upload_cost
from simba_lab.federation.provisioning import KIT
from simba_lab.federation.site_stores import open_site
from simba_lab.federation.uploads import LEAST, LIMIT, Uploads, Visits, limit

PRIVACY = {"svt": SVTPrivacy, "percentile": PercentilePrivacy}
_clients: dict[str, LocalClient] = {}
_visits: dict[str, Visits] = {}
_training = threading.Lock()
_filters: dict[str, Callable[[Change], Change]] = {}
Policy = tuple[str, dict[str, float]]


# -- at a site --


def _client() -> LocalClient:
    """Return the client of this site; its store is opened at the first call."""
    name = collab.site_name
    if name not in _clients:
        plan = Plan.from_dict(collab.get_app_prop("plan"))
        stored, cohort = open_site(_folder())
        if stored != name:
            problem = f"The process of {name} reads the store of {stored}."
            raise SiteError.problem(problem, f"Set {FOLDER} to the store of {name}.")
        least = limit(LEAST)
        if len(cohort) < least:
            problem = f"{name} has {len(cohort)} subjects; it sends nothing of fewer than {least}."
            raise SiteError.problem(problem, f"The site can lower the number with {LEAST}.")
        _clients[name] = LocalClient(name, plan.model(), cohort, plan.visit)
        _visits[name] = Visits(plan.phases())
    return _clients[name]


def _check_caller() -> None:
    """Refuse all callers but the server: in FLARE any site of a job can call any other."""
    if collab.caller != "server":
        problem = f"{collab.caller} called {collab.site_name}."
        raise SiteError.problem(problem, "A site answers its server alone.")


@collab.publish
def info() -> dict[str, Any]:
    """Return the number of training subjects of this site to the server."""
    _check_caller()
    return _client().info()


@collab.publish
def train(
    weights: dict,
    seed: int,
    visit: int,
    rate: float = 1.0,
    proximal: float = 0.0,
    scanner: int = 0,
    confusion: float = 0.0,
) -> dict[str, Any]:
    """Train weights on this site's subjects, see `simba_lab.federation.clients.Client`.

    Only the server may call it, for the visits of the plan, for each once, and as often as the site
    allows.
    """
    policy = _policy()  # a bad policy is an error before anything is trained
    _check_caller()
    # FLARE gives each call a thread, but the site has a single network.
    if not _training.acquire(blocking=False):
        problem = f"{collab.site_name} is still busy with an earlier visit."
        raise SiteError.problem(problem, "Allow more time for a visit (timeout).")
    try:
        client, uploads = _client(), _uploads(policy)
        cost = upload_cost(*policy, weights) if policy else 0.0
        uploads.check(epsilon=cost)
        _visits[client.name].admit(visit, weights)
        reply = client.train(
            weights,
            seed=seed,
            visit=visit,
            rate=rate,
            proximal=proximal,
            scanner=scanner,
            confusion=confusion,
        )
        if policy:
            reply = guarded(reply, weights, _filter(*policy))
        uploads.add(epsilon=cost)  # before anything leaves
        return reply
    finally:
        _training.release()


def _policy() -> Policy | None:
    text = os.environ.get(POLICY)
    return read_policy(text) if text else None


def _uploads(policy: Policy | None) -> Uploads:
    kit = os.environ.get(KIT)
    if not kit:
        problem = f"{KIT} is not set in the environment."
        raise SimbaError.problem(problem, "Start the site with the script of its kit.")
    budget = policy[1].get("budget", math.inf) if policy else math.inf
    return Uploads(Path(kit) / "uploads.json", most=limit(LIMIT), budget=budget)


def _filter(name: str, options: dict[str, float]) -> Callable[[Change], Change]:
    """Return the filter of this site's policy. FLARE does not apply its filters to Collab calls."""
    key = f"{name} {options}"
    if key not in _filters:
        _filters[key] = filter_for(name, options)
    return _filters[key]


def filter_for(name: str, options: dict[str, float]) -> Callable[[Change], Change]:
    """Return FLARE's filter as a function of changes; it logs the privacy spent at the site."""
    arguments = {option: value for option, value in options.items() if option != "budget"}
    privacy = PRIVACY[name](**arguments)

    def change(values: Change) -> Change:
        data = DXO(DataKind.WEIGHT_DIFF, data=values)
        return privacy.process_dxo(data, Shareable(), FLContext()).data

    return change


# -- at the server --


class RemoteClient:
    """A site in another process, as the strategies see it.

    Parameters
    ----------
    name : str
    proxy
        Of FLARE; calls to it time out.
    """

    remote = True

    def __init__(self, name: str, proxy: Any) -> None:
        self.name, self._proxy = name, proxy

    def info(self) -> dict[str, Any]:
        """Ask the site for the number of its subjects."""
        return self._proxy.info()

    def train(self, weights: Weights, **visit: Any) -> dict[str, Any]:
        """Let the site train, see `simba_lab.federation.clients.Client`."""
        return self._proxy.train(weights, **visit)


@collab.main
def main() -> str:
    """Run the plan; every step is in the ledger before the next begins."""
    plan = Plan.from_dict(collab.get_app_prop("plan"))
    timeout = float(collab.get_app_prop("timeout"))
    ledger = Ledger(_folder(), plan)
    # Proxies are made in this thread, because FLARE knows the caller by its thread.
    clients = [RemoteClient(client.name, client(timeout=timeout)) for client in collab.clients]
    with ledger.writing():
        last = ledger.resume()
        number = last.number
        try:
            for step in plan.steps(clients, last):  # none if the training is complete
                # After an abort all calls fail at once: a plan that skips faults would go on.
                if collab.is_aborted:
                    raise _aborted(number)
                ledger(step)
                number = step.number
            return str(number)
        except Exception as error:
            # FLARE says of an aborted visit that it took too long.
            ledger.stopped(_aborted(number) if collab.is_aborted else error)
            raise


def _aborted(number: int) -> SimbaError:
    return SimbaError.problem(
        f"Training was aborted after step {number}.", "Submit it again to resume."
    )


def _folder() -> Path:
    folder = os.environ.get(FOLDER)
    if not folder:
        remedy = "Set it to the site's store, or at the server to the folder of the ledger."
        raise SimbaError.problem(f"{FOLDER} is not set in the environment.", remedy)
    return Path(folder)


__all__ = ["RemoteClient", "filter_for", "info", "main", "train"]
