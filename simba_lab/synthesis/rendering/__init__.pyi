from . import cpu, deformation, flows, gpu, scanner, volume_cache

__all__ = ["cpu", "deformation", "flows", "gpu", "scanner", "volume_cache"]
