import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import measured, oracle
from training.small import quick_compilation  # noqa: F401

from hold_jax import inverse, kernels, operators, samplers, sde
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


@functools.lru_cache
def compiled(m, eps_fn):
    return jax.jit(lambda u, t: kernels.denoiser(m, u, t, eps_fn(u, t)))


def denoised(m, eps_fn, u, t):
    """D' (B, d)."""
    return np.asarray(compiled(m, eps_fn)(jnp.asarray(u), jnp.float32(t)), np.float64).reshape(len(u), -1)


def given_state(law, m, u, t):
    """p(q0 | u_t) of each example, a mixture: Gaussian noise of the sufficient statistic is one more measurement."""
    phi, chol = oracle.marginal(m, float(oracle.integral(m, t)), digits=False)
    inverse = oracle.inverse_lower(chol)
    w = (inverse @ phi[:, :1])[:, 0]
    y = np.einsum("n,...nc->...c", w @ inverse, np.asarray(u, np.float64)) / (w @ w)
    size = len(law.means[0])
    return [law.given(np.eye(size), row, 1 / np.linalg.norm(w)) for row in y.reshape(len(u), size)]


def rounding(m, sigma):
    """What float32 leaves of D' = (y - sigma eps) + ..., for data of about unit size."""
    return (1e-6 + 8e-7 * sigma) * kernels.amplification(m)


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


def errors(m, law, conditional, operator, want, noise):
    """The largest difference of D' from want(mean, cov, matrix, y) over examples, for each noise level.

    Args:
      m: the SDE.
      law: of the data.
      conditional: (operator, eps_fn, y) -> eps_fn.
      operator: of the measurement.
      want: of the moments of q0 | u_t in float64.
      noise: of the measurement.
    """
    x, y, matrix = problem(operator, noise, law)
    predict = conditional(law.eps_fn(m, SHAPE), operator, with_measurement(operator, y))
    found = []
    for sigma in SIGMAS:
        t = time_of(m, sigma)
        u = states(m, x, t)
        moments = [at.moments() for at in given_state(law, m, u, t)]
        each = [want(*of, matrix, row) for of, row in zip(moments, known(operator, y), strict=True)]
        found.append(np.abs(denoised(m, predict, u, t) - each).max())
    return np.array(found)


def gaussian_mean(noise):
    """The mean of N(mean, cov) given y."""

    def want(mean, cov, matrix, y):
        return measured.gaussian(mean, cov).given(matrix, y, noise).moments()[0]

    return want


# --- What is exact --------------------------------------------------------------------------------------

NOISE = 0.1
ISOTROPIC = measured.gaussian(MEAN, 0.4**2 * np.eye(24))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "problems"),
    [("proximal", list(OPERATORS)), ("pigdm", ["inpainting", "deblurring"]), ("moment_matching", ["deblurring"])],
)
def test_every_method_is_exact_for_independent_entries_of_equal_variance(name, problems):
    m = MODELS["hold3"]
    for problem_name in problems:
        conditional = lambda f, a, y: inverse.METHODS[name](m, f, a, y, NOISE, sigma_data=0.4)  # noqa: E731
        found = errors(m, ISOTROPIC, conditional, OPERATORS[problem_name], gaussian_mean(NOISE), NOISE)
        assert (found < rounding(m, np.array(SIGMAS))).all(), (problem_name, found)


@every_operator
def test_moment_matching_is_exact_for_any_gaussian(operator):
    m = MODELS["hold2"]
    conditional = lambda f, a, y: inverse.moment_matching(m, f, a, y, NOISE, steps=24)  # noqa: E731
    found = errors(m, GAUSSIAN, conditional, operator, gaussian_mean(NOISE), NOISE)
    assert (found < rounding(m, np.array(SIGMAS))).all(), found


@every_model
def test_moment_matching_takes_the_mean_and_covariance_of_a_mixture_s_posterior(m):
    conditional = lambda f, a, y: inverse.moment_matching(m, f, a, y, NOISE, steps=12)  # noqa: E731
    found = errors(m, MIXTURE, conditional, OPERATORS["linear"], gaussian_mean(NOISE), NOISE)
    assert (found < rounding(m, np.array(SIGMAS))).all(), found


# --- The other methods, by their formulas ----------------------------------------------------------------


