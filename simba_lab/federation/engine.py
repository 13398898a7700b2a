"""The clients of the strategies as processes of NVIDIA FLARE: start-up kits, roles, jobs. Nothing else imports nvflare.

This module is also the job: `main` runs at the server, `info` and `train` at the sites, from the
package that is installed there; no code is sent. A site reads the store that ``SIMBA_LAB_FOLDER``
names in its own environment, the server writes its ledger where that of the server says. What
travels is weights, numbers of subjects and losses, and of errors their text and traceback, with the
paths in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from nvflare.collab import CollabRecipe, collab
from nvflare.fuel.flare_api.api_spec import InvalidTarget, NoClientsAvailable, NoConnection, NoReply
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from simba_lab.core.errors import SimbaError
from simba_lab.federation.clients import LocalClient, SiteError, Weights
from simba_lab.federation.plan import Ledger, Plan
from simba_lab.federation.privacy import POLICY, Change, guarded, read_policy
from simba_lab.federation.provisioning import ADMIN, kits, provision
from simba_lab.federation.sites import open_site

FOLDER = "SIMBA_LAB_FOLDER"
# Weights come with the call or its answer, so that its time limit holds for them. By default FLARE
# fetches them afterwards: of a site that is lost in between, it asks for them four times, with ten
# minutes for each.
WEIGHTS_WITHIN = {"tensor_download_chunk_size": 0}
PRIVACY = {"svt": SVTPrivacy, "percentile": PercentilePrivacy}
_clients: dict[str, LocalClient] = {}
_training = threading.Lock()
_filters: dict[str, Callable[[Change], Change]] = {}


# At a site --------------------------------------------------------------------------------------------------------------


def _here() -> LocalClient:
    """Return the client of this site; its store is opened at the first call."""
    name = collab.site_name
    if name not in _clients:
        plan = Plan.from_dict(collab.get_app_prop("plan"))
        found, cohort = open_site(_own_folder())
        if found != name:
            raise SiteError(
                name,
                f"a store of {found}",
                "at the store of its own",
                f"Set {FOLDER} for this process.",
            )
        _clients[name] = LocalClient(name, plan.model(), cohort, plan.visit)
    return _clients[name]


@collab.publish
def info() -> dict[str, Any]:
    """Return the number of training subjects of this site."""
    return _here().info()


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
    """Train weights on this site's subjects."""
    asked = {"rate": rate, "proximal": proximal, "scanner": scanner, "confusion": confusion}
    change = (
        _own_filter()
    )  # a policy that cannot be followed is an error before anything is trained
    if not _training.acquire(
        blocking=False
    ):  # FLARE gives each call a thread, and the network of a site is one
        raise SiteError(
            collab.site_name,
            "busy with an earlier visit",
            "idle when it is asked to train",
            "Wait longer.",
        )
    try:
        reply = _here().train(weights, seed=seed, visit=visit, **asked)
    finally:
        _training.release()
    return guarded(reply, weights, change) if change else reply


def _own_filter() -> Callable[[Change], Change] | None:
    """Return the filter of this site's own policy; FLARE's filters are not asked on the way of Collab calls."""
    text = os.environ.get(POLICY)
    if not text:
        return None
    if text not in _filters:
        name, options = read_policy(text)
        _filters[text] = filter_for(name, options)
    return _filters[text]


def filter_for(name: str, options: dict[str, float]) -> Callable[[Change], Change]:
    """Return FLARE's filter as a function of changes; the sum of what it spent is in the site's own log."""
    kind = PRIVACY[name](**options)

    def change(values: Change) -> Change:
        return kind.process_dxo(
            DXO(DataKind.WEIGHT_DIFF, data=values), Shareable(), FLContext()
        ).data

    return change


