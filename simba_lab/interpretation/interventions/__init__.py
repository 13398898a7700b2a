"""What is used: activations exchanged and erased while the network runs."""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
