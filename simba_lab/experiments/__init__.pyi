from .comparison import Comparison
from .dose_response import Surface, fit_surface, ideal_shift
from .sweep import Sweep, layers_of, read_results

__all__ = [
    "Comparison",
    "Surface",
    "Sweep",
    "fit_surface",
    "ideal_shift",
    "layers_of",
    "read_results",
]
