"""EDM's augmentation of pictures: flips, scaling, rotation, stretching and shifts, each with its label.

A network that sees the labels learns which pictures were changed, and without labels draws pictures like the data's
(non-leaking augmentation: 2206.00364, appendix F.2 and table 6). Pictures are resampled by one affine map, at twice
their resolution between the two halves of an orthogonal wavelet (2006.06676, appendix B), so that a picture that is not
changed, or shifted by whole pixels, comes out as it was.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from hold_jax.errors import require

NUM_LABELS = 9
_SCALE_STD = 0.2  # of log2 of the scale, and of the stretch
_STRETCH_TURNED = 0.5  # probability that a stretch is along a random axis, not along x
_SHIFT_STD = 0.125  # of the side
# Low-pass filter of the wavelet sym6 (Daubechies' least asymmetric one of six vanishing moments).
_WAVELET = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
_MARGIN = len(_WAVELET) // 4  # pixels beyond the picture that the low-pass filter reads


class Transforms(NamedTuple):
    """How each of B pictures is changed. Zeros leave a picture as it is.

    Attributes:
      flip_x: (B,) 1: mirrored left to right.
      flip_y: (B,) 1: mirrored upside down.
      scale: (B,) log2 of the scale, in standard deviations.
      angle: (B,) of the rotation, counterclockwise, radians.
      stretch: (B,) log2 of the stretch along an axis, and of the shrinkage across it, in standard deviations.
      axis: (B,) angle of that axis, radians.
      shift: (B, 2) to the right and down, in standard deviations.
    """

    flip_x: jax.Array
    flip_y: jax.Array
    scale: jax.Array
    angle: jax.Array
    stretch: jax.Array
    axis: jax.Array
    shift: jax.Array


def draw_transforms(key: jax.Array, size: int, probability: float) -> Transforms:
    """Draws the transforms of `size` pictures (2206.00364, table 6).

    Each is drawn independently with `probability`, but `flip_x` always: half of the pictures are mirrored. Half of the
    flips that are drawn flip.
    """
    keys = iter(jax.random.split(key, 13))

    def chosen(value: jax.Array, chance: float = probability) -> jax.Array:
        draw = jax.random.bernoulli(next(keys), chance, (size,))
        return jnp.where(draw.reshape(-1, *(1,) * (value.ndim - 1)), value, 0.0)

    def flip() -> jax.Array:
        return jax.random.bernoulli(next(keys), 0.5, (size,)).astype(jnp.float32)

    def angle() -> jax.Array:
        return jax.random.uniform(next(keys), (size,), minval=-math.pi, maxval=math.pi)

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), (size, *shape))

    return Transforms(
        flip_x=flip(),
        flip_y=chosen(flip()),
        scale=chosen(normal()),
        angle=chosen(angle()),
        stretch=chosen(normal()),
        axis=chosen(angle(), _STRETCH_TURNED),
        shift=chosen(normal(2)),
    )


def labels(t: Transforms) -> jax.Array:
    """Returns what the network is shown of the transforms, (B, 9) float32; zeros for a picture left as it is."""
    columns = (
        *(t.flip_x, t.flip_y, t.scale, jnp.cos(t.angle) - 1, jnp.sin(t.angle)),
        *(t.stretch * jnp.cos(t.axis), t.stretch * jnp.sin(t.axis), t.shift[:, 0], t.shift[:, 1]),
    )
    return jnp.stack(columns, axis=-1)


def transform(x: jax.Array, t: Transforms) -> jax.Array:
    """Returns the pictures changed by `t`: first the flips, then the affine map.

    Beyond its border a picture is mirrored once, and zero further out.

    Args:
      x: (B, H, W, C) float32, any C; sides of 2 or more.
      t: of B pictures.

    Returns:
      (B, H, W, C) float32.

    Raises:
      UserError: for an array of another shape.
    """
    fits = x.ndim == 4 and min(x.shape[1:3]) > 1
    require(fits, "x", x.shape, "the shape (B, H, W, C) of pictures, with sides of 2 or more")
    size = x.shape[1:3]

    def when(flag: jax.Array) -> jax.Array:
        return flag.reshape(-1, 1, 1, 1) > 0

    x = jnp.where(when(t.flip_x), x[:, :, ::-1], x)
    x = jnp.where(when(t.flip_y), x[:, ::-1], x)
    high = jax.lax.Precision.HIGHEST
    up, down = ([make(side) for side in size] for make in (_up, _down))
    fine = jnp.einsum("yi,bijc,xj->byxc", up[0], x, up[1], precision=high)
    # Coordinates (y, x) are in pixels, from the picture's center. Fine pixel i of `moved` is at i / 2 + constant.
    rows, columns = (jnp.arange(2 * (side + 2 * _MARGIN)) / 2 - _MARGIN - (side - 1) / 2 for side in size)
    grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).astype(jnp.float32)
    back, shift = _inverse_map(t, size)
    source = jnp.einsum("bij,yxj->byxi", back, grid, precision=high) - shift[:, None, None]
    # `fine` begins 3/2 (side - 1) pixels before the center.
    places = 2 * source + 3 * (jnp.asarray(size, jnp.float32) - 1)[None, None, None]
    sample = jax.vmap(lambda channel, at: map_coordinates(channel, [at[..., 0], at[..., 1]], order=1), (-1, None), -1)
    moved = jax.vmap(sample)(fine, places)
    return jnp.einsum("yi,bijc,xj->byxc", down[0], moved, down[1], precision=high)


def augment(x: jax.Array, key: jax.Array, probability: float) -> tuple[jax.Array, jax.Array]:
    """Returns pictures changed at random and the labels of what was done.

    Args:
      x: (B, H, W, C) float32.
      key: of the batch.
      probability: of each transform, in [0, 1]; EDM's for CIFAR-10 is 0.12.

    Returns:
      (B, H, W, C) and (B, 9), float32.
    """
    t = draw_transforms(key, x.shape[0], probability)
    return transform(x, t), labels(t)


def _inverse_map(t: Transforms, size: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns matrix (B, 2, 2) and shift (B, 2): pixel q of the result shows matrix (q) - shift, both as (y, x)."""

    def rotation(angle: jax.Array) -> jax.Array:
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([jnp.stack([c, s], -1), jnp.stack([-s, c], -1)], -2)

    high = jax.lax.Precision.HIGHEST
    # In (y, x) a rotation by an angle from x to y is the matrix [[c, s], [-s, c]].
    scale, stretch = (jnp.exp2(-_SCALE_STD * w) for w in (t.scale, t.stretch))
    along = jnp.stack([1 / stretch, stretch], -1)  # across and along the axis
    turned = jnp.einsum("bij,bj,bjk->bik", rotation(-t.axis), along, rotation(t.axis), precision=high)
    matrix = jnp.einsum("b,bij,bjk->bik", scale, rotation(t.angle), turned, precision=high)
    pixels = t.shift[:, ::-1] * (_SHIFT_STD * jnp.asarray(size, jnp.float32))[None]
    return matrix, jnp.einsum("bij,bj->bi", matrix, pixels, precision=high)


def _up(side: int) -> np.ndarray:
    """Returns the matrix (2 (3 side - 2), side) that mirrors a line side - 1 pixels beyond both ends and doubles it."""
    length, half = 3 * side - 2, len(_WAVELET) // 2
    matrix = np.zeros((2 * length, side), np.float32)
    for i in range(length):
        j = (side - 1) - abs((side - 1) - (i - (side - 1)) % (2 * side - 2))  # mirrored, the end itself once
        for k, weight in enumerate(_WAVELET):
            if 0 <= 2 * i + k - half + 1 < 2 * length:
                matrix[2 * i + k - half + 1, j] += weight
    return matrix


def _down(side: int) -> np.ndarray:
    """Returns the matrix (side, 2 (side + 2 `_MARGIN`)) that filters a line and takes every second value, cropped."""
    matrix = np.zeros((side, 2 * (side + 2 * _MARGIN)), np.float32)
    for i in range(side):
        start = 2 * (i + _MARGIN) - len(_WAVELET) // 2 + 1
        matrix[i, start : start + len(_WAVELET)] = _WAVELET
    return matrix
