"""Train, sample from and evaluate high-order Langevin diffusion models.

python main.py --config=configs/digits_hold.py --mode=train [--workdir=DIR] [--config.section.key=value ...]
python main.py --mode=sample --workdir=DIR [--config.section.key=value ...]
"""

import argparse
import contextlib
import errno
import importlib.util
import itertools
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from hold_jax import command_line
from hold_jax.errors import UserError, of_an_extra

if TYPE_CHECKING:
    from hold_jax.app import flags

_MODES = {
    "train": "train, or go on from the newest checkpoint; then sample and evaluate (training.report)",
    "sample": "draw samples from a checkpoint",
    "eval": "test loss, distances of samples to the data, bits per dimension (eval.likelihood)",
    "plot": "draw what training logged, and the figures of each evaluated checkpoint",
    "show": "print every key of the config with its value, range and note",
    "tune": "find the best sampler of the run for each number of network calls (tune.calls)",
    "stats": "compute and keep the reference statistics of the training data",
}
_USED_MOST = (
    "data.name", "data.image_size", "sde.name", "sde.order", "model.dtype", "training.num_steps", "training.batch_size",
    "optimizer.learning_rate", "sampling.name", "sampling.num_steps", "sampling.num_samples", "sampling.label",
    "sampling.guidance", "eval.features", "eval.num_samples", "eval.likelihood", "seed",
)  # fmt: skip

_FEW = 8  # names that --help lists

_EXIT_INTERRUPTED = 130  # as a shell reports SIGINT
# What to do about an error of the file system; any other error is a defect of the package.
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENOTDIR), "remove what is in its place"),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE), "do not delete or move it while a run uses it"),
    errno.EIO: "check the disk",
}
_TUNABLES = "GLIBC_TUNABLES"


class _Parser(command_line.Parser):
    def format_help(self) -> str:
        self.epilog = _epilog()
        return super().format_help()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one mode; a mistake of the user is one line on standard error and exit code 2."""
    sys.unraisablehook = _unraisable
    try:
        with command_line.exits("standard output was closed; the same command goes on from the newest checkpoint"):
            words = sys.argv[1:] if arguments is None else arguments
            _require_text(words)
            options, rest = _parser().parse_known_args(words)
            # Imported here, as in _run, because Ctrl-C during an import at the top of the file would be a traceback.
            from hold_jax.app import flags

            _run(options, flags.read(options.config, rest), shlex.join(["python", "main.py", *words]))
    except KeyboardInterrupt:
        _interrupted()


def _run(options: argparse.Namespace, given: "flags.Given", command: str) -> None:
    # Heavy imports come after the flags are known to be right.
    with _ending_at_ctrl_c():
        import jax
        from absl import logging

        from hold_jax.app import modes
        from hold_jax.runtime import distributed

    logging.set_verbosity(logging.FATAL)  # Orbax logs every write, and errors that are one line of ours
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # so it is after a checkpoint that failed
    jax.config.update("jax_logging_level", "WARNING")
    try:
        distributed.initialize(options.coordinator, options.num_processes, options.process_id)
        modes.run(options.mode, given, options.workdir, options.compilation_cache, command)
    except distributed.AgreedError:
        raise
    except Exception as error:
        several = jax.distributed.is_initialized() and jax.process_count() > 1
        if isinstance(error, OSError) and error.errno in _ADVICE and error.filename:
            error = _of_the_disk(error, options.mode)
        if isinstance(error, ModuleNotFoundError):
            error = of_an_extra(error)
        if isinstance(error, UserError):
            if several:
                distributed.leave(command_line.line(str(error)), command_line.EXIT_USER_ERROR)
            raise error from None
        if several and not isinstance(error, BrokenPipeError):
            distributed.leave_after(error)
        raise


def _with_huge_pages() -> None:
    """Starts this program again with huge pages for glibc's allocator, where only CPUs compute.

    XLA allocates the temporaries of a training step anew at each call (101 MiB for configs/digits_hold.py), and the
    system clears their pages again: faster in pages of 2 MiB than of 4 KiB (docs/results/speed.md). glibc reads its
    tunables when a process starts. If they are set already, they stay as they are.
    """
    accelerated = any(importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu"))
    if sys.platform == "linux" and not accelerated and _TUNABLES not in os.environ and _is_the_program():
        os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
        with contextlib.suppress(OSError):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_the_program() -> bool:
    """Whether Python was started with this file, and not with a debugger, a notebook or the like that runs it."""
    count = len(sys.orig_argv) - len(sys.argv)
    options, words = sys.orig_argv[1:count], sys.orig_argv[count:]
    values = [after for option, after in itertools.pairwise(options) if option in ("-X", "-W")]
    return words == sys.argv and all((word.startswith("-") and word != "-m") or word in values for word in options)


def _require_text(arguments: Sequence[str]) -> None:
    """Raises `UserError` for an argument that Python cannot decode: its bytes are not of the system's encoding."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            name = f"{argument.partition('=')[0]} is" if argument.startswith("--") else "an argument is"
            raise UserError(
                f"{name} not text in {sys.getfilesystemencoding()}, the encoding of this system: set PYTHONUTF8=1 or "
                f"LC_ALL=C.UTF-8, or use other letters ({argument})"
            ) from None


