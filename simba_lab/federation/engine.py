"""The clients of the strategies as processes of NVIDIA FLARE: start-up kits, roles, jobs. Nothing else imports nvflare.

This module is also the job: `main` runs at the server, `info` and `train` at the sites, from the package that is installed
there; no code is sent. A site reads the store that ``SIMBA_LAB_FOLDER`` names in its own environment, the server writes its
ledger where that of the server says; no path travels. What travels is weights, numbers of subjects and losses.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from nvflare.collab import CollabRecipe, collab
from nvflare.fuel.flare_api.api_spec import NoClientsAvailable, NoConnection
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from simba_lab.errors import SimbaError
from simba_lab.federation.clients import LocalClient, SiteError, Weights
from simba_lab.federation.plan import Ledger, Plan
from simba_lab.federation.sites import open_site
from simba_lab.federation.strategies import follow

FOLDER = "SIMBA_LAB_FOLDER"
ADMIN = "admin@simba-lab.org"
# What a job of ours is made of; a role builds nothing but what its own list has.
COLLAB = (
    "nvflare.collab.api.module_wrapper.ModuleWrapper",
    "nvflare.collab.runtime.controller.CollabController",
    "nvflare.collab.runtime.executor.CollabExecutor",
)
_clients: dict[str, LocalClient] = {}


# At a site --------------------------------------------------------------------------------------------------------------


def _here() -> LocalClient:
    """Return the client of this site; its store is opened at the first call."""
    name = collab.site_name
    if name not in _clients:
        plan = Plan.from_dict(collab.get_app_prop("plan"))
        found, cohort = open_site(_own_folder())
        if found != name:
            raise SiteError(name, f"a store of {found}", "at the store of its own", f"Set {FOLDER} for this process.")
        _clients[name] = LocalClient(name, plan.model(), cohort, plan.visit)
    return _clients[name]


@collab.publish
def info() -> dict[str, Any]:
    """Return the number of training subjects of this site."""
    return _here().info()


@collab.publish
def train(
    weights: dict, seed: int, visit: int, rate: float = 1.0, proximal: float = 0.0, scanner: int = 0, confusion: float = 0.0
) -> dict[str, Any]:
    """Train weights on this site's subjects."""
    asked = {"rate": rate, "proximal": proximal, "scanner": scanner, "confusion": confusion}
    return _here().train(weights, seed=seed, visit=visit, **asked)


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
        return str(follow(plan.steps(clients, weights, done=done), ledger).number)
    except SimbaError as error:
        ledger.stopped(error)
        raise


def _own_folder() -> Path:
    folder = os.environ.get(FOLDER)
    if not folder:
        raise SimbaError(
            FOLDER, None, "a folder in the environment of this process", "It says where the data of a site is."
        )
    return Path(folder)


# At the administrator ---------------------------------------------------------------------------------------------------


def provision(sites: Sequence[str], folder: str | Path, *, host: str = "localhost", port: int = 8002) -> dict[str, Path]:
    """Make the start-up kits of a federation: keys, certificates and addresses, one kit per role.

    Parameters
    ----------
    sites : sequence of str
    folder : path
        New.
    host : str
        Name under which the sites reach the server.
    port : int
        Of the server; the next one is the administrator's.

    Returns
    -------
    dict of str to path
        The kits: ``server``, ``admin`` and each site. Each holds a private key: it goes to its own machine alone.
    """
    folder = Path(folder)
    if folder.exists():
        raise SimbaError("folder", str(folder), "a folder that does not exist yet", "Nothing is overwritten.")
    if not folder.absolute().parent.is_dir():
        raise SimbaError("folder", str(folder), "inside an existing folder")
    builders = "nvflare.lighter.impl"
    project = {
        "api_version": 3, "name": "simba-lab", "description": "SimBA Lab",
        "participants": [
            {"name": host, "type": "server", "org": "simba", "fed_learn_port": port, "admin_port": port + 1},
            *({"name": name, "type": "client", "org": "simba"} for name in sites),
            {"name": ADMIN, "type": "admin", "org": "simba", "role": "project_admin"},
        ],
        "builders": [
            {"path": f"{builders}.workspace.WorkspaceBuilder"},
            {"path": f"{builders}.static_file.StaticFileBuilder", "args": {"config_folder": "config", "scheme": "tcp"}},
            {"path": f"{builders}.cert.CertBuilder"},
            {"path": f"{builders}.signature.SignatureBuilder"},
        ],
    }  # fmt: skip
    folder.mkdir()
    (folder / "project.yml").write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", "project.yml", "-w", "kits"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SimbaError("sites", list(sites), "what the engine can provision", (result.stdout + result.stderr)[-500:])
    made = kits(folder)
    for role in made.keys() - {"admin"}:
        local = made[role] / "local"
        resources = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
        resources["class_allow_list"] = [*resources["class_allow_list"], *COLLAB]
        if role == "server":
            _own_storage(resources, made[role].absolute())
        (local / "resources.json").write_text(json.dumps(resources, indent=1), encoding="utf-8")
    return made


