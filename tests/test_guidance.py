import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import oracle
from tiers import slow_except
from training.small import quick_compilation  # noqa: F401

from hold_jax import guidance, kernels, samplers, sde
from hold_jax.errors import UserError

MODELS = {f"hold{n}": sde.hold(order=n) for n in range(1, 5)} | {"psld": sde.psld()}
every_model = pytest.mark.parametrize("m", slow_except(("hold1", "hold3"), MODELS))
NUM = 20_000
SIGMAS = (0.02, 0.3, 2.0, 40.0)


def times(m):
    """One float32 time for each effective noise, from well below the data's detail to well above its size."""
    return [float(np.float32(m.schedule.time(oracle.integral_of_noise(m, sigma)))) for sigma in SIGMAS]


def from_denoiser(m, denoise):
    """The eps_fn of a first-order denoiser D(y, sigma): exact at every order where D is."""

    def eps_fn(u, t):
        return kernels.last_noise(m, u, t, denoise(*kernels.sufficient_statistic(m, u, t)))

    return eps_fn


def states(m, x, t, seed=0):
    """u_t of data x (B, d), made in float64."""
    phi, chol = oracle.marginal(m, float(oracle.integral(m, t)), digits=False)
    eps = np.random.default_rng(seed).standard_normal((len(x), m.order, x.shape[1]))
    return (phi[:, :1] * x[:, None] + chol @ eps).astype(np.float32)


def rounding(m, u, t):
    """What float32 leaves of D = ([L^-1 u]_n - eps_n) / w_n, (B,)."""
    phi, chol = oracle.marginal(m, float(oracle.integral(m, t)), digits=False)
    inverse = oracle.inverse_lower(chol)
    terms = np.abs(inverse[-1]) @ np.abs(u.astype(np.float64))
    return 5e-6 + 1e-6 * terms.max(axis=-1) / abs((inverse @ phi[:, 0])[-1])


def denoised(m, eps_fn, u, t):
    u, t = jnp.asarray(u), jnp.asarray(t, jnp.float32)
    return np.asarray(kernels.denoiser(m, u, t, eps_fn(u, t)), np.float64)


def draw(m, eps_fn, sampler, num, shape, num_steps, **options):
    """Samples of one jitted call."""
    run = functools.partial(samplers.sample, sampler, m, eps_fn, shape=(num, *shape), num_steps=num_steps, **options)
    return jax.jit(lambda key: run(key=key))(jax.random.key(7))


# --- Classes: a mixture whose first three components are class 0, the others class 1 ------------------

WEIGHTS, CLASS = np.array([0.3, 0.1, 0.2, 0.15, 0.25]), np.array([0, 0, 0, 1, 1])
MEANS = np.array([[-1.0, -0.4], [0.2, 1.0], [0.9, -0.7], [-0.2, 0.1], [0.8, 0.6]])
STDS = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
MIXTURE = oracle.Mixture(WEIGHTS, MEANS, STDS)


def class_mixture(label):
    own = label == CLASS
    return oracle.Mixture(WEIGHTS[own] / WEIGHTS[own].sum(), MEANS[own], STDS[own])


def exact_eps(m, mixture):
    """The exact eps_fn, from float64 posteriors of the whole state; not traceable."""

    def eps_fn(u, t):
        known = mixture.denoiser(m, np.asarray(u, np.float64), float(t))
        return kernels.last_noise(m, u, t, jnp.asarray(known, jnp.float32))

    return eps_fn


def component_logits(y, sigma):
    """log weight_k N(y; mean_k, std_k^2 + sigma^2) up to a constant, (B, K)."""
    log_weights, means, variances = (jnp.asarray(a[None], jnp.float32) for a in (np.log(WEIGHTS), MEANS, STDS**2))
    variance = jnp.square(kernels.append_dims(sigma, y)) + variances
    gap = jnp.sum(jnp.square(y[:, None] - means), axis=-1)
    return log_weights - gap / (2 * variance) - jnp.log(variance)


