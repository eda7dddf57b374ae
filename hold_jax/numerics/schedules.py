"""Noise schedules: beta(t), its integral B(s, t) without cancellation, and the inverse of B(0, t).

Methods take NumPy arrays (host, float64) or JAX arrays (traced, float32) and return the same kind.
"""

import dataclasses
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.errors import require_number

Array = TypeVar("Array", float, np.ndarray, jax.Array)


def _xp(*arrays: float | np.ndarray | jax.Array) -> Any:
    """Returns jax.numpy if any argument is a JAX array, else NumPy."""
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


class Schedule(Protocol):
    """beta(t) >= 0 on t >= 0."""

    def beta(self, t: Array) -> Array:
        """Returns beta(t)."""
        ...

    def integral(self, s: Array | float, t: Array) -> Array:
        """Returns B(s, t) = int_s^t beta, with a small relative error also for t close to s."""
        ...

    def time(self, big_b: Array) -> Array:
        """Returns the t with B(0, t) = big_b."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """beta(t) = beta > 0."""

    value: float

    def __post_init__(self):
        value = require_number("value", self.value, lambda beta: 0 < beta < float("inf"), "positive")
        object.__setattr__(self, "value", value)

    def beta(self, t: Array) -> Array:
        """See `Schedule`."""
        return self.value * _xp(t).ones_like(t)

    def integral(self, s: Array | float, t: Array) -> Array:
        """See `Schedule`."""
        return self.value * (t - s)

    def time(self, big_b: Array) -> Array:
        """See `Schedule`."""
        return big_b / self.value


@dataclasses.dataclass(frozen=True)
class Linear:
    """beta(t) = start + slope t (2011.13456, eq. 32, has t in [0, 1])."""

    start: float
    slope: float

    def beta(self, t: Array) -> Array:
        """See `Schedule`."""
        return self.start + self.slope * t

    def integral(self, s: Array | float, t: Array) -> Array:
        """See `Schedule`."""
        return (t - s) * (self.start + 0.5 * self.slope * (s + t))

    def time(self, big_b: Array) -> Array:
        """See `Schedule`."""
        root = _xp(big_b).sqrt(self.start**2 + 2 * self.slope * big_b)
        return 2 * big_b / (self.start + root)


@dataclasses.dataclass(frozen=True)
class Geometric:
    """beta = d sigma^2/dt with sigma(t) = sigma_min (sigma_max / sigma_min)^t (2011.13456, eq. 30)."""

    sigma_min: float
    sigma_max: float

    @property
    def _rate(self) -> float:
        return 2 * float(np.log(self.sigma_max / self.sigma_min))

    def beta(self, t: Array) -> Array:
        """See `Schedule`."""
        return self.sigma_min**2 * self._rate * _xp(t).exp(self._rate * t)

    def integral(self, s: Array | float, t: Array) -> Array:
        """See `Schedule`."""
        xp = _xp(s, t)
        return self.sigma_min**2 * xp.exp(self._rate * s) * xp.expm1(self._rate * (t - s))

    def time(self, big_b: Array) -> Array:
        """See `Schedule`."""
        return _xp(big_b).log1p(big_b / self.sigma_min**2) / self._rate
