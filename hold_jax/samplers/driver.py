"""Draw samples by running the process backwards, and encode data by running it forwards."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from hold_jax import kernels
from hold_jax.errors import (
    UserError,
    require,
    require_data,
    require_given,
    require_shape,
    require_whole,
    shown,
)
from hold_jax.numerics import programs
from hold_jax.numerics.random import per_example, require_index, require_key
from hold_jax.parameterization import EpsFn
from hold_jax.samplers.grids import Grid, fixed_grid, times_of
from hold_jax.samplers.loop import Sampler, Trajectory
from hold_jax.samplers.table import sampler_of
from hold_jax.sde import LinearSDE, require_sde

UNFINISHED = (
    "samples are NaN: either the network's output is NaN, or an adaptive solver made `max_steps` steps without "
    "reaching the end; look at the training loss, or raise max_steps, or loosen rtol and atol"
)


class Samples(NamedTuple):
    """What `sample` returns; x and u are NaN where an adaptive solver did not reach the end.

    Attributes:
      x: (B, *S, C) the samples.
      u: (B, *S, n, C) the last state.
      nfe: () int32 number of network evaluations (calls of `eps_fn`) made.
      frames: (frames + 1, B, *S, C) the data block along the way, the start first, or None.
      times: (frames + 1,) the times of `frames`, falling, or None.
    """

    x: jax.Array
    u: jax.Array
    nfe: jax.Array
    frames: jax.Array | None
    times: jax.Array | None


class Encoded(NamedTuple):
    """What `encode` returns.

    Attributes:
      u: (B, *S, n, C) the latent state at T; NaN where an adaptive solver did not reach T.
      nfe: () int32 number of network evaluations made.
      frames: (frames + 1, B, *S, C) the data block along the way, the start first, or None.
      times: (frames + 1,) the times of `frames`, rising, or None.
    """

    u: jax.Array
    nfe: jax.Array
    frames: jax.Array | None
    times: jax.Array | None


class _Settings(NamedTuple):
    """What a program is compiled for."""

    sampler: Sampler
    sde: LinearSDE
    shape: tuple[int, ...]
    num_steps: int
    grid: str | tuple[float, ...]
    t_min: float | None
    frames: int
    denoise: bool = True
    sharding: jax.sharding.Sharding | None = None

    def times(self) -> np.ndarray:
        """The grid's times (num_steps + 1,), falling."""
        return times_of(self.sde, self.grid, self.sde.t_min if self.t_min is None else self.t_min, self.num_steps)


