"""Matching others' arrays to our parameters: all of theirs used, all of ours filled, every shape the same."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from hold_jax.errors import UserError

_NAMES_SHOWN = 5
_COMPILED = "_orig_mod."  # where torch.compile wraps a module, at any depth

Shapes = Mapping[str, tuple[int, ...]]


class Rule(NamedTuple):
    """Some of their arrays and the parameters that they become.

    Attributes:
      shapes: of theirs, by name.
      build: their arrays, in the order of `shapes` -> ours, by path such as conv_in/kernel.
    """

    shapes: dict[str, tuple[int, ...]]
    build: Callable[..., dict[str, np.ndarray]]


def transposed(name: str, path: str, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> Rule:
    """The rule of one array that differs in the order of its axes only: ours, of `shape`, is theirs.transpose(axes)."""
    if axes is None:
        return Rule({name: shape}, lambda a: {path: a})
    theirs = tuple(shape[i] for i in np.argsort(axes))
    return Rule({name: theirs}, lambda a: {path: a.transpose(axes)})


def convert(rules: Iterable[Rule], arrays: Mapping[str, Any], where: str, whose: str) -> dict[str, Any]:
    """Our parameters, nested, float32.

    Args:
      rules: one for every parameter of ours.
      arrays: theirs, by name.
      where: what errors call the file.
      whose: what errors call the network of the config.

    Raises:
      UserError: listing what is missing, what is left over and what differs in shape; for values that are not finite,
        and for whole numbers.
    """
    rules = list(rules)
    expected = {name: shape for rule in rules for name, shape in rule.shapes.items()}
    require_shapes({name: np.shape(value) for name, value in arrays.items()}, expected, where, whose)
    ours: dict[str, np.ndarray] = {}
    for rule in rules:
        theirs = {name: np.asarray(arrays[name]) for name in rule.shapes}
        for name, value in theirs.items():
            if value.dtype.kind in "biuc":
                raise UserError(f"{where}; its {name} is of type {value.dtype.name}; it must be of floating numbers")
        for path, value in rule.build(*theirs.values()).items():
            with np.errstate(over="ignore"):
                ours[path] = np.ascontiguousarray(value, np.float32)
            if not np.isfinite(ours[path]).all():
                raise UserError(f"{where}; its {', '.join(rule.shapes)} has values that are not finite in float32")
    return traverse_util.unflatten_dict(ours, sep="/")


def renamed(arrays: Mapping[str, Any], rename: Callable[[str], str], where: str) -> dict[str, Any]:
    """The arrays by the names that `rename` gives, in the same order; torch.compile's `_orig_mod.` is left out first.

    Raises:
      UserError: for two different arrays of one name; `where` is what errors call the file.
    """
    first: dict[str, str] = {}
    for name, value in arrays.items():
        before = first.setdefault(rename(name.replace(_COMPILED, "")), name)
        if before != name and not np.array_equal(arrays[before], value):
            raise UserError(f"{where}; its {before} and {name} are one parameter with two values; remove one of them")
    return {name: arrays[theirs] for name, theirs in first.items()}


def require_shapes(found: Shapes, expected: Shapes, where: str, whose: str) -> None:
    """Raises `UserError` with both sides of every difference, unless there is none."""
    faults = {
        "it lacks": [name for name in expected if name not in found],
        "it has, and the network has not,": [name for name in found if name not in expected],
        "of other shapes than the network's are": [
            f"{name} {found[name]} for {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    said = []
    for fault, names in faults.items():
        shown = ", ".join(names[:_NAMES_SHOWN])
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        said += [f"{fault} {shown}{more}"] if names else []
    if said:
        raise UserError(f"{where}; it is not of {whose}: {'; '.join(said)}")
