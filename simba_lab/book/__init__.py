"""What the chapters need beside the method: claims, sliders, figures.

A claim is checked whenever its chapter is executed; a `LabSlider` needs no kernel on a page.
"""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
