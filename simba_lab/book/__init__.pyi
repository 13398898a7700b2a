from . import figures
from .claims import Claim, check, check_answer
from .lab_slider import LabSlider

__all__ = ["Claim", "LabSlider", "check", "check_answer", "figures"]
