"""Make brains whose bias is known exactly."""

from simba_lab.synthesis.anatomy import Lattice, Template, load_template
from simba_lab.synthesis.cohort import Cohort, synthesise
from simba_lab.synthesis.effects import Intensity, Morphology, Normal
from simba_lab.synthesis.exchange import (
    CohortDataset,
    Injected,
    export_bids,
    inject,
    read_bids,
    read_simba,
    read_table,
)
from simba_lab.synthesis.morphometry import region_volumes
from simba_lab.synthesis.salience import Salience, salience
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.store import open_cohort, save_cohort
from simba_lab.synthesis.subjects import GaussianProcessSubjects, PCASubjects

__all__ = [
    "Cohort",
    "CohortDataset",
    "GaussianProcessSubjects",
    "Injected",
    "Intensity",
    "Lattice",
    "Morphology",
    "Normal",
    "PCASubjects",
    "Salience",
    "Scenario",
    "Template",
    "export_bids",
    "inject",
    "load_template",
    "open_cohort",
    "read_bids",
    "read_simba",
    "read_table",
    "region_volumes",
    "salience",
    "save_cohort",
    "synthesise",
]
