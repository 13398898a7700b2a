"""Planted marks in words that a reader knows who never saw the lab."""

from __future__ import annotations

from simba_lab.synthesis.effects import Effect, Morphology


def mark_in_words(effect: Effect) -> str:
    """Return a mark as a phrase: what changes in a scan, and by how much."""
    if isinstance(effect, Morphology):
        verb = "grows" if effect.amplitude_mm > 0 else "shrinks"
        return f"{effect.region} {verb} by {abs(effect.amplitude_mm):g} mm"
    return f"{effect.kind.replace('_', ' ')} of the image, strength {effect.strength:g}"
