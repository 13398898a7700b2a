"""Provisioning: start-up kits with keys, certificates and addresses; the rights of each role."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import absent_folder, read_json, write_json
from simba_lab.core.yaml_files import read_yaml, write_yaml

ADMIN = "admin@simba-lab.org"
# The classes of our jobs: a role builds no others. (`simba_lab.federation.flare.admission`)
FLARE = "simba_lab.federation.flare"
CLASSES = {
    "server": [f"{FLARE}.engine.Engine", "nvflare.collab.runtime.controller.CollabController"],
    "site": [f"{FLARE}.engine.Engine", "nvflare.collab.runtime.executor.CollabExecutor"],
}
# Nobody needs these of an administrator; the first two run code.
FORBIDDEN = (
    *("byoc", "shell_commands", "server-predeployed-flwr", "clone_job"),
    *("configure_job_log", "configure_site_log", "call", "report_env", "set_timeout"),
)
# Python looks for modules in its installation alone: in no working folder, and in no folder of
# PYTHONPATH that is empty or relative. New files are for their owner alone.
HEADER = """
umask 077
export PYTHONSAFEPATH=1
absolute=
IFS=: read -ra entries <<< "${PYTHONPATH:-}"
for entry in "${entries[@]}"; do
  if [[ "$entry" == /* ]]; then absolute="$absolute${absolute:+:}$entry"; fi
done
export PYTHONPATH="$absolute"
"""
KIT = "SIMBA_LAB_KIT"  # names the kit in the environment of a process
# Seconds that the server waits at the end of a job for a site that is lost; FLARE waits 900.
WAIT, WAIT_FOR_SITES = "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT", 30


def provision(
    sites: Sequence[str], folder: str | Path, *, host: str = "localhost", port: int = 8002
) -> dict[str, Path]:
    """Make the start-up kits of a federation, one per role.

    Parameters
    ----------
    sites : sequence of str
    folder : path
        New.
    host : str
        Name under which the sites reach the server.
    port : int
        Of the server; the administrator uses the next one.

    Returns
    -------
    dict of str to path
        The kits: ``server``, ``admin`` and each site. Each holds a private key: copy it to its own
        machine alone.

    Raises
    ------
    SimbaError
        If the folder exists, if a site is called like a role, or if FLARE cannot make the kits.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> folder = tempfile.mkdtemp() + "/kits"
    >>> sb.federation.provision(["server", "north"], folder)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    simba_lab.core.errors.SimbaError: sites must be other names than server, ...
    """
    folder = absent_folder(folder)
    reserved = sorted({"server", "admin", host} & set(sites))
    if reserved:
        allowed = "other names than server, admin and the host of the server"
        raise SimbaError("sites", reserved[0], allowed, "Rename the site.")
    folder.mkdir(mode=0o700)
    write_yaml(folder / "project.yml", _project(sites, host, port))
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", "project.yml", "-w", "kits"]
    process = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, umask=0o077
    )
    if process.returncode:
        output = (process.stdout + process.stderr)[-500:]
        raise SimbaError.problem(f"NVIDIA FLARE could not make kits for {list(sites)}.", output)
    paths = kits(folder)
    for role in paths.keys() - {"admin"}:
        _restrict(role, paths[role])
    console = paths["admin"] / "startup" / "fl_admin.sh"
    console.write_text(console.read_text(encoding="utf-8").replace("python3 ", "python3 -P "))
    for path in folder.rglob("*"):
        executable = path.is_dir() or path.suffix == ".sh"
        path.chmod(0o700 if executable else 0o600)
    return paths


def authority(folder: str | Path) -> Path:
    """Return the folder with the key of the federation's authority and those of all roles.

    Who has it can make kits of any role. No role needs it: move it to a safe place.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.federation.authority("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    simba_lab.core.errors.SimbaError: folder must be a folder made by `provision`, ...
    """
    return kits(folder)["admin"].parent.parent / "state"


def _project(sites: Sequence[str], host: str, port: int) -> dict[str, Any]:
    """Return the project file of FLARE's provisioning."""
    server: dict[str, Any] = {"name": host, "type": "server", "org": "simba"}
    server |= {"fed_learn_port": port, "admin_port": port + 1}
    folders = {"config_folder": "config", "scheme": "tcp"}
    builders = "nvflare.lighter.impl"
    return {
        "api_version": 3,
        "name": "simba-lab",
        "description": "SimBA Lab",
        "participants": [
            server,
            *({"name": name, "type": "client", "org": "simba"} for name in sites),
            {"name": ADMIN, "type": "admin", "org": "simba", "role": "project_admin"},
        ],
        "builders": [
            {"path": f"{builders}.workspace.WorkspaceBuilder"},
            {"path": f"{builders}.static_file.StaticFileBuilder", "args": folders},
            {"path": f"{builders}.cert.CertBuilder"},
            {"path": f"{builders}.signature.SignatureBuilder"},
        ],
    }


def _restrict(role: str, kit: Path) -> None:
    """Set the rights, classes and storage of the server or a site."""
    local = kit / "local"
    _forbid_code(local)
    resources = read_json(local / "resources.json.default", "kit")
    resources["class_allow_list"] = CLASSES["server" if role == "server" else "site"]
    resources["app_validator"] = {"path": f"{FLARE}.admission.OurJobs", "args": {}}
    header = HEADER
    if role == "server":
        _use_own_storage(resources, kit.absolute())
        header += f"export {WAIT}=${{{WAIT}:-{WAIT_FOR_SITES}}}\n"
    else:
        # By default a site sends the logs of its jobs to the server, with paths and sizes of
        # changes.
        resources["allow_log_streaming"] = False
        resources["components"] = [
            component
            for component in resources["components"]
            if component["id"] != "site_log_streamer"
        ]
    write_json(local / "resources.json", resources)
    _guard_script(kit / "startup" / "sub_start.sh", header)


def _guard_script(script: Path, header: str) -> None:
    """Let a script of FLARE start Python without the folders that a job may write to."""
    shebang, commands = script.read_text(encoding="utf-8").split("\n", 1)
    # FLARE puts a folder and a colon before an empty PYTHONPATH: for Python, the working folder.
    commands = commands.replace("export PYTHONPATH=/local/custom:$PYTHONPATH\n", "")
    commands = commands.replace("python3 ", "python3 -P ")
    # What the jobs of an earlier process brought.
    brought = 'rm -rf "$WORKSPACE"/*/app_*\n'
    start = 'mkdir -p "$WORKSPACE/transfer"\n'
    if "/local/custom" in commands or start not in commands:
        problem = "This version of NVIDIA FLARE starts its roles in another way."
        raise SimbaError.problem(problem, "Install nvflare 2.9.0.")
    commands = commands.replace(start, f'export {KIT}="$WORKSPACE"\n{start}{brought}')
    script.write_text(f"{shebang}{header}{commands}", encoding="utf-8")


def _forbid_code(local: Path) -> None:
    """Take the rights to bring code, by whatever way, from all, even the administrator."""
    rules = read_json(local / "authorization.json.default", "kit")
    rights = dict.fromkeys(rules["permissions"]["lead"], "any")
    rules["permissions"]["project_admin"] = rights
    for role in rules["permissions"].values():
        role.update(dict.fromkeys(FORBIDDEN, "none"))
    write_json(local / "authorization.json", rules)


def _use_own_storage(resources: dict[str, Any], kit: Path) -> None:
    """Keep jobs inside the kit, and retry a job that waits for a site every few seconds.

    By default all federations of a machine share one folder in /tmp, and a job whose site is
    missing waits up to ten minutes.
    """
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(kit / "snapshots")
    arguments = {
        component["id"]: component.setdefault("args", {}) for component in resources["components"]
    }
    arguments["job_manager"]["uri_root"] = str(kit / "jobs")
    arguments["job_scheduler"] |= {
        "min_schedule_interval": 2.0,
        "max_schedule_interval": 5.0,
        "max_schedule_count": 100,
        "max_jobs": 1,  # there is one ledger: a second job waits for the end of the first
    }


def kits(folder: str | Path) -> dict[str, Path]:
    """Return the kits that `provision` made in a folder: ``server``, ``admin`` and each site.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.federation.kits("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    simba_lab.core.errors.SimbaError: folder must be a folder made by `provision`, ...
    """
    folder = Path(folder)
    if not (folder / "project.yml").is_file():
        remedy = "Provision the federation first."
        raise SimbaError("folder", str(folder), "a folder made by `provision`", remedy)
    project = read_yaml(folder / "project.yml", "project")
    root = folder / "kits" / project["name"] / "prod_00"
    roles = {entry["name"]: entry["type"] for entry in project["participants"]}
    return {name if role == "client" else role: root / name for name, role in roles.items()}


__all__ = ["ADMIN", "authority", "kits", "provision"]
