from .audit import erasure_audit
from .concept_activation import tcav
from .encoding_against_use import encoding_and_use
from .erasure import Erasure, erase, leace
from .exchanged_parts import Blocks, Channels, Regions
from .interchanges import interchange

__all__ = [
    "Blocks",
    "Channels",
    "Erasure",
    "Regions",
    "encoding_and_use",
    "erase",
    "erasure_audit",
    "interchange",
    "leace",
    "tcav",
]