# At the server ----------------------------------------------------------------------------------------------------------


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
    """Go through the plan; every step is in the ledger before the next begins."""
    plan = Plan.from_dict(collab.get_app_prop("plan"))
    timeout = float(collab.get_app_prop("timeout"))
    ledger = Ledger(_own_folder(), plan)
    # Asked for here: FLARE knows the caller by its thread.
    clients = [RemoteClient(client.name, client(timeout=timeout)) for client in collab.clients]
    weights, done = ledger.resume()
    try:
        for step in plan.steps(
            clients, weights, done=done
        ):  # none, if it is submitted again after its end
            if collab.is_aborted:  # then all calls fail at once, and a plan that skips faults would run empty to its end
                raise _aborted(done)
            ledger(step)
            done = step.number
        return str(done)
    except Exception as error:
        # Of the visit that it was in when it was aborted, FLARE says that it took too long.
        ledger.stopped(_aborted(done) if collab.is_aborted else error)
        raise


def _aborted(done: int) -> SimbaError:
    hint = "Submit it again: it goes on from its last step."
    return SimbaError("training", f"aborted after step {done}", "left alone until it is over", hint)


def _own_folder() -> Path:
    folder = os.environ.get(FOLDER)
    if not folder:
        raise SimbaError(
            FOLDER,
            None,
            "a folder in the environment of this process",
            "It says where the data of a site is.",
        )
    return Path(folder)


# At the administrator ---------------------------------------------------------------------------------------------------


def start(
    kit: Path, folder: Path, *, log: Path | None = None, privacy: str | None = None
) -> subprocess.Popen:
    """Start the server or a site from its kit, as a process of its own.

    Parameters
    ----------
    kit : path
    folder : path
        Its store, or for the server where the ledger shall be.
    log : path, optional
        File for what it prints.
    privacy : str, optional
        The site's policy, see `simba_lab.federation.privacy.read_policy`; its process reads it from
        ``SIMBA_LAB_PRIVACY``.

    Raises
    ------
    SimbaError
        If a process that was started from this kit is there still: FLARE lets the second one in and
        the first one out.
    """
    environment = os.environ | {FOLDER: str(Path(folder).absolute())}
    if privacy is not None:
        read_policy(privacy)
        environment[POLICY] = privacy
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", str(kit / "startup" / "sub_start.sh"), "--once"]
    with (log or kit / "console.txt").open("ab") as out, (kit / "running.lock").open("ab") as lock:
        _take(lock, kit.name)
        return subprocess.Popen(
            command,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )


def _take(lock: IO[bytes], role: str, patience: float = 5) -> None:
    """Lock a kit. The role and the processes of its jobs inherit that; when the last of them ends, it is open again."""
    end = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                hint = "Stop the first process, or wait until it has ended."
                raise SimbaError("kit", role, "of a role that is not running yet", hint) from error
        time.sleep(0.1)


class _Installed(CollabRecipe):
    """A recipe that sends no code: every role runs the package that is installed there."""

    @staticmethod
    def _user_source_entries(objs: object) -> list:
        return []


def submit(
    kit: Path, plan: Plan, *, timeout: float = 3600, wait: float | None = None, patience: float = 60
) -> str:
    """Submit a plan with the administrator's kit, wait until it is over, and return FLARE's word for how it ended.

    Parameters
    ----------
    kit : path
    plan : Plan
    timeout : float
        Seconds that one visit may take: that a site may train, and that weights on their way may
        stand still.
    wait : float, optional
        Seconds to wait for the end; for ever by default.
    patience : float
        Seconds to wait until the server and every site of the plan answer.

    Raises
    ------
    SimbaError
        If the server or a site does not answer (the sites are named), if the server is lost on the
        way, or if the training takes longer than `wait`. It can be submitted again, and goes on
        from its last step.
    """
    from simba_lab.federation import (
        engine,
    )  # the module under its own name, also if it was started as a script

    recipe = _Installed(
        job_name="simba-lab", server=engine, client=engine, min_clients=len(plan.sites)
    )
    recipe.set_server_prop("plan", plan.to_dict())
    recipe.set_server_prop("timeout", timeout)
    recipe.set_client_prop("plan", plan.to_dict())
    recipe.add_server_config(WEIGHTS_WITHIN)
    recipe.add_client_config(WEIGHTS_WITHIN)
    with tempfile.TemporaryDirectory() as folder, _session(kit, patience) as session:
        _until_present(session, plan.sites, patience)
        recipe.export(folder)
        job = session.submit_job(str(Path(folder) / "simba-lab"))
        begun, watch = time.monotonic(), _Watch(session, job)
        while wait is None or time.monotonic() - begun < wait:
            status = session.get_job_status(job)
            if status and status.startswith(("FINISHED", "FAILED", "ABORTED")):
                return status
            twice = watch.twice() if plan.options.get("faults") != "skip" else None
            if twice:
                session.abort_job(job)
                hint = "Another process of that name answers, or it was started anew. Stop one of two, and submit again."
                raise SimbaError("sites", twice, "there once, and until the training is over", hint)
            time.sleep(0.5)
        session.abort_job(job)
    raise SimbaError(
        "wait",
        wait,
        "long enough for the training",
        "It was stopped; what is done is in the ledger.",
    )


