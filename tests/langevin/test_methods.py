"""The methods by their exact laws: stationary bias on Gaussian targets, the Metropolis test by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import langevin_law

from hold_jax.errors import UserError
from hold_jax.langevin import METHODS, Dynamics, randomized_midpoint
from hold_jax.langevin.method import Force

CURVATURES = np.array([0.4, 1.0, 4.0])


def bias(name, order, h, curvatures=CURVATURES, **options):
    """Relative errors of the stationary variance, and gradients a step."""
    maps = langevin_law.maps(METHODS[name](**options), Dynamics(order), h, curvatures)
    return langevin_law.stationary(maps)[:, 0, 0] * curvatures - 1, maps.num_gradients


# (order of the bias in h, gradients a step) at n = 1, 2, 3, 4; None: no bias.
EXPECTED = {
    "euler_maruyama": ((1, 1), (1, 1), (1, 1), (1, 1)),
    "exponential_euler": ((1, 1), (1, 1), (1, 1), (1, 1)),
    "lie_trotter": ((1, 1), (2, 1), (2, 1), (2, 1)),
    "strang": ((1, 1), (2, 1), (2, 1), (2, 1)),
    "baoab": ((1, 2), (None, 1), (2, 1), (2, 1)),
    "obabo": ((1, 2), (2, 1), (2, 1), (2, 1)),
    "randomized_midpoint": ((3, 2), (3, 2), (3, 2), (3, 2)),
    "poisson_midpoint": ((1, 1.75), (1, 1.75), (1, 1.75), (1, 1.75)),
    "picard_lagrange": ((2, 2), (3, 2), (3, 2), (4, 5)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_bias_falls_with_the_expected_order(name):
    options = {"K": 4} if name == "poisson_midpoint" else {}
    for order, (slope, gradients) in enumerate(EXPECTED[name], start=1):
        coarse, made = bias(name, order, 0.02, **options)
        fine, _ = bias(name, order, 0.01, **options)
        assert made == pytest.approx(gradients)
        if slope is None:
            np.testing.assert_allclose(coarse, 0, atol=1e-12)
        else:
            np.testing.assert_allclose(np.log2(np.abs(coarse / fine)), slope, atol=0.15)


def test_euler_maruyama_by_hand():
    """The law by plain iteration of the textbook's formula."""
    for order in (1, 2, 3):
        dynamics, h, curvature = Dynamics(order), 0.1, 2.0
        drift = dynamics.linear - np.outer(dynamics.kick, curvature * np.eye(order)[0])
        state, law = np.eye(order) + h * drift, np.zeros((order, order))
        for _ in range(4000):
            law = state @ law @ state.T + h * dynamics.noise @ dynamics.noise.T
        found = langevin_law.maps(METHODS["euler_maruyama"](), dynamics, h, [curvature])
        np.testing.assert_allclose(langevin_law.stationary(found)[0], law, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("order", "least"), [(3, 0.7), (4, 0.5)])
@pytest.mark.parametrize("method", ["baoab", "obabo"])
def test_steps_below_the_limit_of_the_page_are_stable(method, order, least):
    """docs/langevin.md; above it the rotations of the auxiliaries resonate with the force."""

    def maps(h, curvature):
        return langevin_law.maps(METHODS[method](), Dynamics(order), h, [curvature])

    for curvature in (0.5, 2.2, 3.9, 5.9, 9.0, 12.8, 100.0):
        assert np.isfinite(langevin_law.stationary(maps(0.99 * min(least, 1.6 / curvature**0.5), curvature))).all()
    h, curvature = {3: (0.85, 4.0), 4: (0.9, 2.0)}[order]  # below 1.6 / sqrt(curvature)
    assert langevin_law.contraction(maps(h, curvature))[0] < 0


def test_langevin_monte_carlo_is_order_one():
    """ULA's variance on a standard normal, 1 / (1 - h / 2)."""
    for name in ("euler_maruyama", "exponential_euler"):
        np.testing.assert_allclose(bias(name, 1, 0.3, np.ones(1))[0], 1 / (1 - 0.15) - 1, rtol=1e-12)


