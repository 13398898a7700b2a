from .canvas import COLOURS, GROUP_COLOURS, picture
from .journeys import strategies, travel
from .layers import (
    alignment,
    arrival,
    encoding_and_use,
    groups_on_axis,
    learning_curves,
    per_layer,
    plane,
    probes,
)
from .results import enrichments, intervals, learning, rates, responses
from .slices import brains, montage, montage_marks, new, outlined, tinted

__all__ = [
    "COLOURS",
    "GROUP_COLOURS",
    "alignment",
    "arrival",
    "brains",
    "encoding_and_use",
    "enrichments",
    "groups_on_axis",
    "intervals",
    "learning",
    "learning_curves",
    "montage",
    "montage_marks",
    "new",
    "outlined",
    "per_layer",
    "picture",
    "plane",
    "probes",
    "rates",
    "responses",
    "strategies",
    "tinted",
    "travel",
]
