"""Commands on cohorts of the lab: regions, synthesise, export, fit and probe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from simba_lab.cli.sharing import add_jobs, print_performance, reserved
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import absent_folder

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add the commands on cohorts."""
    _add_regions(commands)
    _add_synthesise(commands)
    _add_export(commands)
    _add_fit(commands)
    _add_probe(commands)


def _add_regions(commands: Commands) -> None:
    regions = commands.add_parser("regions", help="list the regions of a template")
    regions.add_argument("--template", default="icbm2009c")
    regions.set_defaults(command=_regions, again="Run it again.")


def _add_synthesise(commands: Commands) -> None:
    text = "write the volumes of a scenario to a folder; an interrupted call resumes"
    synthesise = commands.add_parser("synthesise", help=text)
    _add_scenario(synthesise, "folder to write")
    add_jobs(synthesise, "threads")
    synthesise.set_defaults(command=_synthesise)


def _add_export(commands: Commands) -> None:
    text = "write the volumes of a scenario as a BIDS dataset, with twins and masks of its biases"
    export = commands.add_parser("export", help=text)
    _add_scenario(export, "folder to write")
    add_jobs(export, "threads")
    export.set_defaults(command=_export, again="Nothing was left behind; run it again.")


def _add_fit(commands: Commands) -> None:
    fit = commands.add_parser("fit", help="train a network on a scenario and judge it")
    _add_scenario(fit, "folder to write")
    _add_network_seed(fit)
    fit.add_argument("--epochs", type=int, default=8)
    text = "what to do against a shortcut, such as reweighing"
    fit.add_argument("--mitigation", default="none", help=text)
    fit.set_defaults(command=_fit)


def _add_probe(commands: Commands) -> None:
    text = "read the biases from every block of a fitted network"
    probe = commands.add_parser("probe", help=text)
    _add_scenario(probe, "run to read")
    _add_network_seed(probe)
    probe.set_defaults(command=_probe, again="Run it again.")


def _add_scenario(command: argparse.ArgumentParser, folder: str) -> None:
    text = "YAML file (examples: data/scenarios/) or folder of `synthesise`"
    command.add_argument("scenario", type=Path, help=text)
    command.add_argument("folder", type=Path, help=folder)
    command.add_argument("--seed", type=int, default=0, help="seed of the cohort")


def _add_network_seed(command: argparse.ArgumentParser) -> None:
    text = "seed of the initial weights and batch order"
    command.add_argument("--network-seed", type=int, default=0, help=text)


def _regions(options: argparse.Namespace) -> None:
    from simba_lab.synthesis.anatomy.template import load_template

    print("\n".join(load_template(options.template).regions))


def _cohort(options: argparse.Namespace) -> Cohort:
    from simba_lab.scans.stores import open_cohort
    from simba_lab.synthesis.scenario import Scenario
    from simba_lab.synthesis.synthetic_cohort import synthesise

    if options.scenario.is_dir():
        return open_cohort(options.scenario)
    return synthesise(Scenario.from_yaml(options.scenario), seed=options.seed)


def _synthesise(options: argparse.Namespace) -> None:
    from simba_lab.scans.saving import save_cohort

    cohort = save_cohort(_cohort(options), options.folder, n_jobs=options.jobs, progress=True)
    print(f"{len(cohort)} volumes in {options.folder}")


def _export(options: argparse.Namespace) -> None:
    from simba_lab.scans.bids_export import export_bids

    folder, cohort = absent_folder(options.folder), _cohort(options)
    export_bids(cohort, folder, twins=cohort.biases, n_jobs=options.jobs, progress=True)
    print(f"{len(cohort)} subjects in {folder}")


def _fit(options: argparse.Namespace) -> None:
    from simba_lab.training.config import FitConfig
    from simba_lab.training.fitting import fit
    from simba_lab.training.networks import SimBANet

    model = SimBANet(seed=options.network_seed)
    config = FitConfig(epochs=options.epochs, seed=options.network_seed)
    with reserved(options.folder) as folder:
        cohort = _cohort(options)
        run = fit(model, cohort, config, mitigation=options.mitigation, progress=True)
        try:
            run.save(folder)
        finally:  # a full disk does not cost the result
            print_performance(run.model, cohort.test, list(cohort.biases) or [None])


def _probe(options: argparse.Namespace) -> None:
    from simba_lab.interpretation.probes.probing import probe
    from simba_lab.interpretation.recording import record
    from simba_lab.training.networks import SimBANet
    from simba_lab.training.run import Run

    cohort = _cohort(options)
    if not cohort.biases:
        raise SimbaError("scenario.bias", None, "an effect", "There is no bias to probe for.")
    untrained = SimBANet(seed=options.network_seed)
    run, test = Run.load(options.folder, untrained), cohort.test
    run.check_fitted_on(cohort)
    recording, floors = record(run.model, test), [record(untrained, test)]
    for bias in cohort.biases:
        table = probe(recording, bias, given="label", floors=floors)
        print(f"{bias}\n{table.round(3).to_string()}")