@pytest.mark.slow
@every_model
def test_pigdm_and_dps_follow_their_formulas_for_a_mixture(m):
    operator, s = OPERATORS["inpainting"], 0.5

    def pigdm(mean, cov, matrix, y):
        # r^2 = sigma^2 s^2 / (sigma^2 + s^2); sigma by the order in which `errors` asks.
        variance = 1 / (1 / sigmas[0] ** 2 + 1 / s**2)
        whole = variance * matrix @ matrix.T + NOISE**2 * np.eye(len(matrix))
        return mean + cov @ matrix.T @ np.linalg.solve(whole, y - matrix @ mean)

    def dps(mean, cov, matrix, y):
        gap = y - matrix @ mean
        return mean + 0.7 * cov @ matrix.T @ gap / max(NOISE**2, np.mean(gap**2))

    sigmas = [None]
    x, y, matrix = problem(operator, NOISE, MIXTURE)
    methods = {
        pigdm: inverse.pigdm(m, MIXTURE.eps_fn(m, SHAPE), operator, with_measurement(operator, y), NOISE),
        dps: inverse.dps(m, MIXTURE.eps_fn(m, SHAPE), operator, with_measurement(operator, y), NOISE, scale=0.7),
    }
    for sigma in SIGMAS:
        t = time_of(m, sigma)
        u, sigmas[0] = states(m, x, t), sigma
        moments = [at.moments() for at in given_state(MIXTURE, m, u, t)]
        for want, predict in methods.items():
            each = [want(*of, matrix, row) for of, row in zip(moments, known(operator, y), strict=True)]
            np.testing.assert_allclose(
                denoised(m, predict, u, t), each, atol=rounding(m, sigma) * max(1, np.abs(each).max())
            )


# --- Samples --------------------------------------------------------------------------------------------


def law_of_samples(m, conditional, sampler, num_steps):
    """Mean and covariance of x where D' is affine, without Monte Carlo: the images of the prior's basis vectors."""
    size, n = 24, m.order
    factor = np.kron(np.linalg.cholesky(m.prior_cov), np.eye(size))  # of the blocks, then of the entries
    starts = np.concatenate([np.zeros((1, n * size)), factor.T]).reshape(-1, n, *SHAPE)
    starts = jnp.asarray(np.moveaxis(starts, 1, -2), jnp.float32)
    x = samplers.sample(sampler, m, conditional, start=starts, num_steps=num_steps).x
    x = np.asarray(x, np.float64).reshape(len(starts), size)
    columns = x[1:] - x[0]
    return x[0], columns.T @ columns


@pytest.mark.parametrize("n", range(1, 5))
def test_samples_have_the_posterior_s_law(n):
    m, operator = MODELS[f"hold{n}"], OPERATORS["linear"]
    _, y, matrix = problem(operator, NOISE)
    same = with_measurement(operator, np.repeat(y[:1], 24 * n + 1, axis=0))
    conditional = inverse.moment_matching(m, GAUSSIAN.eps_fn(m, SHAPE), operator, same, NOISE, steps=8)
    mean, cov = law_of_samples(m, conditional, samplers.unipc(), 30)
    want_mean, want_cov = GAUSSIAN.given(matrix, y[0], NOISE).moments()
    # In units of the posterior's deviations, from 0.05 to 0.8.
    assert oracle.kl(mean, cov, want_mean, want_cov) < 5e-4
    far = oracle.kl(MEAN, COV, want_mean, want_cov)
    assert far > 2


