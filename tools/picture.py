"""Draw the picture of the README: a subject, its twin, and what the mark changes.

Usage: python tools/picture.py book/_static/twins.png
"""

import sys

import numpy as np

import simba_lab as sb
from simba_lab.book import figures


def main(path: str) -> None:
    """Write the picture."""
    scenario = sb.Scenario(
        subjects=40,
        spacing_mm=1,
        disease=sb.Morphology("Insula_L", amplitude_mm=2.5),
        bias=sb.Morphology(
            "Putamen_L", amplitude_mm=2.5, prevalence={"disease": 0.8, "control": 0.2}
        ),
    )
    cohort = sb.synthesise(scenario, seed=1)
    index = int(
        np.flatnonzero(
            (cohort["label"] == 1) & (cohort["bias"] == 1) & (cohort["bias_magnitude"] > 1.8)
        )[0]
    )
    subject, twin = cohort.array(index), cohort.twin(without="bias").array(index)
    pictures = {
        "a patient who carries the bias (left putamen)": subject / 1.1,
        "the twin: same anatomy, noise and disease, no bias": twin / 1.1,
        "what the bias changes (orange brighter, blue darker)": figures.tinted(
            subject / 1.1, subject - twin, limit=0.35
        ),
    }
    figure = figures.brains(
        pictures,
        cohort.lattice.affine,
        (-26, 4, 2),
        title="Every bias is known to the voxel",
        columns=1,
    )
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main(sys.argv[1])
