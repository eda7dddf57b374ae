"""A cache of compiled programs for functions that take a function, such as a sampler with its `eps_fn`.

`jax.jit` keeps one program per function object. A library call outside `jit` would create a new function object, and so
compile, each time. `run` compiles once per `eps_fn` and settings, and frees the program when `eps_fn` is freed.
"""

import collections
import contextlib
import functools
import logging
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.core
import numpy as np

_KEPT = 16  # programs of one function; the oldest is dropped first
_MANY = 7  # programs of one call, after which it is said that each is compiled
_OFTEN = (
    "a call with %s is compiled for the %dth time, since something that it holds changed before each: parameters, or "
    "the floats of a timer or progress bar; make parameters an argument of a function of your own under jax.jit, and "
    "let it hold nothing else that changes"
)
_LOOKED_THROUGH = 5000  # parts of what a function holds: some milliseconds
_PLAIN = (str, bytes, bool, int, float, complex, type(None))
_JITTED = type(jax.jit(lambda: None))  # not `jax.stages.Wrapped`, which a mock of any kind is an instance of

Result = TypeVar("Result")


def run(
    function: Callable[..., Result],
    inner: Callable[..., Any],
    settings: Hashable,
    *arrays: Any,
    compiler_options: dict[str, Any] | None = None,
) -> Result:
    """Returns function(inner, settings, *arrays), compiled unless the call is already part of a trace.

    A program is reused for the same function objects, equal settings, and arrays of the same shapes. As with `jax.jit`,
    variables that `inner` captures are read when it is traced. If such a variable, or an attribute of a captured
    object, is replaced by another object, `inner` is traced again; also if an array or a float is that a captured
    object, dictionary, function, method or partial holds at any depth (`params["w"] = ...`, a parameter of a Flax NNX
    network). So it is for the variables of the functions that it captures (as `parameterization.eps_function` captures
    a network) and of those of its own module that it calls. Not noticed are NumPy arrays that are written to
    (`w[:] = ...`), floats in lists, whole numbers and text deeper than attributes, and variables of other modules. A
    warning says where each call is compiled anew.

    Args:
      function: a pure function; pass the same object at each call.
      inner: a function that `function` calls. Programs are kept for functions, and for `functools.partial` and
        `jax.jit` of these; any other callable, such as a bound method, is traced and compiled at each call.
      settings: all other arguments; if they are not hashable, the program is compiled at each call.
      *arrays: trees of arrays, or None.
      compiler_options: of `jax.jit`, for calls that are never part of a trace.

    Returns:
      What `function` returns.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays)):
        return function(inner, settings, *arrays)
    reads = _reads(inner)
    if reads is None or not _is_hashable(settings):
        return jax.jit(functools.partial(function, inner, settings), compiler_options=compiler_options)(*arrays)
    kept = _PROGRAMS.setdefault(inner, collections.OrderedDict())
    key = (function, settings, tuple((compiler_options or {}).items()))
    program = kept.get((key, reads))
    if program is None:
        if inner not in _SAID and sum(earlier == key for earlier, _ in list(kept)) == _MANY:
            _SAID.add(inner)
            logging.getLogger(__name__).warning(_OFTEN, getattr(inner, "__name__", inner), _MANY + 1)
        program = _compiled(function, weakref.ref(inner), settings, compiler_options)
    _keep(kept, (key, reads), program)
    traces = len(program.traces)
    result = program.call(*arrays)
    if len(program.traces) > traces:  # what tracing itself changed, such as a count of traces, is no change
        _keep(kept, (key, _reads(inner)), program)
    return result


_PROGRAMS: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()
_SAID: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()  # functions of which the warning was given


class _Program(NamedTuple):
    """A compiled call, and a list with an entry for each time that it was traced."""

    call: Callable[..., Any]
    traces: list[None]


def _compiled(
    function: Callable[..., Any], inner: Callable[[], Any], settings: Hashable, options: dict[str, Any] | None
) -> _Program:
    # `inner` is a weak reference: JAX keeps the functions that it traced, so a strong one would never be freed.
    traces: list[None] = []

    def traced(*arrays: Any) -> Any:
        traces.append(None)
        return function(inner(), settings, *arrays)

    return _Program(jax.jit(traced, compiler_options=options), traces)


def _keep(kept: "collections.OrderedDict[Any, _Program]", key: Hashable, program: _Program) -> None:
    """Keeps a program as the one that was used last."""
    kept[key] = program
    with contextlib.suppress(KeyError):  # another thread may have dropped it meanwhile
        kept.move_to_end(key)
        if len(kept) > _KEPT:
            kept.popitem(last=False)


class _Reads:
    """Objects compared by identity, numbers and text by value; a new object with the `id` of a freed one is another.

    They are referred to weakly where they can be: one of them may hold the function, as `self` does where the function
    is its attribute, and a program must not keep its function alive.
    """

    def __init__(self, objects: list[Any]):
        self._identities = tuple(map(_identity, objects))
        self._references = tuple(map(_reference, objects))

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _Reads) and self._identities == other._identities
        return same and all(reference() is not None for reference in self._references)

    def __hash__(self) -> int:
        return hash(self._identities)


def _identity(value: Any) -> Hashable:
    if type(value) in _PLAIN or isinstance(value, np.number):
        return type(value), value if value == value else "nan"
    return id(value)


def _reference(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:  # numbers, tuples, dictionaries
        return lambda: (value,)


def _reads(inner: Callable[..., Any]) -> _Reads | None:
    """Returns the variables that a function and the functions among these read, and what these hold.

    These are the attributes of mutable ones, and all arrays and floats. None for other callables.
    """
    first, objects = _opened(inner)
    if first is None or isinstance(inner, types.MethodType):
        return None
    functions = [first]
    for function in functions:  # a list that grows
        captured, named = _captured(function), _named(function)
        objects += captured + named
        for value in captured + named:
            found, held = _opened(value)
            objects += held
            follow = any(value is c for c in captured) or getattr(found, "__globals__", None) is function.__globals__
            if found and follow and found not in functions:
                functions.append(found)
    attributes = [value for o in objects if not _is_frozen(o) for value in _attributes(o)]
    return _Reads(objects + attributes + _numbers_in(objects))


def _numbers_in(objects: list[Any]) -> list[Any]:
    """The arrays and floats that objects hold at any depth, in attributes, dictionaries, lists, tuples and functions.

    Other values change for other reasons than a network's: counts, the tables of a logger, a list of scores, whose
    floats are left out. Of very many parts the first are looked through.
    """
    numbers: list[Any] = []
    seen: set[int] = set()
    waiting = objects[::-1]
    while waiting and len(seen) < _LOOKED_THROUGH:
        value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, np.ndarray | jax.Array):
            numbers.append(value)
            continue
        parts = _parts(value)[:_LOOKED_THROUGH]
        waiting += parts[::-1]
        if not isinstance(value, list):
            numbers += [part for part in parts if isinstance(part, float)]
    return numbers


def _parts(value: Any) -> list[Any]:
    """What a value holds."""
    if isinstance(value, dict):
        return list(dict.values(value))
    if isinstance(value, list | tuple):
        return list(value)
    function, held = _opened(value)
    return held + (_attributes(value) if function is None else _captured(function))


def _opened(value: Any) -> tuple[types.FunctionType | None, list[Any]]:
    """The function in a function, a method, a `functools.partial` or a `jax.jit` of one, and what these add to it."""
    held: list[Any] = []
    while not isinstance(value, types.FunctionType):
        if isinstance(value, functools.partial):
            held += [*value.args, *value.keywords.values()]
            value = value.func
        elif isinstance(value, types.MethodType):
            held.append(value.__self__)
            value = value.__func__
        elif isinstance(value, _JITTED):
            value = getattr(value, "__wrapped__")  # noqa: B009
        else:
            return None, held
    return value, held


def _captured(function: types.FunctionType) -> list[Any]:
    """The variables that a function captures and that are assigned, and the defaults of its arguments."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_assigned(cell)]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _named(function: types.FunctionType) -> list[Any]:
    """The variables of its module that a function, or a function or comprehension inside it, names."""
    variables, codes = [], [function.__code__]
    for code in codes:  # a list that grows
        variables += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return variables


def _is_assigned(cell: types.CellType) -> bool:
    """Whether a captured variable has a value: it may be assigned in one branch alone."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _is_frozen(value: Any) -> bool:
    """Whether a value is a frozen dataclass."""
    return getattr(getattr(type(value), "__dataclass_params__", None), "frozen", False)


def _attributes(value: Any) -> list[Any]:
    """The values of an object's attributes, those in slots too; none of a module, class, function or array."""
    if isinstance(value, types.ModuleType | types.FunctionType | type | functools.partial | jax.Array):
        return []
    found: list[Any] = []
    with contextlib.suppress(Exception):  # an object may compute what it has, and fail
        found += object.__getattribute__(value, "__dict__").values()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            with contextlib.suppress(Exception):
                found += [] if name.startswith("__") else [object.__getattribute__(value, name)]
    return found


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
