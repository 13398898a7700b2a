from .audit import erasure_audit
from .concepts import tcav
from .encoding_against_use import encoding_and_use
from .erasure import Erasure, erase, leace
from .interchanges import interchange

__all__ = ["Erasure", "encoding_and_use", "erase", "erasure_audit", "interchange", "leace", "tcav"]
