"""Many hospitals: a cohort split over sites with scanners of their own, and strategies that train across them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
