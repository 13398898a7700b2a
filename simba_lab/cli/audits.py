"""Commands on somebody's scans and networks: plant and audit."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from simba_lab.cli.sharing import add_jobs
from simba_lab.core.errors import SimbaError

if TYPE_CHECKING:
    from simba_lab.auditing.results import Audit

    Group = argparse._ArgumentGroup
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add the commands on somebody's scans."""
    _add_plant(commands)
    _add_audit(commands)


def _add_plant(commands: Commands) -> None:
    text = "write scans and their planted twins, for a tool to score; an interrupted call resumes"
    plant = commands.add_parser("plant", help=text)
    plant.add_argument("study", type=Path, help="BIDS dataset; labels are not needed")
    text = "YAML file: 'marks: battery', or 'marks: {scanner: {kind: contrast, strength: 0.1}}'"
    plant.add_argument("plan", type=Path, help=text)
    plant.add_argument("folder", type=Path, help="folder to write")
    _add_reading(plant)
    add_jobs(plant, "threads")
    plant.set_defaults(command=_plant)


def _add_reading(group: argparse.ArgumentParser | Group) -> None:
    layouts = ("raw", "fmriprep", "fmriprep-native", "cat12", "cat12-native")
    text = "whose images are read: the study's own, or those of a pipeline in its derivatives"
    group.add_argument("--layout", choices=layouts, default="raw", help=text)
    text = "what is done with people without image or value: refuse, or drop with a warning"
    group.add_argument("--on-missing", choices=("refuse", "drop"), default="refuse", help=text)


def _add_audit(commands: Commands) -> None:
    text = "tell whether a network, or any tool by its answers, uses a mark; writes a report"
    audit = commands.add_parser("audit", help=text)
    _add_answers(audit.add_argument_group("any tool, by its answers"))
    _add_network(audit.add_argument_group("a network"))
    _add_report(audit)
    audit.set_defaults(command=_audit, again="Run it again.")


def _add_answers(group: Group) -> None:
    text = "table of file (or participant and mark) and score, one row for each planted image"
    group.add_argument("--answers", type=Path, help=text)
    group.add_argument("--planted", type=Path, help="folder of `plant`")
    scales = ("logit", "probability", "number")
    text = "what scores are; probabilities become logits"
    group.add_argument("--scores", choices=scales, help=text)


def _add_network(group: Group) -> None:
    text = "function that builds the network: my_package:build. It is imported and called"
    group.add_argument("--network", help=text)
    text = "safetensors, or a file of torch.save that is read without running anything"
    group.add_argument("--weights", type=Path, help=text)
    text = "weights of control networks of the same build"
    group.add_argument("--control", type=Path, nargs="+", default=[], help=text)
    group.add_argument("--bids", type=Path, help="BIDS dataset with the scans")
    group.add_argument("--plant", type=Path, help="YAML file of marks, as for `plant`")
    _add_reading(group)
    text = "column of splits in participants.tsv: its test scans are audited. By default all are"
    group.add_argument("--use", default="test", metavar="COLUMN", help=text)
    text = "column with the class, and its value for the diseased; without --disease a number"
    group.add_argument("--label", help=text)
    group.add_argument("--disease")
    text = "columns of groups, such as site and sex: what is known of them"
    group.add_argument("--groups", nargs="+", default=[], metavar="COLUMN", help=text)
    text = "networks with first weights, as floors of what layers hold"
    group.add_argument("--untrained", type=int, default=0, metavar="N", help=text)
    text = "voxel size of the scans as they are prepared, in mm"
    group.add_argument("--spacing-mm", type=float, default=4.0, help=text)
    text = "how the network wants intensities: zscore, minmax or percentile"
    group.add_argument("--intensity", help=text)
    text = "which voxels count for that: of the brain, or all; by default the brain for z-scores"
    group.add_argument("--over", choices=("brain", "volume"), help=text)
    text = "shape of its volumes"
    group.add_argument("--shape", type=int, nargs=3, metavar="N", help=text)
    group.add_argument("--orientation", help="of its volumes, such as LPS")
    group.add_argument("--output", help="element of what it returns: position, key or name")
    text = "class, of scores of several; or probability, or number"
    group.add_argument("--target", help=text)


