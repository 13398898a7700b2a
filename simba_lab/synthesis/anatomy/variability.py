"""The models of healthy anatomy that a scenario may use, interchangeably."""

from __future__ import annotations

from simba_lab.synthesis.anatomy.gaussian_process import GaussianProcessSubjects
from simba_lab.synthesis.anatomy.pca import PCASubjects

Variability = GaussianProcessSubjects | PCASubjects
