"""Commands on somebody's scans and networks: plant and audit."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from simba_lab.cli.sharing import add_jobs

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add the commands on somebody's scans."""
    _add_plant(commands)
    _add_audit(commands)


def _add_plant(commands: Commands) -> None:
    text = "write scans and their planted twins, for a tool to score; an interrupted call resumes"
    plant = commands.add_parser("plant", help=text)
    plant.add_argument("study", type=Path, help="BIDS dataset; labels are not needed")
    text = "YAML file of marks, such as 'marks: {scanner: {kind: contrast, strength: 0.1}}'"
    plant.add_argument("plan", type=Path, help=text)
    plant.add_argument("folder", type=Path, help="folder to write")
    add_jobs(plant, "threads")
    plant.set_defaults(command=_plant)


def _add_audit(commands: Commands) -> None:
    text = "tell whether a network, or any tool, uses a mark; writes a report"
    audit = commands.add_parser("audit", help=text)
    text = "table of file (or participant and mark) and score, one row for each planted image"
    audit.add_argument("--answers", type=Path, required=True, help=text)
    text = "folder of `plant`"
    audit.add_argument("--planted", type=Path, required=True, help=text)
    text = "what scores are; probabilities become logits"
    scales = ("logit", "probability", "number")
    audit.add_argument("--scores", choices=scales, help=text)
    _add_report(audit)
    audit.set_defaults(command=_audit, again="Run it again.")


def _add_report(audit: argparse.ArgumentParser) -> None:
    text = "report to write, such as report.html; its tables are written beside it"
    audit.add_argument("--out", type=Path, required=True, help=text)
    text = "changes within so many standard deviations of the answers do not matter"
    audit.add_argument("--bound", type=float, default=0.5, help=text)


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


def _audit(options: argparse.Namespace) -> None:
    from simba_lab.auditing.black_boxes import audit_answers
    from simba_lab.auditing.report import report_path

    out = report_path(options.out)
    audit = audit_answers(
        options.answers, options.planted, scores=options.scores, bound=options.bound
    )
    audit.provenance["command"] = shlex.join(["simba-lab", *options.written])
    audit.save(out)
    print(audit.marks["verdict"].to_string())
    print(f"report in {out}")
