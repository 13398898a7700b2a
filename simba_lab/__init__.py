"""SimBA Lab: make brains whose bias is known exactly, train networks on them, and find out where the bias lives."""

from importlib.metadata import PackageNotFoundError, version

from simba_lab.claims import Claim, check, check_answer, over_seeds
from simba_lab.errors import FoldingError, SimbaError, TemplateError, UnknownNameError
from simba_lab.interpretation import Attribution, attribute, probe, record
from simba_lab.synthesis import (
    Cohort,
    CohortDataset,
    GaussianProcessSubjects,
    Injected,
    Intensity,
    Lattice,
    Morphology,
    Normal,
    PCASubjects,
    Salience,
    Scenario,
    Template,
    export_bids,
    inject,
    load_template,
    open_cohort,
    read_bids,
    read_simba,
    read_table,
    region_volumes,
    salience,
    save_cohort,
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
    "CohortDataset",
    "FitConfig",
    "FoldingError",
    "GaussianProcessSubjects",
    "Injected",
    "Intensity",
    "LabSlider",
    "Lattice",
    "Morphology",
    "Normal",
    "PCASubjects",
    "Run",
    "Salience",
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
    "export_bids",
    "fit",
    "inject",
    "load_template",
    "logits",
    "open_cohort",
    "over_seeds",
    "probe",
    "read_bids",
    "read_simba",
    "read_table",
    "record",
    "region_volumes",
    "salience",
    "save_cohort",
    "synthesise",
    "twin_effect",
]