def class_log_prob(label):
    """log p(class = label | y, sigma), the exact classifier."""

    def log_prob(y, sigma):
        logits = component_logits(y, sigma)
        own = jnp.where(jnp.asarray(label == CLASS)[None], logits, -jnp.inf)
        return jax.nn.logsumexp(own, axis=1) - jax.nn.logsumexp(logits, axis=1)

    return log_prob


@pytest.mark.slow
@every_model
@pytest.mark.parametrize("label", [0, 1])
def test_the_exact_classifier_makes_the_class_s_denoiser_of_the_mixture_s(m, label):
    x = MIXTURE.sample(np.random.default_rng(3), 24)
    guided = guidance.classifier(m, exact_eps(m, MIXTURE), class_log_prob(label))
    moved = []
    for t in times(m):
        u = states(m, x, t)
        want = class_mixture(label).denoiser(m, u.astype(np.float64), t)
        error = np.abs(denoised(m, guided, u, t) - want).max(axis=1)
        assert (error < rounding(m, u, t)).all(), (t, error, rounding(m, u, t))
        moved.append(np.abs(want - MIXTURE.denoiser(m, u.astype(np.float64), t)).max())
    assert max(moved) > 0.3  # it had something to do


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_the_classifier_s_scale_multiplies_what_it_adds(scale):
    m, x = MODELS["hold3"], MIXTURE.sample(np.random.default_rng(3), 24)
    eps_fn, own = exact_eps(m, MIXTURE), exact_eps(m, class_mixture(1))
    guided = guidance.classifier(m, eps_fn, class_log_prob(1), scale)
    # Bayes' rule: what the exact classifier adds is D_c - D_u, so that both ways to guide are one.
    free = guidance.classifier_free(own, eps_fn, scale)
    for t in times(m):
        u = states(m, x, t)
        with_it, without = (v.denoiser(m, u.astype(np.float64), t) for v in (class_mixture(1), MIXTURE))
        want = without + scale * (with_it - without)
        for function in (guided, free):
            error = np.abs(denoised(m, function, u, t) - want).max(axis=1)
            assert (error < (1 + scale) * rounding(m, u, t)).all()
        if scale == 0:
            np.testing.assert_array_equal(guided(u, jnp.float32(t)), eps_fn(u, jnp.float32(t)))


@pytest.mark.parametrize("method", ["classifier", "classifier_free", "autoguidance"])
def test_each_example_has_the_scale_it_is_given(method):
    # As many examples as channels: a scale (B,) must not be one of the channels.
    m, scales, t = MODELS["hold2"], jnp.array([1.0, 3.0]), jnp.float32(0.5)
    u = jax.random.normal(jax.random.key(0), (2, 2, 2))
    plain, other = (from_denoiser(m, lambda y, sigma, s=s: s * jnp.tanh(y)) for s in (0.5, 0.2))

    def guided(scale):
        if method == "classifier":
            return guidance.classifier(m, plain, lambda y, sigma: jnp.sum(jnp.cos(y), axis=-1), scale)(u, t)
        return getattr(guidance, method)(plain, other, scale)(u, t)

    one, three = guided(1.0), guided(3.0)
    np.testing.assert_allclose(guided(scales), jnp.stack([one[0], three[1]]), rtol=1e-5, atol=1e-6)
    assert jnp.abs(one - three).min() > 1e-3


