"""Make brains whose bias is known exactly.

From the template (`anatomy`) over effects, scenario and design to the cohort, whose volumes
`rendering` makes; `observer` says how visible an effect is.
"""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