class _Watch:
    """Looks for a site in whose name another process answers: one that knows nothing of the job.

    FLARE lets in whoever comes last with a site's certificate, be it from a copy of its kit on
    another machine.
    """

    def __init__(self, session: Session, job: str, every: float = 2.0, often: int = 5) -> None:
        self._session, self._job, self._every, self._often = session, job, every, often
        self._seen: set[str] = set()
        self._without: Counter[str] = Counter()
        self._next = 0.0

    def twice(self) -> str | None:
        """Return the name of such a site, if it answered so several times while another site was at work."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + self._every
        with contextlib.suppress(
            NoClientsAvailable, NoConnection, NoReply
        ):  # a site that hangs holds up all answers
            rows = self._session.get_client_job_status() or []
            having = {row["client_name"] for row in rows if row.get("job_id") == self._job}
            self._seen |= having
            for name in having:
                self._without.pop(name, None)
            # At the end of a job the sites let go of it one after the other: then there is soon
            # nobody who has it.
            answering = (
                {row["client_name"] for row in rows if row["status"] != "no_reply"}
                if having
                else set()
            )
            self._without.update((answering - having) & self._seen)
        return next((name for name, times in self._without.items() if times >= self._often), None)


@contextlib.contextmanager
def _session(kit: Path, patience: float) -> Iterator[Session]:
    server = json.loads((kit / "startup" / "fed_admin.json").read_text(encoding="utf-8"))["admin"]
    address = f"{server['host']}:{server['port']}"
    try:
        session = new_secure_session(ADMIN, str(kit), timeout=patience)
    except NoConnection as error:
        raise SimbaError(
            "server", address, f"running, and answering within {patience:g} s", "Start it."
        ) from error
    try:
        yield session
    except NoConnection as error:
        hint = (
            "It was lost. Start it again and submit again: the training goes on from its last step."
        )
        raise SimbaError("server", address, "there until the training is over", hint) from error
    finally:
        with contextlib.suppress(NoConnection):
            session.close()


def _rows(session: Session, sites: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the sites say of themselves: all at once, or if one that hangs holds up the answer, one by one."""
    nothing = (NoClientsAvailable, NoConnection, NoReply, InvalidTarget)
    with contextlib.suppress(*nothing):
        return session.get_client_job_status() or []
    rows = []
    session.set_timeout(1.0)
    for name in sites:
        with contextlib.suppress(*nothing):
            rows += session.get_client_job_status([name]) or []
    session.unset_timeout()
    return rows


def _until_present(session: Session, sites: Sequence[str], patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        answering = {
            row["client_name"] for row in _rows(session, sites) if row["status"] != "no_reply"
        }
        missing = [name for name in sites if name not in answering]
        if not missing:
            return
        if time.monotonic() > end:
            session.get_system_info()  # it is not the server that is missing
            raise SimbaError(
                "sites", missing, f"running, and answering within {patience:g} s", "Start them."
            )
        time.sleep(0.5)


__all__ = [
    "FOLDER",
    "RemoteClient",
    "filter_for",
    "info",
    "kits",
    "main",
    "provision",
    "start",
    "submit",
    "train",
]
