"""The first lines that a command prints: process, data, devices, work directory."""

import jax
import numpy as np

from hold_jax.data import Dataset
from hold_jax.model import Model
from hold_jax.numerics import exact
from hold_jax.runtime import distributed
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.storage import Path
from hold_jax.sde import LinearSDE


def introduce(model: Model, data: Dataset | None, workdir: Path, *, step: int = 0) -> None:
    """Prints what is computed, on what and where, in one line each; only the first process prints.

    Args:
      model: the model.
      data: the data that are read; None for none.
      workdir: work directory of the run.
      step: step of the checkpoint that is read; 0 for none.
    """
    if not distributed.is_main():
        return
    devices = Devices.all()
    lines = [f"process: {process(model.sde)}"]
    if data is not None:
        lines.append(f"data: {data.name}, {len(data):,} {data.split} examples of {'x'.join(map(str, data.shape))}")
    lines += [
        f"devices: {devices.mesh.size} x {jax.devices()[0].device_kind}"
        + (f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        f"work directory: {workdir}" + (f", checkpoint of step {step:,}" if step else ""),
    ]
    print("\n".join(lines), flush=True)


def process(sde: LinearSDE) -> str:
    """Returns the order, times and noise levels of an SDE in words."""
    ends = sde.schedule.integral(0.0, np.array([sde.t_min, sde.T]))
    low, high = exact.effective_noise(sde.F, sde.G, sde.cov0, ends)
    return f"order {sde.order}, t from {sde.t_min:.4g} to {sde.T:.4g}, effective noise from {low:.3g} to {high:.3g}"
