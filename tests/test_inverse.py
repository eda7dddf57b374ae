import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import measured, oracle
from training.small import quick_compilation  # noqa: F401

from hold_jax import guidance, inverse, kernels, operators, samplers, sde
from hold_jax.errors import UserError

MODELS = {f"hold{n}": sde.hold(order=n) for n in range(1, 5)} | {"psld": sde.psld()}
every_model = pytest.mark.parametrize("m", MODELS.values(), ids=MODELS)
SIGMAS = (0.02, 0.3, 2.0, 40.0)
SHAPE, NUM = (4, 2, 3), 5
RNG = np.random.default_rng(0)

OPERATORS = {
    "inpainting": operators.inpainting(SHAPE, RNG.uniform(size=SHAPE) < 0.5),
    "superresolution": operators.superresolution(SHAPE, 2),
    "colorization": operators.colorization(SHAPE),
    "deblurring": operators.deblurring(SHAPE, np.array([[0.2, 0.1], [0.5, 0.2]])),
    "compressed_sensing": operators.compressed_sensing(SHAPE, 0.4),
    "linear": operators.linear(SHAPE, RNG.normal(size=(7, 24)) / 5),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def covariance(rng, size, low=0.05, high=0.8):
    """A covariance with deviations from `low` to `high` in random directions."""
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return basis @ np.diag(np.geomspace(low, high, size) ** 2) @ basis.T


MEAN, COV = RNG.normal(size=24) / 3, covariance(RNG, 24)
GAUSSIAN = measured.gaussian(MEAN, COV)
MIXTURE = measured.Gaussians(
    np.array([0.5, 0.2, 0.3]),
    RNG.normal(size=(3, 24)) / 3,
    np.stack([covariance(RNG, 24, 0.02, 0.5) for _ in range(3)]),
)


def time_of(m, sigma):
    return float(np.float32(m.schedule.time(oracle.integral_of_noise(m, sigma))))


def states(m, x, t):
    """u_t of data x (B, *S, C), made in float64."""
    phi, chol = oracle.marginal(m, float(oracle.integral(m, t)), digits=False)
    eps = np.random.default_rng(1).standard_normal((*x.shape[:-1], m.order, x.shape[-1]))
    return np.float32(phi[:, :1] * x[..., None, :] + chol @ eps)


def denoised(m, eps_fn, u, t):
    """D' (B, d)."""
    found = jax.jit(lambda u, t: kernels.denoiser(m, u, t, eps_fn(u, t)))(jnp.asarray(u), jnp.float32(t))
    return np.asarray(found, np.float64).reshape(len(u), -1)


def given_state(law, m, u, t):
    """p(q0 | u_t) of each example, a mixture: Gaussian noise of the sufficient statistic is one more measurement."""
    phi, chol = oracle.marginal(m, float(oracle.integral(m, t)), digits=False)
    inverse = oracle.inverse_lower(chol)
    w = (inverse @ phi[:, :1])[:, 0]
    y = np.einsum("n,...nc->...c", w @ inverse, np.asarray(u, np.float64)) / (w @ w)
    size = len(law.means[0])
    return [law.given(np.eye(size), row, 1 / np.linalg.norm(w)) for row in y.reshape(len(u), size)]


def rounding(m, t):
    """What float32 leaves of D', for data of about unit size."""
    return 3e-5 * max(1, kernels.amplification(m) / 2)


def problem(operator, noise, law=GAUSSIAN, num=NUM):
    """Data (B, *SHAPE) and their measurements, float64 and float32."""
    x = law.sample(np.random.default_rng(2), num)
    matrix = measured.matrix_of(operator)
    y = x @ matrix.T + noise * np.random.default_rng(3).standard_normal((num, len(matrix)))
    if operator.known is not None:
        y = np.where(operator.known.reshape(1, -1), y, 0)
        # Rows of values that do not exist.
        matrix = matrix[operator.known.ravel()]
    return x.reshape(num, *SHAPE), y, matrix


def with_measurement(operator, y):
    return jnp.asarray(y.reshape(len(y), *operator.measured_shape), jnp.float32)


def known(operator, y):
    return y if operator.known is None else y[:, operator.known.ravel()]


# --- Exact posteriors of Gaussian data ------------------------------------------------------------------


@every_operator
@pytest.mark.parametrize("name", ["proximal", "pigdm", "moment_matching"])
def test_every_method_is_exact_for_independent_entries_of_equal_variance(name, operator):
    m, noise, std = MODELS["hold3"], 0.1, 0.4
    law = measured.gaussian(MEAN, std**2 * np.eye(24))
    x, y, matrix = problem(operator, noise, law)
    conditional = inverse.METHODS[name](
        m, law.eps_fn(m, SHAPE), operator, with_measurement(operator, y), noise, sigma_data=std
    )
    for sigma in SIGMAS:
        t = time_of(m, sigma)
        u = states(m, x, t)
        want = [
            at.given(matrix, row, noise).moments()[0]
            for at, row in zip(given_state(law, m, u, t), known(operator, y), strict=True)
        ]
        np.testing.assert_allclose(denoised(m, conditional, u, t), want, atol=rounding(m, t))
