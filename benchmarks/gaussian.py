"""The law of a sampler's output for data N(0, std^2), exactly, in NumPy: what the papers' benchmarks share.

With the exact network a linear sampler is an affine map, and `poisson_midpoint` is one given its clock, so covariances
propagate without Monte Carlo. (`tests/reference/propagate.py` is the oracle of the tests: it runs the samplers' own
steps and carries factors; this one is quick, and `tests/test_benchmark_papers.py` holds it against the oracle.)
"""

import numpy as np

from hold_jax.numerics import exact
from hold_jax.samplers import PoissonMidpoint, linear
from hold_jax.sde import LinearSDE


def eps_row(m: LinearSDE, times: np.ndarray, std: float) -> np.ndarray:
    """E[eps_n | u] = row u at N times: (N, n)."""
    b = m.schedule.integral(0.0, np.asarray(times, np.float64))
    _, chol = exact.marginal(m.F, m.G, m.cov0, b)
    _, total = exact.marginal(m.F, m.G, m.cov0 + std**2 * np.diag(np.eye(m.order)[0]), b)
    inverse = exact.solve_lower(total, np.broadcast_to(np.eye(m.order), total.shape))
    return (chol[..., -1, -1] * inverse[..., -1, -1])[..., None] * inverse[..., -1, :]


Sampler = linear.LinearSampler | PoissonMidpoint


def deviation(m: LinearSDE, sampler: Sampler, times: np.ndarray, std: float) -> float:
    """The standard deviation of the denoised sample."""
    law = _poisson if isinstance(sampler, PoissonMidpoint) else _linear
    with np.errstate(over="ignore", invalid="ignore"):
        cov = law(m, sampler, np.asarray(times, np.float64), std)
    data = linear.data_weights(m, times[-1:])[0, 0]
    gain = data[:-1] + data[-1] * eps_row(m, times[-1:], std)[0]
    return float(np.sqrt(gain @ cov @ gain))


def kl(m: LinearSDE, sampler: Sampler, times: np.ndarray, std: float) -> float:
    """KL, in nats a dimension, of the denoised sample from what exact integration to times[-1] gives.

    That law, N(0, std^4 / (std^2 + sigma_min^2)), is the data's but for the last noise, the same for all samplers.
    """
    sigma = exact.effective_noise(m.F, m.G, m.cov0, m.schedule.integral(0.0, times[-1]))
    ratio = deviation(m, sampler, times, std) ** 2 * (std**2 + sigma**2) / std**4
    return float(0.5 * (ratio - 1 - np.log(ratio)))


def _linear(m: LinearSDE, sampler: linear.LinearSampler, times: np.ndarray, std: float) -> np.ndarray:
    stages = sampler.coefficients(m, times)
    n, past = m.order, stages[0].outputs.shape[-1] - 1
    rows = [eps_row(m, stage.time, std) for stage in stages]
    # Of u and of the outputs remembered.
    cov = np.zeros((n + past, n + past))
    cov[:n, :n] = m.prior_cov
    for i in range(len(times) - 1):
        for stage, row in zip(stages, rows, strict=True):
            before, noise = np.eye(n), np.zeros((n, 1))
            if stage.before is not None:
                before = stage.before.state[i]
                noise = noise if stage.before.noise is None else stage.before.noise[i]
            output = row[i] if stage.data is None else stage.data[i, 0, :n] + stage.data[i, 0, n] * row[i]
            # u, outputs <- u before the call, the new output and the old ones.
            call = np.zeros((n + 1 + past, n + past))
            call[:n, :n], call[n, :n], call[n + 1 :, n:] = before, output @ before, np.eye(past)
            driven = np.concatenate([noise, (output @ noise)[None], np.zeros((past, noise.shape[1]))])
            after = np.zeros((n + past, n + 1 + past))
            after[:n, :n], after[:n, n:], after[n:, n : n + past] = stage.after.state[i], stage.outputs[i], np.eye(past)
            whole, driven = after @ call, after @ driven
            cov = whole @ cov @ whole.T + driven @ driven.T
            if stage.after.noise is not None:
                cov[:n, :n] += stage.after.noise[i] @ stage.after.noise[i].T
    return cov[:n, :n]


def _poisson(m: LinearSDE, sampler: PoissonMidpoint, times: np.ndarray, std: float) -> np.ndarray:
    """Over the clock too: independent events of probability 1/K, each a term of its own (see `propagate_poisson`)."""
    c, n, k = sampler.coefficients(m, times), m.order, sampler.K
    output = c.read[..., :n] + c.read[..., n:] * eps_row(m, c.times, std)[..., None, :]
    r = c.noise.shape[-1]
    cov = m.prior_cov
    for i in range(len(times) - 1):
        values, vectors = np.linalg.eigh(cov)
        held = np.zeros((n, n + k * r))
        held[:, :n] = vectors * np.sqrt(np.maximum(values, 0))
        first = output[i, 0] @ held
        events = np.zeros((k - 1, *held.shape))
        for j in range(k):
            events[: max(j - 1, 0)] = c.state[i, j] @ events[: max(j - 1, 0)]
            if j > 0:
                events[j - 1] = k * c.held[i, j] @ (output[i, j] @ held - first)
            held = c.state[i, j] @ held + c.held[i, j] @ first
            held[:, n + j * r : n + (j + 1) * r] += c.noise[i, j]
        center = held + events.sum(axis=0) / k
        cov = center @ center.T + (1 - 1 / k) / k * np.tensordot(events, events, axes=((0, 2), (0, 2)))
    return cov
