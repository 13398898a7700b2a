from .clients import LocalClient, SiteError, VisitConfig
from .federated_cohort import Federation, hospitals
from .harmony import Harmonisation
from .journeys import harmonised, local, travelling
from .ledger import Ledger
from .plan import Plan
from .privacy import read_policy
from .provisioning import authority, kits, provision
from .scanner_swap import scanned_at, site_effects, site_uptake
from .scanners import with_scanners
from .site_stores import open_site, save_sites
from .sites import Site, study_sites
from .steps import Step, follow
from .strategies import fedavg, fedprox, fedtm
from .study import Study
from .travel_log import TravelLog

__all__ = [
    "Federation",
    "Harmonisation",
    "Ledger",
    "LocalClient",
    "Plan",
    "Site",
    "SiteError",
    "Step",
    "Study",
    "TravelLog",
    "VisitConfig",
    "authority",
    "fedavg",
    "fedprox",
    "fedtm",
    "follow",
    "harmonised",
    "hospitals",
    "kits",
    "local",
    "open_site",
    "provision",
    "read_policy",
    "save_sites",
    "scanned_at",
    "site_effects",
    "site_uptake",
    "study_sites",
    "travelling",
    "with_scanners",
]
