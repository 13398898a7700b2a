"""Jobs: how a job of the lab looks; a role starts no other.

A job is written by somebody else, the administrator. It says which plan is trained, and nothing
about code: every role runs the package that is installed on its own machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import read_json, write_json

# The classes of our jobs: a role builds no others.
ENGINE = "simba_lab.federation.flare.engine.Engine"
CONTROLLER = "nvflare.collab.runtime.controller.CollabController"
EXECUTOR = "nvflare.collab.runtime.executor.CollabExecutor"
# Weights come with the call or its answer, so that its time limit holds for them. By default FLARE
# fetches them afterwards: if a site is lost in between, it asks four times, ten minutes each.
WEIGHTS_WITHIN = {"tensor_download_chunk_size": 0}
SERVER, SITE = "config/config_fed_server.json", "config/config_fed_client.json"
# FLARE signs what is submitted.
SIGNATURES = {
    folder + name
    for folder in ("", "config/")
    for name in (".__nvfl_sig.json", ".__nvfl_submitter.crt")
}
BYTES = 2**20  # a plan of a thousand sites is far smaller


def write_job(folder: Path, plan: Mapping[str, Any], timeout: float) -> Path:
    """Write the job of a plan to a folder that exists, and return its own folder."""
    job = folder / "simba-lab"
    (job / "app" / "config").mkdir(parents=True)
    sites = len(plan["sites"])
    deployment = {"resource_spec": {}, "min_clients": sites, "deploy_map": {"app": ["@ALL"]}}
    write_json(job / "meta.json", {"name": job.name, **deployment})
    write_json(job / "app" / SERVER, _configuration(True, {"plan": plan, "timeout": timeout}))
    write_json(job / "app" / SITE, _configuration(False, {"plan": plan}))
    check_job(job / "app")
    return job


class OurJobs(AppValidator):
    """Lets a role take jobs of the lab alone: two configurations with a plan, and no other file.

    FLARE asks it before a job is started, and deletes what it refuses. What earlier jobs brought
    is deleted here; their logs stay.
    """

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """Return why the job is refused, an empty text if it is not, and no properties."""
        folder = Path(app_folder).absolute()
        for earlier in folder.parent.parent.glob(f"*/{folder.name}"):
            if earlier != folder:
                shutil.rmtree(earlier, ignore_errors=True)
        try:
            check_job(folder)
        except (SimbaError, OSError) as error:
            return str(error), {}
        return "", {}


def check_job(folder: Path) -> None:
    """Raise an error unless a folder holds a job as `write_job` writes it."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - {"config"}
    names -= SIGNATURES
    if names != {SERVER, SITE}:
        name = sorted(names ^ {SERVER, SITE})[0]
        problem = f"A job brings its two configurations and no other file; {name!r} is wrong."
        raise SimbaError.problem(problem, "It was deleted.")
    for name in (SERVER, SITE):
        if (folder / name).is_symlink() or (folder / name).stat().st_size > BYTES:
            raise SimbaError(name, name, f"a file of at most {BYTES} bytes")
        values = read_json(folder / name, "job")
        properties = _properties(values)
        _check_values(properties)
        if json.dumps(values, sort_keys=True) != json.dumps(
            _configuration(name == SERVER, properties), sort_keys=True
        ):
            problem = f"{name} of the job is not as the lab writes it."
            raise SimbaError.problem(problem, "Do all roles run the same version of the lab?")


def _properties(values: Any) -> dict[str, Any]:
    """Return the plan, and at the server the time limit, of a configuration."""
    try:
        role = values["workflows"][0] if "workflows" in values else values["executors"][0]
        properties: dict[str, Any] = role.get("executor", role)["args"]["props"]
        if set(properties) - {"timeout"} == {"plan"}:
            return properties
    except (TypeError, KeyError, IndexError, AttributeError):
        pass
    raise SimbaError.problem("The job holds no plan.", "Submit it with the lab.")


def _check_values(values: Any) -> None:
    """Raise an error if FLARE would fill a text in: it takes names in braces for its variables."""
    if isinstance(values, dict):
        for name, value in values.items():
            _check_values(name)
            _check_values(value)
    elif isinstance(values, list):
        for value in values:
            _check_values(value)
    elif isinstance(values, str) and set(values) & set("{}$@"):
        raise SimbaError("plan", values[:80], "without {, }, $ and @")


def _configuration(server: bool, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a role reads of a job."""
    identity = "_server" if server else "_client"
    arguments = {
        f"{identity[1:]}_obj_id": identity,
        "collab_obj_ids": [],
        "props": dict(properties),
        "max_inbound_call_threads": 100,
        "max_outbound_call_threads": 100,
    }
    workflow = {"id": "controller", "path": CONTROLLER, "args": arguments}
    executor = {"tasks": ["*"], "executor": {"path": EXECUTOR, "args": arguments}}
    return {
        "format_version": 2,
        **({"workflows": [workflow]} if server else {"executors": [executor]}),
        "components": [{"id": identity, "path": ENGINE, "args": {}}],
        "task_data_filters": [],
        "task_result_filters": [],
        **WEIGHTS_WITHIN,
    }


__all__ = ["CONTROLLER", "ENGINE", "EXECUTOR", "OurJobs", "check_job", "write_job"]
