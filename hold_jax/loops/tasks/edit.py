"""SDEdit: examples are changed as far as noise of a chosen level allows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax import kernels
from hold_jax.errors import require
from hold_jax.loops.draw import SampleSettings
from hold_jax.loops.tasks.task import Outcome, Task, errors, sample
from hold_jax.model import Model
from hold_jax.numerics import exact
from hold_jax.numerics.random import per_example
from hold_jax.parameterization import EpsFn
from hold_jax.samplers.grids import times_of


@dataclasses.dataclass(frozen=True)
class Edit(Task):
    """SDEdit (2108.01073): noise is added to the data up to a level, and taken away again.

    Attributes:
      start_noise: the level, an effective noise in the model's range: more changes more.
    """

    start_noise: float = 1.0

    def settings(self, model: Model, settings: SampleSettings) -> SampleSettings:
        """The settings with a grid that begins at the noise level."""
        sde = model.sde
        require(not isinstance(settings.grid, tuple), "sampling.times", "given", "None to edit")
        low, high = exact.effective_noise(
            sde.F, sde.G, sde.cov0, sde.schedule.integral(0.0, np.array([settings.t_min or sde.t_min, sde.T]))
        )
        inside = low < self.start_noise < high
        require(inside, "task.start_noise", self.start_noise, f"between {low:.3g} and {high:.4g}, the noise at T")
        start = float(sde.schedule.time(exact.integral_of_noise(sde.F, sde.G, sde.cov0, self.start_noise)))
        shorter = dataclasses.replace(sde, T=min(start, sde.T))
        times = times_of(shorter, settings.grid, settings.t_min or sde.t_min, settings.num_steps)
        return dataclasses.replace(settings, grid=tuple(times.tolist()))

    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """Perturbs to the first time of the grid, and samples from there."""
        key_noise, key = jax.random.split(jax.random.key(c.seed))
        t = jnp.float32(c.grid[0])
        state = (*x.shape[:-1], model.sde.order, x.shape[-1])
        noise = per_example(jax.random.normal, key_noise, state, index)
        u = kernels.perturb(kernels.marginal(model.sde, t), x, noise)
        out, calls = sample(model, c, eps_fn, key, index, start=u)
        changed = {f"change_{k}": v for k, v in errors(model, out, x).items() if k == "rmse"}
        noisy = kernels.sufficient_statistic(model.sde, u, t)[0]
        return Outcome(out, {"given": x, "noisy": noisy}, {}, changed, calls)
