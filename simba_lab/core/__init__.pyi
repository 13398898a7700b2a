from .cohort import Cohort, TwinCohort
from .compute import Compute
from .errors import FoldingError, SimbaError, TemplateError, UnknownNameError
from .intervals import Interval, over_seeds, rank_correlation
from .lattice import Lattice
from .rng import stream

__all__ = [
    "Cohort",
    "Compute",
    "FoldingError",
    "Interval",
    "Lattice",
    "SimbaError",
    "TemplateError",
    "TwinCohort",
    "UnknownNameError",
    "over_seeds",
    "rank_correlation",
    "stream",
]
