from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest, rice

import simba_lab as sb
from simba_lab.synthesis.rendering.scanner import (
    BACKGROUND,
    Scanner,
    field_basis,
    field_terms,
    noise_key,
)

LATTICE = sb.core.Lattice((30, 32, 34), 4.0, (-60.0, -64.0, -50.0))


@pytest.fixture
def tissue():
    return np.clip(
        gaussian_filter(np.random.default_rng(0).random(LATTICE.shape), 2) * 4 - 1.5, 0, 1
    ).astype(np.float32)


def scanned(tissue, scanner, seed=0, subject=1):
    return scanner.signal(tissue.copy(), LATTICE, noise_key(seed, subject))


def test_kernel_equals_the_plain_version(template, tissue):
    scanner = Scanner(contrast=1.3, gamma=0.8, pivot=0.6)
    scanner = scanner.with_effect(sb.Intensity("bias_field", 0.2), 1.5, template)
    plain = scanner.signal_at(tissue, LATTICE.points_mm(), np.random.default_rng(0))
    np.testing.assert_allclose(scanned(tissue, scanner), plain, atol=2e-6)


def test_noise_is_rician(tissue):
    flat = np.full_like(tissue, 0.5)
    noisy = scanned(flat, Scanner(noise=0.1)).ravel()
    assert kstest(noisy[::7], rice(5, scale=0.1).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(noisy[1:], noisy[:-1])[0, 1]) < 0.02


def test_noise_belongs_to_the_voxel_and_the_subject(tissue):
    """Another anatomy does not change the noise of a voxel; another subject or seed does."""
    flat, half = np.full_like(tissue, 0.5), np.full_like(tissue, 0.5)
    half[:10] = 0
    quiet = Scanner(noise=0.1)
    np.testing.assert_array_equal(scanned(flat, quiet)[10:], scanned(half, quiet)[10:])
    scans = [scanned(flat, quiet, 1, 1), scanned(flat, quiet, 0, 2)]
    assert all(
        abs(np.corrcoef(scanned(flat, quiet).ravel(), scan.ravel())[0, 1]) < 0.02 for scan in scans
    )


def test_background_stays_background(tissue):
    loud = Scanner(noise=0.3, contrast=2.0, gamma=0.5)
    background = tissue <= BACKGROUND
    np.testing.assert_array_equal(scanned(tissue, loud)[background], tissue[background])


def test_contrast_multiplies_the_spread_and_keeps_the_pivot(template):
    scanner = Scanner(pivot=0.5).with_effect(sb.Intensity("contrast", 0.2), 2.0, template)
    values = np.full(LATTICE.shape, 0.5, np.float32)
    values[0], values[1] = 0.4, 0.6
    result = scanned(values, scanner)
    assert result[2, 0, 0] == pytest.approx(0.5, abs=1e-6)
    assert result[1, 0, 0] - result[0, 0, 0] == pytest.approx(0.2 * 1.2**2, rel=1e-5)


def test_field_has_the_strength_that_was_set(template):
    scanner = Scanner().with_effect(sb.Intensity("bias_field", 0.1), 2.0, template)
    points = np.argwhere(template.brain).T * 1.0 + np.reshape(template.lattice.origin_mm, (3, 1))
    log_field = np.tensordot(scanner.bias_field, field_terms(points), axes=1)
    assert log_field.std() == pytest.approx(0.2, rel=0.03)
    assert log_field.mean() == pytest.approx(0, abs=0.01)
    fields = field_basis(template) @ field_terms(points)
    np.testing.assert_allclose(np.cov(fields), np.eye(9), atol=0.05)


def test_blur_widens_a_point_by_what_was_set(template):
    point = np.zeros(LATTICE.shape, np.float32)
    point[15, 16, 17] = 1
    blurred = scanned(point, Scanner().with_effect(sb.Intensity("blur", 6.0), 2.0, template))
    offsets = (np.arange(LATTICE.shape[0]) - 15) * LATTICE.spacing_mm
    variance = (blurred.sum(axis=(1, 2)) * offsets**2).sum() / blurred.sum()
    assert 2.3548 * np.sqrt(variance) == pytest.approx(12.0, rel=0.05)


def test_effects_of_a_kind_add_up_as_physics_says(template):
    scanner = Scanner(noise=0.03)
    for kind, field, strength in (("noise", "noise", 0.04), ("blur", "blur_mm", 5.0)):
        once = scanner.with_effect(sb.Intensity(kind, strength), 1.0, template)
        assert getattr(once, field) == pytest.approx(np.hypot(getattr(scanner, field), strength))
        assert scanner.with_effect(sb.Intensity(kind, strength), -1.0, template) == scanner
    twice = scanner.with_effect(sb.Intensity("gamma", 0.2), 1.0, template).with_effect(
        sb.Intensity("gamma", 0.2), 1.0, template
    )
    assert twice.gamma == pytest.approx(1.44)
    undone = replace(twice, gamma=1.44).with_effect(sb.Intensity("gamma", 0.2), -2.0, template)
    assert undone.gamma == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["contrast", "gamma", "bias_field", "noise", "blur"])
def test_each_kind_shows_in_a_cohort_and_only_in_its_group(scenario, kind):
    strength = 4.0 if kind == "blur" else 0.1
    bias = sb.Intensity(kind, strength, prevalence={"disease": 0.5, "control": 0.5})
    cohort = sb.synthesise(scenario.replace(subjects=16, bias=bias), seed=2)
    difference = (
        np.abs(cohort.arrays() - cohort.twin(without="bias").arrays())
        .reshape(len(cohort), -1)
        .max(axis=1)
    )
    shows = (cohort["bias"] == 1) & (
        (cohort["bias_magnitude"] > 0) | (kind not in ("noise", "blur"))
    )
    np.testing.assert_array_equal(difference > 0, shows)
    carrier = int(np.flatnonzero(shows)[0])
    assert cohort.changed(carrier, "bias").any() == (
        kind != "noise"
    )  # noise changes no expectation worth the name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sharpness", 1.0), "kind"),
        (("contrast", 0.0), "not 0 for contrast"),
        (("blur", -1.0), "from 0 to 20"),
        (("noise", float("nan")), "strength"),
    ],
)
def test_bad_intensities_are_refused(arguments, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.Intensity(*arguments)
