from . import attribution, interventions, probes
from .edits import adding, projecting_out, replacing
from .geometry import angles, components, projections
from .hooks import edit
from .layer_table import layers
from .recording import Recording, record
from .similarity import cka, cka_matrix

__all__ = [
    "Recording",
    "adding",
    "angles",
    "attribution",
    "cka",
    "cka_matrix",
    "components",
    "edit",
    "interventions",
    "layers",
    "probes",
    "projecting_out",
    "projections",
    "record",
    "replacing",
]