@pytest.mark.slow
def test_each_example_has_the_time_it_is_given():
    m, x, num = MODELS["hold2"], MIXTURE.sample(np.random.default_rng(4), len(SIGMAS)), len(SIGMAS)
    u = np.concatenate([states(m, x[i : i + 1], t) for i, t in enumerate(times(m))])
    eps_fn = lambda u, t: 0 * u[..., -1:, :]  # noqa: E731
    makers = {
        "classifier": lambda rows: guidance.classifier(m, eps_fn, class_log_prob(0)),
        "inpaint": lambda rows: guidance.inpaint(m, eps_fn, x[rows], [1, 0]),
    }
    for name, make in makers.items():
        together = make(slice(num))(u, jnp.asarray(times(m), jnp.float32))
        for i, t in enumerate(times(m)):
            alone = make(slice(i, i + 1))(u[i : i + 1], jnp.float32(t))
            np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5, atol=1e-5, err_msg=name)


def mixture_denoiser(y, sigma):
    """`MIXTURE`'s denoiser, traceable."""
    means, variances = (jnp.asarray(a[None], jnp.float32) for a in (MEANS, STDS[:, None] ** 2))
    posterior = jax.nn.softmax(component_logits(y, sigma), axis=1)[..., None]
    shrink = variances / (variances + jnp.square(sigma))
    return jnp.sum(posterior * (means + shrink * (y[:, None] - means)), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("order", slow_except((3,), {n: n for n in (1, 2, 3)}))
def test_samples_at_scale_one_have_the_law_of_the_class(order):
    # A class of one component, by either guidance: its mean and its deviation, within what 20,000 samples say.
    m, k = MODELS[f"hold{order}"], 4
    mixture_eps = from_denoiser(m, mixture_denoiser)

    def log_prob(y, sigma):
        return jax.nn.log_softmax(component_logits(y, sigma), axis=1)[:, k]

    class_eps = oracle.gaussian_eps(m, MEANS[k], STDS[k])
    for guided in (
        guidance.classifier_free(class_eps, mixture_eps, 1.0),
        guidance.classifier(m, mixture_eps, log_prob),
    ):
        x = np.asarray(draw(m, guided, samplers.SAMPLERS["unipc"](), NUM, (2,), 60).x, np.float64)
        assert (np.abs(x.mean(axis=0) - MEANS[k]) < 4 * STDS[k] / np.sqrt(NUM)).all()
        assert (np.abs(x.std(axis=0) / STDS[k] - 1) < 4 / np.sqrt(2 * NUM)).all()


# --- Inpainting: two correlated coordinates, the first is known -----------------------------------------

MU, COV, KNOWN = np.array([0.3, -0.2]), np.array([[0.25, 0.18], [0.18, 0.2]]), 0.9
MASK = jnp.array([True, False])


def gaussian_denoiser(y, sigma):
    """E[q0 | y] of N(MU, COV): MU + COV (COV + sigma^2)^-1 (y - MU)."""
    values, vectors = (jnp.asarray(a, jnp.float32) for a in np.linalg.eigh(COV))
    mu = jnp.asarray(MU, jnp.float32)[None]
    shrink = (values / (values + jnp.square(sigma)))[None]
    rotated = jnp.matmul(y - mu, vectors, precision="highest") * shrink
    return mu + jnp.matmul(rotated, vectors.T, precision="highest")


def filled(m, num):
    """The exact joint denoiser with the first coordinate known."""
    return guidance.inpaint(m, from_denoiser(m, gaussian_denoiser), jnp.full((num, 2), KNOWN), MASK)


def law(samples):
    """Mean and covariance of (B, k) samples, float64."""
    samples = np.asarray(samples, np.float64)
    return samples.mean(axis=0), np.atleast_2d(np.cov(samples.T))


def assert_law(samples, mean, cov):
    """Gaussian samples (B, k) have this law, within 4.5 standard errors of every entry in coordinates where it is I."""
    got_mean, got_cov = law(samples)
    whiten = np.linalg.inv(np.linalg.cholesky(cov))
    assert np.abs(whiten @ (got_mean - mean)).max() < 4.5 / np.sqrt(len(samples))
    error = np.abs(whiten @ got_cov @ whiten.T - np.eye(len(cov)))
    assert (error < 4.5 * np.sqrt((1 + np.eye(len(cov))) / len(samples))).all(), error


@every_model
def test_what_is_known_has_the_score_of_its_bridge_in_every_block(m):
    x = np.random.default_rng(0).multivariate_normal(MU, COV, 24)
    unconditional = from_denoiser(m, gaussian_denoiser)
    for t in times(m):
        u = jnp.asarray(states(m, np.stack([np.full(24, KNOWN), x[:, 1]], axis=1), t))
        eps = filled(m, 24)(u, jnp.float32(t))
        np.testing.assert_array_equal(eps[..., 1], unconditional(u, jnp.float32(t))[..., 1])

        phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, t))))
        inverse = oracle.inverse_lower(chol)
        known = np.asarray(u[..., 0], np.float64)
        want = (known - phi[:, 0] * KNOWN) @ inverse.T  # the noise of u_t | q0 = known
        got = kernels.full_noise(m, u, jnp.float32(t), eps)[..., 0]
        # float32 rounding of L^-1 u and of L^-1 A, row by row of L^-1.
        slack = 1e-6 * (np.abs(known) + np.abs(phi[:, 0]) * KNOWN) @ np.abs(inverse).T
        assert (np.abs(got - want) < 3e-6 + slack).all(), np.abs(got - want).max(axis=0)


