"""Other people's images, and cohorts on disk.

Readers of BIDS, tables and SimBA's published cohorts; stores and BIDS export; `planting` puts an
effect into somebody's own scan.
"""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
