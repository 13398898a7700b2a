"""What several commands share: arguments, output that is reserved, tables that are printed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from simba_lab.core.errors import SimbaError
from simba_lab.core.unfinished import one_process

if TYPE_CHECKING:
    from torch.nn import Module

    from simba_lab.core.cohort import Cohort


def add_jobs(command: argparse.ArgumentParser, workers: str) -> None:
    """Add ``--jobs``, a number of workers: threads or processes."""
    command.add_argument("--jobs", type=int, default=-1, help=f"{workers}; -1 is one per core")


@contextmanager
def reserved(folder: Path) -> Iterator[Path]:
    """Hold a folder that is written in the end; what stands against that is found now."""
    if os.path.lexists(folder):
        allowed = "a folder that does not exist yet"
        raise SimbaError("folder", str(folder), allowed, "Nothing is overwritten.")
    with one_process(folder, f"Another process is about to write {str(folder)!r}."):
        yield folder


def print_performance(model: Module, test: Cohort, columns: Sequence[str | None]) -> None:
    """Print performance by each column, and what each effect does to the scores of twins."""
    from simba_lab.core.cohort import with_twins
    from simba_lab.training.metrics import evaluate
    from simba_lab.training.twin_effects import twin_effect

    for by in columns:
        print(evaluate(model, test, by=by).round(3).to_string())
    for effect in test.effects:
        print(twin_effect(model, with_twins(test), effect=effect).round(3).to_string())
