"""A cohort over hospitals with different scanners, and strategies to train on them.

Sites and their scanners; strategies as iterators of steps over clients, here or at sites on other
machines (`flare`); the ledger from which a training resumes, and the log of a journey.
"""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