def sample(
    sampler: str | Sampler,
    sde: LinearSDE,
    eps_fn: EpsFn,
    *,
    key: jax.Array | None = None,
    shape: tuple[int, ...] | None = None,
    index: jax.Array | None = None,
    num_steps: int = 34,
    grid: str | Grid | Sequence[float] = "log",
    t_min: float | None = None,
    denoise: bool = True,
    frames: int = 0,
    start: jax.Array | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Samples:
    """Integrates the reverse process from T to t_min.

    Composes with `jax.jit`, `jax.vmap`, `jax.pmap` and `jax.shard_map`. Outside of these it is compiled once for each
    `eps_fn`, shape and setting (`numerics.programs`); where parameters change, jit a function of the parameters.
    Differentiable, with `probability_flow` in forward mode alone (`jax.jvp`, `jax.jacfwd`).

    Args:
      sampler: a name of `SAMPLERS`, for its default options, or a sampler, e.g. `unipc(order=2)`. One of your own
        must be immutable, such as a frozen dataclass.
      sde: the SDE.
      eps_fn: the noise of the last block; `guidance` makes conditional ones.
      key: for the prior and the noise of every step; not needed by a deterministic sampler from a given `start`.
      shape: of the samples, (B, *S, C); may be left out where `start` is given.
      index: (B,) int32 numbers of the samples: sample i then depends on `key` and i alone, not on B or its place in
        the batch (except for the clock of `poisson_midpoint` and the steps of an adaptive solver, which a batch
        shares); None: it depends on its place.
      num_steps: steps of the grid.
      grid: a name of `GRIDS`, a function, or falling times (num_steps + 1,), the first of them T unless there is a
        `start`.
      t_min: where to stop; None: `sde.t_min`, an effective noise of 0.002 data units.
      denoise: return E[q0 | u(t_min)] (one more network evaluation) instead of the data block itself.
      frames: how many intermediate states to return; divides num_steps. Memory does not grow with num_steps.
      start: (B, *S, n, C) the state at the first time, e.g. of `encode` or `interpolate`; None: a draw of the prior.
      sharding: of a (B, ...) array, to spread the batch over devices, whose number divides B (a mesh with Auto axes).

    Returns:
      Samples, in the model's range.

    Raises:
      UserError: for a bad argument, before anything is compiled; outside `jax.jit` also if an adaptive solver did not
        reach the end.
    """
    sampler = sampler_of(sampler)
    require_sde(sde, eps_fn)
    if start is not None:
        start = _state(sde, start)
        shape = start.shape[:-2] + start.shape[-1:] if shape is None else shape
    shape = require_given("shape", shape, "(B, *S, C), e.g. (64, 2), or left out with a `start`")
    allowed = "(B, *S, C) with the batch first, e.g. (64, 2) for 64 points in the plane"
    shape = require_shape("shape", shape, 2, allowed)
    full = _state_shape(sde, shape)
    if start is not None:
        require(start.shape == full, "start", start.shape, f"a state of shape {full}")
    index = require_index(index, shape[0])
    if key is None:
        without = start is not None and sampler.deterministic
        require(without, "key", key, "a `jax.random.key`: the prior, or this sampler, is random")
    else:
        require_key(key)
    num_steps, t_min, frames = _steps(sde, num_steps, t_min, frames)
    fixed = fixed_grid(sde, grid, t_min, num_steps)
    if start is None and not isinstance(fixed, str):
        allowed = f"times from T = {sde.T:.6g} on, or given a `start` at {fixed[0]:.6g}"
        require(fixed[0] >= 0.999 * sde.T, "grid", fixed, allowed)
    if sharding is not None:
        _require_sharding(sharding, full)
    settings = _Settings(sampler, sde, shape, num_steps, fixed, t_min, frames, denoise, sharding)
    samples, reached = programs.run(_sample, eps_fn, settings, key, index, start)
    return samples._replace(**_checked(reached, x=samples.x, u=samples.u))


def _sample(
    eps_fn: EpsFn, c: _Settings, key: jax.Array | None, index: jax.Array | None, start: jax.Array | None
) -> tuple[Samples, jax.Array | None]:
    """The samples, and whether the end was reached."""
    times = c.times()
    key_prior, key_steps = jax.random.split(jax.random.key(0) if key is None else key)
    u = _prior(c.sde, key_prior, _state_shape(c.sde, c.shape), index) if start is None else start
    if c.sharding is not None:
        u = jax.lax.with_sharding_constraint(u, c.sharding)
        index = None if index is None else jax.lax.with_sharding_constraint(index, c.sharding)
    path = c.sampler.integrate(c.sde, eps_fn, u, times, key=key_steps, index=index, frames=c.frames)
    x, nfe = path.u[..., 0, :], path.nfe
    if c.denoise:
        t = jnp.float32(times[-1])
        x, nfe = kernels.denoiser(c.sde, path.u, t, eps_fn(path.u, t)), nfe + 1
    return Samples(x, path.u, nfe, *_frames(path, u, times)), path.reached


def encode(
    sampler: str | Sampler,
    sde: LinearSDE,
    eps_fn: EpsFn,
    x: jax.Array,
    *,
    key: jax.Array,
    index: jax.Array | None = None,
    num_steps: int = 34,
    grid: str | Grid | Sequence[float] = "log",
    t_min: float | None = None,
    frames: int = 0,
) -> Encoded:
    """Data to latent: runs a deterministic sampler forwards, from u(t_min) | x to T.

    `sample(sampler, ..., start=encoded.u)` with the same grid leads back.

    Args:
      sampler: a deterministic one, by name or as an instance.
      sde: the SDE.
      eps_fn: the noise of the last block.
      x: (B, *S, C) data, floating, in the model's range.
      key: for the noise of u(t_min) | x: an effective 0.002 in the data, and the auxiliary blocks, which are free.
      index: (B,) int32 numbers of the examples, as in `sample`.
      num_steps: steps of the grid.
      grid: as in `sample`.
      t_min: as in `sample`.
      frames: as in `sample`.

    Returns:
      Encoded.

    Raises:
      UserError: for a stochastic sampler or another bad argument; outside `jax.jit` also if an adaptive solver did
        not reach T.
    """
    sampler = sampler_of(sampler)
    require_sde(sde, eps_fn)
    require_key(key)
    require(
        sampler.deterministic,
        "sampler",
        sampler,
        "deterministic to run forwards: ddim, dpmpp_2m, dpmpp_3m, unipc, gaussian_fitted (all with churn = 0), "
        "heun (s_churn = 0) or probability_flow",
    )
    x = jnp.asarray(x)
    require_data("x", x)
    index = require_index(index, x.shape[0])
    num_steps, t_min, frames = _steps(sde, num_steps, t_min, frames)
    fixed = fixed_grid(sde, grid, t_min, num_steps)
    settings = _Settings(sampler, sde, x.shape, num_steps, fixed, t_min, frames)
    encoded, reached = programs.run(_encode, eps_fn, settings, x, key, index)
    return encoded._replace(**_checked(reached, u=encoded.u))


def _encode(
    eps_fn: EpsFn, c: _Settings, x: jax.Array, key: jax.Array, index: jax.Array | None
) -> tuple[Encoded, jax.Array | None]:
    """The latents, and whether T was reached."""
    times = c.times()[::-1]
    noise = per_example(jax.random.normal, key, _state_shape(c.sde, x.shape), index)
    u = kernels.perturb(kernels.marginal(c.sde, jnp.float32(times[0])), x.astype(jnp.float32), noise)
    path = c.sampler.integrate(c.sde, eps_fn, u, times, key=key, index=index, frames=c.frames)
    return Encoded(path.u, path.nfe, *_frames(path, u, times)), path.reached


def interpolate(sde: LinearSDE, first: jax.Array, second: jax.Array, fractions: jax.Array) -> jax.Array:
    """Latents on the great circle between two, in the coordinates in which the prior is N(0, I) (Shoemake's slerp).

    Args:
      sde: the SDE.
      first: (B, *S, n, C) latents at fraction 0.
      second: (B, *S, n, C) latents at fraction 1.
      fractions: (k,) in [0, 1].

    Returns:
      (k B, *S, n, C), a batch for `sample(..., start=...)`: the B of the first fraction, then those of the second, ...
    """
    chol = np.linalg.cholesky(sde.prior_cov)
    whiten, color = jnp.asarray(np.linalg.inv(chol), jnp.float32), jnp.asarray(chol, jnp.float32)
    a, b = kernels.mix(whiten, first)[None], kernels.mix(whiten, second)[None]
    axes = tuple(range(2, a.ndim))
    alike = a.shape[2:] == b.shape[2:] and (a.shape[1] == b.shape[1] or 1 in (a.shape[1], b.shape[1]))
    require(alike, "second", jnp.shape(second), f"of the shape of `first`, {jnp.shape(first)}")
    norms = jnp.sqrt(jnp.sum(a * a, axes, keepdims=True) * jnp.sum(b * b, axes, keepdims=True))
    if not isinstance(norms, jax.core.Tracer):
        require(bool(jnp.all(norms > 0)), "first or second", "zero", "a latent other than zero, which has a direction")
    angle = jnp.arccos(jnp.clip(jnp.sum(a * b, axes, keepdims=True) / norms, -1, 1))
    f = jnp.asarray(fractions, jnp.float32).reshape(-1, *(1,) * (a.ndim - 1))
    # sinc keeps both weights finite, and right, for equal latents.
    weight = lambda part: part * jnp.sinc(part * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)  # noqa: E731
    path = weight(1 - f) * a + weight(f) * b
    return kernels.mix(color, path.reshape(-1, *path.shape[2:]))


def _state_shape(sde: LinearSDE, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], sde.order, shape[-1])


