import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from samplers.suite import MEAN, hold, network, stepped

from hold_jax import sde
from hold_jax.samplers import EulerMaruyama, linear

SDES = {**{f"hold{n}": hold(n) for n in (1, 2, 3, 4)}, "psld": sde.psld(), "vp": sde.vp()}
every_sde = pytest.mark.parametrize("m", SDES.values(), ids=SDES)
STD = 0.5
RNG = np.random.default_rng(0)


@every_sde
@pytest.mark.parametrize("b", [2.0, 0.3, 0.02])
def test_data_and_score_from_the_last_block_s_noise(b, m):
    # For data N(mean, std^2), in 80 digits: eps_n gives D = E[q0 | u] and G G' score = -G G' Sigma_tot^-1 (u - A mean).
    t = m.schedule.time(np.array([b]))
    phi, total = oracle.marginal(m, float(oracle.integral(m, t[0])), True, STD)
    inverse = oracle.inverse_lower(total)
    z = RNG.standard_normal(m.order)
    u = total @ z + phi[:, 0] * MEAN
    row, a = oracle.gaussian_row(m, t[0], STD, True)
    eps = row @ (u - a * MEAN)
    want = MEAN + STD**2 * (inverse @ phi[:, 0]) @ z
    assert float(linear.data_weights(m, t)[0, 0] @ np.append(u, eps)) == pytest.approx(float(want), rel=1e-7)
    weight_u, weight_eps = linear.driven_score(m, t)
    want = (-(m.G @ m.G.T) @ (inverse.T @ z)).astype(np.float64)
    got = (weight_u[0] @ u + weight_eps[0, :, 0] * eps).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-7 * np.abs(want).max())


@every_sde
def test_the_stationary_law_is_that_of_the_exact_part(m):
    # P Sigma_inf P' + N N' = Sigma_inf for any step; from any state the first half step and the second are the whole.
    steps = np.array([0.01, 0.2, 3.0])
    flow = linear.reverse_ornstein_uhlenbeck(m, steps)
    stationary = np.linalg.inv(m.precision_inf)
    for p, n in zip(flow.state, flow.noise, strict=True):
        np.testing.assert_allclose(p @ stationary @ p.T + n @ n.T, stationary, atol=1e-12)
    half = linear.reverse_ornstein_uhlenbeck(m, steps / 2)
    both = linear.compose(half, half)
    np.testing.assert_allclose(both.state, flow.state, atol=1e-12)
    cov = lambda n: n @ np.swapaxes(n, -1, -2)  # noqa: E731
    np.testing.assert_allclose(cov(both.noise), cov(flow.noise), atol=1e-12)


def test_compose_does_the_first_one_first_and_keeps_what_has_no_noise():
    a, b = (linear.Affine(RNG.standard_normal((1, 2, 2)), RNG.standard_normal((1, 2, r))) for r in (1, 2))
    u, xi = RNG.standard_normal((2, 1)), RNG.standard_normal((3, 1))
    both = linear.compose(a, b)
    want = b.state[0] @ (a.state[0] @ u + a.noise[0] @ xi[:1]) + b.noise[0] @ xi[1:]
    np.testing.assert_allclose(both.state[0] @ u + both.noise[0] @ xi, want)
    still = a._replace(noise=None)
    assert linear.compose(still, still).noise is None
    np.testing.assert_array_equal(linear.compose(b, still).noise, a.state @ b.noise)
    np.testing.assert_array_equal(linear.compose(still, b).noise, b.noise)


def test_a_step_is_its_stages_written_out():
    # Two stages, data and noise outputs, three outputs remembered, noise before and after: the module's docstring.
    n, steps = 2, 4
    table = lambda *shape: RNG.standard_normal((steps, *shape))  # noqa: E731
    first = linear.Stage(
        linear.Affine(table(n, n), table(n, 1)), table(), table(1, n + 1), linear.Affine(table(n, n), None), table(n, 3)
    )
    second = linear.Stage(None, table(), None, linear.Affine(table(n, n), table(n, n)), table(n, 3))
    u, noise = RNG.standard_normal((5, n, 2)), RNG.standard_normal((steps, 4, 5, n, 2))

    class Table(linear.LinearSampler):
        def coefficients(self, m, times):
            return (first, second)

    got = stepped(Table(), hold(n), network, u, np.arange(steps + 1)[::-1], noise)
    past = []
    for i in range(steps):
        u = first.before.state[i] @ u + first.before.noise[i] @ noise[i, 0, :, :1]
        d = first.data[i] @ np.concatenate([u, network(u, first.time[i])], axis=1)
        past = [d, *past]
        u = first.after.state[i] @ u + sum(first.outputs[i, :, j, None] * y for j, y in enumerate(past[:3]))
        past = [network(u, second.time[i]), *past]
        u = second.after.state[i] @ u + second.after.noise[i] @ noise[i, 3]
        u = u + sum(second.outputs[i, :, j, None] * y for j, y in enumerate(past[:3]))
        np.testing.assert_allclose(got[i + 1], u, rtol=1e-9)


def test_a_step_counts_its_calls_and_numbers_its_draws():
    # Draws 2 i and 2 i + 1 are stage i's: no two of a step are one.
    m, drawn = hold(2), []
    (euler,) = EulerMaruyama().coefficients(m, np.array([1.0, 0.5]))
    euler = euler._replace(before=linear.Affine(np.eye(2)[None], np.eye(2)[None]))
    row = jax.tree.map(lambda c: jnp.asarray(c[0], jnp.float32), (euler, euler))
    sampler = EulerMaruyama()
    state = sampler.start((euler, euler), jnp.zeros((1, 2, 1)))
    state = sampler.step(row, state, network, lambda i, shape: drawn.append(i) or jnp.zeros(shape))
    assert drawn == [0, 1, 2, 3] and state.nfe == 2
