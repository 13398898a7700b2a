from .change_along_bias import split_change
from .comparison import compare
from .infidelity import faithfulness
from .maps import Attribution, attribute
from .methods.gradient_based import InputXGradient, IntegratedGradients, Saliency, SmoothGrad
from .methods.layer_based import DeepLift, GradCAM, GuidedBackprop, GuidedGradCAM
from .methods.perturbation_based import Occlusion, Shapley
from .randomisation import sanity_checks
from .template_space import aligned, group_map

__all__ = [
    "Attribution",
    "DeepLift",
    "GradCAM",
    "GuidedBackprop",
    "GuidedGradCAM",
    "InputXGradient",
    "IntegratedGradients",
    "Occlusion",
    "Saliency",
    "Shapley",
    "SmoothGrad",
    "aligned",
    "attribute",
    "compare",
    "faithfulness",
    "group_map",
    "sanity_checks",
    "split_change",
]
