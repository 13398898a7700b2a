"""Experiments with many networks, and their results.

`Sweep` over scenario, network, settings and mitigation; `Comparison` of strategies over hospitals;
both keep every row, so that they resume. Stored tables, and the dose-response surface over them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
