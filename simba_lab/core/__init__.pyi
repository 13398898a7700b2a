from .errors import FoldingError, SimbaError, TemplateError, UnknownNameError
from .lattice import Lattice
from .rng import stream

__all__ = ["FoldingError", "Lattice", "SimbaError", "TemplateError", "UnknownNameError", "stream"]
