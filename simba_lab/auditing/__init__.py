"""Audits of somebody's network, or of any tool: whether it uses a shortcut."""

from simba_lab.core.border import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
