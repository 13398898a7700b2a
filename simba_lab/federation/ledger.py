"""Ledger: the steps of a plan in a folder, so that a training that was killed resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import atomic_write, new_file, read_json, write_json
from simba_lab.federation.clients import Weights
from simba_lab.federation.harmony import divided
from simba_lab.federation.plan import Plan
from simba_lab.federation.steps import Step


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
        self.folder.mkdir(exist_ok=True)
        self._plan_file = self.folder / "plan.json"
        self._weights_file = self.folder / "weights.safetensors"
        self._steps_file = self.folder / "steps.jsonl"
        self._reason_file = self.folder / "stopped.txt"
        if not self._plan_file.is_file():
            if any(self.folder.iterdir()):
                problem = f"{self.folder} holds other files than a ledger."
                raise SimbaError.problem(problem, "Nothing is overwritten; choose a new folder.")
            write_json(self._plan_file, plan.to_dict())
        elif read_json(self._plan_file, "ledger") != plan.to_dict():
            problem = f"{self.folder} is the ledger of another plan."
            raise SimbaError.problem(problem, "Choose another folder.")
        if self._steps_file.is_file() and not self._steps_file.read_bytes().endswith(b"\n"):
            with self._steps_file.open("a", encoding="utf-8") as file:
                file.write("\n")  # ends the line that was being written at a kill

    def resume(self) -> Step:
        """Return the last complete step with its weights; number 0 if there is none.

        Raises
        ------
        SimbaError
            If the weights are damaged.
        """
        if not self._weights_file.is_file():
            return self.plan.start()
        try:
            with safe_open(self._weights_file, "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                number = int(file.metadata()["step"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            problem = f"{self._weights_file} is damaged."
            raise SimbaError.problem(problem, f"Restore it, or start anew: {error}.") from error
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
        """Return number, phase, sites, losses and faults of every step."""
        if not self._steps_file.is_file():
            return []
        last, rows = self.resume().number, {}
        for line in self._steps_file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # this line was being written at a kill
                continue
            if row["number"] <= last:
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
        """Write a step."""
        self._reason_file.unlink(missing_ok=True)
        row = {name: value for name, value in vars(step).items() if name not in ("weights", "head")}
        with self._steps_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        weights = {name: value.contiguous() for name, value in (step.weights | step.head).items()}
        with new_file(self._weights_file) as path:
            save_file(weights, path, {"step": str(step.number)})
