"""Gaussian and Gaussian-mixture data of any covariance given a linear measurement: exact laws, in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels


class Gaussians(NamedTuple):
    """sum_k weights_k N(means_k, covs_k) on R^d."""

    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K, d)
    covs: np.ndarray  # (K, d, d)

    def given(self, matrix, y, noise):
        """The law given y = matrix x + noise xi, y (m,): again a mixture."""
        gain, cov, logs = [], [], []
        for weight, mean, prior in zip(self.weights, self.means, self.covs, strict=True):
            whole = matrix @ prior @ matrix.T + noise**2 * np.eye(len(matrix))
            kept = np.linalg.solve(whole, matrix @ prior).T
            gap = y - matrix @ mean
            gain.append(mean + kept @ gap)
            cov.append(prior - kept @ matrix @ prior)
            logs.append(np.log(weight) - 0.5 * gap @ np.linalg.solve(whole, gap) - 0.5 * np.linalg.slogdet(whole)[1])
        logs = np.array(logs) - np.logaddexp.reduce(logs)
        return Gaussians(np.exp(logs), np.stack(gain), np.stack(cov))

    def moments(self):
        """Mean (d,) and covariance (d, d)."""
        mean = self.weights @ self.means
        gaps = self.means - mean
        return mean, np.einsum("k,kij->ij", self.weights, self.covs) + np.einsum("k,ki,kj", self.weights, gaps, gaps)

    def sample(self, rng, num):
        """(num, d) draws."""
        which = rng.choice(len(self.weights), num, p=self.weights / self.weights.sum())
        factors = np.stack([np.linalg.cholesky(c + 1e-14 * np.eye(len(c))) for c in self.covs])
        return self.means[which] + np.einsum(
            "nij,nj->ni", factors[which], rng.standard_normal((num, len(self.means[0])))
        )

    def eps_fn(self, m, data_shape):
        """The exact `eps_fn` of data (B, *data_shape), traceable and differentiable, float32."""
        values, vectors = np.linalg.eigh(self.covs)
        logs, means, values, vectors = (
            jnp.asarray(a, jnp.float32) for a in (np.log(self.weights), self.means, np.maximum(values, 0), vectors)
        )

        def denoise(y, sigma):
            variance = values[None] + jnp.square(sigma).reshape(-1, 1, 1)
            turned = jnp.einsum("bkd,kde->bke", y[:, None] - means[None], vectors, precision="highest")
            log = logs[None] - 0.5 * jnp.sum(jnp.square(turned) / variance + jnp.log(variance), axis=-1)
            shrunk = turned * (values[None] / variance)
            each = means[None] + jnp.einsum("bke,kde->bkd", shrunk, vectors, precision="highest")
            return jnp.sum(jax.nn.softmax(log, axis=1)[..., None] * each, axis=1)

        def eps_fn(u, t):
            y, sigma = kernels.sufficient_statistic(m, u, t)
            denoised = denoise(y.reshape(len(y), -1), sigma).reshape(len(y), *data_shape)
            return kernels.last_noise(m, u, t, denoised)

        return eps_fn


def gaussian(mean, cov):
    """N(mean, cov)."""
    return Gaussians(np.ones(1), np.asarray(mean, np.float64)[None], np.asarray(cov, np.float64)[None])


def matrix_of(operator):
    """The operator's matrix (m, d), float64."""
    size = int(np.prod(operator.data_shape))
    columns = operator.forward(jnp.eye(size).reshape(size, *operator.data_shape))
    return np.asarray(columns, np.float64).reshape(size, -1).T
