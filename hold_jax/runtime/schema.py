"""Schemas: a dataclass whose fields say what each value read from outside may be.

A field made by `whole`, `real`, `switch`, `choice`, `text`, `path` or `several` holds the type, the range or the
allowed names, the default and a note of one value. The same dataclass gives the defaults (`cls()`), checks values
(`read`), documents the keys (`keys`) and is, once read, the frozen settings that nobody checks again.
"""

import ast
import dataclasses
import difflib
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hold_jax.errors import UserError, require_choice

T = TypeVar("T")

_NAME_BYTES = 255  # of a file's name on every usual file system
_SHOWN = 60  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Key:
    """What one value may be.

    Attributes:
      kind: bool, int, float, str or tuple.
      note: meaning and unit.
      allowed: in words.
      accepts: whether a value, as plain Python has it, is allowed.
      optional: whether None is allowed.
      convert: what makes an accepted value one of `kind`.
      parser: what makes a value of the text of a flag.
      choices: the allowed names, where there is a list of them.
    """

    kind: type
    note: str
    allowed: str
    accepts: Callable[[Any], bool]
    optional: bool
    convert: Callable[[Any], Any]
    parser: Callable[[str], Any]
    choices: tuple[str, ...] = ()

    def check(self, argument: str, value: Any) -> Any:
        """Returns `value` as `kind`.

        Raises:
          UserError: naming `argument`, the value and what is allowed.
        """
        if value is None:
            if self.optional:
                return None
            raise self.error(argument, value)
        if self.choices and isinstance(value, str):
            require_choice(argument, value, self.choices)
        if not self.accepts(value):
            raise self.error(argument, value)
        return self.convert(value)

    def parse(self, argument: str, text: str) -> Any:
        """Returns the value that the text of a flag stands for; `check` is still to come.

        Raises:
          UserError: for a text that stands for no value of this kind.
        """
        if text in ("None", "none") and self.optional and text not in self.choices:
            return None
        try:
            return self.parser(text)
        except (LookupError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise self.error(argument, text) from None

    def error(self, argument: str, value: Any) -> UserError:
        """The error for a value that is not allowed."""
        return UserError(f"`{argument}` is {shown(value)}; it must be {self.allowed}{', or None' * self.optional}")


def whole(default: int | None, interval: str, note: str, *, optional: bool = False) -> Any:
    """A whole number in an interval such as "[1, 6]"; `optional` allows None beside a default that is a number."""
    inside = _interval(interval)
    accepts = lambda v: _is_whole(v) and inside(v)  # noqa: E731
    return _field(default, int, note, f"a whole number {_words(interval)}", accepts, int, int, optional=optional)


def whole_or_name(default: int | str | None, interval: str, note: str) -> Any:
    """A whole number in an interval, or a printable name."""
    inside = _interval(interval)
    accepts = lambda v: (_is_whole(v) and inside(v)) or (_is_text(v) and bool(v.strip()))  # noqa: E731
    parser = lambda words: int(words) if words.isdecimal() and words.isascii() else words  # noqa: E731
    return _field(default, object, note, f"a whole number {_words(interval)}, or a name", accepts, lambda v: v, parser)


def real(default: float | None, interval: str, note: str) -> Any:
    """A finite number in an interval such as "(0, 1]"."""
    inside = _interval(interval)
    accepts = lambda v: _is_real(v) and inside(v)  # noqa: E731
    return _field(default, float, note, f"a number {_words(interval)}", accepts, float, float)


def step(note: str) -> Any:
    """A training step, or "best"; None by default."""

    def accepts(value: Any) -> bool:
        return value == "best" if isinstance(value, str) else _is_whole(value) and 0 <= value <= 10**9

    def parse(text: str) -> int | str:
        return text if text == "best" else int(text)

    return _field(None, object, note, "a whole number from 0 to 1e9, or best", accepts, lambda value: value, parse)


def switch(default: bool | None, note: str) -> Any:
    """True or False."""
    return _field(default, bool, note, "True or False", lambda v: isinstance(v, bool), bool, _switched)


def choice(default: str | None, choices: tuple[str, ...], note: str) -> Any:
    """One of `choices`."""
    allowed = f"one of: {', '.join(sorted(choices))}"
    return _field(default, str, note, allowed, lambda v: v in choices, str, str, choices=choices)


def text(default: str | None, allowed: str, note: str, *, empty: bool = False) -> Any:
    """A printable text; `allowed` says which, `empty` whether an empty one is."""
    accepts = lambda v: _is_text(v) and (empty or bool(v.strip()))  # noqa: E731
    return _field(default, str, note, allowed, accepts, str, str)


def path(default: str | None, note: str, allowed: str = "a path that can exist", *, empty: bool = False) -> Any:
    """A path that the system can have, perhaps after a prefix with a colon."""
    accepts = lambda v: _is_text(v) and (empty or bool(v.strip())) and is_path(v)  # noqa: E731
    return _field(default, str, note, allowed, accepts, str, str)


def several(default: tuple | None, kind: type, interval: str, size: str, note: str, *, or_one: bool = False) -> Any:
    """A tuple of numbers of `kind`, int or float, each in `interval`, as many as the interval `size` allows.

    `or_one` allows a number in the place of the tuple; it stays a number.
    """
    inside, fits, is_number = _interval(interval), _interval(size), _is_whole if kind is int else _is_real

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple | list):
            return or_one and is_number(value) and inside(value)
        return fits(len(value)) and all(is_number(v) and inside(v) for v in value)

    def convert(value: Any) -> Any:
        return tuple(kind(v) for v in value) if isinstance(value, tuple | list) else kind(value)

    words = f"a tuple such as (1, 2) of {'whole ' * (kind is int)}numbers {_words(interval)}, its length {_words(size)}"
    words = f"a {'whole ' * (kind is int)}number {_words(interval)}, or {words}" if or_one else words
    return _field(default, object if or_one else tuple, note, words, accepts, convert, ast.literal_eval)


