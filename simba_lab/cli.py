"""The command line ``simba-lab``: arguments, and the verbs of the lab for each command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import absent_folder
from simba_lab.core.unfinished import one_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pandas import DataFrame
    from torch.nn import Module

    from simba_lab.core.cohort import Cohort

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; what goes wrong is one line on standard error.

    The exit status is 2 for bad input, and 130 after Ctrl-C or a signal to end.
    """
    options = _parser().parse_args(arguments)
    try:
        with _ended_by_signals():
            options.command(options)
    except SimbaError as error:
        print(f"simba-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"simba-lab: Interrupted. {options.again}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let the signals that end a process interrupt it as Ctrl-C does, so that it tidies up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simba-lab", description=sys.modules["simba_lab"].__doc__)
    parser.set_defaults(again="Run the same command again: it resumes.")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_regions(commands)
    _add_synthesise(commands)
    _add_export(commands)
    _add_fit(commands)
    _add_probe(commands)
    _add_sweep(commands)
    _add_compare(commands)
    _add_federate(commands)
    return parser


def _add_regions(commands: Commands) -> None:
    regions = commands.add_parser("regions", help="list the regions of a template")
    regions.add_argument("--template", default="icbm2009c")
    regions.set_defaults(command=_regions, again="Run it again.")


def _add_synthesise(commands: Commands) -> None:
    text = "write the volumes of a scenario to a folder; an interrupted call resumes"
    synthesise = commands.add_parser("synthesise", help=text)
    _add_scenario(synthesise, "folder to write")
    _add_jobs(synthesise, "threads")
    synthesise.set_defaults(command=_synthesise)


def _add_export(commands: Commands) -> None:
    text = "write the volumes of a scenario as a BIDS dataset, with twins and masks of its biases"
    export = commands.add_parser("export", help=text)
    _add_scenario(export, "folder to write")
    _add_jobs(export, "threads")
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


def _add_sweep(commands: Commands) -> None:
    text = "run a factorial experiment and write its table; an interrupted call resumes"
    sweep = commands.add_parser("sweep", help=text)
    sweep.add_argument("sweep", type=Path, help="YAML file (examples: data/sweeps/)")
    sweep.add_argument("folder", type=Path, help="folder to write cells.csv and manifest.json to")
    _add_jobs(sweep, "processes")
    text = "for the volumes of each process; beyond it they stream"
    sweep.add_argument("--memory-gb", type=float, default=4.0, help=text)
    sweep.set_defaults(command=_sweep)


def _add_compare(commands: Commands) -> None:
    text = "compare strategies over sizes of sites; an interrupted call resumes"
    compare = commands.add_parser("compare", help=text)
    text = "YAML file (example: data/comparisons/samples_per_site.yaml)"
    compare.add_argument("comparison", type=Path, help=text)
    compare.add_argument("folder", type=Path, help="folder to write cells.csv and manifest.json to")
    _add_jobs(compare, "processes")
    compare.set_defaults(command=_compare)


def _add_federate(commands: Commands) -> None:
    text = "train over hospitals: here, or deployed; an interrupted call resumes"
    federate = commands.add_parser("federate", help=text)
    federate.add_argument("study", type=Path, help="YAML file (examples: data/federations/)")
    text = "folder for steps and weights, or for stores and start-up kits"
    federate.add_argument("folder", type=Path, help=text)
    mode = federate.add_mutually_exclusive_group(required=True)
    mode.add_argument("--local", action="store_true", help="all sites in this process")
    text = "write stores and start-up kits, and the command that starts each role"
    mode.add_argument("--provision", action="store_true", help=text)
    mode.add_argument("--submit", action="store_true", help="start the training once all roles run")
    text = "name under which sites reach the server"
    federate.add_argument("--host", default="localhost", help=text)
    text = "of the server; the next one is the administrator's"
    federate.add_argument("--port", type=int, default=8002, help=text)
    text = "seconds that one visit may take"
    federate.add_argument("--timeout", type=float, default=3600, help=text)
    federate.set_defaults(command=_federate)


def _add_scenario(command: argparse.ArgumentParser, folder: str) -> None:
    text = "YAML file (examples: data/scenarios/) or folder of `synthesise`"
    command.add_argument("scenario", type=Path, help=text)
    command.add_argument("folder", type=Path, help=folder)
    command.add_argument("--seed", type=int, default=0, help="seed of the cohort")


def _add_network_seed(command: argparse.ArgumentParser) -> None:
    text = "seed of the initial weights and batch order"
    command.add_argument("--network-seed", type=int, default=0, help=text)


def _add_jobs(command: argparse.ArgumentParser, workers: str) -> None:
    command.add_argument("--jobs", type=int, default=-1, help=f"{workers}; -1 is one per core")


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
    with _reserved(options.folder) as folder:
        cohort = _cohort(options)
        run = fit(model, cohort, config, mitigation=options.mitigation, progress=True)
        try:
            run.save(folder)
        finally:  # a full disk does not cost the result
            _print_performance(run.model, cohort.test, list(cohort.biases) or [None])


@contextmanager
def _reserved(folder: Path) -> Iterator[Path]:
    """Hold a folder that is written in the end; what stands against that is found now."""
    if os.path.lexists(folder):
        allowed = "a folder that does not exist yet"
        raise SimbaError("folder", str(folder), allowed, "Nothing is overwritten.")
    with one_process(folder, f"Another process is about to write {str(folder)!r}."):
        yield folder


def _save_table(save: Callable[[], None], table: DataFrame) -> None:
    """Save a table; print it if that fails."""
    try:
        save()
    except SimbaError:
        print(table.to_csv(index=False))
        raise


def _print_performance(model: Module, test: Cohort, columns: Sequence[str | None]) -> None:
    """Print performance by each column, and what each effect does to the scores of twins."""
    from simba_lab.core.cohort import with_twins
    from simba_lab.training.metrics import evaluate
    from simba_lab.training.twin_effects import twin_effect

    for by in columns:
        print(evaluate(model, test, by=by).round(3).to_string())
    for effect in test.effects:
        print(twin_effect(model, with_twins(test), effect=effect).round(3).to_string())


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


def _sweep(options: argparse.Namespace) -> None:
    from simba_lab.experiments.sweep import Sweep

    sweep, start = Sweep.from_yaml(options.sweep), time.perf_counter()
    with _reserved(options.folder) as folder:
        table = sweep.run(n_jobs=options.jobs, memory_gb=options.memory_gb, progress=True)
        seconds = time.perf_counter() - start
        _save_table(lambda: sweep.save(table, folder, seconds=seconds), table)
    print(f"{len(table)} cells in {options.folder}")


def _compare(options: argparse.Namespace) -> None:
    from simba_lab.experiments.comparison import Comparison

    comparison = Comparison.from_yaml(options.comparison)
    with _reserved(options.folder) as folder:
        table = comparison.run(n_jobs=options.jobs, progress=True)
        _save_table(lambda: comparison.save(table, folder), table)
    print(f"{len(table)} cells in {options.folder}")


def _federate(options: argparse.Namespace) -> None:
    from simba_lab.federation.provisioning import authority
    from simba_lab.federation.study import Study

    study = Study.from_yaml(options.study)
    if options.local:
        model = study.run(options.folder, progress=True)
        _print_performance(model, study.federation.test, ["site"])
    elif options.provision:
        commands = study.provision(
            options.folder, host=options.host, port=options.port, progress=True
        )
        print("Each kit holds a private key: give it, with the store, to its own machine alone.")
        print("There:")
        for role, command in commands.items():
            print(f"{role}:  {command}")
        print(f"admin:  simba-lab federate {options.study} {options.folder} --submit")
        print(f"The keys of the whole federation are in {authority(options.folder / 'kits')}.")
        print("No role needs them: move that folder to a safe place, off this machine.")
    else:
        study.submit(options.folder, timeout=options.timeout)
        print("done; the weights are in the server's ledger")


if __name__ == "__main__":
    sys.exit(main())
