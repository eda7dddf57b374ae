"""Errors that a user can correct: one line that names the argument, its value and the allowed values."""

import contextlib
import difflib
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

__all__ = [
    "UserError",
    "chosen",
    "naming",
    "of_an_extra",
    "require",
    "require_choice",
    "require_data",
    "require_given",
    "require_number",
    "require_shape",
    "require_whole",
    "shown",
]

T = TypeVar("T")
# Packages of the extras of pyproject.toml.
_EXTRAS = {
    "data": ("tensorflow_datasets", "importlib_resources", "array_record", "sklearn"),
    "train": ("clu", "tensorboardX", "matplotlib"),
    "wandb": ("wandb",),
}


class UserError(ValueError):
    """A mistake in the user's input. `main.py` prints it as one line and exits with status 2.

    Every other exception is a defect of the package and keeps its traceback.
    """


def require(condition: bool, argument: str, value: Any, allowed: str) -> None:
    """Checks a condition on an argument.

    Args:
      condition: what must hold.
      argument: the argument's name as the user wrote it.
      value: its value.
      allowed: the allowed values, in words; completes "it must be ...".

    Raises:
      UserError: if the condition does not hold.
    """
    if not condition:
        raise UserError(f"`{argument}` is {shown(value)}; it must be {allowed}")


def shown(value: Any) -> str:
    """`repr` on one line, cut where an array or a long text would fill the screen."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-40:]}"


def require_given(argument: str, value: T | None, allowed: str) -> T:
    """The value of an optional argument that must be set here, typed as not None.

    Raises:
      UserError: if the value is None; arguments as in `require`.
    """
    if value is None:
        raise UserError(f"`{argument}` is None; it must be {allowed}")
    return value


def require_choice(argument: str, value: Any, allowed: Iterable[str]) -> None:
    """Checks that an argument is one of several names.

    Raises:
      UserError: if it is not; the message lists the names and the one that is spelled most alike.
    """
    names = sorted(allowed)
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(f"`{argument}` is {shown(value)}{hint}; it must be one of: {', '.join(names)}")


def chosen(argument: str, value: str | T, table: Mapping[str, T]) -> T:
    """The value, or that of a table if it is one of the table's names.

    Raises:
      UserError: for another name.
    """
    if not isinstance(value, str):
        return value
    require_choice(argument, value, table)
    return table[value]


def require_whole(argument: str, value: Any, least: int) -> int:
    """The value, a whole number of Python or NumPy that is at least `least`, as an `int`.

    Raises:
      UserError: for another value or type; arguments as in `require`.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    require(whole and int(value) >= least, argument, value, f"a whole number >= {least}")
    return int(value)


def require_number(argument: str, value: Any, fits: Callable[[float], bool], allowed: str) -> float:
    """The value, one real number of Python, NumPy or JAX that fits, as a `float`.

    Args:
      argument: as in `require`.
      value: its value.
      fits: whether a number is allowed; false for NaN, as comparisons are.
      allowed: as in `require`.

    Raises:
      UserError: for another number or type, and for a number that JAX traces, whose value is not known.
    """
    number = None
    boolean = "bool" in (type(value).__name__, str(getattr(value, "dtype", "")))
    if getattr(value, "shape", ()) == () and not boolean and not isinstance(value, (str, bytes)):
        with contextlib.suppress(TypeError):
            number = float(value)
    traced = ", not traced by JAX" if "Tracer" in type(value).__name__ else ""
    if number is None:
        raise UserError(f"`{argument}` is {shown(value)}; it must be a number{traced}, {allowed}")
    require(fits(number), argument, value, allowed)
    return number


def require_shape(argument: str, shape: Any, least: int, allowed: str) -> tuple[int, ...]:
    """The value, `least` or more sizes of axes, all 1 or more (or symbols of `jax.export`), as a tuple.

    Raises:
      UserError: for another value or type; arguments as in `require`.
    """
    sizes = shape.tolist() if hasattr(shape, "tolist") else shape
    sizes = tuple(sizes) if isinstance(sizes, Sequence) and not isinstance(sizes, str) else ()
    # A symbol of `jax.export` is no number of Python; its bounds are known.
    kinds = (hasattr(size, "__index__") or hasattr(size, "dimension_as_value") for size in sizes)
    whole = all(kinds) and not any(isinstance(size, bool) or size < 1 for size in sizes)
    require(whole and len(sizes) >= least, argument, shape, allowed)
    return sizes


@contextlib.contextmanager
def naming(old: str, new: str) -> Iterator[None]:
    """Names the argument of a `UserError` as the user wrote it: `new` in place of the first `old`."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(old, new, 1)) from None


def of_an_extra(error: ModuleNotFoundError) -> Exception:
    """The one line for a package that an extra of this package installs; any other error as it is."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return UserError(f"the package {package} is not installed: pip install 'hold_jax[{extra}]'")
    return error


def require_data(argument: str, x: Any) -> None:
    """Checks that an array can be a batch of data: floating, with a batch axis and at least one more.

    Args:
      argument: the argument's name as the user wrote it.
      x: an array (B, *S, C); its values are not looked at.

    Raises:
      UserError: for integers or booleans, such as pictures of 0 to 255, and for fewer than two axes.
    """
    other = getattr(x.dtype, "kind", "O") in "biucO"  # a key of JAX has no kind
    require(not other, argument, str(x.dtype), "floating, in the model's range: `hold_jax.data.to_model_range(x)`")
    require(x.ndim >= 2, argument, x.shape, "of shape (B, *S, C); a batch of numbers is x[:, None]")


def __dir__() -> list[str]:
    return __all__
