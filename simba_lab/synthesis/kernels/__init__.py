"""Inner loops, compiled by Numba; the only place that imports it."""
