"""Errors a user can mend: one line that names the argument, the value and what is allowed."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake in what the user asked for; `main.py` prints it as one line and exits with 2.

    Every other exception is a defect of ours and keeps its traceback.
    """


def require(condition: bool, argument: str, value: Any, allowed: str) -> None:
    """Raises `UserError` naming `argument`, its `value` and what is `allowed`, unless `condition` holds."""
    if not condition:
        raise UserError(f"`{argument}` is {value!r}; it must be {allowed}")


def require_choice(argument: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises `UserError` unless `value` is one of `allowed`; the message lists them and the nearest."""
    names = sorted(allowed)
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(f"`{argument}` is {value!r}{hint}; it must be one of: {', '.join(names)}")