def test_exact_but_for_the_force():
    """Without a force, every method but Euler-Maruyama has the law of the free dynamics, for any step size."""
    dynamics, h = Dynamics(3), 0.7
    flow = dynamics.flow("U", h)
    for name in ("exponential_euler", "strang", "randomized_midpoint", "poisson_midpoint", "picard_lagrange"):
        found = langevin_law.maps(METHODS[name](), dynamics, h, [0.0])
        np.testing.assert_allclose(found.mean[0], flow.state, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.noise[0], flow.noise @ flow.noise.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_poisson_midpoint_moments(order):
    """The mean and mean square over the clock, against a sum over all 2^(K-1) clocks."""
    method, dynamics = METHODS["poisson_midpoint"](K=4), Dynamics(order)
    mean, square = langevin_law.brute_force_events(method, dynamics, 0.3, 2.0)
    found = langevin_law.maps(method, dynamics, 0.3, [2.0])
    np.testing.assert_allclose(found.mean[0], mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.square[0], square, rtol=1e-12, atol=1e-14)


def test_poisson_midpoint_is_quadratically_better():
    """2405.17068: with K ~ 1 / h the bias is of second order, of first for Langevin Monte Carlo at equal gradients."""
    at = {h: bias("poisson_midpoint", 1, h, np.ones(1), K=round(2 / h)) for h in (0.2, 0.1)}
    lmc = {h: bias("euler_maruyama", 1, h / calls, np.ones(1))[0] for h, (_, calls) in at.items()}
    assert np.log2(at[0.2][0] / at[0.1][0])[0] == pytest.approx(2, abs=0.1)
    assert np.log2(lmc[0.2] / lmc[0.1])[0] == pytest.approx(1, abs=0.15)
    assert at[0.1][0][0] < lmc[0.1][0] / 4


def test_poisson_midpoint_of_one_sub_step_is_exponential_euler():
    for order in (1, 3):
        one = langevin_law.maps(METHODS["poisson_midpoint"](K=1), Dynamics(order), 0.3, CURVATURES)
        euler = langevin_law.maps(METHODS["exponential_euler"](), Dynamics(order), 0.3, CURVATURES)
        for a, b in zip(one, euler, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_midpoints_have_the_moments_of_the_uniform_law():
    nodes, weights = randomized_midpoint._NODES, randomized_midpoint._WEIGHTS
    for k in range(32):
        assert np.sum(weights * nodes**k) == pytest.approx(1 / (k + 1), rel=1e-13)


def _quartic(z):
    return Force(-jnp.sum(z**4), -4 * z**3)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_metropolis_keeps_a_quartic_density(order):
    """E[z'^2] = E[z^2] if z ~ exp(-z^4) and v ~ N(0, I), by quadrature over the state and the noise.

    The step size is so large that without the test the second moment would change by more than a tenth.
    """
    method, dynamics = METHODS["metropolis"](), Dynamics(order)
    h = 0.15 if order == 1 else 0.6
    c = method.coefficients(dynamics, h)
    z = np.linspace(-2.2, 2.2, 221)
    density = np.exp(-(z**4)) / np.exp(-(z**4)).sum()
    points, weights = np.polynomial.hermite_e.hermegauss(61)
    weights = weights / weights.sum()

    # The auxiliaries before the Verlet step are N(0, I); v_1 alone enters it, and it is made from a single normal here.
    flow = np.concatenate([c.state, c.noise], axis=1)
    np.testing.assert_allclose(flow @ flow.T, np.eye(max(1, order - 1)), atol=1e-12)
    direction = flow[0]

    def moved(z, xi):
        u = jnp.concatenate([jnp.asarray([z]), direction[: order - 1] * xi])[:, None]
        noise = jnp.zeros((method.rows(c), 1)).at[: c.noise.shape[1], 0].set(direction[len(c.state) :] * xi)
        start = _quartic(u[0])
        yes = method.step(c, u, start, _quartic, noise, jnp.float64(0))
        no = method.step(c, u, start, _quartic, noise, jnp.float64(2))
        assert yes.acceptance is not None
        plain = yes.u[0, 0] ** 2
        return yes.acceptance * plain + (1 - yes.acceptance) * no.u[0, 0] ** 2, plain, yes.acceptance

    with jax.enable_x64(True):
        grid = jax.jit(jax.vmap(jax.vmap(moved, (None, 0)), (0, None)))
        after, plain, acceptance = (np.asarray(a) for a in grid(jnp.asarray(z), jnp.asarray(points)))
    mean = lambda a: density @ a @ weights  # noqa: E731
    truth = density @ z**2
    assert 0.5 < mean(acceptance) < 0.98
    assert abs(mean(after) - truth) < 2e-3 * truth
    assert abs(mean(plain) - truth) > 2e-2 * truth


def test_metropolis_table_is_its_coefficients():
    for order in (1, 2, 4):
        method, dynamics = METHODS["metropolis"](), Dynamics(order)
        table = jax.jit(method.table(dynamics, 4.0))
        for h in (1e-3, 0.1, 3.0):
            for a, b in zip(table(h), method.coefficients(dynamics, h), strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("poisson_midpoint", {"K": 0}, "`K` is 0; it must be a whole number >= 1"),
        ("poisson_midpoint", {"K": 2.5}, "`K` is 2.5"),
        ("picard_lagrange", {"nodes": 1}, "`nodes` is 1; it must be a whole number >= 2"),
        ("picard_lagrange", {"nodes": 17}, "`nodes` is 17; it must be at most 16"),
        ("picard_lagrange", {"sweeps": 0}, "`sweeps` is 0"),
        ("splitting", {"sequence": "BAB"}, "`sequence` is 'BAB'"),
        ("splitting", {"sequence": "UABO"}, "`sequence` is 'UABO'"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        METHODS[name](**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 0}, "`order` is 0; it must be a whole number from 1 to 6"),
        ({"order": 3, "gammas": [1.0]}, "`gammas`"),
        ({"order": 2, "xi": -1.0}, "`xi` is -1.0; it must be a positive number"),
    ],
)
def test_bad_dynamics(arguments, message):
    with pytest.raises(UserError, match=message):
        Dynamics(**arguments)