def _prior(sde: LinearSDE, key: jax.Array, shape: tuple[int, ...], index: jax.Array | None) -> jax.Array:
    chol = jnp.asarray(np.linalg.cholesky(sde.prior_cov), jnp.float32)
    return kernels.mix(chol, per_example(jax.random.normal, key, shape, index))


def _frames(path: Trajectory, u: jax.Array, times: np.ndarray) -> tuple[jax.Array | None, jax.Array | None]:
    """The data block at the start and in the path's frames, and their times."""
    if path.frames is None:
        return None, None
    every = (len(times) - 1) // len(path.frames)
    return jnp.concatenate([u[None, ..., 0, :], path.frames]), jnp.asarray(times[::every], jnp.float32)


def _require_sharding(sharding: Any, shape: tuple[int, ...]) -> None:
    is_one = isinstance(sharding, jax.sharding.Sharding)
    require(is_one, "sharding", sharding, "a sharding of JAX, such as `NamedSharding(mesh, PartitionSpec('data'))`")
    auto = True
    if isinstance(sharding, NamedSharding):
        types = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
        used = jax.tree.leaves(tuple(sharding.spec))
        auto = all(types[axis] == AxisType.Auto for axis in used or types)
    make = "jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,))"
    require(auto, "sharding", sharding, f"over Auto axes of a mesh: `{make}`")
    try:
        sharding.shard_shape(shape)
    except ValueError:
        text = f"`sharding` does not divide a batch of {shape[0]} into equal parts; it must, so take another batch size"
        raise UserError(text) from None


