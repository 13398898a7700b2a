"""Split a cohort over hospitals: how many subjects, which classes, how much bias, which scanner."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.stats import norm

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.rng import stream
from simba_lab.scans.saving import save_cohort
from simba_lab.scans.stores import open_cohort
from simba_lab.synthesis.effects import Effect, Intensity
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort, synthesise

CLASSES = ("control", "disease")
# What a scanner does at magnitude 1. A site has one magnitude of each; noise and blur only add, so
# theirs are not negative.
SCANNER = {
    "scanner_contrast": Intensity("contrast", 0.1, prevalence=1.0),
    "scanner_field": Intensity("bias_field", 0.1, prevalence=1.0),
    "scanner_noise": Intensity("noise", 0.03, prevalence=1.0),
    "scanner_blur": Intensity("blur", 3.0, prevalence=1.0),
}
ONE_SIDED = ("noise", "blur")


@dataclass(frozen=True)
class Site:
    """One hospital.

    Parameters
    ----------
    name : str
        Small letters, digits and hyphens: it names folders and processes too.
    subjects : int
        Training subjects.
    disease : float
        Share of them with the disease: 0 or 1 at a site of one class.
    prevalence : mapping of bias to mapping of class to float, optional
        Who carries a bias here, such as ``{"bias": {"disease": 0.9, "control": 0.1}}``; by default
        what the scenario says.
    scanner : mapping of effect to float
        Magnitudes of the scanner's effects, see `with_scanners`; 0 where left out.
    """

    name: str
    subjects: int
    disease: float = 0.5
    prevalence: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scanner: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", self.name):
            raise SimbaError(
                "site.name",
                self.name,
                "small letters, digits and hyphens, a letter first",
                "site-01 will do.",
            )
        if (
            not isinstance(self.subjects, int)
            or isinstance(self.subjects, bool)
            or self.subjects < 1
        ):
            raise SimbaError(f"{self.name}.subjects", self.subjects, "an integer of at least 1")
        _check_share(f"{self.name}.disease", self.disease)
        for bias, rates in self.prevalence.items():
            if set(rates) != set(CLASSES):
                raise SimbaError(
                    f"{self.name}.prevalence[{bias!r}]",
                    sorted(rates),
                    f"of {' and '.join(CLASSES)}",
                )
            for name, rate in rates.items():
                _check_share(f"{self.name}.prevalence[{bias!r}][{name!r}]", rate)
        for effect, magnitude in self.scanner.items():
            if not isinstance(magnitude, int | float) or not math.isfinite(magnitude):
                raise SimbaError(f"{self.name}.scanner[{effect!r}]", magnitude, "a finite number")


def study_sites(
    count: int = 83,
    *,
    median: float = 7.0,
    largest: int = 190,
    single_class: float = 54 / 83,
    scanner: float = 1.0,
    seed: int = 0,
) -> tuple[Site, ...]:
    """Return sites like those of the published study of Parkinson's disease: many, small, most of one class.

    Sizes are evenly spaced quantiles of a log-normal distribution with the given median whose last
    one is the largest, so they do not depend on the seed. With the defaults they run from 1 to 190,
    and 31 of 83 have fewer than five (published: 30). Sites of one class are drawn among all, half
    of them healthy; the others have between a quarter and three quarters of diseased.

    Parameters
    ----------
    count : int
    median : float
    largest : int
    single_class : float
        Share of the sites that have one class.
    scanner : float
        Standard deviation of the sites' magnitudes of each effect of the scanner; 0 for equal
        scanners.
    seed : int
        Of who has which size, class and scanner.

    References
    ----------
    Souza et al. (2024), Front. Artif. Intell. 7: 83 sites, sizes 1-190, median 7, 54 of one class.
    """
    if not isinstance(count, int) or count < 2:
        raise SimbaError("count", count, "an integer of at least 2")
    if not 1 <= median < largest:
        raise SimbaError("median", median, f"at least 1 and below the largest, {largest}")
    _check_share("single_class", single_class)
    if not 0 <= scanner < math.inf:
        raise SimbaError("scanner", scanner, "a finite number of at least 0")
    draws = stream(seed, "sites", "study")
    ranks = norm.ppf((np.arange(count) + 0.5) / count)
    sizes = np.clip(
        np.rint(median * np.exp(ranks * math.log(largest / median) / ranks[-1])), 1, largest
    ).astype(int)
    sizes = sizes[draws.permutation(count)]
    shares = draws.uniform(0.25, 0.75, count)
    alone = draws.permutation(count)[: round(single_class * count)]
    shares[alone] = np.arange(len(alone)) % 2
    # One subject is of one class, whatever was drawn.
    shares = np.where(sizes == 1, np.rint(shares), shares)
    width = len(str(count))
    return tuple(
        Site(
            f"site-{number + 1:0{width}d}",
            int(sizes[number]),
            float(shares[number]),
            scanner=_drawn_scanner(draws, scanner),
        )
        for number in range(count)
    )


def _drawn_scanner(draws: np.random.Generator, spread: float) -> dict[str, float]:
    values = spread * draws.standard_normal(len(SCANNER))
    return {
        name: float(abs(value) if effect.kind in ONE_SIDED else value)
        for (name, effect), value in zip(SCANNER.items(), values, strict=True)
    }


def with_scanners(scenario: Scenario, effects: Mapping[str, Intensity] | None = None) -> Scenario:
    """Return a scenario whose images also show the scanner of the site where they were taken.

    The effects are biases of the scenario like any other, everybody has them, and `hospitals` sets
    their magnitudes site by site: twins without them (`Cohort.twin`) are the same subjects in the
    scanner of nobody.

    Parameters
    ----------
    scenario : Scenario
    effects : mapping of name to Intensity, optional
        By default `SCANNER`: contrast (10 % at magnitude 1), receive field (10 %), noise (3 %) and
        blur (3 mm).
    """
    effects = SCANNER if effects is None else effects
    for name, effect in effects.items():
        if not isinstance(effect, Intensity):
            raise SimbaError(
                f"effects[{name!r}]", effect, "an Intensity", "Scanners do not move tissue here."
            )
    taken = set(effects) & set(scenario.biases)
    if taken:
        raise SimbaError("effects", sorted(taken)[0], "a name that no bias of the scenario has")
    everybody = {name: replace(effect, prevalence=1.0) for name, effect in effects.items()}
    return scenario.replace(bias=scenario.biases | everybody)


@dataclass(frozen=True, eq=False)
class Federation:
    """A cohort whose subjects are at sites.

    Parameters
    ----------
    cohort : SyntheticCohort
        With a column ``site``. Validation and test subjects are spread over all sites alike.
    sites : tuple of Site
    """

    cohort: SyntheticCohort
    sites: tuple[Site, ...]

    @property
    def names(self) -> list[str]:
        """Names of the sites, in their order."""
        return [site.name for site in self.sites]

    @property
    def pooled(self) -> SyntheticCohort:
        """The training subjects of all sites together: what central training has."""
        return self.cohort.train

    @property
    def validation(self) -> SyntheticCohort:
        """The subjects to choose settings on, at all sites."""
        return self.cohort.validation

    @property
    def test(self) -> SyntheticCohort:
        """The subjects to report on, at all sites."""
        return self.cohort.test

    def at(self, name: str) -> SyntheticCohort:
        """Return the training subjects of a site."""
        if name not in self.names:
            raise UnknownNameError.among("site", name, self.names)
        return self.pooled.where(self.pooled["site"] == name)

    def total(self, name: str) -> int:
        """Return the number of training subjects of a site."""
        return len(self.at(name))


def hospitals(
    scenario: Scenario,
    sites: Sequence[Site],
    *,
    validation: int = 100,
    test: int = 400,
    seed: int = 0,
) -> Federation:
    """Synthesise a cohort and put its subjects into hospitals.

    Each site gets as many training subjects of each class as it says, carries the biases at its own
    prevalence and has its own scanner. Validation and test subjects are dealt out within each class
    and bias group to all sites alike: there, site tells nothing of the disease, and what a network
    has learnt from the site shows as an error.

    Parameters
    ----------
    scenario : Scenario
        Disease, biases and anatomy, and the scanner's effects where sites have them
        (`with_scanners`). Its ``subjects`` and ``split`` give way to what the sites need.
    sites : sequence of Site
    validation, test : int
        Held-out subjects, even numbers.
    seed : int

    Returns
    -------
    Federation

    Raises
    ------
    SimbaError
        If two sites have one name, if a site names a bias or an effect of the scanner that the
        scenario does not have, or if all sites together lack a class.
    """
    sites = tuple(sites)
    names = [site.name for site in sites]
    if not sites or len(set(names)) < len(names):
        double = next((name for name in names if names.count(name) > 1), None)
        raise SimbaError("sites", double, "at least one, each with a name of its own")
    for name, count in (("validation", validation), ("test", test)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 4 or count % 2:
            raise SimbaError(name, count, "an even number of at least 4")
    for site in sites:
        for bias in (*site.prevalence, *site.scanner):
            if bias not in scenario.biases:
                raise UnknownNameError.among(f"{site.name}: effect", bias, scenario.biases)
    wanted = np.array([_class_sizes(site) for site in sites])
    needed = wanted.sum(axis=0)
    if needed.min() == 0:
        raise SimbaError(
            "sites",
            f"{needed.tolist()} subjects (control, disease)",
            "with both classes among them",
        )
    # The design gives equal classes; what is too many of one stays out.
    train = max(2 * int(needed.max()), 16)
    whole = train + validation + test
    split = (train / whole, validation / whole, 1 - train / whole - validation / whole)
    cohort = synthesise(scenario.replace(subjects=whole, split=split), seed=seed)
    table = cohort.table.copy()
    table["site"] = ""
    for label in (0, 1):
        pool = table.index[(table["split"] == "train") & (table["label"] == label)].to_numpy()
        pool = stream(seed, "sites", f"pool/{label}").permutation(pool)
        stops = np.cumsum(wanted[:, label])
        for site, stop, count in zip(sites, stops, wanted[:, label], strict=True):
            members = pool[stop - count : stop]
            table.loc[members, "site"] = site.name
            for bias, rates in site.prevalence.items():
                table.loc[members, bias] = _members(
                    seed, site.name, bias, label, count, rates[CLASSES[label]]
                )
    for part in ("validation", "test"):
        held_out = table[table["split"] == part]
        turn = stream(seed, "sites", f"deal/{part}").permutation(len(sites))
        dealt = held_out.sample(
            frac=1, random_state=stream(seed, "sites", f"shuffle/{part}")
        ).sort_values(["label", *_groups(scenario)], kind="stable")
        table.loc[dealt.index, "site"] = [
            names[turn[place % len(sites)]] for place in range(len(dealt))
        ]
    table = table[table["site"] != ""]
    shared = [name for name, effect in scenario.biases.items() if _of_everybody(effect)]
    for effect in dict.fromkeys([*shared, *(name for site in sites for name in site.scanner)]):
        magnitudes = {site.name: site.scanner.get(effect, 0.0) for site in sites}
        table[f"{effect}_magnitude"] = table["site"].map(magnitudes).astype(float)
    return Federation(replace(cohort, table=table), sites)


def _groups(scenario: Scenario) -> list[str]:
    return [name for name, effect in scenario.biases.items() if not _of_everybody(effect)]


def _of_everybody(effect: Effect) -> bool:
    return isinstance(effect, Intensity) and min(effect.prevalence.values()) == 1


def _class_sizes(site: Site) -> tuple[int, int]:
    sick = round(site.subjects * site.disease)
    return site.subjects - sick, sick


def _members(seed: int, site: str, bias: str, label: int, count: int, rate: float) -> np.ndarray:
    """Who of a class carries a bias at a site: the rate, rounded up or down so that its mean is exact."""
    draws = stream(seed, site, f"{bias}/{label}")
    inside = math.floor(rate * count + draws.uniform())
    return (draws.permutation(count) < inside).astype(int)


def save_sites(
    federation: Federation, folder: str | Path, *, n_jobs: int = -1, progress: bool = False
) -> list[Path]:
    """Render each site into a folder of its own, ``folder/NAME``: all that the site needs, and nothing of the others.

    Raises
    ------
    SimbaError
        As `save_cohort` does; an interrupted call can be repeated.
    """
    folder = Path(folder)
    if not folder.absolute().parent.is_dir():
        raise SimbaError("folder", str(folder), "inside an existing folder")
    folder.mkdir(exist_ok=True)
    for name in federation.names:
        save_cohort(federation.at(name), folder / name, n_jobs=n_jobs, progress=progress)
    return [folder / name for name in federation.names]


def open_site(folder: str | Path) -> tuple[str, SyntheticCohort]:
    """Return the name and the subjects of a site from its own folder, and read nothing else.

    Raises
    ------
    SimbaError
        If the folder holds no store, or one of several sites or none.
    """
    cohort = open_cohort(folder)
    names = sorted(set(cohort.table["site"])) if "site" in cohort.table else []
    if len(names) != 1:
        raise SimbaError(
            "folder",
            str(folder),
            "the store of one site",
            f"It holds subjects of {len(names)} sites.",
        )
    return names[0], cohort


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SimbaError(name, value, "from 0 to 1")
