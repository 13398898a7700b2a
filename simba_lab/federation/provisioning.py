"""Start-up kits of a federation: keys, certificates and addresses, and what a role allows to be built."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import read_json, read_yaml, write_json, write_yaml

ADMIN = "admin@simba-lab.org"
# What a job of ours is made of; a role builds nothing but what its own list has, and takes no job
# that brings code.
COLLAB = (
    "nvflare.collab.api.module_wrapper.ModuleWrapper",
    "nvflare.collab.runtime.controller.CollabController",
    "nvflare.collab.runtime.executor.CollabExecutor",
)
# Seconds after which the server ends a job that is over although a site is lost that took part;
# FLARE waits 900.
WAIT, WAIT_FOR_SITES = "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT", 30


def provision(
    sites: Sequence[str], folder: str | Path, *, host: str = "localhost", port: int = 8002
) -> dict[str, Path]:
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
        The kits: ``server``, ``admin`` and each site. Each holds a private key: it goes to its own
        machine alone.
    """
    folder = Path(folder)
    if folder.exists():
        raise SimbaError(
            "folder", str(folder), "a folder that does not exist yet", "Nothing is overwritten."
        )
    if not folder.absolute().parent.is_dir():
        raise SimbaError("folder", str(folder), "inside an existing folder")
    taken = sorted({"server", "admin", host} & set(sites))
    if taken:
        raise SimbaError(
            "sites",
            taken[0],
            "other names than server, admin and the host of the server",
            "Rename the site.",
        )
    builders = "nvflare.lighter.impl"
    project = {
        "api_version": 3,
        "name": "simba-lab",
        "description": "SimBA Lab",
        "participants": [
            {
                "name": host,
                "type": "server",
                "org": "simba",
                "fed_learn_port": port,
                "admin_port": port + 1,
            },
            *({"name": name, "type": "client", "org": "simba"} for name in sites),
            {"name": ADMIN, "type": "admin", "org": "simba", "role": "project_admin"},
        ],
        "builders": [
            {"path": f"{builders}.workspace.WorkspaceBuilder"},
            {
                "path": f"{builders}.static_file.StaticFileBuilder",
                "args": {"config_folder": "config", "scheme": "tcp"},
            },
            {"path": f"{builders}.cert.CertBuilder"},
            {"path": f"{builders}.signature.SignatureBuilder"},
        ],
    }
    folder.mkdir()
    write_yaml(folder / "project.yml", project)
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", "project.yml", "-w", "kits"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SimbaError(
            "sites",
            list(sites),
            "what the engine can provision",
            (result.stdout + result.stderr)[-500:],
        )
    made = kits(folder)
    for role in made.keys() - {"admin"}:
        local = made[role] / "local"
        _no_code(local)
        resources = read_json(local / "resources.json.default", "kit")
        resources["class_allow_list"] = [*resources["class_allow_list"], *COLLAB]
        if role == "server":
            _own_storage(resources, made[role].absolute())
            script = made[role] / "startup" / "sub_start.sh"
            head, rest = script.read_text(encoding="utf-8").split("\n", 1)
            line = f"export {WAIT}=${{{WAIT}:-{WAIT_FOR_SITES}}}"
            script.write_text(f"{head}\n{line}\n{rest}", encoding="utf-8")
        else:
            # By default a site sends the logs of its jobs to the server, with paths and sizes of
            # changes.
            resources["allow_log_streaming"] = False
            streamer = "site_log_streamer"
            resources["components"] = [
                one for one in resources["components"] if one["id"] != streamer
            ]
        write_json(local / "resources.json", resources)
    return made


def _no_code(local: Path) -> None:
    """Take the right to bring code, and to open a shell, from everybody: by default the administrator has both."""
    rules = read_json(local / "authorization.json.default", "kit")
    rights = dict.fromkeys(rules["permissions"]["lead"], "any")
    rules["permissions"]["project_admin"] = rights
    for role in rules["permissions"].values():
        role.update({name: "none" for name in ("byoc", "shell_commands") if name in role})
    write_json(local / "authorization.json", rules)


def _own_storage(resources: dict[str, Any], kit: Path) -> None:
    """Keep jobs inside the kit, and try a job that waits for a site every few seconds.

    By default all federations of a machine share one folder in /tmp, and a job that found a site
    missing waits up to ten minutes.
    """
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(kit / "snapshots")
    arguments = {one["id"]: one.setdefault("args", {}) for one in resources["components"]}
    arguments["job_manager"]["uri_root"] = str(kit / "jobs")
    arguments["job_scheduler"] |= {
        "min_schedule_interval": 2.0,
        "max_schedule_interval": 5.0,
        "max_schedule_count": 100,
        "max_jobs": 1,  # one ledger: who submits again while a job runs waits for its end
    }


def kits(folder: str | Path) -> dict[str, Path]:
    """Return the kits that `provision` made in a folder: ``server``, ``admin`` and each site."""
    folder = Path(folder)
    if not (folder / "project.yml").is_file():
        raise SimbaError(
            "folder", str(folder), "the folder of `provision`", "Provision the federation first."
        )
    project = read_yaml(folder / "project.yml", "project")
    made = folder / "kits" / project["name"] / "prod_00"
    roles = {one["name"]: one["type"] for one in project["participants"]}
    return {name if role == "client" else role: made / name for name, role in roles.items()}


__all__ = ["ADMIN", "kits", "provision"]
