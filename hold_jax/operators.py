"""Linear measurements y = A x + noise of data, each with its transpose A' and the solution of (a A A' + b I) v = y.

    from hold_jax import operators

    operator = operators.superresolution(pictures.shape[1:], factor=4)     # data of shape (H, W, C)
    measured = operator.measure(pictures, noise=0.05, key=key)             # (B, H / 4, W / 4, C)

A A' is diagonal in a basis that is cheap to change to (pixels, Fourier modes, singular vectors), so `Operator.solve` is
exact. `inverse` samples the data given such a measurement. All arrays are float32 with the batch first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.scipy import fft

from hold_jax.errors import require, require_data, require_number, require_shape, require_whole
from hold_jax.numerics.random import require_key

__all__ = [
    "OPERATORS",
    "Operator",
    "colorization",
    "compressed_sensing",
    "deblurring",
    "inpainting",
    "linear",
    "superresolution",
]

Map = Callable[[jax.Array], jax.Array]

# Fourier factors of a blur below this share of the largest are 0: float32's rounding of y is larger than what is left.
_LEAST_FACTOR = 1e-5


def _same(x: jax.Array) -> jax.Array:
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A linear map A of data.

    Attributes:
      data_shape: (*S, C) of one example.
      measured_shape: of its measurement.
      forward: A, from (B, *data_shape) to (B, *measured_shape), linear.
      eigenvalues: of A A', float32, with a batch axis: they broadcast against `rotate(y)`.
      rotate: from (B, *measured_shape) to the basis of the eigenvectors of A A'.
      unrotate: the inverse of `rotate`.
      known: (1 or B, *measured_shape) bool, which values of a measurement exist; None: all.
    """

    data_shape: tuple[int, ...]
    measured_shape: tuple[int, ...]
    forward: Map
    eigenvalues: np.ndarray | jax.Array
    rotate: Map = _same
    unrotate: Map = _same
    known: np.ndarray | jax.Array | None = None

    def __post_init__(self):
        for name in ("data_shape", "measured_shape"):  # which may be lists
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def transpose(self, y: jax.Array) -> jax.Array:
        """A' y (B, *data_shape) of y (B, *measured_shape)."""
        # Of the type of y under `jax.shard_map`.
        x = jax.eval_shape(lambda y: jnp.zeros_like(y, jnp.float32, (len(y), *self.data_shape)), y)
        return jax.linear_transpose(self.forward, x)(y)[0]

    def solve(self, y: jax.Array, signal: jax.Array | float, noise: jax.Array | float) -> jax.Array:
        """(signal A A' + noise I)^-1 y, the pseudo-inverse where that matrix is singular.

        Args:
          y: (B, *measured_shape).
          signal: () or (B,), >= 0.
          noise: () or (B,), >= 0.

        Returns:
          (B, *measured_shape).
        """
        rotated = self.rotate(y)
        values = _expanded(signal, rotated) * self.eigenvalues + _expanded(noise, rotated)
        inverse = jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)
        return self.unrotate(rotated * inverse)

    def measure(self, x: jax.Array, noise: float = 0.0, key: jax.Array | None = None) -> jax.Array:
        """A x + noise xi, xi ~ N(0, I), with 0 where no measurement exists.

        Args:
          x: (B, *data_shape), floating, in the model's range.
          noise: standard deviation, >= 0.
          key: of xi; None where `noise` is 0.

        Returns:
          (B, *measured_shape).

        Raises:
          UserError: for data of another shape or type, a noise that is negative or not finite, or one without a key.
        """
        x = jnp.asarray(x)
        require_data("x", x)
        require(x.shape[1:] == self.data_shape, "x", x.shape, f"of shape (B, {_listed(self.data_shape)})")
        if not isinstance(noise, jax.core.Tracer):
            noise = require_number("noise", noise, lambda s: 0 <= s < np.inf, "0 or positive")
            require(noise == 0 or key is not None, "key", key, f"given with noise = {noise}: it draws the noise")
        y = self.forward(x.astype(jnp.float32))
        if key is not None:
            require_key(key)
            y = y + noise * jax.random.normal(key, y.shape, jnp.float32)
        return self.of_known(y)

    def of_known(self, y: jax.Array) -> jax.Array:
        """The values of y (B, *measured_shape) that exist, 0 in place of the others, whatever they are."""
        return y if self.known is None else jnp.where(self.known, y, 0)

    @property
    def num_known(self) -> np.ndarray | jax.Array:
        """The number of values that a measurement has, (1,), or (B,) where it differs among examples."""
        if self.known is None:
            return np.array([float(np.prod(self.measured_shape))], np.float32)
        return self.known.reshape(len(self.known), -1).sum(axis=1).astype(np.float32)


