"""Every plot of the book. Functions return a Figure and never show it; pictures of brains mark left and right."""

from simba_lab.figures.brains import brains, montage, montage_marks, outlined, tinted
from simba_lab.figures.canvas import COLOURS, GROUP_COLOURS, new, picture
from simba_lab.figures.layers import (
    alignment,
    arrival,
    encoding_and_use,
    groups_on_axis,
    learning_curves,
    per_layer,
    plane,
    probes,
)
from simba_lab.figures.results import enrichments, intervals, learning, rates, responses
from simba_lab.figures.travel import strategies, travel

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
