from .anatomy.gaussian_process import GaussianProcessSubjects
from .anatomy.modes import subject_lattice
from .anatomy.pca import PCASubjects
from .anatomy.template import Template, load_template
from .anatomy.template_files import TemplateFiles
from .design import design_table
from .effects import Intensity, Morphology, Normal
from .morphometry import population_volumes, region_volumes
from .observer import Salience, matched, salience
from .rendering import deformation
from .rendering.flows import local_flow
from .rendering.renderer import clear_cache
from .rendering.scanner import Scanner, field_basis, noise_key
from .scenario import Scenario
from .synthetic_cohort import SyntheticCohort, synthesise

__all__ = [
    "GaussianProcessSubjects",
    "Intensity",
    "Morphology",
    "Normal",
    "PCASubjects",
    "Salience",
    "Scanner",
    "Scenario",
    "SyntheticCohort",
    "Template",
    "TemplateFiles",
    "clear_cache",
    "deformation",
    "design_table",
    "field_basis",
    "load_template",
    "local_flow",
    "matched",
    "noise_key",
    "population_volumes",
    "region_volumes",
    "salience",
    "subject_lattice",
    "synthesise",
]