def _own_storage(resources: dict[str, Any], kit: Path) -> None:
    """Keep jobs inside the kit, and try a job that waits for a site every few seconds.

    By default all federations of a machine share one folder in /tmp, and a job that found a site missing waits up to ten
    minutes.
    """
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(kit / "snapshots")
    arguments = {one["id"]: one.setdefault("args", {}) for one in resources["components"]}
    arguments["job_manager"]["uri_root"] = str(kit / "jobs")
    arguments["job_scheduler"] |= {"min_schedule_interval": 2.0, "max_schedule_interval": 5.0, "max_schedule_count": 100}


def kits(folder: str | Path) -> dict[str, Path]:
    """Return the kits that `provision` made in a folder: ``server``, ``admin`` and each site."""
    folder = Path(folder)
    if not (folder / "project.yml").is_file():
        raise SimbaError("folder", str(folder), "the folder of `provision`", "Provision the federation first.")
    project = yaml.safe_load((folder / "project.yml").read_text(encoding="utf-8"))
    made = folder / "kits" / project["name"] / "prod_00"
    roles = {one["name"]: one["type"] for one in project["participants"]}
    return {name if role == "client" else role: made / name for name, role in roles.items()}


def start(kit: Path, folder: Path, *, log: Path | None = None) -> subprocess.Popen:
    """Start the server or a site from its kit, as a process of its own.

    Parameters
    ----------
    kit : path
    folder : path
        Its store, or for the server where the ledger shall be.
    log : path, optional
        File for what it prints.
    """
    environment = os.environ | {FOLDER: str(Path(folder).absolute())}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with (log or kit / "console.txt").open("ab") as out:
        command = ["bash", str(kit / "startup" / "sub_start.sh"), "--once"]
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


class _Installed(CollabRecipe):
    """A recipe that sends no code: every role runs the package that is installed there."""

    @staticmethod
    def _user_source_entries(objs: object) -> list:
        return []


def submit(kit: Path, plan: Plan, *, timeout: float = 3600, wait: float | None = None, patience: float = 60) -> str:
    """Submit a plan with the administrator's kit, wait until it is over, and return FLARE's word for how it ended.

    Parameters
    ----------
    kit : path
    plan : Plan
    timeout : float
        Seconds that one visit may take.
    wait : float, optional
        Seconds to wait for the end; for ever by default.
    patience : float
        Seconds to wait until the server and every site of the plan answer.

    Raises
    ------
    SimbaError
        If the server or a site does not answer (the sites are named), if the server is lost on the way, or if the training
        takes longer than `wait`. It can be submitted again, and goes on from its last step.
    """
    from simba_lab.federation import engine  # the module under its own name, also if it was started as a script

    recipe = _Installed(job_name="simba-lab", server=engine, client=engine, min_clients=len(plan.sites))
    recipe.set_server_prop("plan", plan.to_dict())
    recipe.set_server_prop("timeout", timeout)
    recipe.set_client_prop("plan", plan.to_dict())
    with tempfile.TemporaryDirectory() as folder, _session(kit, patience) as session:
        _until_present(session, plan.sites, patience)
        recipe.export(folder)
        job = session.submit_job(str(Path(folder) / "simba-lab"))
        begun = time.monotonic()
        while wait is None or time.monotonic() - begun < wait:
            status = session.get_job_status(job)
            if status and status.startswith(("FINISHED", "FAILED", "ABORTED")):
                return status
            time.sleep(0.5)
        session.abort_job(job)
    raise SimbaError("wait", wait, "long enough for the training", "It was stopped; what is done is in the ledger.")


@contextlib.contextmanager
def _session(kit: Path, patience: float) -> Iterator[Session]:
    server = json.loads((kit / "startup" / "fed_admin.json").read_text(encoding="utf-8"))["admin"]
    address = f"{server['host']}:{server['port']}"
    try:
        session = new_secure_session(ADMIN, str(kit), timeout=patience)
    except NoConnection as error:
        raise SimbaError("server", address, f"running, and answering within {patience:g} s", "Start it.") from error
    try:
        yield session
    except NoConnection as error:
        hint = "It was lost. Start it again and submit again: the training goes on from its last step."
        raise SimbaError("server", address, "there until the training is over", hint) from error
    finally:
        with contextlib.suppress(NoConnection):
            session.close()


def _until_present(session: Session, sites: Sequence[str], patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        answering: set[str] = set()
        with contextlib.suppress(NoClientsAvailable):
            rows = session.get_client_job_status() or []
            answering = {row["client_name"] for row in rows if row["status"] != "no_reply"}
        missing = [name for name in sites if name not in answering]
        if not missing:
            return
        if time.monotonic() > end:
            raise SimbaError("sites", missing, f"running, and answering within {patience:g} s", "Start them.")
        time.sleep(0.5)
