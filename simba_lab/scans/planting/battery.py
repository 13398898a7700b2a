"""A battery of marks for a first audit: five of scanners, three of anatomy."""

from __future__ import annotations

from simba_lab.synthesis.effects import Effect, Intensity, Morphology, Normal

# Everybody carries a mark as it is set.
ALL = Normal(1.0, 0.0)


def battery(strength: float = 1.0) -> dict[str, Effect]:
    """Return eight marks for a first audit of a network.

    Scanners differ in contrast, gamma, receive field, noise and sharpness; anatomy is marked by a
    region near the middle of the brain that grows, one of the surface that grows, and one that
    shrinks. Strengths at 1 are of the size that two well-kept scanners may differ
    by, and 2.5 mm for anatomy. `audit` says of each mark how much it changes the image beside how
    much two people differ (``image_change``), which is what to compare marks by.

    Parameters
    ----------
    strength : float
        Factor of all strengths and amplitudes.

    Returns
    -------
    dict of str to effect
        For `plant`.

    Raises
    ------
    SimbaError
        If a strength is out of its range.

    Examples
    --------
    >>> import simba_lab as sb
    >>> marks = sb.scans.battery()
    >>> len(marks), marks["contrast"].strength
    (8, 0.1)
    """
    kinds = {"contrast": 0.1, "gamma": 0.1, "bias_field": 0.05, "noise": 0.02, "blur": 4.0}
    regions = {"Putamen_L": 2.5, "Postcentral_R": 2.5, "Hippocampus_L": -2.5}
    scanners = {kind: Intensity(kind, size, magnitude=ALL) for kind, size in kinds.items()}
    anatomy = {
        region.lower(): Morphology(region, size, magnitude=ALL) for region, size in regions.items()
    }
    return {name: mark.scaled(strength) for name, mark in (scanners | anatomy).items()}