def numbers(note: str) -> Any:
    """Whole numbers and ranges of them, which `ranges` reads; None by default."""

    def accepts(value: Any) -> bool:
        try:
            return bool(ranges(value))
        except (ValueError, AttributeError):
            return False

    allowed = "rising whole numbers below 2^31 and ranges such as 7 or 3,17 or 100:200 (200 is not in it)"
    return _field(None, str, note, allowed, accepts, str, str)


def ranges(words: str) -> list[tuple[int, int]]:
    """Returns the first number, and the number after the last, of each part of "3,17,100:200".

    Raises:
      ValueError: for another text, and for numbers that do not rise or are 2^31 or more.
    """
    found: list[tuple[int, int]] = []
    for part in words.split(","):
        first, colon, stop = (word.strip() for word in part.partition(":"))
        if not all(word.isascii() and word.isdecimal() and len(word) <= 10 for word in (first, stop or first)):
            raise ValueError(f"{part!r} is neither a number nor a range")
        found.append((int(first), int(stop) if colon else int(first) + 1))
    ends = [number for pair in found for number in pair]
    rises = all(a < b for a, b in found) and ends == sorted(ends)
    if not rises or ends[-1] > 2**31:
        raise ValueError(f"{words!r} does not rise")
    return found


def tree(note: str) -> Any:
    """An object of JSON, which has a schema of its own."""
    key = Key(dict, note, "an object", lambda v: isinstance(v, dict), False, dict, json.loads)
    return dataclasses.field(default_factory=dict, metadata={"key": key})


def section(cls: type) -> Any:
    """A schema within a schema."""
    return dataclasses.field(default_factory=cls, metadata={"section": cls})


def keys(cls: type, prefix: str = "") -> dict[str, Key]:
    """Every key of a schema in order, those of sections as `section.key`."""
    found: dict[str, Key] = {}
    for field in dataclasses.fields(cls):
        inner = field.metadata.get("section")
        found |= keys(inner, f"{prefix}{field.name}.") if inner else {f"{prefix}{field.name}": field.metadata["key"]}
    return found


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}, "c": 2} as {"a.b": 1, "c": 2}: the values of one level of sections."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def read(cls: type[T], flat: Mapping[str, Any], prefix: str = "") -> T:
    """`cls` from values by `section.key`; a key that is missing keeps its default.

    Raises:
      UserError: for an unknown key, or a value that is not allowed.
    """
    known = keys(cls, prefix)
    for key in flat:
        require_key(key, known)
    return _read(cls, flat, prefix)


