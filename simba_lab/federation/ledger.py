"""Ledger: the steps of a plan in a folder, so that a training that was killed resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from simba_lab.core.border import checks_arguments
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import atomic_write, new_file, read_json, write_json
from simba_lab.core.unfinished import PART, disk_errors, one_process
from simba_lab.federation.clients import Weights
from simba_lab.federation.harmony import divided
from simba_lab.federation.plan import Plan
from simba_lab.federation.steps import Step

LOCK = ".lock"


@checks_arguments
class Ledger:
    """The steps of a plan in a folder: the history of all of them and the weights of the last.

    Call it with every step (`follow`). Each step is written completely before the next begins, so
    a training that was killed resumes from its last complete step with the same bits.

    Parameters
    ----------
    folder : path
        New, or the ledger of the same plan.
    plan : Plan

    Raises
    ------
    SimbaError
        If the folder holds another plan's steps or something else.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> plan = sb.federation.Plan("travelling", ("north", "south"), {"cycles": 2})
    >>> sb.federation.Ledger(tempfile.mkdtemp(), plan).resume().number
    0
    """

    def __init__(self, folder: str | Path, plan: Plan) -> None:
        self.folder, self.plan = Path(folder), plan
        if not self.folder.absolute().parent.is_dir():
            raise SimbaError("folder", str(folder), "in a folder that exists")
        with disk_errors("folder", self.folder, "choose another."):
            self.folder.mkdir(exist_ok=True)
        self._plan_file = self.folder / "plan.json"
        self._weights_file = self.folder / "weights.safetensors"
        self._steps_file = self.folder / "steps.jsonl"
        self._reason_file = self.folder / "stopped.txt"
        if not self._plan_file.is_file():
            # A process that was killed at its first write leaves nothing but a part.
            if any(not path.name.endswith((PART, LOCK)) for path in self.folder.iterdir()):
                problem = f"{self.folder} holds other files than a ledger."
                raise SimbaError.problem(problem, "Nothing is overwritten; choose a new folder.")
            write_json(self._plan_file, plan.to_dict())
        elif read_json(self._plan_file, "ledger") != plan.to_dict():
            problem = f"{self.folder} is the ledger of another plan."
            raise SimbaError.problem(problem, "Choose another folder.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other trainings away from this ledger.

        Raises
        ------
        SimbaError
            If another process trains into this folder.
        """
        problem = f"Another process trains into {str(self.folder)!r}."
        with one_process(self._weights_file, problem):
            yield

    def resume(self) -> Step:
        """Return the last complete step with its weights; number 0 if there is none.

        Raises
        ------
        SimbaError
            If the weights are not those that were written.
        """
        if not self._weights_file.is_file():
            return self.plan.start()
        try:
            with safe_open(self._weights_file, "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
            number = int(metadata["step"])
            if metadata["digest"] != _digest(self.plan, number, weights):
                raise ValueError("its digest is another")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            problem = f"{self._weights_file} is damaged ({error})."
            remedy = "Restore it from a copy, or choose a new folder to start anew."
            raise SimbaError.problem(problem, remedy) from error
        network, head = divided(weights)
        return Step(number, "resumed", (), network, head=head)

    def network(self) -> Weights:
        """Return the weights of the network after the last step."""
        step = self.resume()
        if step.number == 0:
            raise SimbaError.problem(
                f"The training in {self.folder} has not begun.", "Run it first."
            )
        return step.weights

    def history(self) -> list[dict[str, Any]]:
        """Return number, phase, sites, losses and faults of every step.

        A line that is not as it was written is left out, with a warning.
        """
        if not self._steps_file.is_file():
            return []
        last, rows = self.resume().number, {}
        lines = self._steps_file.read_bytes().split(b"\n")
        for line in lines[:-1]:  # what follows the last break was being written at a kill
            row = _row(line)
            if row is None:
                problem = f"A line of {self._steps_file} is damaged; the history goes without it."
                warnings.warn(problem, stacklevel=2)
            elif row["number"] <= last:
                rows[row["number"]] = row
        return [rows[number] for number in sorted(rows)]

    def stopped(self, error: Exception) -> None:
        """Record why the training stopped."""
        text = str(error) if isinstance(error, SimbaError) else f"{type(error).__name__}: {error}"
        atomic_write(self._reason_file, text)

    def reason(self) -> str | None:
        """Return why the training stopped; None if it did not, or has resumed."""
        file = self._reason_file
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def __call__(self, step: Step) -> None:
        """Write a step.

        Raises
        ------
        SimbaError
            If it cannot be written; the step before is still there.
        """
        row = {name: value for name, value in vars(step).items() if name not in ("weights", "head")}
        line = json.dumps(row)
        line = json.dumps({**row, "digest": _line_digest(line)})
        weights = {name: value.contiguous() for name, value in (step.weights | step.head).items()}
        metadata = {"step": str(step.number), "digest": _digest(self.plan, step.number, weights)}
        remedy = "the step before is there; submit or run it again to resume."
        with disk_errors("ledger", self.folder, remedy):
            self._reason_file.unlink(missing_ok=True)
            self._append(line)
            with new_file(self._weights_file) as path:
                try:
                    save_file(weights, path, metadata)
                except SafetensorError as error:  # its word for what the disk says
                    problem = f"{self._weights_file} cannot be written: {error}."
                    raise SimbaError.problem(problem, "Is there space on the disk?") from error

    def _append(self, line: str) -> None:
        """Add a line to the steps, after the last whole one."""
        with self._steps_file.open("a+b") as file:
            file.seek(0)
            size = file.read().rfind(b"\n") + 1  # a kill leaves half a line
            file.truncate(size)
            try:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise


def _row(line: bytes) -> dict[str, Any] | None:
    """Return the step that a line holds, None if the line is not as it was written."""
    try:
        row = json.loads(line)
        digest = row.pop("digest")
        return row if digest == _line_digest(json.dumps(row)) else None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _line_digest(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:16]


def _digest(plan: Plan, number: int, weights: Weights) -> str:
    return weights_digest(weights, json.dumps([plan.to_dict(), number], sort_keys=True))


def weights_digest(weights: Weights, context: str) -> str:
    """Return the SHA-256 of weights, with what else they belong to; their order does not count."""
    digest = hashlib.sha256(context.encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