def _add_report(audit: argparse.ArgumentParser) -> None:
    text = "report to write, such as report.html; its tables are written beside it"
    audit.add_argument("--out", type=Path, required=True, help=text)
    text = "changes within so many standard deviations of the answers do not matter"
    audit.add_argument("--bound", type=float, default=0.5, help=text)


def _plant(options: argparse.Namespace) -> None:
    from simba_lab.auditing.answers import LEAST_SCANS
    from simba_lab.scans.bids_images import BidsImages
    from simba_lab.scans.planting.plans import read_plan, study_scans
    from simba_lab.scans.planting.planted_images import IMAGES, export_planted

    plan = read_plan(options.plan)
    images = BidsImages(options.study, layout=options.layout)
    scans = study_scans(images, plan, use="test", on_missing=options.on_missing)
    if len(scans) < LEAST_SCANS:
        print(f"{len(scans)} scans are too few to be audited: it takes {LEAST_SCANS} or more.")
    marked = plan.planted(scans, n_jobs=options.jobs, progress=True)
    folder = export_planted(marked, options.folder, n_jobs=options.jobs, progress=True)
    print(f"{len(scans)} scans, untouched and with each of {len(plan.marks)} marks, in {folder}")
    print(f"{folder / IMAGES} lists them. Score each image, write a table of file and score; then:")
    print(f"simba-lab audit --answers answers.csv --planted {folder} --out report.html")


def _audit(options: argparse.Namespace) -> None:
    from simba_lab.auditing.report import report_path

    out = report_path(options.out)
    audit = _audit_of_network(options) if options.network else _audit_of_answers(options)
    audit.provenance["command"] = shlex.join(["simba-lab", *options.written])
    audit.save(out)
    print(audit.marks["verdict"].to_string())
    print(f"report in {out}")


def _needed(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name) is None:
            remedy = "Give --answers and --planted, or --network, --weights, --bids and --plant."
            if name in ("label", "intensity"):
                remedy = "Another option needs it."
            raise SimbaError(f"--{name}", None, "given", remedy)


def _audit_of_answers(options: argparse.Namespace) -> Audit:
    from simba_lab.auditing.black_boxes import audit_answers

    _needed(options, "answers", "planted")
    return audit_answers(
        options.answers, options.planted, scores=options.scores, bound=options.bound
    )


def _audit_of_network(options: argparse.Namespace) -> Audit:
    from simba_lab.auditing.answers import check_enough
    from simba_lab.auditing.network_audit import AuditSettings, audit
    from simba_lab.auditing.networks import built_network, with_weights
    from simba_lab.core.checks import whole_number
    from simba_lab.scans.bids_images import BidsImages
    from simba_lab.scans.planting.plans import read_plan, study_scans
    from simba_lab.training.adapted_network import adapt
    from simba_lab.training.scaling import Scaling

    _needed(options, "weights", "bids", "plant")
    if options.over is not None:
        _needed(options, "intensity")
    scaling = options.intensity and Scaling(options.intensity, options.over)
    if options.groups or options.disease is not None:
        _needed(options, "label")
    count = whole_number("--untrained", options.untrained, least=0, most=20)
    plan = read_plan(options.plant)
    names = ("label", "disease", "groups", "use", "on_missing")
    columns = {name: getattr(options, name) for name in names}
    images = BidsImages(options.bids, layout=options.layout)
    scans = study_scans(images, plan, spacing_mm=options.spacing_mm, **columns).test
    check_enough(scans, options.groups)
    networks = [
        with_weights(built_network(options.network), path)
        for path in (options.weights, *options.control)
    ]
    networks += [built_network(options.network) for _ in range(count)]
    adapted = [
        adapt(
            network,
            output=_number_or_name(options.output),
            target=_number_or_name(options.target),
            shape=tuple(options.shape) if options.shape else None,
            orientation=options.orientation,
            intensity=scaling,
            cohort=scans,
        )
        for network in networks
    ]
    controls = len(options.control)
    found = audit(
        adapted[0],
        plan.planted(scans, n_jobs=-1, progress=True),
        groups=options.groups,
        untrained=adapted[1 + controls :],
        control=adapted[1 : 1 + controls] or None,
        settings=AuditSettings(bound=options.bound),
    )
    found.provenance["code of the network"] = options.network
    found.provenance["weights"] = str(options.weights)
    found.provenance["weights of controls"] = ", ".join(map(str, options.control)) or "none"
    return found


def _number_or_name(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() else text
