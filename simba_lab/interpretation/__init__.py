"""Find where the bias is encoded and whether it is used.

`record` makes the Gram matrices of a network's layers. `probes` say what is encoded, `attribution`
what the network looks at, `interventions` what it uses.
"""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
