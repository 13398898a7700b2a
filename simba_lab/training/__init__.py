"""Train networks on cohorts and judge them.

Networks, fits that are remembered, a file per remedy in `mitigation`; then rates, calibration,
disparities, and the effects of twins.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
