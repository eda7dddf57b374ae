"""Feature networks of the user's own: a function of JAX that is named `module:function`."""

import contextlib
import hashlib
import importlib
import inspect
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.errors import UserError, require
from hold_jax.evaluation.feature_network import DISTANCES, FeatureNetwork, Features, distance_of

_NAME = re.compile(r"([^\W\d]\w*\.)*[^\W\d]\w*:[^\W\d]\w*")
_EXAMPLES = 2  # in the batch that is traced


def is_own(name: str) -> bool:
    """Returns whether a name has the form `module:function`."""
    return _NAME.fullmatch(name) is not None


def function_of(name: str) -> str:
    """Returns the function's part of `module:function`, which is what the network is called."""
    return name.rpartition(":")[2]


def own_function(name: str, shape: tuple[int, ...], dtype: np.dtype, argument: str) -> FeatureNetwork:
    """Returns the feature network that a user's function is or makes.

    The function is one of two:

      - `function(x)` returns the features (B, d), floating, of a batch x (B, *shape);
      - `function()` returns `(params, apply)`: arrays in nested dicts, lists or tuples, and `apply(params, x)`, which
        returns the features. Large weights belong here: those of the first form become constants of the program.

    Both are traced by `jax.jit`. The identity is a digest of the traced program, with all constants, and of the
    parameters; so it changes with the function, with what the function calls and with the weights. It also changes
    between versions of JAX and between shapes of data. A function that calls back to Python cannot be known so: its
    identity is new in every process.

    Args:
      name: `module:function`; the module is looked for in the current folder too.
      shape: of an example.
      dtype: of the data, uint8 or float32.
      argument: what errors call it.

    Raises:
      UserError: if there is no such function, if it fails, or if it does not return features.
    """
    where = f"`{argument}` is {name!r}"
    found, called = _found(name, where), function_of(name)
    reserved = called in DISTANCES or distance_of(called) in DISTANCES.values()
    require(not reserved, argument, name, f"a function of another name than the package's features: {called} is one")
    params, apply = None, lambda params, x: found(x)
    if _num_required(found) == 0:
        with _one_line(f"{where}; {called}() fails"):
            made = found()
        pair = isinstance(made, tuple) and len(made) == 2 and callable(made[1])
        require(pair, f"{called}()", type(made).__name__, "a pair (params, apply), because it takes no argument")
        params, apply = made
        with _one_line(f"{where}; the params of {called}() are no arrays"):
            params = jax.tree.map(jnp.asarray, params)
    x = jax.ShapeDtypeStruct((_EXAMPLES, *shape), dtype)
    with _one_line(f"{where}; it fails for x {dtype.name}{list(x.shape)}"):
        traced = jax.jit(apply).trace(params, x)
    out = traced.out_info
    found_shape = getattr(out, "shape", ())
    if len(found_shape) != 2 or found_shape[0] != _EXAMPLES or 0 in found_shape or out.dtype.kind != "f":
        shown = f"{out.dtype}{list(found_shape)}" if hasattr(out, "dtype") else type(out).__name__
        raise UserError(
            f"{where}; for x {dtype.name}{list(x.shape)} it returns {shown}; it must return floating features "
            f"[{_EXAMPLES}, d], a row for each example"
        )
    return FeatureNetwork(
        called,
        f"function {_digest(traced, params)}",
        params,
        lambda params, x: Features(apply(params, x).astype(jnp.float32), None),
    )


def _found(name: str, where: str) -> Callable[..., Any]:
    module_name, _, function = name.rpartition(":")
    with _one_line(f"{where}; the module cannot be imported"), _current_folder_importable():
        module = importlib.import_module(module_name)
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{where}; {module.__file__} has no function {function!r}")
    return found


def _num_required(function: Callable[..., Any]) -> int:
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


def _digest(traced: Any, params: Any) -> str:
    program = traced.lower(lowering_platforms=("cpu",)).as_text()
    digest = hashlib.sha256(program.encode())
    if "callback" in program:
        digest.update(uuid.uuid4().bytes)
    for leaf in (*traced.jaxpr.consts, *jax.tree.leaves(params)):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    """As with `python -m`, which an installed command does not do."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Any exception of the user's code is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(f"{what}: {type(error).__name__}: {text[:300]}") from error
