"""Converts others' weights: python -m hold_jax.convert --from=pytorch_fid --input=PATH.pth --output=PATH.npz."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from hold_jax.convert import inception
from hold_jax.errors import UserError, require_choice

# (input, output) -> what was done, in words.
FROM: dict[str, Callable[[Path, Path], str]] = {
    "pytorch_fid": inception.convert,
}

_EXIT_USER_ERROR = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts one file; a user's mistake is one line, exit code 2, and leaves the output as it was."""
    parser = _Parser(prog="python -m hold_jax.convert", description=__doc__, allow_abbrev=False)
    parser.add_argument("--from", dest="source", required=True, help=f"project: {', '.join(sorted(FROM))}")
    parser.add_argument("--input", type=Path, required=True, help="its file")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    try:
        args = parser.parse_args(arguments)
        require_choice("from", args.source, FROM)
        done = FROM[args.source](args.input, args.output)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(_EXIT_USER_ERROR)
    print(f"{args.output}: {done}")


if __name__ == "__main__":
    main()
