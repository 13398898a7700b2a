from .clients import LocalClient, SiteError, VisitConfig
from .plan import Ledger, Plan
from .scanner_swap import scanned_at, site_effects, site_uptake
from .sites import Federation, Site, hospitals, open_site, save_sites, study_sites, with_scanners
from .strategies import Step, fedavg, fedprox, fedtm, follow, harmonised, local, travelling
from .study import Study
from .travel_log import TravelLog

__all__ = [
    "Federation",
    "Ledger",
    "LocalClient",
    "Plan",
    "Site",
    "SiteError",
    "Step",
    "Study",
    "TravelLog",
    "VisitConfig",
    "fedavg",
    "fedprox",
    "fedtm",
    "follow",
    "harmonised",
    "hospitals",
    "local",
    "open_site",
    "save_sites",
    "scanned_at",
    "site_effects",
    "site_uptake",
    "study_sites",
    "travelling",
    "with_scanners",
]
