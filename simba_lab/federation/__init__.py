"""Many hospitals: a cohort split over sites with scanners of their own, and strategies that train across them."""

from simba_lab.federation.clients import LocalClient, SiteError, VisitConfig
from simba_lab.federation.comparison import Comparison
from simba_lab.federation.elsewhere import scanned_at, site_effects, site_uptake
from simba_lab.federation.plan import Ledger, Plan
from simba_lab.federation.sites import Federation, Site, hospitals, open_site, save_sites, study_sites, with_scanners
from simba_lab.federation.strategies import Step, fedavg, fedprox, fedtm, follow, harmonised, local, travelling
from simba_lab.federation.study import Study
from simba_lab.federation.travel_log import TravelLog

__all__ = [
    "Comparison",
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
