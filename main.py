"""Train, sample from and evaluate high-order Langevin diffusion models.

python main.py --config=configs/digits_hold.py --mode=train --workdir=runs/digits [--config.a.b=value ...]
"""

import errno
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/digits_hold.py.")
_MODE = flags.DEFINE_enum("mode", None, ["train", "sample", "eval", "stats"], "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_CACHE = flags.DEFINE_string(
    "compilation_cache", "auto", "Folder of compiled programs; auto: in the work directory on GPU and TPU; off: none."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 of several; not needed on Cloud TPU and under SLURM's srun."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes --coordinator joins.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
flags.mark_flags_as_required(["config", "mode", "workdir"])

_EXIT_USER_ERROR = 2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def main(argv: Sequence[str]) -> None:
    """Runs one mode."""
    # Heavy imports come after the flags are known to be right.
    import jax

    from hold_jax.app import modes
    from hold_jax.errors import UserError
    from hold_jax.runtime import distributed

    logging.set_verbosity(logging.FATAL)  # Orbax tells of every write, and of errors that we tell of in one line
    jax.config.update("jax_logging_level", "WARNING")
    try:
        if argv[1:]:
            raise UserError(f"unknown argument {argv[1]!r}; flags are written --name=value")
        distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        modes.cache_compilations(_CACHE.value, _WORKDIR.value)
        modes.MODES[_MODE.value](_CONFIG.value, _WORKDIR.value)
    except distributed.AgreedError as error:
        _fail(str(error))
    except Exception as error:
        several = jax.distributed.is_initialized() and jax.process_count() > 1
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            where = f" {error.filename}" if error.filename else ""
            error = UserError(
                f"cannot write{where}: {error.strerror}; make room, and run the same command again: it goes on from "
                "the newest checkpoint"
            )
        if isinstance(error, UserError):
            if several:
                distributed.leave(_line(str(error)), _EXIT_USER_ERROR)
            _fail(str(error))
        if several:
            distributed.leave_after(error)
        raise


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags and loads the config; what is wrong with them is one line."""
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.lock()
        return rest
    except OSError:
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        _fail(f"--config={name}: no such file; configs/ holds the experiments")
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections reports an unknown key as the repr of a KeyError: undo the escapes.
        text = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'").replace("''", "'")
        _fail(f"flags: {text}")


def _fail(message: str) -> NoReturn:
    print(_line(message), file=sys.stderr)
    sys.exit(_EXIT_USER_ERROR)


def _line(message: str) -> str:
    return f"error: {' '.join(message.split())}"


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
