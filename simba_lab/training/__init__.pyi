from .adapted_network import AdaptedNetwork, adapt
from .config import FitConfig
from .disparities import disparity
from .fitting import Pair, fit, fit_pair
from .group_routed import GroupRouted
from .metrics import calibration, evaluate
from .mitigation.adversarial_unlearning import AdversarialUnlearning
from .mitigation.group_dro import GroupDRO
from .mitigation.group_models import BiasGroupModels
from .mitigation.objective import Mitigation
from .mitigation.resampling import Resampling
from .mitigation.reweighing import Reweighing
from .mitigation.twin_consistency import TwinConsistency
from .networks import ResNet3D, SimBANet
from .predictions import logits
from .run import Run
from .scaling import Scaling
from .speed import fastest
from .targets import Target
from .twin_effects import twin_effect, twin_logits, twin_table

__all__ = [
    "AdaptedNetwork",
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
    "Scaling",
    "SimBANet",
    "Target",
    "TwinConsistency",
    "adapt",
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
