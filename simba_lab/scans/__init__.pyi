from .bids import export_bids
from .datasets import CohortDataset
from .injection import Injected, inject
from .scan_cohort import ScanCohort
from .stores import open_cohort, save_cohort
from .tables import read_bids, read_simba, read_table

__all__ = [
    "CohortDataset",
    "Injected",
    "ScanCohort",
    "export_bids",
    "inject",
    "open_cohort",
    "read_bids",
    "read_simba",
    "read_table",
    "save_cohort",
]
