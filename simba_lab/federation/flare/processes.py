"""Processes: the server and the sites, started from their kits on this machine."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from simba_lab.core.errors import SimbaError
from simba_lab.federation.privacy import POLICY, read_policy

# Names the store of a site, or the folder of the server's ledger, in the environment of a process.
FOLDER = "SIMBA_LAB_FOLDER"


def start(
    kit: Path, folder: Path, *, log: Path | None = None, privacy: str | None = None
) -> subprocess.Popen:
    """Start the server or a site from its kit, in a new process.

    Parameters
    ----------
    kit : path
        From `provision`.
    folder : path
        The site's store, or the folder of the server's ledger.
    log : path, optional
        File for the output of the process; by default ``console.txt`` in the kit.
    privacy : str, optional
        The site's policy, see `read_policy`; the process reads it from ``SIMBA_LAB_PRIVACY``.

    Raises
    ------
    SimbaError
        If a process of this kit is still running: FLARE would let the second in and the first out.
    """
    environment = os.environ | {FOLDER: str(Path(folder).absolute())}
    if privacy is not None:
        read_policy(privacy)
        environment[POLICY] = privacy
    # Roles may share a machine: threads that wait leave the core to the others.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
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
    """Lock a kit. Its process and all of its jobs inherit the lock; the last to end releases it."""
    end = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                remedy = "Stop that process, or wait until it has ended."
                raise SimbaError.problem(f"{role} is already running.", remedy) from error
        time.sleep(0.1)
