"""Federation: a cohort over hospitals with different scanners, and strategies to train on them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