def test_without_noise_what_is_known_is_kept_and_the_rest_denoised():
    m, operator = MODELS["hold2"], OPERATORS["inpainting"]
    x = jnp.asarray(RNG.normal(size=(NUM, *SHAPE)), jnp.float32)
    u, t = jnp.asarray(states(m, np.asarray(x), time_of(m, 0.3))), jnp.float32(0.4)
    eps_fn = lambda u, t: jnp.sin(2 * u[..., -1:, :])  # noqa: E731
    found = kernels.denoiser(m, u, t, inverse.proximal(m, eps_fn, operator, x)(u, t))
    np.testing.assert_allclose(found, jnp.where(operator.known, x, kernels.denoiser(m, u, t, eps_fn(u, t))), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", inverse.METHODS)
def test_what_does_not_exist_is_not_looked_at_and_examples_do_not_mix(name):
    m, operator = MODELS["hold2"], OPERATORS["inpainting"]
    hole = jnp.where(operator.known, 0.3, jnp.nan) * jnp.ones((2, 1, 1, 1))
    eps_fn = MIXTURE.eps_fn(m, SHAPE)
    u = jnp.asarray(states(m, np.zeros((2, *SHAPE)), time_of(m, 0.3)))
    both = jax.jit(inverse.METHODS[name](m, eps_fn, operator, hole, 0.1))(u, jnp.float32([0.5, 0.2]))
    assert np.isfinite(both).all()
    apart = inverse.METHODS[name](m, eps_fn, operator, hole[1:], 0.1)(u[1:], jnp.float32(0.2))
    np.testing.assert_allclose(both[1:], apart, atol=2e-5)


@pytest.mark.slow
def test_moment_matching_solves_for_networks_whose_derivative_is_no_covariance():
    # D = J y with any J: C = sigma^2 J' is neither symmetric nor positive.
    m, operator, t = MODELS["hold1"], OPERATORS["colorization"], 0.7
    jacobian = np.random.default_rng(4).normal(size=(24, 24)) / 5
    matrix = measured.matrix_of(operator)
    u = jax.random.normal(jax.random.key(0), (2, *SHAPE[:2], 1, 3))

    def eps_fn(u, t):
        y, _ = kernels.sufficient_statistic(m, u, t)
        turned = jnp.matmul(y.reshape(2, 24), jnp.asarray(jacobian.T, jnp.float32), precision="highest")
        return kernels.last_noise(m, u, t, turned.reshape(y.shape))

    y = np.random.default_rng(5).normal(size=(2, 8))
    state, sigma = (np.asarray(v, np.float64) for v in kernels.sufficient_statistic(m, u, t))
    mean = state.reshape(2, 24) @ jacobian.T
    spread = sigma**2 * jacobian.T @ matrix.T
    gap = (y - mean @ matrix.T).T
    exact = mean + (spread @ np.linalg.solve(matrix @ spread + NOISE**2 * np.eye(8), gap)).T
    misses, given = [], with_measurement(operator, y)
    for steps in (1, 3, 8):
        got = denoised(m, inverse.moment_matching(m, eps_fn, operator, given, NOISE, steps=steps), u, t)
        misses.append(np.abs(got - exact).max() / np.abs(exact - mean).max())
    assert misses[0] > misses[2] and misses[2] < 1e-3, misses


@pytest.mark.slow
def test_the_example_of_the_module_s_docstring():
    lines = inverse.__doc__.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    from hold_jax"))
    code = textwrap.dedent("\n".join(lines[start:])).replace("num_steps=50", "num_steps=20")
    m = MODELS["hold3"]
    law = measured.gaussian(np.zeros(64), covariance(np.random.default_rng(5), 64, 0.01, 0.5))
    pictures = jnp.asarray(law.sample(RNG, 3).reshape(3, 8, 8, 1), jnp.float32)
    names = {"sde": m, "eps_fn": law.eps_fn(m, (8, 8, 1)), "pictures": pictures, "key": jax.random.key(2)}
    exec(code, names)
    error = names["operator"].forward(names["out"].x) - names["measured"]
    assert np.sqrt(np.mean(np.square(error))) < 0.1  # noise 0.05, and the posterior's own


# --- Mistakes -------------------------------------------------------------------------------------------

M, ZERO, MEANS = MODELS["hold2"], lambda u, t: 0 * u[..., -1:, :], OPERATORS["superresolution"]
GOOD = np.zeros((2, 2, 1, 3))
WRONG = {
    "shape": (
        lambda: inverse.pigdm(M, ZERO, MEANS, np.zeros((2, 4, 2, 3))),
        "`measured` is (2, 4, 2, 3); it must be of shape (B, 2, 1, 3)",
    ),
    "bytes": (
        lambda: inverse.dps(M, ZERO, MEANS, GOOD.astype(np.uint8)),
        "`measured` is 'uint8'; it must be floating, in the model's range: `hold_jax.data.to_model_range(x)`",
    ),
    "noise": (lambda: inverse.proximal(M, ZERO, MEANS, GOOD, -0.1), "`noise` is -0.1; it must be 0 or positive"),
    "noise of a text": (
        lambda: inverse.proximal(M, ZERO, MEANS, GOOD, "a"),
        "`noise` is 'a'; it must be a number, 0 or positive",
    ),
    "no noise": (
        lambda: inverse.proximal(M, ZERO, MEANS, GOOD, None),
        "`noise` is None; it must be a number, 0 or positive",
    ),
    "noises": (
        lambda: inverse.proximal(M, ZERO, MEANS, GOOD, np.ones(2)),
        "`noise` is array([1., 1.]); it must be a number, 0 or positive",
    ),
    "traced noise": (
        lambda: jax.jit(lambda s: inverse.dps(M, ZERO, MEANS, GOOD, s)(jnp.zeros((2, 4, 2, 2, 3)), 0.5))(0.1),
        "`noise` is JitTracer(~float32[]); it must be a number, not traced by JAX, 0 or positive",
    ),
    "sigma_data of a text": (
        lambda: inverse.pigdm(M, ZERO, MEANS, GOOD, sigma_data="a"),
        "`sigma_data` is 'a'; it must be a number, positive",
    ),
    "sigma_data": (
        lambda: inverse.pigdm(M, ZERO, MEANS, GOOD, sigma_data=0.0),
        "`sigma_data` is 0.0; it must be positive",
    ),
    "steps": (
        lambda: inverse.moment_matching(M, ZERO, MEANS, GOOD, steps=0),
        "`steps` is 0; it must be a whole number >= 1",
    ),
    "masks": (
        lambda: inverse.proximal(M, ZERO, operators.inpainting((2,), np.eye(2)), np.zeros((3, 2))),
        "`measured` is (3, 2); it must be a batch of 2, as the mask",
    ),
    "samples": (
        lambda: jax.eval_shape(
            inverse.pigdm(M, ZERO, MEANS, GOOD), jax.ShapeDtypeStruct((3, 4, 2, 2, 3), jnp.float32), 0.5
        ),
        "`shape` is (3, 4, 2, 3); it must be (2, 4, 2, 3): the operator's data, one example a measurement",
    ),
}


@pytest.mark.parametrize(("act", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(act, message):
    with pytest.raises(UserError) as caught:
        act()
    assert str(caught.value) == message
