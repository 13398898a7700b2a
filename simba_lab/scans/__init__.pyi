from .bids_export import export_bids
from .bids_images import BidsImages
from .checking.verb import ScanChecks, check_scans
from .datasets import CohortDataset
from .planting.battery import battery
from .planting.injection import Injected, inject
from .planting.itk_transforms import itk_transforms
from .planting.placement import DisplacementField
from .planting.planted_cohort import PlantedCohort
from .planting.planted_images import export_planted
from .planting.verb import plant
from .preparation import Preparation
from .readers import TableImages, read_bids, read_simba, read_table
from .saving import save_cohort
from .scan_cohort import ScanCohort
from .stores import Store, open_cohort

__all__ = [
    "BidsImages",
    "CohortDataset",
    "DisplacementField",
    "Injected",
    "PlantedCohort",
    "Preparation",
    "ScanChecks",
    "ScanCohort",
    "Store",
    "TableImages",
    "battery",
    "check_scans",
    "export_bids",
    "export_planted",
    "inject",
    "itk_transforms",
    "open_cohort",
    "plant",
    "read_bids",
    "read_simba",
    "read_table",
    "save_cohort",
]
