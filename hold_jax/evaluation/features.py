"""Features of a whole data set."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hold_jax.data import Dataset, eval_batches
from hold_jax.errors import UserError
from hold_jax.evaluation.feature_network import FeatureNetwork, Features
from hold_jax.runtime.mesh import Devices

# Examples at once on each device: fixed, so that the compiled program, and with it every bit of a feature, depends
# neither on a setting nor on the number of devices.
PER_DEVICE = 64


def features_of(
    network: FeatureNetwork,
    data: Dataset,
    devices: Devices,
    *,
    per_device: int = PER_DEVICE,
    tick: Callable[[int], None] = lambda done: None,
) -> Features:
    """Returns the features of every example in order, as float32 NumPy arrays on every process.

    Args:
      network: the feature network.
      data: pictures or vectors; its labels are not used.
      devices: the batch is spread over them.
      per_device: examples at once on each; another number than the default may change the last bits.
      tick: called with the number of examples done.

    Raises:
      UserError: if a feature is not finite.
    """
    apply = _compiled(network.apply, devices)
    values, logits, done = [], [], 0
    local = eval_batches(
        data,
        batch_size=per_device * devices.mesh.size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in local:
        out = apply(network.params, devices.put({"x": batch["x"]})["x"])
        left = len(data) - done
        values.append(np.asarray(out.values)[:left])
        if out.logits is not None:
            logits.append(np.asarray(out.logits)[:left])
        done += len(values[-1])
        tick(done)
    found = np.concatenate(values)
    bad = np.count_nonzero(~np.isfinite(found).all(axis=1))
    if bad:
        raise UserError(
            f"{bad} of {len(found)} examples of {data.name} have {network.name} features that are not finite"
        )
    return Features(found, np.concatenate(logits) if logits else None)


@functools.lru_cache(maxsize=4)
def _compiled(apply: Callable[[Any, jax.Array], Features], devices: Devices) -> Callable[..., Features]:
    return devices.jit(apply, out_shardings=devices.replicated)
