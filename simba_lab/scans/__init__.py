"""Other people's images, and cohorts on disk.

Readers of BIDS, tables and SimBA's published cohorts; stores and BIDS export; `planting` puts an
effect into somebody's own scan.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