@every_model
def test_what_is_known_follows_its_bridge_exactly(m):
    # With D fixed an ancestral step is exact however long it is: N(A x, Sigma) in all n blocks at every time.
    top = kernels.marginal(m, jnp.float32(m.T))
    at_top = functools.partial(kernels.perturb, top, jnp.full((NUM, 2), KNOWN))
    start = at_top(jax.random.normal(jax.random.key(1), (NUM, m.order, 2)))
    for sigma in (0.05, 1.0):
        t = float(m.schedule.time(oracle.integral_of_noise(m, sigma)))
        options = {"start": start, "t_min": t, "denoise": False}
        u = draw(m, filled(m, NUM), samplers.SAMPLERS["ancestral"](), NUM, (2,), 5, **options).u
        phi, chol = (v.astype(np.float64) for v in oracle.marginal(m, float(oracle.integral(m, t))))
        assert_law(u[..., 0], phi[:, 0] * KNOWN, chol @ chol.T)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(("ancestral",), {n: n for n in ("ancestral", "lie_trotter", "unipc")}))
def test_what_is_known_comes_back(name):
    m = MODELS["hold3"]
    _, chol = oracle.marginal(m, float(oracle.integral(m, m.t_min)), digits=False)
    for denoise, bound in ((True, 1e-5), (False, 6 * chol[0, 0])):
        x = draw(m, filled(m, 256), samplers.SAMPLERS[name](), 256, (2,), 40, denoise=denoise).x
        assert np.abs(np.asarray(x[:, 0]) - KNOWN).max() < bound
        assert np.std(x[:, 1]) > 0.1  # the rest is free