def _steps(sde: LinearSDE, num_steps: int, t_min: float | None, frames: int) -> tuple[int, float | None, int]:
    """The arguments, checked."""
    num_steps, frames = require_whole("num_steps", num_steps, 1), require_whole("frames", frames, 0)
    require(not frames or num_steps % frames == 0, "frames", frames, f"0 or a divisor of num_steps = {num_steps}")
    if t_min is not None:
        t_min = kernels.require_t_min(sde, t_min)
    return num_steps, t_min, frames


def _state(sde: LinearSDE, start: Any) -> jax.Array:
    """The state (B, *S, n, C) to start from, as an array."""
    allowed = f"a state (B, *S, {sde.order}, C), such as `encode` returns"
    try:
        start = jnp.asarray(start)
    except (TypeError, ValueError):
        raise UserError(f"`start` is {shown(start)}; it must be {allowed}") from None
    fits = start.ndim >= 3 and start.shape[-2] == sde.order and not jnp.iscomplexobj(start)
    require(fits, "start", f"{start.dtype}{list(start.shape)}", allowed)
    return start.astype(jnp.float32)


def _checked(reached: jax.Array | None, **arrays: jax.Array) -> dict[str, jax.Array]:
    """The arrays, NaN where an adaptive solver did not reach the end; an error where that is known already.

    Raises:
      UserError: outside a trace, if it did not.
    """
    if reached is None:
        return arrays
    if not isinstance(reached, jax.core.Tracer) and not bool(reached):
        raise UserError(UNFINISHED)
    return {name: jnp.where(reached, array, jnp.nan) for name, array in arrays.items()}
