from . import rendering
from .anatomy.gaussian_process import GaussianProcessSubjects
from .anatomy.pca import PCASubjects
from .anatomy.template import Template, load_template
from .effects import Intensity, Morphology, Normal
from .morphometry import region_volumes
from .observer import Salience, matched, salience
from .scenario import Scenario
from .synthetic_cohort import SyntheticCohort, synthesise

__all__ = [
    "SyntheticCohort",
    "GaussianProcessSubjects",
    "Intensity",
    "Morphology",
    "Normal",
    "PCASubjects",
    "Salience",
    "Scenario",
    "Template",
    "load_template",
    "matched",
    "region_volumes",
    "rendering",
    "salience",
    "synthesise",
]
