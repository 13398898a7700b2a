"""Train networks on cohorts and judge them.

Networks, fits that are remembered, a file per remedy in `mitigation`; then rates, calibration,
disparities, and the effects of twins.
"""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
