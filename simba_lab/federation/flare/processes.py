"""Processes: the server and the sites, started from their kits on this machine."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from simba_lab.core.checks import whole_number
from simba_lab.core.errors import SimbaError
from simba_lab.federation.privacy import POLICY, read_policy
from simba_lab.federation.uploads import LEAST, LIMIT

# Names the store of a site, or the folder of the server's ledger, in the environment of a process.
FOLDER = "SIMBA_LAB_FOLDER"


def start(
    kit: Path,
    folder: Path,
    *,
    log: Path | None = None,
    privacy: str | None = None,
    uploads: int | None = None,
    least_subjects: int | None = None,
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

    uploads : int, optional
        How often the site sends weights before it refuses, over all jobs; ``SIMBA_LAB_UPLOADS``,
        1000 by default. It keeps the count in ``uploads.json`` in the kit.
    least_subjects : int, optional
        A site with fewer subjects sends nothing; ``SIMBA_LAB_LEAST_SUBJECTS``, 5 by default.

    Raises
    ------
    SimbaError
        If a process of this kit is still running: FLARE would let the second in and the first out.
    """
    environment = os.environ | {FOLDER: str(Path(folder).absolute())}
    if privacy is not None:
        read_policy(privacy)
        environment[POLICY] = privacy
    for name, value in ((LIMIT, uploads), (LEAST, least_subjects)):
        if value is not None:
            environment[name] = str(whole_number(name, value))
    # Roles may share a machine: threads that wait leave the core to the others.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", str(kit / "startup" / "sub_start.sh"), "--once"]
    with _private(log or kit / "console.txt") as out, _private(kit / "running.lock") as lock:
        _take(lock, kit.name)
        return subprocess.Popen(
            command,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            pass_fds=[lock.fileno()],
        )


def _private(file: Path) -> IO[bytes]:
    """Open a file for more, for its owner alone if it is new."""
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


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
