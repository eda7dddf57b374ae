"""The likelihood of a data set: bits per dimension of every example, resumable."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hold_jax import likelihood
from hold_jax.condition import conditions_of
from hold_jax.data import Dataset, eval_batches
from hold_jax.errors import UserError, naming, require, require_choice
from hold_jax.model import Model
from hold_jax.numerics import ode
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.resumable import PartialRows


@dataclasses.dataclass(frozen=True)
class LikelihoodSettings:
    """How bits per dimension are computed; `hold_jax.likelihood.bits_per_dim` documents each option.

    Attributes:
      num_examples: drawn at random from the split; None: all.
      batch_size: examples at once, over all devices.
      probes: of the trace; 0: exact.
      repeats: draws of dequantization, auxiliaries and probes for each example.
      importance_weighted: whether they are combined as a tighter bound, or averaged.
      auxiliary: "posterior" or "initial".
      solver: of the flow.
      t_min: where it ends; None: the SDE's.
      seed: of the draws.
    """

    num_examples: int | None
    batch_size: int
    probes: int
    repeats: int
    importance_weighted: bool
    auxiliary: str
    solver: ode.Solver
    t_min: float | None
    seed: int

    def __post_init__(self):
        enough = self.num_examples is None or self.num_examples >= 2
        require(enough, "likelihood.num_examples", self.num_examples, "None, or 2 or more")
        require(self.batch_size >= 1, "likelihood.batch_size", self.batch_size, "1 or more")
        for name, least in (("probes", 0), ("repeats", 1)):
            require(getattr(self, name) >= least, f"likelihood.{name}", getattr(self, name), f"{least} or more")
        require_choice("likelihood.auxiliary", self.auxiliary, likelihood.AUXILIARIES)


def evaluate_likelihood(
    model: Model,
    params: Any,
    data: Dataset,
    settings: LikelihoodSettings,
    devices: Devices,
    rows: PartialRows,
    *,
    tick: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """Mean and standard error over examples, in bits per dimension: of pictures and integers, else of the density.

    Args:
      model: what was trained.
      params: of the network.
      data: held-out data, in random order if `rows` has fewer than all.
      settings: how.
      devices: the batch is spread over them.
      rows: (bits per dimension, network evaluations) of as many examples as are wanted, from the first on; those
        that are there are not computed again.
      tick: called with the number of examples done.

    Raises:
      UserError: if a value is not finite.
    """
    devices.require_divides("likelihood.batch_size", settings.batch_size)
    compiled = _compiled(model, settings, devices)
    tick(rows.count)
    local = eval_batches(
        data,
        batch_size=settings.batch_size,
        start=rows.count,
        stop=rows.count + rows.missing,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in local:
        bpd, nfe = compiled(params, devices.put(batch))
        bpd = np.asarray(bpd, np.float64) + (model.log2_scale if model.bin_width is None else 0.0)
        if not np.isfinite(bpd).all():
            raise UserError(likelihood.UNFINISHED)
        rows.append(np.stack([bpd, np.full_like(bpd, float(nfe) / settings.repeats)], axis=1))
        tick(rows.count)
    bpd, nfe = rows.array().T
    return {
        "bits_per_dim": float(bpd.mean()),
        "bits_per_dim_error": float(bpd.std(ddof=1) / math.sqrt(len(bpd))),
        "bits_per_dim_is_bound": float(model.sde.order > 1),
        "likelihood_nfe": float(nfe.mean()),
        "likelihood_examples": len(bpd),
    }


def check(model: Model, settings: LikelihoodSettings, batch: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Traces the likelihood of a batch without compiling it.

    Raises:
      UserError: naming the setting that cannot work.
    """
    devices = Devices.all()
    devices.require_divides("likelihood.batch_size", settings.batch_size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    with naming("`", "`likelihood."):
        jax.eval_shape(_compiled(model, settings, devices), params, batch)


@functools.lru_cache(maxsize=4)
def _compiled(model: Model, settings: LikelihoodSettings, devices: Devices) -> Callable[..., Any]:
    """Returns the jitted function (params, batch) -> bits per dimension (B,) in the model's range, and evaluations."""
    key = jax.random.key(settings.seed)

    def of_batch(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        found = likelihood.bits_per_dim(
            model.sde,
            model.eps_fn(params, condition=conditions_of(batch)),
            model.to_model(batch["x"]),
            key=key,
            index=batch["index"],
            bin_width=model.bin_width,
            probes=settings.probes,
            repeats=settings.repeats,
            importance_weighted=settings.importance_weighted,
            auxiliary=settings.auxiliary,
            solver=settings.solver,
            t_min=settings.t_min,
        )
        return found.bpd, found.nfe

    return devices.jit(of_batch, out_shardings=devices.replicated)
