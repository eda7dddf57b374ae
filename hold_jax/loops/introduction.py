"""The first lines that a command prints: process, data, devices, work directory."""

import math
from typing import Any

import jax
import numpy as np

from hold_jax.data import Dataset
from hold_jax.model import Model
from hold_jax.nn import NCSNpp
from hold_jax.numerics import exact
from hold_jax.runtime import distributed, storage
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.storage import Path
from hold_jax.sde import LinearSDE

PARAMETERS_FILE = "parameters.txt"


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


def introduce_training(model: Model, dataset: Dataset, params: Any, workdir: Path, *, step: int, flip: bool) -> None:
    """Prints what is trained, on what and where, and warnings if it does not fit the data.

    The table of parameters goes to `workdir`/parameters.txt.

    Args:
      model: the model that is trained.
      dataset: the training data.
      params: abstract parameters of the network.
      workdir: work directory of the run.
      step: step from which the run continues; 0 for a new run.
      flip: whether pictures are mirrored at random.
    """
    from clu import parameter_overview  # in the extra [train], which sampling and conversion do not need

    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    storage.write(workdir / PARAMETERS_FILE, f"{table}\n".encode())
    some = dataset.subset(10_000)
    deviation = float(np.std(model.to_model(some.gather(np.arange(len(some)))["x"])))
    leaves, same = jax.tree.leaves(params), math.isclose(deviation, model.sigma_data, rel_tol=0.01)
    introduce(model, dataset, workdir, step=step)
    print(
        f"network: {sum(leaf.size for leaf in leaves):,} parameters, "
        f"{sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 1e6:,.3g} MB, listed in {PARAMETERS_FILE}; "
        f"model.sigma_data is {model.sigma_data:g}"
        + ("" if same else f", the data's standard deviation {deviation:.3g}")
        + ("; pictures are mirrored at random" if flip else "")
        + (f"; pictures are augmented, each transform with probability {model.augment:g}" if model.augment else ""),
        flush=True,
    )
    if not model.sigma_data / 2 <= deviation <= 2 * model.sigma_data:
        distributed.say(
            f"warning: the data's standard deviation is {deviation:.3g} in the model's range and model.sigma_data "
            f"is {model.sigma_data:g}: noise levels and preconditioning are scaled for the latter; set "
            "model.sigma_data to the former"
        )
    if isinstance(model.network, NCSNpp) and model.network.attention_resolutions:
        asked, levels = tuple(model.network.attention_resolutions), len(model.network.channel_multipliers)
        sides = [max(model.data_shape[:-1]) >> level for level in range(levels)]
        if not set(asked) & set(sides):
            distributed.say(
                f"warning: no level of the network has attention, only its middle block: the sides of the levels are "
                f"{', '.join(map(str, sides))}, and model.attention_resolutions is {asked}; name some of them, or ()"
            )


def process(sde: LinearSDE) -> str:
    """Returns the order, times and noise levels of an SDE in words."""
    ends = sde.schedule.integral(0.0, np.array([sde.t_min, sde.T]))
    low, high = exact.effective_noise(sde.F, sde.G, sde.cov0, ends)
    return f"order {sde.order}, t from {sde.t_min:.4g} to {sde.T:.4g}, effective noise from {low:.3g} to {high:.3g}"
