"""The torch path is tested on the CPU device; with a GPU the same tests run there."""

import numpy as np
import pytest
import torch

import simba_lab as sb
from simba_lab.synthesis.rendering.gpu import gpu_renderer

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [None, "contrast", "gamma", "bias_field", "noise", "blur"])
def test_volumes_equal_those_of_the_kernels(scenario, kind, device):
    strength = 4.0 if kind == "blur" else 0.1
    bias = scenario.bias if kind is None else sb.Intensity(kind, strength, prevalence=1.0)
    cohort = sb.synthesise(scenario.replace(subjects=16, bias=bias, spacing_mm=4), seed=1)
    renderer = gpu_renderer(cohort.renderer, torch.device(device))
    for index in (0, 7):
        volume = renderer.volume(cohort.subject(index))
        difference = np.abs(volume - cohort.array(index))
        # At the edge of the brain rounding may decide whether a voxel counts as background.
        assert np.quantile(difference, 0.9999) < 2e-3
        assert (difference > 2e-3).mean() < 1e-4


def test_the_same_call(cohort):
    subjects = cohort.where(np.arange(3))
    np.testing.assert_allclose(subjects.arrays(device="auto"), subjects.arrays(), atol=0.2)
    assert np.median(np.abs(subjects.arrays(device="auto") - subjects.arrays())) < 1e-5


def test_a_device_that_is_not_there_is_one_clear_error(cohort):
    with pytest.raises(sb.SimbaError, match="device must be cpu, auto"):
        next(cohort.volumes(device="cuda:99"))