def _of_the_disk(error: OSError, mode: str) -> UserError:
    """The one line for a full disk, a folder that was deleted under the run, and the like."""
    assert error.errno is not None
    return UserError(
        f"cannot read or write {error.filename}: {error.strerror}; {_ADVICE[error.errno]}, and run the same command "
        "again" + (": it goes on from the newest checkpoint" if mode == "train" else "")
    )


def _parser() -> argparse.ArgumentParser:
    doc = (__doc__ or "").splitlines()
    parser = _Parser(
        prog="python main.py",
        usage="\n  ".join(["", *doc[2:]]),
        description=doc[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--mode", required=True, choices=_MODES, metavar="MODE", help="what to do; see below")
    parser.add_argument("--config", metavar="FILE", help="experiment, e.g. configs/digits_hold.py; default: the run's")
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run; default: runs/NAME of the config file")
    parser.add_argument(
        "--compilation_cache",
        default="auto",
        metavar="DIR",
        help="folder of compiled programs; auto: in the work directory on GPU and TPU; off: none",
    )
    several = parser.add_argument_group("several processes; not needed on Cloud TPU and under SLURM's srun")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    several.add_argument("--num_processes", type=int, metavar="N", help="how many processes there are")
    several.add_argument("--process_id", type=int, metavar="I", help="number of this process, from 0")
    return parser


def _epilog() -> str:
    """The modes and the flags that are used most, in columns."""
    from hold_jax.app.config import KEYS  # only here, because the import takes a while

    modes = [f"  {mode:<8}{text}" for mode, text in _MODES.items()]
    names = {key: KEYS[key].choices for key in _USED_MOST}
    listed = {key: f": {' | '.join(found)}" if 0 < len(found) < _FEW else "" for key, found in names.items()}
    flags_ = [f"  {f'--config.{key}=':<36}{KEYS[key].note}{listed[key]}" for key in _USED_MOST]
    return "\n".join(
        ["modes:", *modes, "", "the flags used most (every key is a flag; --mode=show prints all of them):", *flags_]
    )


@contextlib.contextmanager
def _ending_at_ctrl_c() -> Iterator[None]:
    """Ends the process at Ctrl-C without an exception, which a package that is imported turns into an `ImportError`."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # otherwise the signal is ignored, or this is another's process
        signal.signal(signal.SIGINT, lambda *_: _interrupted())
    try:
        yield
    finally:
        if usual is signal.default_int_handler:
            signal.signal(signal.SIGINT, usual)


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Ends the process at a Ctrl-C where Python cannot raise it, e.g. in JAX's callback of the garbage collector."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        _interrupted()
    # TensorStore's threads report to an event loop, which ends with the first array that cannot be read.
    if str(lost.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(lost)


def _interrupted() -> NoReturn:
    # Not sys.exit: where XLA still compiles in its own threads, the interpreter's end crashes (SIGSEGV).
    with contextlib.suppress(OSError):
        text = command_line.line("interrupted; the same command goes on from what is saved")
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    _with_huge_pages()
    main()
