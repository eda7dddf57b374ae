"""The constructors that names in a config choose: their tables, and the options that each takes.

Names are looked up in these tables only. A key that is None keeps the default of the constructor that it goes to
(`resolve` writes these defaults out). A key that the chosen constructor does not take is an error: nothing that a user
sets is silently ignored.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hold_jax import losses, noise_conditioning, samplers, sde
from hold_jax.app.config import KEYS, Config
from hold_jax.errors import UserError, naming
from hold_jax.loops import tasks
from hold_jax.nn import MLP, NCSNpp

Conditioning = Callable[[sde.LinearSDE, jax.Array], jax.Array]
_LOG_NORMAL = inspect.signature(losses.log_normal).parameters


def _log_normal(
    *, time_mean: float = _LOG_NORMAL["mean"].default, time_std: float = _LOG_NORMAL["std"].default
) -> losses.TimeLaw:
    """`losses.log_normal` with its options as the keys are called."""
    return losses.log_normal(time_mean, time_std)


def _ve_noise(*, noise_min: float | None = None) -> Conditioning:
    """`noise_conditioning.ve_noise`, of a network that has seen no noise below `noise_min`."""
    return noise_conditioning.ve_noise if noise_min is None else noise_conditioning.ve_noise_from(noise_min)


def _time(*, time_scale: float | None = None) -> Conditioning:
    """`noise_conditioning.scaled_time`, with another factor where one is given."""
    return noise_conditioning.scaled_time if time_scale is None else noise_conditioning.scaled_time_by(time_scale)


def _log_time(*, time_scale: float | None = None) -> Conditioning:
    """`noise_conditioning.log_time`, of the time multiplied by a factor where one is given."""
    return noise_conditioning.log_time if time_scale is None else noise_conditioning.log_time_by(time_scale)


SDES = {"hold": sde.hold, "vp": sde.vp, "ve": sde.ve, "cld": sde.cld, "psld": sde.psld}
NETWORKS = {"ncsnpp": NCSNpp, "mlp": MLP}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
TIME_LAWS = {
    "uniform": lambda: losses.uniform,
    "log_uniform": lambda: losses.log_uniform,
    "log_normal": _log_normal,
}
CONDITIONINGS = {
    **{name: lambda law=law: law for name, law in noise_conditioning.CONDITIONINGS.items()},
    "discrete_time": noise_conditioning.discrete_time,
    "discrete_noise": noise_conditioning.discrete_noise,
    "ve_noise": _ve_noise,
    "time": _time,
    "log_time": _log_time,
}
TASKS: dict[str, Callable[..., tasks.Task | None]] = {
    "draw": lambda: None,
    "inpaint": tasks.Inpaint,
    "superres": tasks.Superres,
    "deblur": tasks.Deblur,
    "colorize": tasks.Colorize,
    "compress": tasks.Compress,
    "edit": tasks.Edit,
    "reconstruct": tasks.Reconstruct,
    "interpolate": tasks.Interpolate,
}
SELECTORS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "sde.name": SDES,
    "model.name": NETWORKS,
    "model.conditioning": CONDITIONINGS,
    "loss.time_law": TIME_LAWS,
    "sampling.name": samplers.SAMPLERS,
    "sampling.grid": samplers.GRIDS,
    "task.name": TASKS,
}
"""The keys that choose a constructor: what it is called, and the constructors. Their options are in their section."""


def resolve(config: Config) -> Config:
    """The same settings with the constructors' defaults in place of None, so that a run's record does not rest on them.

    A default that is None itself, or not finite, stays None.
    """
    flat, found = config.flat(), {}
    for selector, constructors in SELECTORS.items():
        found |= _options(selector, constructors[flat[selector]])
    if config.sampling.times is not None:
        found.pop("sampling.rho", None)  # of a grid that is not used
    unset = {key: value for key, value in found.items() if flat[key] is None and value not in (None, math.inf)}
    return config.changed(unset)


def differences(config: Config) -> list[str]:
    """The keys of resolved settings whose value is not the default."""
    values, defaults = config.flat(), resolve(Config().changed({"data.name": config.data.name})).flat()
    return [key for key in KEYS if values[key] != defaults[key]]


def without_options_of(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that lose their value when `changes` choose another constructor: those of the one chosen before."""
    flat, lost = config.flat(), {}
    for selector, constructors in SELECTORS.items():
        if changes.get(selector, flat[selector]) != flat[selector]:
            lost |= dict.fromkeys(_options(selector, constructors[flat[selector]]), None)
    return lost


def _options(selector: str, constructor: Callable[..., Any]) -> dict[str, Any]:
    """The keys that a constructor takes, with its defaults."""
    section = selector.partition(".")[0]
    parameters = inspect.signature(constructor).parameters.values()
    keys = {f"{section}.{p.name}": p.default for p in parameters if p.default is not p.empty}
    return {key: default for key, default in keys.items() if key in KEYS and KEYS[key].optional}


def given(section: Any, *exclude: str) -> dict[str, Any]:
    """The keys of `section` that are not None, except `exclude`."""
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {key: value for key, value in values.items() if value is not None and key not in exclude}


def construct(
    where: str, name: str, constructor: Callable[..., Any], options: Mapping[str, Any], /, **more: Any
) -> Any:
    """Returns `constructor(**options, **more)`; errors name the option as the user wrote it, `where.option`.

    Raises:
      UserError: for an option that has no effect with the chosen `name`, or a combination that does not work.
    """
    known = set(inspect.signature(constructor).parameters)
    for key in options:
        if key not in known:
            raise UserError(f"`{where}.{key}` has no effect with {where}.name = {name!r}: leave it unset")
    with naming("`", f"`{where}."):
        return constructor(**options, **more)
