"""The probability-flow ODE of the process itself, by a Runge-Kutta solver (`numerics.ode`)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.numerics import exact, ode
from hold_jax.parameterization import EpsFn
from hold_jax.samplers.loop import Trajectory
from hold_jax.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow(ode.Solver):
    """du = (F u - 1/2 G G' score) dB (2011.13456, eq. 13), with log sigma_eff as the time variable.

    With `adaptive` the solver chooses its steps, the same for the whole batch, whose error is the root mean square over
    all its numbers (as score_sde's), and uses only the ends of the grid. Otherwise it makes one step for each of the
    grid. Differentiable in forward mode alone (`jax.jvp`). Attributes and errors are those of `numerics.ode.Solver`.
    """

    deterministic = True

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
    ) -> Trajectory:
        """From u (B, *S, n, C) at times[0] to times[-1], forwards or backwards; arguments as in `Sampler`.

        Raises:
          UserError: for times of an effective noise below 1e-5.
        """
        del key, index
        kernels.require_clock(sde, float(np.min(times)))
        num_steps = len(times) - 1
        every = num_steps // frames if frames else num_steps
        clock = np.log(exact.effective_noise(sde.F, sde.G, sde.cov0, sde.schedule.integral(0.0, times)))
        found = self.solve(lambda s, u: _field(sde, eps_fn, u, s), u, clock, save=slice(every, None, every))
        return Trajectory(
            u=found.y[-1], nfe=found.nfe, frames=found.y[..., 0, :] if frames else None, reached=found.reached
        )


def _field(sde: LinearSDE, eps_fn: EpsFn, u: jax.Array, log_noise: jax.Array) -> jax.Array:
    """du / d log sigma_eff, with d log sigma_eff / dB = 1/2 |G' L^-T w|^2 / |w|^2."""
    t = kernels.time_of_noise(sde, jnp.exp(log_noise))
    kernel = kernels.marginal(sde, t)
    w = kernels.whitened_mean(kernel)
    # w' L^-1 G by two sums, which no matrix unit rounds.
    along = jnp.sum(w[:, None] * kernels.inverse_lower(kernel.chol), axis=0)
    along = jnp.sum(along[:, None] * jnp.asarray(sde.G, jnp.float32), axis=0)
    rate = jnp.sum(jnp.square(along)) / (2 * jnp.sum(jnp.square(w)))
    score = kernels.full_score(sde, u, t, eps_fn(u, t))
    drift = kernels.mix(jnp.asarray(sde.F, jnp.float32), u)
    drift = drift - kernels.mix(jnp.asarray(sde.G @ sde.G.T / 2, jnp.float32), score)
    return drift / rate
