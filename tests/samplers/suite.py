"""What the tests of the samplers share: the data, the clocks, the errors, and a driver of single steps in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from reference import oracle
from reference.propagate import denoised, gaussian_row, propagate, propagate_poisson, truth

from hold_jax import kernels, samplers, sde
from hold_jax.numerics import exact

MEAN, STD = 0.3, 0.5

hold = functools.cache(lambda n: sde.hold(order=n))


@functools.cache
def log_times(m, first, last, num_steps, refined=False):
    """Times at equal steps h in log sigma_eff, from noise `first` to `last`.

    refined: a step of h^2 comes before them, so that a multistep sampler's first one, which has no past to
    extrapolate from, adds nothing of lower order than the rest.
    """
    noise = np.linspace(np.log(first), np.log(last), num_steps + 1)
    h = noise[0] - noise[1]
    if refined:
        noise = np.concatenate([[noise[0] + h**2], noise])
    return m.schedule.time(exact.integral_of_noise(m.F, m.G, m.cov0, np.exp(noise)))


def law_error(m, law, t, std=STD):
    """|W cov W' - I| and |W (mean - true mean)| with W the inverse factor of the true law of u(t)."""
    true = truth(m, t, mean=MEAN, std=std)
    whiten = np.linalg.inv(np.linalg.cholesky(true.cov))
    gap = np.linalg.norm(whiten @ law.cov @ whiten.T - np.eye(m.order))
    return gap, np.linalg.norm(whiten @ (law.mean - true.mean))


def errors(sampler, m, times):
    """`law_error` after `times` from the exact law at times[0]: the error of the steps alone."""
    start = truth(m, times[0], mean=MEAN, std=STD)
    run = propagate_poisson if isinstance(sampler, samplers.PoissonMidpoint) else propagate
    return law_error(m, run(sampler, m, times, mean=MEAN, std=STD, start=start), times[-1])


def fitted_orders(sampler, m, clock, first=16):
    """Orders of the error in the covariance and in the mean, for `clock`(m, num_steps); and the largest mean error.

    The slope between N and 2 N steps is p + O(1/N): that of 2 N and 4 N extrapolates it.
    """
    both = np.array([errors(sampler, m, clock(m, num)) for num in (first, 2 * first, 4 * first)])
    with np.errstate(divide="ignore", invalid="ignore"):  # a mean without error has no order
        slopes = np.log2(both[:-1] / both[1:])
    return 2 * slopes[1] - slopes[0], both[:, 1].max()


def kl_of_x(sampler, m, times, std, mean=0.0):
    """KL(x || data) in nats of the denoised sample, from the prior, exactly."""
    run = propagate_poisson if isinstance(sampler, samplers.PoissonMidpoint) else propagate
    law = run(sampler, m, times, mean=mean, std=std, factors=gaussian_row)
    center, variance = denoised(m, law, times[-1], mean=mean, std=std)
    return oracle.kl([center], np.array([[variance]]), np.array([mean]), np.array([[std**2]]))


def stepped(sampler, m, eps_fn, u, times, noise=None):
    """The states (N + 1, B, n, C) of a linear sampler's own steps, in float64.

    noise: (N, k, B, r, C), what the k draws of each step are (their first rows); None: none may be drawn.
    """
    with jax.enable_x64(True):
        coefficients = sampler.coefficients(m, np.asarray(times, np.float64))
        state = sampler.start(coefficients, jnp.asarray(u, jnp.float64))
        states = [state.u]
        for i in range(len(times) - 1):
            row = jax.tree.map(lambda c, i=i: c[i], coefficients)
            state = _advance(eps_fn, state, row, None if noise is None else noise[i])
            states.append(state.u)
        return np.stack([np.asarray(u) for u in states])


@functools.partial(jax.jit, static_argnums=0)
def _advance(eps_fn, state, c, noise):
    # All linear samplers share their step.
    return samplers.EulerMaruyama().step(c, state, eps_fn, lambda i, shape: noise[i, :, : shape[-2]])


