"""Train, sample from and evaluate high-order Langevin diffusion models.

python main.py --config=configs/digits_hold.py --mode=train --workdir=runs/digits [--config.a.b=value ...]
"""

import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/digits_hold.py.")
_MODE = flags.DEFINE_enum("mode", None, ["train", "sample", "eval"], "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
flags.mark_flags_as_required(["config", "mode", "workdir"])

_EXIT_USER_ERROR = 2


def main(argv: Sequence[str]) -> None:
    """Runs one mode."""
    # Heavy imports come after the flags are known to be right.
    from hold_jax import run
    from hold_jax.errors import UserError

    try:
        if argv[1:]:
            raise UserError(f"unknown argument {argv[1]!r}; flags are written --name=value")
        run.MODES[_MODE.value](_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        _fail(error)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        return _fail(error)


def _fail(error: Exception) -> None:
    message = " ".join(str(error.args[0] if error.args else error).split())
    print(f"error: {message}", file=sys.stderr)
    sys.exit(_EXIT_USER_ERROR)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
