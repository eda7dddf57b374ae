"""Tasks on latents: a deterministic sampler encodes examples, and decodes what is made of their latents."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from hold_jax import samplers
from hold_jax.errors import require
from hold_jax.loops.draw import SampleSettings
from hold_jax.loops.tasks.task import Outcome, Task, errors, sample
from hold_jax.model import Model
from hold_jax.parameterization import EpsFn


class _OfLatents(Task):
    """What the tasks on latents share."""

    def settings(self, model: Model, settings: SampleSettings) -> SampleSettings:
        """The settings with churn = 0; raises UserError for a sampler that is always stochastic."""
        del model
        fields = {field.name for field in dataclasses.fields(settings.sampler)}  # pyright: ignore[reportArgumentType]
        changes = {name: 0.0 for name in ("churn", "s_churn") if name in fields}
        sampler = dataclasses.replace(settings.sampler, **changes)  # pyright: ignore[reportArgumentType]
        names = "gaussian_fitted, ddim, dpmpp_2m, dpmpp_3m, unipc, heun or probability_flow"
        allowed = f"{names}: a latent needs one without noise"
        require(sampler.deterministic, "sampling.name", settings.name, allowed)
        return dataclasses.replace(settings, sampler=sampler)


@dataclasses.dataclass(frozen=True)
class Reconstruct(_OfLatents):
    """The data from their latents, which are kept: how much a deterministic sampler loses forwards and backwards."""

    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """Encodes and decodes."""
        latent, encoding = _encode(model, c, eps_fn, x, index)
        out, calls = sample(model, c, eps_fn, None, None, start=latent)
        return Outcome(out, {"given": x}, {"latent": latent}, errors(model, out, x), encoding + calls)


@dataclasses.dataclass(frozen=True)
class Interpolate(_OfLatents):
    """What lies between two examples: samples from the great circle between their latents.

    Attributes:
      between: number of results between the two ends, which are the examples' reconstructions.
    """

    between: int = 6
    group: ClassVar[int] = 2

    def run(self, model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array) -> Outcome:
        """x holds pairs, one after the other; the results of a pair follow each other."""
        latent, encoding = _encode(model, c, eps_fn, x, index)
        fractions = jnp.linspace(0, 1, self.between + 2)

        def at(fraction: jax.Array) -> tuple[jax.Array, jax.Array]:
            start = samplers.interpolate(model.sde, latent[::2], latent[1::2], fraction[None])
            return sample(model, c, eps_fn, None, None, start=start)

        out, calls = jax.lax.map(at, fractions)  # one fraction at a time: the memory of a batch
        ends = jnp.stack([out[0], out[-1]], axis=1).reshape(x.shape)
        path = jnp.moveaxis(out, 0, 1).reshape(-1, *x.shape[1:])
        figures = {f"end_{name}": value for name, value in errors(model, ends, x).items()}
        return Outcome(path, {"given": x}, {"latent": latent}, figures, encoding + calls[0])


def _encode(
    model: Model, c: SampleSettings, eps_fn: EpsFn, x: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The latents (B, *S, n, C), and the number of network evaluations."""
    options: Any = {"num_steps": c.num_steps, "grid": c.grid, "t_min": c.t_min}
    found = samplers.encode(c.sampler, model.sde, eps_fn, x, key=jax.random.key(c.seed), index=index, **options)
    return found.u, found.nfe
