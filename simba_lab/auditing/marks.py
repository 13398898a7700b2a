"""Planted marks in words that a reader knows who never saw the lab, and how much they change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simba_lab.core.cohort import TwinCohort
from simba_lab.synthesis.effects import Effect, Morphology


def mark_in_words(effect: Effect) -> str:
    """Return a mark as a phrase: what changes in a scan, and by how much."""
    if isinstance(effect, Morphology):
        verb = "grows" if effect.amplitude_mm > 0 else "shrinks"
        return f"{effect.region} {verb} by {abs(effect.amplitude_mm):g} mm"
    return f"{effect.kind.replace('_', ' ')} of the image, strength {effect.strength:g}"


# So many people tell how much two of them differ.
PEOPLE = 16


def image_changes(base: TwinCohort, marks: Sequence[str]) -> list[float]:
    """Return how much each mark changes an image, beside how much two people differ.

    Root mean squares over the voxels of a brain: of the difference that the mark makes, over that
    of the difference of two people.
    """
    people = base.where(np.arange(min(len(base), PEOPLE)))
    images = people.arrays()
    brain = (images > 0).mean(axis=0) > 0.5
    apart = np.square(np.diff(images, axis=0))[:, brain].mean()
    changes = [
        np.square(people.twin(carrying=mark).arrays() - images)[:, brain].mean() for mark in marks
    ]
    return [float(np.sqrt(change / apart)) for change in changes]
