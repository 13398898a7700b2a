"""Find where the bias is encoded and whether it is used.

`record` makes the Gram matrices of a network's layers. `probes` say what is encoded, `attribution`
what the network looks at, `interventions` what it uses.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
