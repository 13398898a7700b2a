import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import simba_lab as sb
from simba_lab.synthesis.observer import _d_prime, _population

FEW = {"subjects": 200}


@pytest.fixture(scope="module")
def quiet(scenario):
    """One anatomy and almost no disease: only the effect and the noise differ."""
    still = sb.synthesis.GaussianProcessSubjects((60.0,), (0.0,))
    faint = sb.Morphology("Insula_L", 1e-6, magnitude=sb.Normal(1.0, 0.0))
    return scenario.replace(variability=still, disease=faint, bias=None, bias_field=0, noise=0.1)


def test_equals_the_textbook_where_only_white_noise_differs(quiet):
    """Known signal in white noise: d' is the size of the signal over the deviation of the noise."""
    effect = sb.Morphology("Putamen_L", 1.0, magnitude=sb.Normal(1.0, 0.0))
    cohort = sb.synthesise(quiet.replace(bias=effect), seed=0)
    signal = cohort.twin(carrying="bias").clean(0) - cohort.twin(without="bias").clean(0)
    expected = np.linalg.norm(signal) / quiet.noise
    measured = sb.salience(effect, quiet, **FEW)
    assert 0.8 * measured.low < expected < 1.2 * measured.high
    assert measured.d_prime == pytest.approx(expected, rel=0.2)


def test_grows_with_the_amplitude_and_is_near_zero_without(scenario):
    effects = [sb.Morphology("Putamen_L", amplitude) for amplitude in (0.01, 0.5, 2.0)]
    faint, small, large = (sb.salience(effect, scenario, **FEW) for effect in effects)
    assert abs(faint.d_prime) < 0.1
    assert faint.high < small.d_prime < large.d_prime
    assert large.low < large.d_prime < large.high


def test_spread_of_magnitudes_bounds_it(scenario):
    """Carriers N(2, 1), others 0: no observer does better than 2 / sqrt(1 / 2)."""
    assert (
        sb.salience(sb.Intensity("contrast", 0.5), scenario, **FEW).d_prime < 2 * np.sqrt(2) * 1.15
    )


def test_anatomy_hides_effects(scenario):
    effect = sb.Morphology("Putamen_L", 0.5)
    still = scenario.replace(
        variability=sb.synthesis.GaussianProcessSubjects((60.0, 20.0), (0.1, 0.1))
    )
    assert (
        sb.salience(effect, still, **FEW).d_prime
        > 1.3 * sb.salience(effect, scenario, **FEW).d_prime
    )


def test_matching_finds_what_it_was_asked_for(scenario):
    for effect in (sb.Morphology("Postcentral_R", 1.0), sb.Intensity("contrast", 0.02)):
        matched = sb.matched(effect, d_prime=1.0, scenario=scenario, **FEW)
        assert sb.salience(matched, scenario, **FEW).d_prime == pytest.approx(1.0, rel=0.015)
        assert type(matched) is type(effect)


def test_sizes_do_not_depend_on_the_threads_of_the_algebra(scenario):
    effect, sizes = sb.Intensity("contrast", 0.02), []
    for threads in (1, 2, 4):
        _population.cache_clear()
        with threadpool_limits(threads, user_api="blas"):
            sizes.append(sb.matched(effect, d_prime=1.0, scenario=scenario, **FEW))
    assert sizes[0] == sizes[1] == sizes[2]


def test_disease_is_between_classes(scenario):
    assert (
        0.2 < sb.salience("disease", scenario, **FEW).d_prime < 2.3
    )  # N(1, 1) against N(-1, 1): at most 2


def test_d_prime_of_known_scores():
    rng = np.random.default_rng(0)
    assert _d_prime(rng.normal(0, 2, 100_000), rng.normal(3, 2, 100_000)) == pytest.approx(
        1.5, abs=0.03
    )
    assert _d_prime(np.ones(5), np.ones(5)) == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: sb.salience("putamen", s), "effect"),
        (lambda s: sb.salience(3.0, s), "Morphology"),
        (lambda s: sb.salience("bias", s, subjects=10), "at least 100"),
        (lambda s: sb.salience("bias", s.replace(spacing_mm=1)), "at 1 mm"),
        (lambda s: sb.matched(sb.Intensity("contrast", 0.1), d_prime=-1, scenario=s), "d_prime"),
    ],
)
def test_bad_requests_are_refused(scenario, call, says):
    with pytest.raises(sb.SimbaError, match=says):
        call(scenario)


def test_what_cannot_be_reached_is_refused(scenario):
    with pytest.raises(sb.SimbaError, match="at most"):
        sb.matched(sb.Morphology("Amygdala_L", 2.0), d_prime=15.0, scenario=scenario, **FEW)
