"""Make brains whose bias is known exactly."""

from simba_lab.synthesis.anatomy import Lattice, Template, load_template
from simba_lab.synthesis.cohort import Cohort, synthesise
from simba_lab.synthesis.effects import Morphology, Normal
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.subjects import GaussianProcessSubjects

__all__ = [
    "Cohort",
    "GaussianProcessSubjects",
    "Lattice",
    "Morphology",
    "Normal",
    "Scenario",
    "Template",
    "load_template",
    "synthesise",
]
