"""From a scenario to volumes: deformations, effects, scanner, rendering on processor and GPU."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["deformation"])
