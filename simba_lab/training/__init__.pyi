from .config import FitConfig
from .disparities import disparity
from .fitting import Pair, fit, fit_pair
from .metrics import calibration, evaluate
from .mitigation.methods import BiasGroupModels, GroupDRO, Resampling, Reweighing, TwinConsistency
from .mitigation.objective import Mitigation
from .mitigation.unlearning import AdversarialUnlearning
from .networks import GroupRouted, ResNet3D, SimBANet
from .predictions import logits
from .run import Run
from .speed import fastest
from .twins import twin_effect, twin_logits, twin_table

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
    "TwinConsistency",
    "calibration",
    "disparity",
    "evaluate",
    "fastest",
    "fit",
    "fit_pair",
    "logits",
    "twin_effect",
    "twin_logits",
    "twin_table",
]
