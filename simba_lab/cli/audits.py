"""Commands on somebody's scans: plant."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from simba_lab.cli.sharing import add_jobs

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add the commands on somebody's scans."""
    _add_plant(commands)


def _add_plant(commands: Commands) -> None:
    text = "write scans and their planted twins, for a tool to score; an interrupted call resumes"
    plant = commands.add_parser("plant", help=text)
    plant.add_argument("study", type=Path, help="BIDS dataset; labels are not needed")
    text = "YAML file of marks, such as 'marks: {scanner: {kind: contrast, strength: 0.1}}'"
    plant.add_argument("plan", type=Path, help=text)
    plant.add_argument("folder", type=Path, help="folder to write")
    add_jobs(plant, "threads")
    plant.set_defaults(command=_plant)


def _plant(options: argparse.Namespace) -> None:
    from simba_lab.scans.planting.plans import read_plan, study_scans
    from simba_lab.scans.planting.planted_images import IMAGES, export_planted

    plan = read_plan(options.plan)
    scans = study_scans(options.study, plan)
    marked = plan.planted(scans, n_jobs=options.jobs, progress=True)
    folder = export_planted(marked, options.folder, n_jobs=options.jobs, progress=True)
    print(f"{len(scans)} scans, untouched and with each of {len(plan.marks)} marks, in {folder}")
    print(f"{folder / IMAGES} lists them. Score each image, write a table of file and score; then:")
    print(f"simba-lab audit --answers answers.csv --planted {folder} --out report.html")
