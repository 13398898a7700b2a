"""Train networks on cohorts and judge them."""

from simba_lab.training.config import FitConfig
from simba_lab.training.dose_response import Surface, fit_surface, ideal_shift
from simba_lab.training.evaluation import calibration, disparity, evaluate, logits, twin_effect, twin_logits, twin_table
from simba_lab.training.fitting import Pair, fastest, fit, fit_pair
from simba_lab.training.mitigation import (
    AdversarialUnlearning,
    BiasGroupModels,
    GroupDRO,
    Mitigation,
    Resampling,
    Reweighing,
    TwinConsistency,
)
from simba_lab.training.networks import GroupRouted, ResNet3D, SimBANet
from simba_lab.training.runs import Run

__all__ = [
    "AdversarialUnlearning",
    "BiasGroupModels",
    "FitConfig",
    "GroupDRO",
    "GroupRouted",
    "Mitigation",
    "Pair",
    "ResNet3D",
    "Resampling",
    "Reweighing",
    "Run",
    "SimBANet",
    "Surface",
    "TwinConsistency",
    "calibration",
    "disparity",
    "evaluate",
    "fastest",
    "fit",
    "fit_pair",
    "fit_surface",
    "ideal_shift",
    "logits",
    "twin_effect",
    "twin_logits",
    "twin_table",
]
