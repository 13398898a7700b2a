"""SimBA Lab: make brains whose bias is known exactly, and find out where networks keep it.

The main verbs are exported here, the others under their rooms, such as `sb.attribution.compare`.
Names are loaded when they are used.
"""

from simba_lab.core.border import attach_stub

_lazy, __dir__, __all__ = attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("simba-lab")
        except PackageNotFoundError:  # used from a source tree that is not installed
            return "0"
    return _lazy(name)
