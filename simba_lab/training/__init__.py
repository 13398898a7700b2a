"""Train networks on cohorts and judge them."""

from simba_lab.training.config import FitConfig
from simba_lab.training.dose_response import Surface, fit_surface, ideal_shift
from simba_lab.training.evaluation import calibration, disparity, evaluate, logits
from simba_lab.training.fitting import Pair, fit, fit_pair
from simba_lab.training.mitigation import BiasGroupModels, GroupDRO, Resampling, Reweighing, TwinConsistency
from simba_lab.training.networks import GroupRouted, ResNet3D, SimBANet
from simba_lab.training.objective import Mitigation
from simba_lab.training.runs import Run
from simba_lab.training.speed import fastest
from simba_lab.training.twins import twin_effect, twin_logits, twin_table
from simba_lab.training.unlearning import AdversarialUnlearning

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