def inpainting(data_shape: tuple[int, ...], mask: np.ndarray | jax.Array) -> Operator:
    """Some of the values themselves: A x = mask x.

    Args:
      data_shape: (*S, C).
      mask: 1, 255 or True where known, 0 where unknown. It broadcasts to data_shape, or to (B, *data_shape) for
        a mask of each example. It may be traced by `jax.jit`; whether something is known is then not checked.

    Raises:
      UserError: for a mask that does not broadcast, has other values, or no known one.
    """
    data_shape = _data_shape(data_shape)
    traced = isinstance(mask, jax.core.Tracer)
    mask = mask if traced else np.asarray(mask)
    two = traced or any(np.isin(mask, (0, known)).all() for known in (1, 255))
    require(bool(two), "mask", "of other values", "1, 255 or True where known, 0 where unknown")
    mask = mask != 0
    batch = len(mask) if mask.ndim > len(data_shape) else 1
    full = (batch, *data_shape)
    pairs = zip(mask.shape[::-1], full[::-1], strict=False)
    fits = mask.ndim <= len(full) and all(a in (1, b) for a, b in pairs)
    require(fits, "mask", mask.shape, f"broadcastable to the data's shape, {data_shape}")
    known = (jnp if traced else np).broadcast_to(mask, full)
    require(traced or bool(known.any()), "mask", "zero everywhere", "1 where the data are known")

    def forward(x: jax.Array) -> jax.Array:
        return jnp.where(known, x, 0)

    return Operator(data_shape, data_shape, forward, known.astype(np.float32), known=known)


