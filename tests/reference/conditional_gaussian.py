"""x given c is N(gain c + shift, std^2 I), c ~ N(0, 1) in every entry: the exact conditional and unconditional laws.

`Exact` is a network of the library's interface without parameters, whose model is the exact denoiser: of x given c
where the condition is given, and of x alone, N(shift, gain^2 + std^2), where it is null.
"""

import flax.linen as nn
import jax.numpy as jnp

from hold_jax.data import Statistics
from hold_jax.model import Model
from hold_jax.parameterization import log_noise, sufficient

GAIN, SHIFT, STD = 0.6, 0.25, 0.3
SIGMA_DATA = 0.5
# What the condition is in data units: CENTER + SCALE c.
CENTER, SCALE = 3.0, 2.0


def denoiser(y, sigma, mean, std):
    """E[x | x + sigma noise = y] for x ~ N(mean, std^2); broadcasts."""
    return (std**2 * y + sigma**2 * mean) / (std**2 + sigma**2)


class Exact(nn.Module):
    """The exact denoiser; `field` is the condition that it reads, "vector" or "picture"."""

    field: str
    num_classes: int = 0

    @nn.compact
    def __call__(self, x, noise_cond, condition=None, train=False):
        seen = getattr(condition, self.field)
        c, given = seen[..., :-1], seen[..., -1:]
        sigma = jnp.exp(4 * noise_cond).reshape(-1, *(1,) * (x.ndim - 1))
        total = jnp.sqrt(sigma**2 + SIGMA_DATA**2)
        y = total * x
        conditional = denoiser(y, sigma, SHIFT + GAIN * c, STD)
        unconditional = denoiser(y, sigma, SHIFT, (GAIN**2 + STD**2) ** 0.5)
        denoised = given * conditional + (1 - given) * unconditional
        return (denoised - SIGMA_DATA**2 / total**2 * y) * total / (sigma * SIGMA_DATA)


def model(sde, shape, field="vector", dropout=0.0):
    """The exact model of data of `shape`, conditioned on as many numbers as an example has."""
    k = shape[-1]
    moments = {f"{field}_mean": (CENTER,) * k, f"{field}_std": (SCALE,) * k}
    statistics = Statistics(**moments, **({"picture_shape": shape} if field == "picture" else {}))
    return Model(
        sde,
        Exact(field),
        shape,
        sufficient,
        log_noise,
        SIGMA_DATA,
        statistics=statistics,
        **{f"{field}_dropout": dropout},
    )


def in_data_units(c):
    """The condition that a user has, of standard normal c."""
    return CENTER + SCALE * c
