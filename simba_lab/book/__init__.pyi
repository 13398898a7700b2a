from . import figures
from .claims import Claim, check, check_answer, over_seeds, rank_correlation
from .lab_slider import LabSlider

__all__ = [
    "Claim",
    "LabSlider",
    "check",
    "check_answer",
    "figures",
    "over_seeds",
    "rank_correlation",
]
