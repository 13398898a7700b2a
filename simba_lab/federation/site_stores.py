"""Site stores: a folder for each site with all its data, and no other site's."""

from __future__ import annotations

from pathlib import Path

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.federation.federated_cohort import Federation
from simba_lab.scans.saving import save_cohort
from simba_lab.scans.stores import open_cohort


def save_sites(
    federation: Federation, folder: str | Path, *, n_jobs: int = -1, progress: bool = False
) -> list[Path]:
    """Render each site into its own folder, ``folder/NAME``.

    Returns
    -------
    list of path
        In the order of the sites.

    Raises
    ------
    SimbaError
        As `save_cohort` does; an interrupted call can be repeated.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> sites = [sb.federation.Site("north", 6), sb.federation.Site("south", 4)]
    >>> federation = sb.federation.hospitals(scenario, sites, validation=4, test=4)
    >>> folders = sb.federation.save_sites(federation, tempfile.mkdtemp())
    >>> name, cohort = sb.federation.open_site(folders[0])
    >>> name, len(cohort)
    ('north', 6)
    """
    folder = Path(folder)
    if not folder.absolute().parent.is_dir():
        raise SimbaError("folder", str(folder), "in a folder that exists")
    folder.mkdir(exist_ok=True)
    for name in federation.names:
        save_cohort(federation.at(name), folder / name, n_jobs=n_jobs, progress=progress)
    return [folder / name for name in federation.names]


def open_site(folder: str | Path) -> tuple[str, Cohort]:
    """Return the name and the subjects of a site, reading nothing but its own folder.

    Raises
    ------
    SimbaError
        If the folder holds no store, or the store is not that of a single site.

    See Also
    --------
    save_sites : with an example.
    """
    cohort = open_cohort(folder)
    names = sorted(set(cohort.table["site"])) if "site" in cohort.table else []
    if len(names) != 1:
        remedy = f"It holds subjects of {len(names)} sites."
        raise SimbaError("folder", str(folder), "the store of one site", remedy)
    return names[0], cohort
