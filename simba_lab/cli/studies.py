"""Commands that run whole studies: sweep, compare and federate."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simba_lab.cli.sharing import add_jobs, print_performance, reserved
from simba_lab.core.errors import SimbaError

if TYPE_CHECKING:
    from pandas import DataFrame

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add the commands that run studies."""
    _add_sweep(commands)
    _add_compare(commands)
    _add_federate(commands)


def _add_sweep(commands: Commands) -> None:
    text = "run a factorial experiment and write its table; an interrupted call resumes"
    sweep = commands.add_parser("sweep", help=text)
    sweep.add_argument("sweep", type=Path, help="YAML file (examples: data/sweeps/)")
    sweep.add_argument("folder", type=Path, help="folder to write cells.csv and manifest.json to")
    add_jobs(sweep, "processes")
    text = "for the volumes of each process; beyond it they stream"
    sweep.add_argument("--memory-gb", type=float, default=4.0, help=text)
    sweep.set_defaults(command=_sweep)


def _add_compare(commands: Commands) -> None:
    text = "compare strategies over sizes of sites; an interrupted call resumes"
    compare = commands.add_parser("compare", help=text)
    text = "YAML file (example: data/comparisons/samples_per_site.yaml)"
    compare.add_argument("comparison", type=Path, help=text)
    compare.add_argument("folder", type=Path, help="folder to write cells.csv and manifest.json to")
    add_jobs(compare, "processes")
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


def _save_table(save: Callable[[], None], table: DataFrame) -> None:
    """Save a table; print it if that fails."""
    try:
        save()
    except SimbaError:
        print(table.to_csv(index=False))
        raise


def _sweep(options: argparse.Namespace) -> None:
    from simba_lab.experiments.sweep import Sweep

    sweep, start = Sweep.from_yaml(options.sweep), time.perf_counter()
    with reserved(options.folder) as folder:
        table = sweep.run(n_jobs=options.jobs, memory_gb=options.memory_gb, progress=True)
        seconds = time.perf_counter() - start
        _save_table(lambda: sweep.save(table, folder, seconds=seconds), table)
    print(f"{len(table)} cells in {options.folder}")


def _compare(options: argparse.Namespace) -> None:
    from simba_lab.experiments.comparison import Comparison

    comparison = Comparison.from_yaml(options.comparison)
    with reserved(options.folder) as folder:
        table = comparison.run(n_jobs=options.jobs, progress=True)
        _save_table(lambda: comparison.save(table, folder), table)
    print(f"{len(table)} cells in {options.folder}")


def _federate(options: argparse.Namespace) -> None:
    from simba_lab.federation.provisioning import authority
    from simba_lab.federation.study import Study

    study = Study.from_yaml(options.study)
    if options.local:
        model = study.run(options.folder, progress=True)
        print_performance(model, study.federation.test, ["site"])
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
