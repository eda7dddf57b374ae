"""Draw samples by running the process backwards, and encode data by running it forwards."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.errors import UserError, require
from hold_jax.numerics.random import per_example
from hold_jax.parameterization import EpsFn
from hold_jax.samplers.grids import Grid, times_of
from hold_jax.samplers.loop import Path
from hold_jax.sde import LinearSDE

UNFINISHED = (
    "samples are NaN: the network's output is, or an adaptive solver made `max_steps` steps before it came to t_min; "
    "look at the training loss, or raise max_steps, or loosen rtol and atol"
)


class Sampler(Protocol):
    """Anything that carries a state along falling times: a frozen dataclass of its options, in a file of its own.

    Most are `loop.StepSampler`s, and most of these `linear.LinearSampler`s: tables of small matrices.
    """

    @property
    def deterministic(self) -> bool:
        """Whether it draws no noise, and so runs forwards too."""
        ...

    def integrate(
        self,
        sde: LinearSDE,
        eps_fn: EpsFn,
        u: jax.Array,
        times: np.ndarray,
        *,
        key: jax.Array,
        index: jax.Array | None = None,
        frames: int = 0,
    ) -> Path:
        """From u (B, *S, n, C) at times[0] to times[-1]."""
        ...


class Samples(NamedTuple):
    """x (B, *S, C) the data block; u (B, *S, n, C) the last state; nfe () int32 calls of `eps_fn` really made;
    frames (frames + 1, B, *S, C) the data block along the way, from the start on, or None.

    Where an adaptive solver did not reach the end x and u are NaN."""

    x: jax.Array
    u: jax.Array
    nfe: jax.Array
    frames: jax.Array | None


class Encoded(NamedTuple):
    """u (B, *S, n, C) the latent state at T; nfe () int32 calls of `eps_fn` made."""

    u: jax.Array
    nfe: jax.Array


def sample(
    sampler: Sampler,
    sde: LinearSDE,
    eps_fn: EpsFn,
    *,
    key: jax.Array,
    shape: tuple[int, ...],
    index: jax.Array | None = None,
    num_steps: int,
    grid: str | Grid | Any = "karras",
    t_min: float | None = None,
    denoise: bool = True,
    frames: int = 0,
    start: jax.Array | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Samples:
    """Integrates the reverse process from T to t_min. Traceable: wrap it in `jax.jit` to call it often.

    Args:
      sampler: e.g. `SAMPLERS["unipc"]()`.
      sde: the SDE.
      eps_fn: the noise of the last block; `guidance` makes conditional ones.
      key: for the prior and every step.
      shape: of the samples, (B, *S, C).
      index: (B,) int32, numbers of the samples: sample i then depends on `key` and i alone, not on B or its place
        (but for `poisson_midpoint`'s clock and an adaptive solver's steps, which a batch shares); None: on its place.
      num_steps: steps of the grid.
      grid: "karras", "log", "quadratic", "uniform", a function, or your own falling times (num_steps + 1,).
      t_min: where to stop; None is `sde.t_min`, an effective noise of 0.002 data units.
      denoise: return E[q0 | u(t_min)] (one more call) instead of the data block itself.
      frames: how many states to keep on the way; divides num_steps. Memory does not grow with num_steps.
      start: the state (B, *S, n, C) at the first time, e.g. `encode`'s; None: a draw from the prior.
      sharding: of a (B, ...) array, to spread the batch over devices (a mesh with Auto axes).

    Raises:
      UserError: for a bad grid, num_steps, t_min, frames or start, before anything is compiled; and, where the
        values are at hand (not under jit), if an adaptive solver did not reach the end.
    """
    times = times_of(sde, grid, sde.t_min if t_min is None else t_min, num_steps)
    divides = frames == 0 or (frames > 0 and num_steps % frames == 0)
    require(divides, "frames", frames, f"0 or a divisor of num_steps = {num_steps}")
    full = (*shape[:-1], sde.order, shape[-1])
    require(start is None or start.shape == full, "start", getattr(start, "shape", start), f"a state of shape {full}")

    key_prior, key_steps = jax.random.split(key)
    u = _prior(sde, key_prior, full, index) if start is None else jnp.asarray(start, jnp.float32)
    if sharding is not None:
        u = jax.lax.with_sharding_constraint(u, sharding)
        index = None if index is None else jax.lax.with_sharding_constraint(index, sharding)
    path = _finished(sampler.integrate(sde, eps_fn, u, times, key=key_steps, index=index, frames=frames))
    kept = jnp.concatenate([u[None, ..., 0, :], path.frames]) if frames else None
    if not denoise:
        return Samples(path.u[..., 0, :], path.u, path.nfe, kept)
    t = jnp.float32(times[-1])
    return Samples(kernels.denoiser(sde, path.u, t, eps_fn(path.u, t)), path.u, path.nfe + 1, kept)


def encode(
    sampler: Sampler,
    sde: LinearSDE,
    eps_fn: EpsFn,
    x: jax.Array,
    *,
    key: jax.Array,
    num_steps: int,
    grid: str | Grid | Any = "karras",
    t_min: float | None = None,
) -> Encoded:
    """Data to latent: a deterministic sampler run forwards, from u(t_min) | x to T.

    `sample(..., start=encoded.u)` with the same sampler and grid leads back.

    Args:
      sampler: a deterministic one.
      sde: the SDE.
      eps_fn: the noise of the last block.
      x: (B, *S, C) float32.
      key: of the noise of u(t_min) | x: an effective 0.002 in the data, and the auxiliary blocks, which are free.
      num_steps: steps of the grid.
      grid: as in `sample`.
      t_min: as in `sample`.

    Raises:
      UserError: for a stochastic sampler, or a bad grid, num_steps or t_min.
    """
    require(
        sampler.deterministic,
        "sampler",
        sampler,
        "deterministic to run forwards: ddim, dpmpp_2m, dpmpp_3m, unipc, gaussian_fitted (all with churn = 0), "
        "heun (s_churn = 0) or probability_flow",
    )
    times = times_of(sde, grid, sde.t_min if t_min is None else t_min, num_steps)[::-1]
    noise = jax.random.normal(key, (*x.shape[:-1], sde.order, x.shape[-1]))
    u = kernels.perturb(kernels.marginal(sde, jnp.float32(times[0])), x, noise)
    path = _finished(sampler.integrate(sde, eps_fn, u, times, key=key))
    return Encoded(path.u, path.nfe)


def interpolate(sde: LinearSDE, first: jax.Array, second: jax.Array, fractions: jax.Array) -> jax.Array:
    """Latents on the great circle from `first` to `second`, both (B, *S, n, C): (k, B, *S, n, C).

    Spherical in the coordinates in which the prior is N(0, I) (Shoemake's slerp), example by example.

    Args:
      sde: the SDE.
      first: where fraction 0 is.
      second: where fraction 1 is.
      fractions: (k,) in [0, 1].
    """
    chol = np.linalg.cholesky(sde.prior_cov)
    whiten, color = jnp.asarray(np.linalg.inv(chol), jnp.float32), jnp.asarray(chol, jnp.float32)
    a, b = kernels.mix(whiten, first)[None], kernels.mix(whiten, second)[None]
    axes = tuple(range(2, a.ndim))
    norms = jnp.sqrt(jnp.sum(a * a, axes, keepdims=True) * jnp.sum(b * b, axes, keepdims=True))
    angle = jnp.arccos(jnp.clip(jnp.sum(a * b, axes, keepdims=True) / norms, -1, 1))
    f = jnp.asarray(fractions, jnp.float32).reshape(-1, *(1,) * (a.ndim - 1))
    # sinc keeps both weights finite, and right, for equal latents.
    weight = lambda part: part * jnp.sinc(part * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)  # noqa: E731
    return kernels.mix(color, weight(1 - f) * a + weight(f) * b)


def _prior(sde: LinearSDE, key: jax.Array, shape: tuple[int, ...], index: jax.Array | None) -> jax.Array:
    chol = jnp.asarray(np.linalg.cholesky(sde.prior_cov), jnp.float32)
    return kernels.mix(chol, per_example(jax.random.normal, key, shape, index))


def _finished(path: Path) -> Path:
    """The path, NaN where it is not whole; an error at once where the values are known."""
    if not isinstance(path.reached, jax.core.Tracer) and not bool(path.reached):
        raise UserError(UNFINISHED)
    return path._replace(u=jnp.where(path.reached, path.u, jnp.nan))
