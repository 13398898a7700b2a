"""SimBA Lab: make brains whose bias is known exactly, train networks on them, and find out where the bias lives."""

from importlib.metadata import PackageNotFoundError, version

from simba_lab.claims import Claim, check, check_answer, over_seeds
from simba_lab.errors import FoldingError, SimbaError, TemplateError, UnknownNameError
from simba_lab.interpretation import Attribution, attribute, probe, record
from simba_lab.synthesis import (
    Cohort,
    GaussianProcessSubjects,
    Lattice,
    Morphology,
    Normal,
    Scenario,
    Template,
    load_template,
    synthesise,
)
from simba_lab.training import FitConfig, Run, SimBANet, disparity, evaluate, fit, logits, twin_effect
from simba_lab.widgets import LabSlider

try:
    __version__ = version("simba-lab")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0"

__all__ = [
    "Attribution",
    "Claim",
    "Cohort",
    "FitConfig",
    "FoldingError",
    "GaussianProcessSubjects",
    "LabSlider",
    "Lattice",
    "Morphology",
    "Normal",
    "Run",
    "Scenario",
    "SimBANet",
    "SimbaError",
    "Template",
    "TemplateError",
    "UnknownNameError",
    "attribute",
    "check",
    "check_answer",
    "disparity",
    "evaluate",
    "fit",
    "load_template",
    "logits",
    "over_seeds",
    "probe",
    "record",
    "synthesise",
    "twin_effect",
]
