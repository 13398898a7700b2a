"""A cohort over hospitals with different scanners, and strategies to train on them.

Sites and their scanners; strategies as iterators of steps over clients, here or at sites on other
machines (`flare`); the ledger from which a training resumes, and the log of a journey.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
