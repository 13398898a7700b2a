"""Named random streams: the same (seed, subject, purpose) gives the same numbers, always.

Philox is counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so
streams with different keys are independent and no stream has to be drawn in order. That is what
makes the bytes of a volume independent of rendering order, batch size and number of workers.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def stream(seed: int, owner: int | str, purpose: str) -> np.random.Generator:
    """Return the random stream of one purpose for one subject, or other owner of draws.

    Parameters
    ----------
    seed : int
        Seed of the cohort.
    owner : int or str
        Whose draws these are: a subject's number, or a word such as ``"cohort"``.
    purpose : str
        What the numbers are for, such as ``"noise"``.

    Returns
    -------
    numpy.random.Generator
        A generator over a Philox bit stream keyed by the three arguments.
    """
    key = blake2b(repr((int(seed), str(owner), purpose)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
