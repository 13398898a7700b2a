from . import (
    auditing,
    book,
    core,
    experiments,
    federation,
    interpretation,
    scans,
    synthesis,
    training,
)
from .auditing.network_audit import audit
from .core.cohort import Cohort
from .core.compute import Compute
from .core.errors import SimbaError
from .experiments.sweep import Sweep
from .interpretation import attribution, interventions, probes
from .interpretation.attribution.maps import attribute
from .interpretation.geometry import components
from .interpretation.hooks import edit
from .interpretation.interventions.encoding_against_use import encoding_and_use
from .interpretation.interventions.erasure import erase
from .interpretation.interventions.interchanges import interchange
from .interpretation.layer_table import layers
from .interpretation.probes.ease import learning_curve
from .interpretation.probes.probing import probe
from .interpretation.recording import record
from .interpretation.similarity import cka
from .scans.bids_export import export_bids
from .scans.planting.verb import plant
from .scans.readers import read_bids
from .scans.saving import save_cohort
from .scans.stores import open_cohort
from .synthesis.anatomy.template import load_template
from .synthesis.effects import Intensity, Morphology, Normal
from .synthesis.observer import matched, salience
from .synthesis.scenario import Scenario
from .synthesis.synthetic_cohort import synthesise
from .training.adapted_network import adapt
from .training.config import FitConfig
from .training.disparities import disparity
from .training.fitting import fit, fit_pair
from .training.metrics import evaluate
from .training.networks import SimBANet
from .training.predictions import logits
from .training.twin_effects import twin_effect

__version__: str

__all__ = [
    "Cohort",
    "Compute",
    "FitConfig",
    "Intensity",
    "Morphology",
    "Normal",
    "Scenario",
    "SimBANet",
    "SimbaError",
    "Sweep",
    "adapt",
    "attribute",
    "attribution",
    "audit",
    "auditing",
    "book",
    "cka",
    "components",
    "core",
    "disparity",
    "edit",
    "encoding_and_use",
    "erase",
    "evaluate",
    "experiments",
    "export_bids",
    "federation",
    "fit",
    "fit_pair",
    "interchange",
    "interpretation",
    "interventions",
    "layers",
    "learning_curve",
    "load_template",
    "logits",
    "matched",
    "open_cohort",
    "plant",
    "probe",
    "probes",
    "read_bids",
    "record",
    "salience",
    "save_cohort",
    "scans",
    "synthesis",
    "synthesise",
    "training",
    "twin_effect",
]
