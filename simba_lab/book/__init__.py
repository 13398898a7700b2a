"""What the chapters need beside the method: claims, sliders, figures.

A claim is checked whenever its chapter is executed; a `LabSlider` needs no kernel on a page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
