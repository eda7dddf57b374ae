"""Compiled programs of functions that take a function, such as a sampler with its `eps_fn`.

`jax.jit` remembers the program of one function object. A call outside `jit` would make a new object, and so compile,
each time. `run` makes it once for each `eps_fn` and settings, and drops it when `eps_fn` is no longer in use.
"""

import dataclasses
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import jax.core

_KEPT = 16  # programs of one function; the least recently used is dropped first

Result = TypeVar("Result")


def run(function: Callable[..., Result], inner: Callable[..., Any], settings: Hashable, *arrays: Any) -> Result:
    """function(inner, settings, *arrays), compiled unless it is part of a trace already.

    The program is used again for the same function objects, equal settings, and arrays of the same shapes. As with
    `jax.jit`, what `inner` reads from outside is read when it is traced. A variable that `inner` uses, or an attribute
    of an object that it uses, and that is another object by now, leads to a new trace; contents that changed in place
    (`params["w"] = ...`) do not.

    Args:
      function: of arrays, pure; the same object at each call.
      inner: a function that `function` calls. Programs are kept for functions and `functools.partial`s of these; any
        other callable is traced and compiled at each call.
      settings: everything else; compiled at each call if it is not hashable.
      *arrays: trees of arrays, or None.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays)):
        return function(inner, settings, *arrays)
    reads = _reads(inner)
    if reads is None or not _is_hashable(settings):
        return jax.jit(functools.partial(function, inner, settings))(*arrays)
    if inner not in _PROGRAMS:
        _PROGRAMS[inner] = functools.lru_cache(_KEPT)(functools.partial(_compile, weakref.ref(inner)))
    return _PROGRAMS[inner](function, settings, reads)(*arrays)


_PROGRAMS: weakref.WeakKeyDictionary[Callable[..., Any], Callable[..., Any]] = weakref.WeakKeyDictionary()


def _compile(inner: Callable[[], Any], function: Callable[..., Any], settings: Hashable, reads: "_Reads") -> Any:
    # A weak reference: JAX keeps what it traced, and `inner` would never be freed.
    del reads
    return jax.jit(lambda *arrays: function(inner(), settings, *arrays))


class _Reads:
    """Objects compared by identity, and held so that no new object has the identity of an old one."""

    def __init__(self, objects: list[Any]):
        self._objects = objects
        self._identities = tuple(map(id, objects))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reads) and self._identities == other._identities

    def __hash__(self) -> int:
        return hash(self._identities)


def _reads(inner: Callable[..., Any]) -> _Reads | None:
    """The variables that a function uses, with the attributes of mutable objects; None for other callables."""
    while isinstance(inner, functools.partial):
        inner = inner.func
    if not isinstance(inner, types.FunctionType):
        return None
    found = inspect.getclosurevars(inner)
    objects = [*found.nonlocals.values(), *found.globals.values()]
    attributes = [value for o in objects if _is_mutable(o) for value in vars(o).values()]
    return _Reads(objects + attributes)


def _is_mutable(value: Any) -> bool:
    """Whether a value is an object with attributes that programs change: no module, class, function or frozen one."""
    if dataclasses.is_dataclass(value):
        return not getattr(value, "__dataclass_params__").frozen  # noqa: B009
    fixed = (types.ModuleType, types.FunctionType, type, functools.partial, jax.Array)
    return hasattr(value, "__dict__") and not isinstance(value, fixed)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
