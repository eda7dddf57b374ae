"""Draw samples: one scan over a grid of steps, whatever the sampler."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.errors import require
from hold_jax.parameterization import EpsFn
from hold_jax.samplers.affine import Normal
from hold_jax.samplers.grids import times_of
from hold_jax.sde import LinearSDE


class Sampler(Protocol):
    """A fixed-grid sampler: a frozen dataclass of its own options, in a file of its own."""

    calls_per_step: int
    """Network calls a step makes."""

    def coefficients(self, m: LinearSDE, times: np.ndarray) -> Any:
        """A tree of float64 host arrays with a leading axis of len(times) - 1 steps."""
        ...

    def step(self, coefficients: Any, u: jax.Array, eps_fn: EpsFn, normal: Normal) -> jax.Array:
        """The state after one step, from one row of the coefficients."""
        ...


class Samples(NamedTuple):
    """x (B, *S, C) the data block; u (B, *S, n, C) the last state; nfe network calls made;
    frames (frames + 1, B, *S, C) the data block along the way, from the prior on, or None."""

    x: jax.Array
    u: jax.Array
    nfe: int
    frames: jax.Array | None


def sample(
    sampler: Sampler,
    m: LinearSDE,
    eps_fn: EpsFn,
    *,
    key: jax.Array,
    shape: tuple[int, ...],
    num_steps: int,
    grid: Any = "karras",
    t_min: float | None = None,
    denoise: bool = True,
    frames: int = 0,
    sharding: jax.sharding.Sharding | None = None,
) -> Samples:
    """Integrates the reverse process from the prior at T to t_min. Traceable: wrap it in `jax.jit` to call it often.

    Args:
      sampler: e.g. `SAMPLERS["strang"]()`.
      m: the SDE.
      eps_fn: the noise of the last block.
      key: for the prior and every step.
      shape: of the samples, (B, *S, C).
      num_steps: steps of the grid.
      grid: "uniform", "quadratic", "karras", or your own falling times (num_steps + 1,).
      t_min: where to stop; None is `m.t_min`, an effective noise of 0.002 data units.
      denoise: return E[q0 | u(t_min)] (one more call) instead of the data block itself.
      frames: how many states to keep on the way; divides num_steps. Memory does not grow with num_steps.
      sharding: of a (B, ...) array, to spread the batch over devices (a mesh with Auto axes).

    Raises:
      UserError: for a bad grid, num_steps, t_min or frames, before anything is compiled.
    """
    times = times_of(m, grid, m.t_min if t_min is None else t_min, num_steps)
    divides = frames == 0 or (frames > 0 and num_steps % frames == 0)
    require(divides, "frames", frames, f"0 or a divisor of num_steps = {num_steps}")
    coefficients = jax.tree.map(lambda c: jnp.asarray(c, jnp.float32), sampler.coefficients(m, times))

    key_prior, key_steps = jax.random.split(key)
    prior_chol = jnp.asarray(np.linalg.cholesky(m.prior_cov), jnp.float32)
    u = kernels.mix(prior_chol, jax.random.normal(key_prior, (*shape[:-1], m.order, shape[-1])))
    if sharding is not None:
        u = jax.lax.with_sharding_constraint(u, sharding)

    def advance(u: jax.Array, row: tuple[jax.Array, Any]) -> tuple[jax.Array, None]:
        index, c = row
        key_step = jax.random.fold_in(key_steps, index)

        def normal(i: int, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(key_step, i), shape)

        return sampler.step(c, u, eps_fn, normal), None

    rows = (jnp.arange(num_steps), coefficients)
    kept = None
    if frames:
        rows = jax.tree.map(lambda a: a.reshape(frames, num_steps // frames, *a.shape[1:]), rows)
        first = u[..., 0, :]
        u, kept = jax.lax.scan(lambda u, block: _with_frame(jax.lax.scan(advance, u, block)[0]), u, rows)
        kept = jnp.concatenate([first[None], kept])
    else:
        u, _ = jax.lax.scan(advance, u, rows)

    nfe = num_steps * sampler.calls_per_step
    if not denoise:
        return Samples(u[..., 0, :], u, nfe, kept)
    t = jnp.float32(times[-1])
    return Samples(kernels.denoiser(m, u, t, eps_fn(u, t)), u, nfe + 1, kept)


def _with_frame(u: jax.Array) -> tuple[jax.Array, jax.Array]:
    return u, u[..., 0, :]
