"""Sites: hospitals by size, classes, biases and scanner, as written down or drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import is_number, keep_plain, known_fields, share, whole_number
from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.federation.scanners import drawn_scanner
from simba_lab.synthesis.effects import CLASSES


@checks_arguments
@dataclass(frozen=True)
class Site:
    """One hospital.

    Parameters
    ----------
    name : str
        Small letters, digits and hyphens, because folders and processes are named after it.
    subjects : int
        Training subjects.
    disease : float
        Share of them with the disease: 0 or 1 at a site of one class.
    prevalence : mapping of bias to mapping of class to float, optional
        Prevalence of a bias, such as ``{"bias": {"disease": 0.9, "control": 0.1}}``; by default
        as in the scenario.
    scanner : mapping of effect to float
        Magnitudes of the scanner's effects, see `with_scanners`; by default 0.

    Raises
    ------
    SimbaError
        If a value is out of range.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.federation.Site("north", 12, disease=0.75).subjects
    12
    """

    name: str
    subjects: int
    disease: float = 0.5
    prevalence: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scanner: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep_plain(self)
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", self.name):
            allowed = "small letters, digits and hyphens, a letter first"
            raise SimbaError("site.name", self.name, allowed, "For example: site-01.")
        whole_number(f"{self.name}.subjects", self.subjects)
        share(f"{self.name}.disease", self.disease)
        for bias, rates in self.prevalence.items():
            known_fields(f"{self.name}.prevalence[{bias!r}]", rates, CLASSES, needed=CLASSES)
            for name, rate in rates.items():
                share(f"{self.name}.prevalence[{bias!r}][{name!r}]", rate)
        for effect, magnitude in self.scanner.items():
            if not is_number(magnitude) or not math.isfinite(magnitude):
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
    """Return sites like those of the published study: many, small, most of one class.

    Sizes are evenly spaced quantiles of a log-normal distribution with the given median and largest
    value, so they do not depend on the seed. By default they run from 1 to 190, and 31 of 83 have
    fewer than five subjects (published: 30). Sites of one class are drawn among all, half of them
    healthy; at the others between a quarter and three quarters have the disease.

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
        Decides which site has which size, class and scanner.

    References
    ----------
    Souza et al. (2024), Front. Artif. Intell. 7: 83 sites, sizes 1-190, median 7, 54 of one class.

    Examples
    --------
    >>> import simba_lab as sb
    >>> [site.subjects for site in sb.federation.study_sites(5, median=4, largest=9)]
    [3, 4, 9, 6, 2]
    """
    whole_number("count", count, least=2)
    if not 1 <= median < largest:
        raise SimbaError("median", median, f"at least 1 and below the largest, {largest}")
    share("single_class", single_class)
    if not 0 <= scanner < math.inf:
        raise SimbaError("scanner", scanner, "a finite number of at least 0")
    draws = stream(seed, "sites", "study")
    ranks = norm.ppf((np.arange(count) + 0.5) / count)
    quantiles = median * np.exp(ranks * math.log(largest / median) / ranks[-1])
    sizes = np.clip(np.rint(quantiles), 1, largest).astype(int)[draws.permutation(count)]
    shares = draws.uniform(0.25, 0.75, count)
    one_class = draws.permutation(count)[: round(single_class * count)]
    shares[one_class] = np.arange(len(one_class)) % 2
    # A single subject has one class, whatever was drawn.
    shares = np.where(sizes == 1, np.rint(shares), shares)
    width = len(str(count))
    return tuple(
        Site(
            f"site-{number + 1:0{width}d}",
            int(sizes[number]),
            float(shares[number]),
            scanner=drawn_scanner(draws, scanner),
        )
        for number in range(count)
    )
