from .designs import octants
from .ease import code_length, learning_curve, prominence
from .kernel_ridge import kernel_coordinates
from .probing import ProbeSettings, probe

__all__ = [
    "ProbeSettings",
    "code_length",
    "kernel_coordinates",
    "learning_curve",
    "octants",
    "probe",
    "prominence",
]