def superresolution(data_shape: tuple[int, ...], factor: int = 4) -> Operator:
    """Means over blocks of `factor` pixels along each axis of S.

    Args:
      data_shape: (*S, C), S of at least one axis.
      factor: divides every axis of S; 2 or more.

    Raises:
      UserError: for data without axes S, or a factor that does not divide them.
    """
    data_shape = _data_shape(data_shape)
    sizes = _spatial(data_shape, "superresolution")
    factor, allowed = require_whole("factor", factor, 1), f"2 or more and a divisor of {_listed(sizes)}"
    require(factor >= 2 and not any(size % factor for size in sizes), "factor", factor, allowed)
    measured = (*(size // factor for size in sizes), data_shape[-1])
    blocks = [part for size in sizes for part in (size // factor, factor)]

    def forward(x: jax.Array) -> jax.Array:
        axes = tuple(range(2, 2 + len(blocks), 2))
        return jnp.mean(x.reshape(len(x), *blocks, data_shape[-1]), axis=axes)

    return Operator(data_shape, measured, forward, _constant(measured, factor ** -len(sizes)))


def colorization(data_shape: tuple[int, ...]) -> Operator:
    """The mean of the channels, (*S, 1).

    Args:
      data_shape: (*S, C), C of 2 or more.

    Raises:
      UserError: for data of one channel.
    """
    data_shape = _data_shape(data_shape)
    channels = data_shape[-1]
    require(channels >= 2, "channels", channels, "2 or more to colorize")
    measured = (*data_shape[:-1], 1)
    return Operator(
        data_shape, measured, lambda x: jnp.mean(x, axis=-1, keepdims=True), _constant(measured, 1 / channels)
    )


def deblurring(data_shape: tuple[int, ...], blur: float | np.ndarray = 1.0) -> Operator:
    """A blur of every channel, periodic at the edges: the convolution with a kernel, a product in Fourier space.

    Args:
      data_shape: (*S, C), S of at least one axis.
      blur: the standard deviation, in pixels, of a Gaussian kernel of sum 1 (of the sampled Gaussian, cut off at half
        of each axis), or a kernel of as many axes as S, each at most as long as that of S; its middle (the entry at
        `size // 2`) is where a pixel stays. Frequencies that it keeps less than 1e-5 of are removed.

    Raises:
      UserError: for data without axes S, a deviation that is not positive, or a kernel that does not fit.
    """
    data_shape = _data_shape(data_shape)
    sizes = _spatial(data_shape, "deblurring")
    if np.ndim(blur) == 0:
        std = require_number("blur", blur, lambda s: 0 < s < np.inf, "positive")
        kernel = np.ones([1] * len(sizes))
        for i, size in enumerate(sizes):
            half = (size - 1) // 2
            profile = np.exp(-0.5 * np.square(np.arange(-half, half + 1) / std))
            kernel = kernel * (profile / profile.sum()).reshape([-1 if j == i else 1 for j in range(len(sizes))])
    else:
        kernel = np.asarray(blur)
        fits = kernel.ndim == len(sizes) and all(k <= s for k, s in zip(kernel.shape, sizes, strict=False))
        require(fits, "blur", kernel.shape, f"a number, or a kernel of at most {_listed(sizes)} values")
        _require_values("blur", kernel)
    padded = np.zeros(sizes)
    padded[tuple(slice(k) for k in kernel.shape)] = kernel
    padded = np.roll(padded, [-(k // 2) for k in kernel.shape], axis=range(len(sizes)))
    axes = tuple(range(1, 1 + len(sizes)))
    factors = np.fft.rfftn(padded)[None, ..., None]
    kept = np.abs(factors)
    factors = np.where(kept > _LEAST_FACTOR * kept.max(), factors, 0)

    def forward(x: jax.Array) -> jax.Array:
        return jnp.fft.irfftn(jnp.fft.rfftn(x, axes=axes) * jnp.asarray(factors, jnp.complex64), s=sizes, axes=axes)

    return Operator(
        data_shape,
        data_shape,
        forward,
        np.square(np.abs(factors)).astype(np.float32),
        rotate=lambda y: jnp.fft.rfftn(y, axes=axes),
        unrotate=lambda y: jnp.fft.irfftn(y, s=sizes, axes=axes),
    )


def compressed_sensing(data_shape: tuple[int, ...], share: float = 0.25, seed: int = 0) -> Operator:
    """Random projections: some rows of a cosine transform of the values, permuted and with random signs.

    The rows are orthonormal, A A' = I, and are never stored: a fast transform stands for a Gaussian matrix.

    Args:
      data_shape: (*S, C).
      share: measurements per value, in (0, 1].
      seed: of the permutation, the signs and the rows.

    Raises:
      UserError: for a share that leaves no measurement, or above 1.
    """
    data_shape = _data_shape(data_shape)
    size = int(np.prod(data_shape))
    num = round(share * size) if 0 < share <= 1 else 0
    require(num >= 1, "share", share, f"at most 1 and at least {1 / size:.3g}: one of the {size} values")
    rng = np.random.default_rng(seed)
    order, signs = rng.permutation(size), rng.choice([-1.0, 1.0], size).astype(np.float32)[None]
    rows = np.sort(rng.permutation(size)[:num])

    def forward(x: jax.Array) -> jax.Array:
        return fft.dct(x.reshape(len(x), size)[:, order] * signs, norm="ortho")[:, rows]

    return Operator(data_shape, (num,), forward, _constant((num,), 1.0))


def linear(data_shape: tuple[int, ...], matrix: np.ndarray) -> Operator:
    """Any matrix, by its singular values, which are computed on the host in float64.

    Args:
      data_shape: (*S, C), of d values in all.
      matrix: (m, d), finite; the data are flattened.

    Raises:
      UserError: for a matrix of another shape, or that is not finite.
    """
    data_shape = _data_shape(data_shape)
    matrix, size = np.asarray(matrix), int(np.prod(data_shape))
    fits = matrix.ndim == 2 and matrix.shape[1:] == (size,) and len(matrix) > 0
    require(fits, "matrix", matrix.shape, f"of shape (m, {size}), m >= 1")
    _require_values("matrix", matrix)
    matrix = matrix.astype(np.float64)
    # All left vectors, but of the right ones, which are not used, no more than must be.
    left, values, _ = np.linalg.svd(matrix, full_matrices=len(matrix) > size)
    squares = np.zeros((1, len(matrix)))
    squares[0, : len(values)] = np.where(values > 1e-6 * values[0], values, 0) ** 2
    basis, weights = (jnp.asarray(a, jnp.float32) for a in (left, matrix.T))
    times = lambda x, a: jnp.matmul(x, a, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    return Operator(
        data_shape,
        (len(matrix),),
        lambda x: times(x.reshape(len(x), size), weights),
        squares.astype(np.float32),
        rotate=lambda y: times(y, basis),
        unrotate=lambda y: times(y, basis.T),
    )


OPERATORS: dict[str, Callable[..., Operator]] = {
    "colorization": colorization,
    "compressed_sensing": compressed_sensing,
    "deblurring": deblurring,
    "inpainting": inpainting,
    "linear": linear,
    "superresolution": superresolution,
}


def _expanded(value: jax.Array | float, like: jax.Array) -> jax.Array:
    """A value () or (B,) as an array that broadcasts against `like` (B, ...), with as many axes."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(*(value.shape or (1,)), *(1,) * (like.ndim - 1))


def _spatial(data_shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    require(len(data_shape) >= 2, "data_shape", data_shape, f"(*S, C) with axes S for {name}, such as (H, W, C)")
    return data_shape[:-1]


def _data_shape(data_shape: Any) -> tuple[int, ...]:
    return require_shape("data_shape", data_shape, 1, "(*S, C), such as (64, 64, 3)")


def _require_values(name: str, values: np.ndarray) -> None:
    real = values.dtype.kind in "biuf"
    require(real, name, f"of type {values.dtype}", "of real numbers")
    require(bool(np.isfinite(values).all()), name, "not finite", "finite")
    require(bool(values.any()), name, "zero everywhere", "of some value other than 0")


def _constant(shape: tuple[int, ...], value: float) -> np.ndarray:
    return np.full((1, *shape), value, np.float32)


def _listed(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))


def __dir__() -> list[str]:
    return __all__
