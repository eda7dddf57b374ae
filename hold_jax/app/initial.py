"""Fine-tuning: settings and averaged parameters of the model that a run starts from (`training.init_from`)."""

from typing import Any

import jax
import numpy as np
from flax import traverse_util

from hold_jax.app import build, experiment, packed
from hold_jax.app.config import Config
from hold_jax.app.flags import Given
from hold_jax.app.packed import Packed
from hold_jax.model import Model
from hold_jax.nn.embeddings import AUGMENTATION, LABELS
from hold_jax.runtime import distributed, schema
from hold_jax.weights import match

KEY = "training.init_from"
# Options of the other run's data, which do not pass to another data set.
_OF_ITS_DATA = ("data.size", "data.seed", "data.bits", "data.data_dir")


def settings(given: Given) -> Config | None:
    """The settings of the model that `training.init_from` names, for a command without a config file.

    Args:
      given: the command line. If it names another data set, the options of the model's own are left out.

    Returns:
      The settings, not yet changed by the flags; None if there is a config file, or no such flag.

    Raises:
      UserError: if there is no model there.
    """
    where = given.values.get(KEY)
    if where is None or given.name is not None:
        return None
    config = packed.config_of(where, KEY)
    if given.values.get("data.name", config.data.name) != config.data.name:
        config = config.changed(dict.fromkeys(_OF_ITS_DATA))
    return config


def parameters(source: Packed, config: Config, model: Model) -> dict[str, Any]:
    """The averaged parameters that a network starts from.

    Args:
      source: the model that `training.init_from` names.
      config: the settings of the new run.
      model: the new run's.

    Returns:
      Arrays by path, such as conv_in/kernel. Class embeddings are left out where the classes are others, the map of the
      augmentation's labels where only one of the two has it.

    Raises:
      UserError: if the arrays do not fit the network; the message lists them, and the options that differ.
    """
    ours = {path: leaf.shape for path, leaf in _flat(jax.eval_shape(model.init, jax.random.key(0))).items()}
    arrays = _flat(source.params)
    found = {path: np.shape(value) for path, value in arrays.items()}
    classes, augmentation = (
        {path for path in ours.keys() | found.keys() if name in path.split("/")} for name in (LABELS, AUGMENTATION)
    )
    labels = classes | augmentation
    names = tuple(source.record.statistics.get("class_names", ()))
    same = names == model.statistics.class_names
    kept = {path for path in labels if (same or path in augmentation) and ours.get(path) == found.get(path)}
    differ = _differences(source, config)
    there, here = tuple(source.record.data_shape), tuple(model.data_shape)
    shapes = "" if there == here else f"data of shape {there} there, {here} here"
    match.require_shapes(
        {path: shape for path, shape in found.items() if path not in labels},
        {path: shape for path, shape in ours.items() if path not in labels},
        f"`{KEY}` is {config.training.init_from!r}",
        f"a network as here ({'; '.join(filter(None, [differ, shapes])) or 'its options are the same'})",
    )
    new = sorted(labels & ours.keys() - kept)
    distributed.say(
        f"starting from {config.training.init_from}, step {source.step:,}: {len(ours) - len(new)} of {len(ours)} arrays"
        + (f"; new: {', '.join(new)}" if new else "")
        + (f"; it was trained with other options: {differ}" if differ else "")
    )
    return {path: value for path, value in arrays.items() if path in ours and path not in new}


def _flat(params: Any) -> dict[str, Any]:
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(params, sep="/"))
    return flat


def _differences(source: Packed, config: Config) -> str:
    """The options of the network and of the process that differ, "key there -> here"; empty if none do."""
    there, here = source.config, config
    sections = ("model",) if build.any_process(there) and build.any_process(here) else ("model", "sde")
    old, new = there.flat(), here.flat()
    keys = [k for k in old if k.partition(".")[0] in sections and k not in experiment.FREE and old[k] != new[k]]
    return ", ".join(f"{key} {schema.shown(old[key])} -> {schema.shown(new[key])}" for key in keys)
