"""Cohorts, intervals, fingerprints, random numbers and files: what every room stands on.

This room knows no brain, and of networks only how to call any. What a result follows from is a
digest of values and code (`fingerprint`, `sources`); a result is kept by that digest, and found
again (`remember`).
"""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