def require_key(key: str, known: Mapping[str, Key]) -> None:
    """Raises `UserError` for a key that is not in the schema; the message has the nearest, or those of its section."""
    if key in known:
        return
    section, _, name = key.rpartition(".")
    beside = {k.removeprefix(f"{section}."): k for k in known if section and k.rpartition(".")[0] == section}
    names = beside or {k: k for k in known}
    near = difflib.get_close_matches(name if beside else key, names, 1)
    hint = f"; {section} has {', '.join(beside)}" if beside else ""
    if near:
        hint = f" (did you mean {names[near[0]]!r}?)"
    raise UserError(f"there is no key `{key}`{hint}; --mode=show prints all keys")


def json_object(data: bytes) -> dict[str, Any]:
    """The object that bytes of JSON hold.

    Raises:
      ValueError: in one line, if they hold anything else.
    """
    try:
        found = json.loads(data.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds {shown(found)}, not an object")
    return found


def shown(value: Any) -> str:
    """A value as a message shows it: its repr, shortened."""
    try:
        words = repr(value)
    except (ValueError, RecursionError):  # a whole number of more than 4,300 digits
        words = f"{'a very large' if isinstance(value, int) else 'a deeply nested'} {type(value).__name__}"
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 3]}..."


def is_path(text: str) -> bool:
    """Whether the system can have such a path, perhaps after a prefix: no NUL, no long name, a ~USER that exists."""
    text = text.partition(":")[2] or text
    try:
        encoded = text.encode()  # a lone surrogate, from bytes that are not UTF-8, cannot be printed or kept as JSON
        expanded = os.path.expanduser(text)
    except ValueError:
        return False
    names = encoded.split(b"/")
    return b"\0" not in encoded and all(len(n) <= _NAME_BYTES for n in names) and not expanded.startswith("~")


def _read(cls: type[T], flat: Mapping[str, Any], prefix: str) -> T:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        where = f"{prefix}{field.name}"
        if "section" in field.metadata:
            values[field.name] = _read(field.metadata["section"], flat, f"{where}.")
        else:
            key: Key = field.metadata["key"]
            if where in flat:
                values[field.name] = key.check(where, flat[where])
    return cls(**values)


def _field(
    default: Any,
    kind: type,
    note: str,
    allowed: str,
    accepts: Callable[[Any], bool],
    convert: Callable[[Any], Any],
    parser: Callable[[str], Any],
    *,
    optional: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    key = Key(kind, note, allowed, accepts, optional or default is None, convert, parser, choices)
    return dataclasses.field(default=default, metadata={"key": key})


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or _is_whole(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _interval(words: str) -> Callable[[float], bool]:
    """Whether a number is within "[low, high)" and the like; a bound is a number or a power such as 2^32."""
    low, high = (_bound(part) for part in words[1:-1].split(","))
    closed_low, closed_high = words[0] == "[", words[-1] == "]"
    return lambda v: (low <= v if closed_low else low < v) and (v <= high if closed_high else v < high)


def _words(interval: str) -> str:
    """ "[1, 6]" as "from 1 to 6", "(0, 1)" as "above 0 and below 1"."""
    low, high = (part.strip() for part in interval[1:-1].split(","))
    if low == high:
        return low
    if interval[0] + interval[-1] == "[]":
        return f"from {low} to {high}"
    above, below = "at least" if interval[0] == "[" else "above", "at most" if interval[-1] == "]" else "below"
    return f"{above} {low} and {below} {high}"


def _bound(words: str) -> float:
    base, power, exponent = words.strip().partition("^")
    return float(base) ** float(exponent) if power else float(base)


def _switched(words: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[words.lower()]


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
