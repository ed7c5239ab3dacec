import numpy as np
import pytest

from hwsearch.latency.interpolate import Surface


@pytest.fixture
def points() -> tuple[np.ndarray, ...]:
    """A product's times: a launch, work, and a wave of 20 % along its width that no roofline has."""
    rng = np.random.default_rng(0)
    features = rng.uniform([4, 6, 6], [11, 9, 11], size=(60, 3))
    return features, *truth(features)


def truth(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Terms of the roofline and times."""
    m, k, n = 2.0**features.T
    terms = np.column_stack([2 * m * k * n, 4 * (m * k + k * n + m * n), 4 * k * n])
    return terms, (5 + terms @ [2e-5, 1e-4, 1e-4]) * np.exp(0.2 * np.sin(features[:, 1] * 2))


def test_it_interpolates_what_a_roofline_cannot_say(points: tuple[np.ndarray, ...]) -> None:
    features, terms, time = points
    surface = Surface(features, terms, time, np.full(60, 1e-3))
    fresh = np.random.default_rng(1).uniform([5, 6.5, 7], [10, 8.5, 10], size=(200, 3))
    terms, time = truth(fresh)
    median, sd = surface(fresh, terms)
    error = np.log(median / time)
    assert np.abs(error).mean() < 0.03
    assert np.abs(np.log(surface.floor(terms) / time)).mean() > 0.08
    assert (np.abs(error) < 3 * sd).mean() > 0.95


def test_leaving_points_out_is_what_a_fit_without_them_says(points: tuple[np.ndarray, ...]) -> None:
    features, terms, time = points
    doubt = np.full(60, 0.01)
    whole = Surface(features, terms, time, doubt)
    gone = np.zeros(60, bool)
    gone[[3, 17]] = True
    error, sd = whole.without(gone)
    rest = Surface(*(x[~gone] for x in (features, terms, time, doubt)), hyper=whole.hyper)
    # The same roofline as the whole's, so that the processes can be compared.
    rest._roofline, rest._offset = whole._roofline, whole._offset
    rest._residual = whole._residual[~gone]
    rest._weights = rest._inverse @ rest._residual
    median, spread = rest(features[gone], terms[gone])
    assert error == pytest.approx(np.log(median / time[gone]), abs=1e-6)
    assert whole.hyper is not None
    assert sd == pytest.approx(np.sqrt(spread**2 + whole.hyper.noise**2 + doubt[gone] ** 2), rel=1e-6)


def test_far_away_it_is_the_roofline_and_says_so(points: tuple[np.ndarray, ...]) -> None:
    features, terms, time = points
    surface = Surface(features, terms, time, np.full(60, 1e-3))
    outside = np.array([[60.0, 7.0, 8.0]])
    terms, _ = truth(outside)
    median, sd = surface(outside, terms)
    assert median == pytest.approx(surface.floor(terms) * np.exp(surface._offset), rel=0.02)
    assert sd > 5 * surface(features[:1], truth(features[:1])[0])[1]
    assert not surface.inside(outside).any()
    assert surface.away(outside) == pytest.approx(60.0 - features[:, 0].max())
    assert surface.inside(features).all()


def test_a_few_points_make_a_roofline_with_a_wide_interval() -> None:
    features = np.array([[4.0, 6.0, 6.0], [8.0, 6.0, 6.0]])
    terms, time = truth(features)
    surface = Surface(features, terms, time, np.full(2, 1e-3))
    assert surface.hyper is None
    median, sd = surface(features, terms)
    assert median == pytest.approx(time, rel=0.3)
    assert (sd >= 0.3).all()
