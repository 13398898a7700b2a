"""Submission: send a plan to the server with the administrator's kit, and watch its training."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.api_spec import InvalidTarget, NoClientsAvailable, NoConnection, NoReply
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import read_json
from simba_lab.federation.flare.admission import write_job
from simba_lab.federation.plan import Plan
from simba_lab.federation.provisioning import ADMIN

NO_ANSWER = (NoClientsAvailable, NoConnection, NoReply)


def submit(
    kit: Path, plan: Plan, *, timeout: float = 3600, wait: float | None = None, patience: float = 60
) -> str:
    """Submit a plan with the administrator's kit, and wait until the training has ended.

    Parameters
    ----------
    kit : path
    plan : Plan
    timeout : float
        Seconds that one visit may take, and that a transfer of weights may stall.
    wait : float, optional
        Seconds to wait for the end; without limit by default.
    patience : float
        Seconds to wait until the server and every site of the plan answer.

    Returns
    -------
    str
        FLARE's word for how the training ended; ``"FINISHED:COMPLETED"`` if it is complete.

    Raises
    ------
    SimbaError
        If the server or a site does not answer (the sites are named), if the server is lost, or if
        the training takes longer than `wait`. Submit it again to resume from the last step.
    """
    with tempfile.TemporaryDirectory() as folder, _session(kit, patience) as session:
        _until_present(session, plan.sites, patience)
        job = session.submit_job(str(write_job(Path(folder), plan.to_dict(), timeout)))
        begun, watch = time.monotonic(), _Watch(session, job)
        while wait is None or time.monotonic() - begun < wait:
            status = session.get_job_status(job)
            if status and status.startswith(("FINISHED", "FAILED", "ABORTED")):
                return status
            doubled_site = watch.doubled_site() if plan.options.get("faults") != "skip" else None
            if doubled_site:
                session.abort_job(job)
                problem = f"{doubled_site} answers from two processes, or was restarted."
                raise SimbaError.problem(problem, "Stop one of the two, and submit again.")
            time.sleep(0.5)
        session.abort_job(job)
    problem = f"Training was stopped: it took longer than {wait:g} s (wait)."
    raise SimbaError.problem(problem, "The ledger has its steps; submit it again to resume.")


class _Watch:
    """Looks for sites that answer without knowing of the job: another process has their name.

    FLARE admits the latest process with a site's certificate, even from a copy of its kit on
    another machine.
    """

    def __init__(self, session: Session, job: str, every: float = 2.0, often: int = 5) -> None:
        self._session, self._job, self._every, self._often = session, job, every, often
        self._workers: set[str] = set()
        self._without: Counter[str] = Counter()
        self._next = 0.0

    def doubled_site(self) -> str | None:
        """Return such a site, if it answered so several times while another site was working."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + self._every
        with contextlib.suppress(*NO_ANSWER):  # a site that hangs delays all answers
            rows = self._session.get_client_job_status() or []
            working = {row["client_name"] for row in rows if row.get("job_id") == self._job}
            self._workers |= working
            for name in working:
                self._without.pop(name, None)
            # At its end the sites drop the job one after the other, until no site has it.
            if working:
                answering = {row["client_name"] for row in rows if row["status"] != "no_reply"}
                self._without.update((answering - working) & self._workers)
        return next((name for name, times in self._without.items() if times >= self._often), None)


@contextlib.contextmanager
def _session(kit: Path, patience: float) -> Iterator[Session]:
    server = read_json(kit / "startup" / "fed_admin.json", "kit")["admin"]
    address = f"{server['host']}:{server['port']}"
    try:
        session = new_secure_session(ADMIN, str(kit), timeout=patience)
    except NoConnection as error:
        problem = f"The server at {address} did not answer within {patience:g} s."
        raise SimbaError.problem(problem, "Start it.") from error
    try:
        yield session
    except NoConnection as error:
        problem = f"The connection to the server at {address} was lost during the training."
        raise SimbaError.problem(problem, "Start it and submit again to resume.") from error
    finally:
        with contextlib.suppress(NoConnection):
            session.close()


def _rows(session: Session, sites: Sequence[str]) -> list[dict[str, Any]]:
    """Return the status of the sites: at once, or singly if a site that hangs delays all."""
    with contextlib.suppress(*NO_ANSWER, InvalidTarget):
        return session.get_client_job_status() or []
    rows: list[dict[str, Any]] = []
    session.set_timeout(1.0)
    for name in sites:
        with contextlib.suppress(*NO_ANSWER, InvalidTarget):
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
            session.get_system_info()  # raises if the server itself is lost
            problem = f"Sites did not answer within {patience:g} s: {', '.join(missing)}."
            raise SimbaError.problem(problem, "Start them.")
        time.sleep(0.5)
