"""Tables of a smooth matrix function of one scalar, evaluated in float32 to float32 rounding.

The kernels of a linear SDE are smooth functions of one number, B = int beta dt. On the device they would need matrix
exponentials and triangular factors in float32, which lose digits for small and for large B. Therefore they are computed
once on the host in float64 (`exact.py`) and written as

    f_ij(B) = e^{-rate B} B^{p_ij} P_ij(B)

with half-integer powers p_ij. P is stored as polynomials on intervals, which are halved until the polynomials are
accurate. The powers keep the *relative* accuracy of entries that vanish like B^(n-1/2), so B = 0 needs no epsilon. An
evaluation on the device is a gather and a Horner sum: it is pure and differentiable.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

_DEGREE = 9
_TOLERANCE = 2.0**-25
# Cancellation bound: largest polynomial term over the row norm.
_LARGEST_TERM = 3.0
_LEAST_WIDTH = 2.0**-20
_MAX_DEPTH = 60
_MAX_PIECES = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Piecewise polynomials of a matrix function on [0, edges[-1]]; NaN outside.

    Attributes:
      edges: (P + 1,) float32 ends of the pieces.
      coefficients: (P, degree + 1, r, c) float32, lowest degree first, in x in [-1, 1] on each piece.
      twice_powers: (r, c) int32, 2 p_ij.
      rate: the exponential decay that is factored out.
    """

    edges: np.ndarray
    coefficients: np.ndarray
    twice_powers: np.ndarray
    rate: float

    def __call__(self, b: jax.Array) -> jax.Array:
        """Evaluates the function.

        Args:
          b: (...,) float32 in [0, edges[-1]].

        Returns:
          (..., r, c) float32; NaN outside of the range.
        """
        b = jnp.asarray(b, jnp.float32)
        # The default method, a binary search, is a while loop. On a scalar inside a scan it does not compile for NVIDIA
        # GPUs (openxla/xla issue 49299).
        piece = jnp.searchsorted(self.edges, b, side="right", method="compare_all") - 1
        piece = jnp.clip(piece, 0, len(self.edges) - 2)
        left, right = jnp.asarray(self.edges)[piece], jnp.asarray(self.edges)[piece + 1]
        inside = (b >= 0) & (b <= self.edges[-1])
        x = jnp.where(inside, ((b - left) - (right - b)) / (right - left), jnp.nan)[..., None, None]
        terms = jnp.asarray(self.coefficients)[piece]
        value = terms[..., -1, :, :]
        for k in range(self.coefficients.shape[1] - 2, -1, -1):
            value = value * x + terms[..., k, :, :]
        root = jnp.sqrt(b)
        powers = jnp.stack([root**k for k in range(int(self.twice_powers.max()) + 1)], axis=-1)
        return value * powers[..., self.twice_powers] * jnp.exp(-self.rate * b)[..., None, None]


def _twice_powers(function: Callable[[np.ndarray], np.ndarray], tiny: float) -> np.ndarray:
    """2 p_ij (r, c) of entries that are like B^p_ij at B = tiny; 0 for others, rounding errors among them."""
    at = np.abs(function(tiny * np.array([1.0, 2.0, 4.0])))
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = 2 * np.log2(at[1:] / at[:-1])
    powers = np.rint(slopes[0])
    found = (powers > 0) & (np.abs(slopes - powers) < 0.02).all(axis=0)
    return np.where(found, powers, 0).astype(np.int32)


def tabulate(function: Callable[[np.ndarray], np.ndarray], *, top: float, rate: float = 0.0) -> Table:
    """Makes the `Table` of `function` on [0, top].

    Args:
      function: maps B (N,) float64 > 0 to (N, r, c) float64. Where the relative error of an entry is small, so is the
        table's; the error of any other is small relative to its row.
      top: end of the range.
      rate: exponential decay that is factored out, so that fewer pieces suffice.

    Raises:
      ArithmeticError: if the pieces do not resolve the function.
    """
    twice_powers = _twice_powers(function, 1e-12 * min(top, 1.0))

    def regular(b: np.ndarray) -> np.ndarray:
        return function(b) / b[:, None, None] ** (twice_powers / 2) * np.exp(rate * b)[:, None, None]

    nodes = chebyshev.chebpts1(_DEGREE + 1)
    to_coefficients = np.linalg.inv(chebyshev.chebvander(nodes, _DEGREE))
    monomials = map(chebyshev.cheb2poly, np.eye(_DEGREE + 1))
    to_monomials = np.stack([np.pad(row, (0, _DEGREE + 1 - len(row))) for row in monomials])

    done: list[tuple[float, np.ndarray]] = []
    todo = [(0.0, float(np.float32(top)))]
    for _ in range(_MAX_DEPTH):
        if not todo or len(done) + len(todo) > _MAX_PIECES:
            break
        # One call for all open pieces: the host function is vectorized.
        ends = np.array(todo)
        b = ends.mean(axis=1)[:, None] + (ends[:, 1] - ends[:, 0])[:, None] / 2 * nodes
        values = regular(b.ravel()).reshape(*b.shape, *twice_powers.shape)
        series = np.einsum("kd,pdrc->pkrc", to_coefficients, values)
        # Weight of one unit of each polynomial in its row: float32 does not resolve less than 2^-24 of the row.
        powers = b[..., None, None] ** (twice_powers / 2) * np.exp(-rate * b)[..., None, None]
        weight = (powers / np.linalg.norm(values * powers, axis=-1, keepdims=True)).max(axis=1)
        tail = np.abs(series[:, -2:]).max(axis=1)
        converged = (tail <= _TOLERANCE * np.abs(series).max(axis=1)) | (tail * weight <= _TOLERANCE / 4)
        cancels = np.abs(series).sum(axis=1) * weight > _LARGEST_TERM
        # An inverse function may have a square-root singularity, which no polynomial resolves: stop at tiny pieces.
        tiny_piece = ends[:, 1] - ends[:, 0] <= _LEAST_WIDTH * ends[:, 1]
        resolved = (converged & ~cancels).all(axis=(1, 2)) | tiny_piece
        done += [(left, piece) for (left, _), piece, ok in zip(todo, series, resolved, strict=True) if ok]
        todo = [
            half
            for (left, right), ok in zip(todo, resolved, strict=True)
            if not ok
            for half in ((left, float(np.float32((left + right) / 2))), (float(np.float32((left + right) / 2)), right))
        ]
    if todo:
        raise ArithmeticError(f"kernel table unresolved on {todo[0]}: powers {twice_powers / 2}")
    done.sort(key=lambda item: item[0])
    return Table(
        edges=np.array([left for left, _ in done] + [top], np.float32),
        coefficients=np.einsum("pkrc,km->pmrc", np.stack([s for _, s in done]), to_monomials).astype(np.float32),
        twice_powers=twice_powers,
        rate=rate,
    )
