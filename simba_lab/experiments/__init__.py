"""Experiments with many networks, and their results.

`Sweep` over scenario, network, settings and mitigation; `Comparison` of strategies over hospitals;
both keep every row, so that they resume. Stored tables, and the dose-response surface over them.
"""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
