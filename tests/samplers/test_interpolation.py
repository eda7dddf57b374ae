import numpy as np
import pytest

from hold_jax.samplers.interpolation import INTERPOLATIONS

RNG = np.random.default_rng(0)
# Two steps with three nodes each, in log noise; measures of any sign with two components.
NODES = np.array([[1.0, 1.6, 2.5], [-0.3, 0.1, 0.9]])
ENDS = np.stack([NODES[:, 0], NODES[:, 0] - np.array([0.7, 1.1])], axis=1)
PLACES = np.polynomial.legendre.leggauss(16)[0]
POINTS = ENDS.mean(axis=1, keepdims=True) + np.diff(ENDS, axis=1) / 2 * PLACES
MEASURE = RNG.standard_normal((2, 16, 2))


def weights(name, count):
    return INTERPOLATIONS[name](NODES[:, :count], ENDS, POINTS, MEASURE)


def integral(values):
    """int f d omega for f (N, K) at the points: (N, n)."""
    return np.einsum("ig,ign->in", values, MEASURE)


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_constant_is_integrated_exactly(count, name):
    np.testing.assert_allclose(weights(name, count).sum(axis=-1), MEASURE.sum(axis=1), rtol=1e-11)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_polynomial_integrates_polynomials_through_its_nodes(count):
    coefficients = RNG.standard_normal(count)
    f = lambda l: np.polyval(coefficients, l)  # noqa: E731
    got = np.einsum("inp,ip->in", weights("polynomial", count), f(NODES[:, :count]))
    np.testing.assert_allclose(got, integral(f(POINTS)), rtol=1e-10)


def test_midpoint_holds_the_polynomial_at_the_middle_of_the_step():
    f = lambda l: 2 - 3 * l  # noqa: E731
    got = np.einsum("inp,ip->in", weights("midpoint", 2), f(NODES[:, :2]))
    np.testing.assert_allclose(got, f(ENDS.mean(axis=1))[:, None] * MEASURE.sum(axis=1), rtol=1e-12)


def denoiser(log_noise, log_width):
    """Along the flow x = mean + const sqrt(sigma^2 + s^2): D - mean is s^2 / (s^2 + sigma^2) of that."""
    sigma, s = np.exp(log_noise), np.exp(log_width)
    return s / np.sqrt(s**2 + sigma**2)


@pytest.mark.parametrize("count", [2, 3])
def test_gaussian_is_the_least_squares_fit_over_widths(count):
    # By brute force: a fine, wide integral over the widths, and the constraint by a Lagrange multiplier.
    widths = np.linspace(NODES.min() - 12, NODES.max() + 12, 4000)
    for i, got in enumerate(weights("gaussian_fit", count)):
        at_nodes = denoiser(NODES[i, :count, None], widths)
        target = np.einsum("gs,gn->ns", denoiser(POINTS[i][:, None], widths), MEASURE[i])
        normal = np.block([[at_nodes @ at_nodes.T, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
        right = np.concatenate([at_nodes @ target.T, MEASURE[i].sum(axis=0)[None]])
        want = np.linalg.solve(normal, right)[:count].T
        np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())


@pytest.mark.parametrize("count", [2, 3])
def test_gaussian_goes_over_into_the_polynomial_for_small_steps(count):
    # The difference of the weights falls like h^2, so that small steps converge alike.
    differences = []
    for h in (0.2, 0.1, 0.05):
        nodes = h * np.arange(count)[None]
        points = h * (PLACES[None] - 1) / 2
        measure = np.full((1, 16, 1), 1 / 16)
        both = [INTERPOLATIONS[name](nodes, nodes, points, measure) for name in ("gaussian_fit", "polynomial")]
        differences.append(np.abs(both[0] - both[1]).max())
    assert np.log2(np.divide(differences[:-1], differences[1:])) == pytest.approx([2, 2], abs=0.1)
