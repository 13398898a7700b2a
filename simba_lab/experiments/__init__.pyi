from .cells import Cell
from .comparison import Comparison
from .dose_response import Surface, excess, fit_surface, ideal_shift
from .judging import judge
from .results import layers_of, read_results
from .sweep import Sweep

__all__ = [
    "Cell",
    "Comparison",
    "Surface",
    "Sweep",
    "excess",
    "fit_surface",
    "ideal_shift",
    "judge",
    "layers_of",
    "read_results",
]
