"""The probability-flow ODE of the process itself, by any solver of diffrax."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import exact, kernels
from hold_jax.errors import require, require_choice
from hold_jax.parameterization import EpsFn
from hold_jax.samplers.loop import Path
from hold_jax.sde import LinearSDE

# Solver and its network calls a step; the first-same-as-last ones make one more at the start.
SOLVERS = {
    "euler": (diffrax.Euler, 1),
    "heun": (diffrax.Heun, 2),
    "midpoint": (diffrax.Midpoint, 2),
    "bosh3": (diffrax.Bosh3, 3),
    "tsit5": (diffrax.Tsit5, 6),
    "dopri5": (diffrax.Dopri5, 6),
    "dopri8": (diffrax.Dopri8, 13),
}
_FIXED_ONLY = ("euler",)
_FIRST_SAME_AS_LAST = ("bosh3", "tsit5", "dopri5", "dopri8")


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow:
    """du = (F u - 1/2 G G' score) dB (2011.13456, eq. 13), in the clock log sigma_eff, on which all orders agree.

    Adaptive: the solver chooses its steps, one sequence for the whole batch (the error is the root mean square over
    it, as score_sde's); of the grid it uses the ends only. Fixed: one step of the solver for each of the grid's.

    Attributes:
      solver: one of `SOLVERS`.
      adaptive: whether the solver chooses its steps.
      rtol: relative tolerance of a step, > 0.
      atol: absolute tolerance, in the state's units, > 0.
      max_steps: of the solver, rejected ones included; more is an error.
    """

    solver: str = "tsit5"
    adaptive: bool = True
    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000

    deterministic = True

    def __post_init__(self):
        require_choice("solver", self.solver, SOLVERS)
        require(0 < self.rtol < float("inf"), "rtol", self.rtol, "positive")
        require(0 < self.atol < float("inf"), "atol", self.atol, "positive")
        whole = isinstance(self.max_steps, int) and self.max_steps >= 1
        require(whole, "max_steps", self.max_steps, "a whole number >= 1")
        adapts = not self.adaptive or self.solver not in _FIXED_ONLY
        require(adapts, "solver", self.solver, "one with an error estimate, or set adaptive = False")

    def integrate(
        self, m: LinearSDE, eps_fn: EpsFn, u: jax.Array, times: np.ndarray, *, key: jax.Array, frames: int = 0
    ) -> Path:
        """From u (B, *S, n, C) at times[0] to times[-1], either way."""
        del key
        num_steps = len(times) - 1
        clock = np.log(exact.effective_noise(m.F, m.G, m.cov0, m.schedule.integral(0.0, times)))
        clock = clock.astype(np.float32)
        solver, calls = SOLVERS[self.solver]
        first = 1 if self.solver in _FIRST_SAME_AS_LAST else 0
        options = {"dt0": None, "max_steps": num_steps, "stepsize_controller": diffrax.StepTo(ts=jnp.asarray(clock))}
        if self.adaptive:
            options = {
                "dt0": float(clock[-1] - clock[0]) / 50,
                "max_steps": self.max_steps,
                "stepsize_controller": diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            }
        every = num_steps // frames if frames else num_steps
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda l, u, _: _field(m, eps_fn, u, l)),
            solver(),
            t0=clock[0],
            t1=clock[-1],
            y0=u,
            saveat=diffrax.SaveAt(ts=jnp.asarray(clock[every::every])),
            throw=False,
            adjoint=diffrax.ForwardMode(),
            **options,
        )
        return Path(
            u=solution.ys[-1],
            nfe=jnp.asarray(calls * solution.stats["num_steps"] + first, jnp.int32),
            frames=solution.ys[..., 0, :] if frames else None,
            reached=solution.result == diffrax.RESULTS.successful,
        )


def _field(m: LinearSDE, eps_fn: EpsFn, u: jax.Array, log_noise: jax.Array) -> jax.Array:
    """du / d log sigma_eff, with d log sigma_eff / dB = 1/2 |G' L^-T w|^2 / |w|^2."""
    t = kernels.time_of_noise(m, jnp.exp(log_noise))
    kernel = kernels.marginal(m, t)
    w = kernels.whitened_mean(kernel)
    g = kernels.inverse_lower(kernel.chol) @ jnp.asarray(m.G, jnp.float32)
    rate = jnp.sum(jnp.square(w @ g)) / (2 * jnp.sum(jnp.square(w)))
    score = kernels.full_score(m, u, t, eps_fn(u, t))
    drift = kernels.mix(jnp.asarray(m.F, jnp.float32), u)
    drift = drift - kernels.mix(jnp.asarray(m.G @ m.G.T / 2, jnp.float32), score)
    return drift / rate
