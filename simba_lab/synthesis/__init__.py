"""Make brains whose bias is known exactly.

From the template (`anatomy`) over effects, scenario and design to the cohort, whose volumes
`rendering` makes; `observer` says how visible an effect is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