FIRST_ORDER = {"vp": sde.vp(), "ve": sde.ve(sigma_max=5.0), "hold1": sde.hold(order=1)}


def signal_and_noise(name, t):
    """a and s of x_t = a x_0 + s eps for the processes of `FIRST_ORDER`, as their papers write them."""
    t = np.asarray(t, np.float64)
    if name == "ve":  # 2011.13456, eq. 31, from sigma_min on
        return np.ones_like(t), np.sqrt(0.01**2 * (5.0 / 0.01) ** (2 * t) - 0.01**2)
    if name == "vp":  # eq. 33
        b = 0.1 * t + 9.95 * t**2
        return np.exp(-b / 2), np.sqrt(-np.expm1(-b))
    return np.exp(-t), np.sqrt(-0.5 * np.expm1(-2 * t))  # 2404.12814 at n = 1: dq = -q dt + dw, 1/L = 0.5


def data(name, x, t):
    """The data prediction (B, 1, C) that belongs to `network`'s noise, at n = 1."""
    a, s = signal_and_noise(name, t)
    return (x - s * network(x, t)) / a


def network(u, t):
    """A nonlinear function of state and time, for tests that are not about its meaning; NumPy or JAX, t ()."""
    sin = jnp.sin if isinstance(u, jax.Array) else np.sin
    return 0.6 * u[..., -1:, :] + 0.1 * sin(3 * u[..., :1, :] + t)


def denoising_eps(m, denoiser, times=None):
    """eps_fn from a `denoiser`(y (B, 1, C), sigma) of y = q0 + sigma eps, by the sufficient statistic, in u's dtype.

    times: those it will be asked at: its matrices are then float64's, a small graph that is quick to compile.
    None: any; from `kernels`, in float32.
    """

    def on_device(u, t):
        y, sigma = kernels.sufficient_statistic(m, u, t)
        return kernels.last_noise(m, u, t, denoiser(y, sigma))

    if times is None:
        return on_device
    times = np.asarray(times, np.float64).ravel()
    phi, chol = exact.marginal(m.F, m.G, m.cov0, m.schedule.integral(0.0, times))
    inverse = exact.solve_lower(chol, np.broadcast_to(np.eye(m.order), chol.shape))
    w = (inverse @ phi[..., :1])[..., 0]
    noise = 1 / np.linalg.norm(w, axis=-1)
    statistic = (w[:, None] @ inverse) * noise[:, None, None] ** 2

    def at_times(u, t):
        # The nearest: in float32 a time is off by its rounding.
        i = jnp.argmin(jnp.abs(jnp.asarray(times, u.dtype) - t))
        row, last, w_n, sigma = (jnp.asarray(v, u.dtype)[i] for v in (statistic, inverse[:, -1:], w[:, -1], noise))
        return kernels.mix(last, u) - w_n * denoiser(kernels.mix(row, u), sigma)

    return at_times


def mixture_denoiser(y, sigma):
    """Of 0.6 N(0.5, 0.1^2) + 0.4 N(-0.4, 0.2^2) in each dimension; NumPy or JAX."""
    xp = jnp if isinstance(y, jax.Array) else np
    one, two = (std**2 + sigma**2 for std in (0.1, 0.2))
    # Odds of the second against the first, clipped where nothing is left of either.
    odds = 0.5 * xp.log(one / two) + 0.5 * ((y - 0.5) ** 2 / one - (y + 0.4) ** 2 / two)
    share = 1 / (1 + 0.4 / 0.6 * xp.exp(xp.clip(odds, -60, 60)))
    return share * (0.5 + 0.1**2 / one * (y - 0.5)) + (1 - share) * (-0.4 + 0.2**2 / two * (y + 0.4))


def mixture_eps(m, times=None):
    """The exact eps_fn of `mixture_denoiser`'s data."""
    return denoising_eps(m, mixture_denoiser, times)


def gaussian_eps(m, times=None):
    """The exact eps_fn of N(MEAN, STD^2)."""
    return denoising_eps(m, lambda y, sigma: MEAN + STD**2 / (STD**2 + sigma**2) * (y - MEAN), times)
