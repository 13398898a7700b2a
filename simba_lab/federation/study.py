"""Study: a federation and its training in one YAML file, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import built, known_fields, mapping
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import absent_folder
from simba_lab.core.yaml_files import read_yaml
from simba_lab.federation.clients import LocalClient
from simba_lab.federation.federated_cohort import Federation, hospitals
from simba_lab.federation.ledger import Ledger
from simba_lab.federation.plan import Plan
from simba_lab.federation.provisioning import kits, provision
from simba_lab.federation.scanners import with_scanners
from simba_lab.federation.site_stores import save_sites
from simba_lab.federation.sites import Site, study_sites
from simba_lab.synthesis.scenario import Scenario

FIELDS_OF_PLAN = ("strategy", "options", "network", "visit", "seed")
FIELDS = ("scenario", "sites", "validation", "test", *FIELDS_OF_PLAN)


@checks_arguments
@dataclass(frozen=True)
class Study:
    """Hospitals and what is trained over them.

    Parameters
    ----------
    scenario : Scenario
        Scanner effects are added where a site has a scanner.
    sites : tuple of Site
    plan : Plan
    validation, test : int
        Held-out subjects.

    Examples
    --------
    >>> import simba_lab as sb
    >>> study = sb.federation.Study.from_yaml("data/federations/three_hospitals.yaml")
    >>> study.plan.sites
    ('north', 'south', 'west')
    """

    scenario: Scenario
    sites: tuple[Site, ...]
    plan: Plan
    validation: int = 100
    test: int = 400

    @cached_property
    def federation(self) -> Federation:
        """The hospitals, made at the first use."""
        return hospitals(
            self.scenario,
            self.sites,
            validation=self.validation,
            test=self.test,
            seed=self.plan.seed,
        )

    def run(self, folder: str | Path, *, progress: bool = False) -> torch.nn.Module:
        """Train over all sites in this process, and return the network.

        Parameters
        ----------
        folder : path
            Of the ledger; an interrupted training resumes from its last step.
        progress : bool
            Whether to show the steps.

        Raises
        ------
        SimbaError
            If the folder holds something else than a ledger of this plan.
        """
        plan, federation, ledger = self.plan, self.federation, Ledger(folder, self.plan)
        with ledger.writing():
            model, last = plan.model(), ledger.resume()
            clients = [
                LocalClient(name, model, federation.at(name), plan.visit) for name in plan.sites
            ]
            steps = plan.steps(clients, last)
            for step in tqdm(steps, initial=last.number, unit="step", disable=not progress):
                ledger(step)
        model.load_state_dict(ledger.network())
        return model

    def provision(
        self,
        folder: str | Path,
        *,
        host: str = "localhost",
        port: int = 8002,
        progress: bool = False,
    ) -> dict[str, str]:
        """Write the store and the start-up kit of each role.

        Parameters
        ----------
        folder : path
            New.
        host, port
            As in `provision`.
        progress : bool
            Whether to show the volumes that are rendered.

        Returns
        -------
        dict of str to str
            The command that starts the server and each site on its own machine.

        Raises
        ------
        SimbaError
            If the folder exists, a site is called like a role, or NVIDIA FLARE is not installed.
        """
        _check_flare()
        from simba_lab.federation.flare.processes import FOLDER

        folder = absent_folder(folder)
        folder.mkdir()
        kit_folders = provision(self.plan.sites, folder / "kits", host=host, port=port)
        stores = save_sites(self.federation, folder / "stores", progress=progress)
        folders = {"server": folder / "ledger"} | dict(zip(self.plan.sites, stores, strict=True))
        return {
            role: f"{FOLDER}={path.absolute()} "
            f"{(kit_folders[role] / 'startup' / 'start.sh').absolute()}"
            for role, path in folders.items()
        }

    def submit(self, folder: str | Path, *, timeout: float = 3600) -> None:
        """Start the training once all roles run, and wait for its end.

        Parameters
        ----------
        folder : path
            From `provision`.
        timeout : float
            Seconds that one visit may take.

        Raises
        ------
        SimbaError
            If the training does not complete, or NVIDIA FLARE is not installed.
        """
        _check_flare()
        from simba_lab.federation.flare.submission import submit

        ended = submit(kits(Path(folder) / "kits")["admin"], self.plan, timeout=timeout)
        if ended != "FINISHED:COMPLETED":
            remedy = "The server's ledger says why. Submit it again to resume."
            raise SimbaError.problem(f"The training did not complete: {ended}.", remedy)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """Read a study from a YAML file.

        Its fields are ``scenario``, ``sites`` (a list of sites, or the arguments of `study_sites`),
        ``validation``, ``test`` and those of `Plan`; examples are in ``data/federations/``.

        Raises
        ------
        SimbaError
            If a field is unknown or out of range; the message names it.
        """
        return read_yaml(path, "study", cls._from_dict, examples="data/federations/")

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Study:
        known_fields("study", values, FIELDS, needed=("scenario", "sites", "strategy"))
        sites = _sites(values["sites"])
        scenario = Scenario.from_dict({"subjects": 16, **mapping("scenario", values["scenario"])})
        if any(site.scanner for site in sites):
            scenario = with_scanners(scenario)
        settings = {name: values[name] for name in FIELDS_OF_PLAN if name in values}
        plan = Plan.from_dict({**settings, "sites": [site.name for site in sites]})
        held_out = {name: values[name] for name in ("validation", "test") if name in values}
        return cls(scenario, sites, plan, **held_out)


def _check_flare() -> None:
    if find_spec("nvflare") is None:
        remedy = "Install it: pip install 'simba-lab[federation]'."
        raise SimbaError.problem("Deployment needs NVIDIA FLARE, which is not installed.", remedy)


def _sites(values: Any) -> tuple[Site, ...]:
    if isinstance(values, Mapping):
        options = ("count", "median", "largest", "single_class", "scanner", "seed")
        return study_sites(**known_fields("study.sites", values, options))
    if not isinstance(values, list) or not values:
        allowed = "a list of sites, or a mapping with count"
        raise SimbaError("study.sites", values, allowed, "Each has a name and subjects.")
    return tuple(built(Site, site, f"study.sites[{number}]") for number, site in enumerate(values))
