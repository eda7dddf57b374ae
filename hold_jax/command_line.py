"""What the commands share: errors of one line, exit codes, an output whose reader ends early."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from hold_jax.errors import UserError

EXIT_USER_ERROR = 2


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`."""
        raise UserError(message)


@contextlib.contextmanager
def exits(closed: str | None = None) -> Iterator[None]:
    """Ends the process with exit code 2 for a mistake of the user, and where what reads standard output has ended.

    Args:
      closed: what is printed where the reader has ended; None: nothing.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # while BrokenPipeError can be caught
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        # Nothing more can be printed there, not even at the exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(closed)


def line(message: str) -> str:
    """Returns an error as one line that any terminal can show."""
    words = " ".join(message.split())
    return f"error: {words.encode(errors='backslashreplace').decode()}"


def _fail(message: str | None) -> NoReturn:
    if message is not None:
        with contextlib.suppress(OSError):
            print(line(message), file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)