def ancestral_law(m, sigmas):
    """Mean and variance of the second coordinate's E[q0 | u] after ancestral steps over these falling noises."""
    n, b = m.order, [float(oracle.integral_of_noise(m, sigma)) for sigma in sigmas]

    def denoiser(i):
        """D = offset + gain (u of coordinate 1, u of coordinate 2)."""
        phi, chol = marginals[i]
        inverse = oracle.inverse_lower(chol)
        w = inverse @ phi[:, :1]
        snr = (w.T @ w)[0, 0]
        gain = COV @ np.linalg.inv(COV + float(1 / snr) * np.eye(2))
        offset = MU - gain @ MU
        gain = np.kron(gain, ((inverse.T @ w)[:, 0] / snr).astype(np.float64))
        return np.array([KNOWN, offset[1]]), np.stack([0 * gain[0], gain[1]])

    marginals = [oracle.marginal(m, value) for value in b]
    mean, cov = np.zeros(2 * n), np.kron(np.eye(2), m.prior_cov)
    for i in range(len(b) - 1):
        (phi, chol), (phi_end, chol_end) = marginals[i : i + 2]
        inverse = oracle.inverse_lower(chol)
        between, _ = oracle.moments(m, b[i] - b[i + 1])
        keep = chol_end @ chol_end.T @ between.T @ inverse.T @ inverse
        noise = (chol_end @ chol_end.T - keep @ chol @ chol.T @ keep.T).astype(np.float64)
        toward = np.kron(np.eye(2), (phi_end[:, :1] - keep @ phi[:, :1]).astype(np.float64))
        offset, gain = denoiser(i)
        step = np.kron(np.eye(2), keep.astype(np.float64)) + toward @ gain
        mean = step @ mean + toward @ offset
        cov = step @ cov @ step.T + np.kron(np.eye(2), noise)
    offset, gain = denoiser(len(b) - 1)
    return (offset + gain @ mean)[1], (gain @ cov @ gain.T)[1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("n", range(1, 5))
def test_the_rest_has_the_law_that_replacement_implies(n):
    m, num_steps = MODELS[f"hold{n}"], 16
    sigmas = np.geomspace(80.0, 0.002, num_steps + 1)
    grid = np.asarray(m.schedule.time(oracle.integral_of_noise(m, sigmas)))
    grid[0] = m.T
    x = draw(m, filled(m, NUM), samplers.SAMPLERS["ancestral"](), NUM, (2,), num_steps, grid=grid, t_min=grid[-1]).x
    mean, variance = ancestral_law(m, sigmas)
    assert_law(x[:, 1:], [mean], np.array([[variance]]))


def test_replacement_is_an_approximation_of_the_conditional_law():
    # In the limit of many steps: two thirds of the way from the marginal mean to the conditional one.
    found = [ancestral_law(MODELS["hold1"], np.geomspace(80.0, 0.002, num + 1)) for num in (80, 160)]
    mean, variance = 2 * np.array(found[1]) - found[0]
    slope = COV[1, 0] / COV[0, 0]
    assert (mean - MU[1]) / (slope * (KNOWN - MU[0])) == pytest.approx(0.67, abs=0.01)
    assert variance / (COV[1, 1] - slope * COV[1, 0]) == pytest.approx(1.44, abs=0.03)


# --- Colors -------------------------------------------------------------------------------------------

GRAY = np.random.default_rng(5).uniform(-0.8, 0.8, (64, 3, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("name", ["hold1", "hold3", "psld"])
def test_the_mean_of_the_channels_is_the_gray_and_the_rest_is_the_denoiser_s(name):
    m = MODELS[name]
    u = jax.random.normal(jax.random.key(0), (64, 3, 2, m.order, 3))
    eps_fn = lambda u, t: jnp.sin(2 * u[..., -1:, :] - u[..., :1, ::-1])  # noqa: E731
    for t in times(m):
        before, after = (denoised(m, f, u, t) for f in (eps_fn, guidance.colorize(m, eps_fn, GRAY)))
        scale = 1e-6 * (1 + np.abs(before).max() + np.abs(after).max())
        np.testing.assert_allclose(after.mean(axis=-1, keepdims=True), GRAY, atol=scale)
        center = lambda x: x - x.mean(axis=-1, keepdims=True)  # noqa: E731
        np.testing.assert_allclose(center(after), center(before), atol=scale)
        assert np.abs(after - before).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ancestral", "unipc"])
def test_samples_have_the_gray_and_the_colors_they_would_have_had(name):
    # Independent channels of one law: gray and colors are independent, so that colorize moves the gray alone.
    m, sampler = MODELS["hold3"], samplers.SAMPLERS[name]()
    eps_fn = oracle.gaussian_eps(m, 0.1, 0.4)
    _, chol = oracle.marginal(m, float(oracle.integral(m, m.t_min)), digits=False)
    for denoise, bound in ((True, 1e-5), (False, 6 * chol[0, 0] / np.sqrt(3))):
        plain, colored = (
            np.asarray(draw(m, f, sampler, 64, (3, 2, 3), 20, denoise=denoise).x, np.float64)
            for f in (eps_fn, guidance.colorize(m, eps_fn, GRAY))
        )
        center = colored.mean(axis=-1, keepdims=True)
        assert np.abs(center - GRAY).max() < bound
        np.testing.assert_allclose(colored - center, plain - plain.mean(axis=-1, keepdims=True), atol=1e-5)
        assert np.std(colored - center) > 0.2


# --- In use --------------------------------------------------------------------------------------------


def test_the_example_of_the_module_s_docstring():
    lines = guidance.__doc__.splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
    m, eps_fn = MODELS["hold3"], lambda u, t: jnp.sin(2 * u[..., -1:, :] - u[:, ::-1, :, :1])
    pictures = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1), minval=-1, maxval=1)
    names = {"sde": m, "eps_fn": eps_fn, "pictures": pictures, "key": jax.random.key(2)}
    exec(code, names)
    np.testing.assert_allclose(names["filled"][:, :, :4], pictures[:, :, :4], atol=1e-5)
    assert np.abs(names["filled"][:, :, 4:] - pictures[:, :, 4:]).max() > 0.1
    assert np.isfinite(names["filled"]).all()


def test_conditions_compose():
    # The class's denoiser with one coordinate known: both show.
    m, x = MODELS["hold2"], MIXTURE.sample(np.random.default_rng(3), 24)
    guided = guidance.classifier(m, exact_eps(m, MIXTURE), class_log_prob(0))
    both = guidance.inpaint(m, guided, np.full((24, 2), KNOWN), [1, 0])
    t = times(m)[1]
    u = states(m, x, t)
    want = class_mixture(0).denoiser(m, u.astype(np.float64), t)
    want[:, 0] = KNOWN
    assert (np.abs(denoised(m, both, u, t) - want).max(axis=1) < rounding(m, u, t)).all()


def test_what_is_not_known_is_not_looked_at():
    m = MODELS["hold2"]
    u = jax.random.normal(jax.random.key(0), (3, 2, 2))
    eps_fn = lambda u, t: jnp.sin(u[..., -1:, :])  # noqa: E731
    known = np.array([[0.5, np.nan]] * 3)
    eps = guidance.inpaint(m, eps_fn, known, np.array([[255, 0]], np.uint8))(u, jnp.float32(0.3))
    np.testing.assert_array_equal(eps[..., 1], eps_fn(u, None)[..., 1])
    np.testing.assert_allclose(kernels.denoiser(m, u, jnp.float32(0.3), eps)[:, 0], 0.5, atol=1e-5)
    traced = jax.jit(lambda mask: guidance.inpaint(m, eps_fn, known, mask)(u, jnp.float32(0.3)))(
        np.array([True, False])
    )
    np.testing.assert_allclose(traced, eps, atol=1e-6)


M, ZERO = MODELS["hold2"], lambda u, t: 0 * u[..., -1:, :]
PICTURES = jax.ShapeDtypeStruct((4, 3, 2, 2, 3), jnp.float32)
REFUSED = {
    "mask": (
        lambda: guidance.inpaint(M, ZERO, np.zeros((4, 3, 2, 3)), np.zeros((3, 3))),
        "`mask` is (3, 3); it must be broadcastable to the data's shape, (3, 2, 3)",
    ),
    "mask of too many axes": (
        lambda: guidance.inpaint(M, ZERO, np.zeros((2, 3)), np.zeros((1, 2, 3))),
        "`mask` is (1, 2, 3); it must be broadcastable to the data's shape, (3,)",
    ),
    "bytes": (
        lambda: guidance.inpaint(M, ZERO, np.zeros((4, 3, 2, 3), np.uint8), True),
        "`known` is 'uint8'; it must be floating, in the model's range: `hold_jax.data.to_model_range(x)`",
    ),
    "known": (
        lambda: jax.eval_shape(guidance.inpaint(M, ZERO, np.zeros((1, 3, 2, 3)), True), PICTURES, 0.5),
        "`shape` is (4, 3, 2, 3); it must be (1, 3, 2, 3): the operator's data, one example a measurement",
    ),
    "gray bytes": (
        lambda: guidance.colorize(M, ZERO, np.zeros((4, 3, 2, 1), np.uint8)),
        "`gray` is 'uint8'; it must be floating, in the model's range: `hold_jax.data.to_model_range(x)`",
    ),
    "gray": (
        lambda: guidance.colorize(M, ZERO, np.zeros((4, 3, 2))),
        "`gray.shape` is (4, 3, 2); it must be (B, *S, 1)",
    ),
    "channels": (
        lambda: jax.eval_shape(
            guidance.colorize(M, ZERO, np.zeros((4, 3, 2, 1))),
            jax.ShapeDtypeStruct((4, 3, 2, 2, 1), jnp.float32),
            0.5,
        ),
        "`shape` is (4, 3, 2, 1); it must be (4, 3, 2, 3): the operator's data, one example a measurement",
    ),
    "log_prob": (
        lambda: jax.eval_shape(guidance.classifier(M, ZERO, lambda y, sigma: y[..., 0]), PICTURES, 0.5),
        "`log_prob(y, sigma)` is (4, 3, 2); it must be an array of shape (4,)",
    ),
    "two shapes": (
        lambda: jax.eval_shape(guidance.classifier_free(lambda u, t: u, ZERO, 2.0), PICTURES, 0.5),
        "`conditional(u, t)` is (4, 3, 2, 2, 3); it must be an array of shape (4, 3, 2, 1, 3)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("act", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_named(act, message):
    with pytest.raises(UserError) as caught:
        act()
    assert str(caught.value) == message


# --- Where and how far to guide: exact Gaussian denoisers ---------------------------------------------------


def gaussian(std, mean=0.0):
    """The denoiser of N(mean, std^2)."""
    return lambda y, sigma: (std**2 * y + sigma_of(sigma, y) ** 2 * mean) / (std**2 + sigma_of(sigma, y) ** 2)


def sigma_of(sigma, y):
    return kernels.append_dims(jnp.asarray(sigma), y)


def noisy(m, sigma, size=2.0):
    """States of an effective noise, and their time."""
    t = jnp.float32(m.schedule.time(oracle.integral_of_noise(m, sigma)))
    x = np.random.default_rng(3).normal(size=(6, 4)) * size
    return jnp.asarray(states(m, x, float(t))), t


@pytest.mark.slow
@pytest.mark.parametrize("order", (1, 3))
def test_guidance_is_confined_to_an_interval_of_noise(order):
    m = MODELS[f"hold{order}"]
    plain, other = from_denoiser(m, gaussian(0.5)), from_denoiser(m, gaussian(0.5, mean=1.0))
    chosen = guidance.interval(m, guidance.classifier_free(plain, other, 3.0), plain, 0.2, 1.5)
    run = jax.jit(lambda u, t: kernels.denoiser(m, u, t, chosen(u, t)))
    for sigma in (0.1, 0.3, 1.0, 5.0):
        u, t = noisy(m, sigma)
        y = kernels.sufficient_statistic(m, u, t)[0]
        exact = [gaussian(0.5, mean)(y, sigma) for mean in (0.0, 1.0)]
        want = exact[1] + 3 * (exact[0] - exact[1]) if 0.2 < sigma <= 1.5 else exact[0]
        np.testing.assert_allclose(run(u, t), want, atol=2e-3)
        np.testing.assert_allclose(run(u, jnp.full(6, t)), want, atol=2e-3)
    # With one time for all, only one of the two is evaluated.
    last = [jax.make_jaxpr(chosen)(u, time).jaxpr.eqns[-1].primitive.name for time in (t, jnp.full(6, t))]
    assert last[0] == "cond" and last[1] != "cond"


def test_autoguidance_extrapolates_from_the_weaker_model():
    m, (u, t) = MODELS["hold2"], noisy(MODELS["hold2"], 0.7)
    y = kernels.sufficient_statistic(m, u, t)[0]
    strong, weak = gaussian(0.5), gaussian(0.9)
    guided = guidance.autoguidance(from_denoiser(m, strong), from_denoiser(m, weak), 2.0)
    want = 2 * strong(y, 0.7) - weak(y, 0.7)
    np.testing.assert_allclose(denoised(m, guided, u, t), want, atol=1e-3)


@pytest.mark.parametrize("order", (1, 2, 4))
def test_the_denoiser_is_clipped_and_thresholded(order):
    m = MODELS[f"hold{order}"]
    eps_fn, (u, t) = from_denoiser(m, gaussian(3.0)), noisy(m, 0.3)
    plain = denoised(m, eps_fn, u, t)
    assert (np.abs(plain) > 1.5).any() and (np.abs(plain) < 1.5).any()
    np.testing.assert_allclose(denoised(m, guidance.clip(m, eps_fn, 1.5), u, t), np.clip(plain, -1.5, 1.5), atol=1e-4)
    np.testing.assert_array_equal(guidance.clip(m, eps_fn, 100.0)(u, t), eps_fn(u, t))
    s = np.maximum(np.quantile(np.abs(plain), 0.7, axis=1, keepdims=True), 1.5)
    assert (s > 1.5).any()
    want = np.clip(plain, -s, s) * 1.5 / s
    np.testing.assert_allclose(denoised(m, guidance.threshold(m, eps_fn, 0.7, 1.5), u, t), want, atol=1e-4)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m, e: guidance.interval(m, e, e, 2.0, 1.0), "`high` is 1.0; it must be above low = 2.0"),
        (lambda m, e: guidance.interval(m, e, e, -1.0, 1.0), "`low` is -1.0; it must be 0 or positive"),
        (lambda m, e: guidance.interval(m, e, e, "a", 2.0), "`low` is 'a'; it must be a number, 0 or positive"),
        (lambda m, e: guidance.clip(m, e, "1"), "`bound` is '1'; it must be a number, positive"),
        (lambda m, e: guidance.classifier_free(e, e, "2"), "`scale` is '2'; it must be finite, one number or one for"),
        (lambda m, e: guidance.classifier_free(e, e, float("nan")), "`scale` is nan; it must be finite"),
        (lambda m, e: guidance.classifier(m, e, lambda y, s: y, float("nan")), "`scale` is nan; it must be finite"),
        (
            lambda m, e: guidance.classifier_free(e, e, jnp.ones(3))(jnp.zeros((8, 2, 2)), 0.5),
            r"`scale` is \(3,\); it must be \(\) or \(8,\), one for each example",
        ),
        (
            lambda m, e: guidance.classifier(m, e, lambda y, s: y[:, 0], np.ones(3))(jnp.zeros((8, 2, 2)), 0.5),
            r"`scale` is \(3,\); it must be",
        ),
        (lambda m, e: guidance.clip(m, e, 0.0), "`bound` is 0.0; it must be positive"),
        (lambda m, e: guidance.threshold(m, e, 1.5), "`quantile` is 1.5; it must be above 0 and at most 1"),
        (lambda m, e: guidance.threshold(m, e, float("nan")), "`quantile` is nan"),
    ],
)
def test_limits_of_guidance_are_checked(act, message):
    with pytest.raises(UserError, match=message):
        act(MODELS["hold2"], from_denoiser(MODELS["hold2"], gaussian(1.0)))
