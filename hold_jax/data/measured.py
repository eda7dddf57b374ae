"""Conditions that are measurements of the examples themselves: a half of a picture, a small or a gray picture."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hold_jax import operators
from hold_jax.data.dataset import Dataset, Lazy, RandomAccess
from hold_jax.data.masks import known_part
from hold_jax.data.transfer import from_model_range, to_model_range
from hold_jax.errors import UserError, require
from hold_jax.operators import Operator

_CHUNK = 4096  # examples that are measured at once

# Name -> operator of data of a shape, with a value in words.
_OPERATORS: dict[str, Callable[[tuple[int, ...], str], Operator]] = {
    "inpaint": lambda shape, mask: operators.inpainting(shape, known_part(shape, mask or "box")),
    "superres": lambda shape, factor: operators.superresolution(shape, int(factor or 2)),
    "deblur": lambda shape, blur: operators.deblurring(shape, float(blur or 1)),
    "colorize": lambda shape, nothing: operators.colorization(shape),
}
_NUMBERS = {"superres": "a whole number of pixels", "deblur": "a number of pixels"}
FORMS = "inpaint:MASK, superres:FACTOR, deblur:PIXELS, colorize:"


def split(condition: str | None) -> tuple[list[str], str | None]:
    """Separates the measurements in a comma-separated list of conditions from the rest, None if there is no rest."""
    parts = [] if condition is None else [part.strip() for part in condition.split(",")]
    measurements = [part for part in parts if ":" in part and part.partition(":")[0] in _OPERATORS]
    if not measurements:
        return [], condition
    return measurements, ",".join(part for part in parts if part not in measurements) or None


def add(data: Dataset, measurements: Sequence[str]) -> Dataset:
    """Returns the data with a measurement of each example as its condition.

    A measurement of a picture or an array is a picture, with 0 of the model's range (gray) where nothing is known; a
    measurement of a vector or a signal is the vector of its known values.

    Args:
      data: of any kind, in memory or not.
      measurements: one in the form NAME:VALUE of `FORMS`; without VALUE the default of the task NAME.

    Raises:
      UserError: if it does not fit the data, or they have a condition of this kind already.
    """
    text = ",".join(measurements)
    require(len(measurements) == 1, "condition", text, f"one measurement of the data, {FORMS}")
    name, _, value = text.partition(":")
    require(name != "colorize" or not value, "condition", text, "'colorize:', which has no value")
    try:
        operator = _OPERATORS[name](data.shape, value)
    except UserError as error:
        raise UserError(f"`condition` is {text!r}, for data of shape {data.shape}: {error}") from None
    except ValueError:
        raise UserError(f"`condition` is {text!r}; {value!r} must be {_NUMBERS[name]}") from None
    kind = "picture" if len(data.shape) == 3 else "vector"
    require(kind not in data.layout, "condition", text, f"None, because the data have a condition {kind} already")

    def measure(x: np.ndarray) -> np.ndarray:
        y = operator.forward(to_model_range(jax.device_put(x, _host())))
        if kind == "picture":
            return np.asarray(from_model_range(y) if data.is_image else y)
        known = np.ones(operator.measured_shape, bool) if operator.known is None else np.asarray(operator.known[0])
        return np.asarray(y)[:, known]

    source = data.source
    if isinstance(source, np.ndarray):
        parts = (source[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
        return dataclasses.replace(data, **{kind: np.concatenate([measure(part) for part in parts])})
    return dataclasses.replace(data, source=Lazy(len(data), functools.partial(_measured, source, kind, measure)))


def require_mirrored(condition: str | None, data_shape: tuple[int, ...]) -> None:
    """Raises UserError for `data.flip` with a measurement of another part of the mirrored picture."""
    for text in split(condition)[0]:
        name, _, mask = text.partition(":")
        known = known_part(data_shape, mask or "box") if name == "inpaint" else np.ones((1, 1))
        mirrored = np.array_equal(known, known[:, ::-1])
        require(mirrored, "data.flip", True, f"False with {text}: of mirrored pictures another part would be hidden")


def _host() -> Any:
    """The processor, so that reading data does not wait for an accelerator; None where JAX has no such backend."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _measured(
    source: RandomAccess, kind: str, measure: Callable[[np.ndarray], np.ndarray], index: int
) -> dict[str, Any]:
    example = source[index]
    return {**example, kind: measure(example["x"][None])[0]}
