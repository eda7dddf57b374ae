"""Converts others' weights to ours, and ours to others'.

A trained network to a work directory that main.py samples from and evaluates, or a work directory to a file or folder:

    python -m hold_jax.convert --from=cld_sgm --input=PATH.pth --output=WORKDIR [--config=configs/X.py --config.a.b=...]
    python -m hold_jax.convert --from=diffusers --input=FOLDER --output=WORKDIR
    python -m hold_jax.convert --to=score_sde_pytorch --input=WORKDIR --output=PATH.pth
    python -m hold_jax.convert --to=diffusers --input=WORKDIR --output=FOLDER
    python -m hold_jax.convert --to=hold_jax --input=WORKDIR --output=PATH.safetensors

The FID's Inception network:

    python -m hold_jax.convert --from=pytorch_fid --input=PATH.pth --output=PATH.npz
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging

from hold_jax import command_line
from hold_jax.app.config import KEYS
from hold_jax.convert.runs import SOURCES, TARGETS, export_run, import_run, settings
from hold_jax.errors import UserError, require, require_choice
from hold_jax.evaluation import inception_weights
from hold_jax.runtime import storage

# (input, output) -> what was done, in words.
FROM: dict[str, Callable[[Path, Path], str]] = {
    "pytorch_fid": inception_weights.convert,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts one file. A user's mistake is one line and exit code 2; then the output stays as it was."""
    logging.set_verbosity(logging.ERROR)  # Orbax logs every write
    parser = command_line.Parser(
        prog="python -m hold_jax.convert", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    known = sorted({**FROM, **SOURCES})
    parser.add_argument("--from", dest="source", help=f"project that made the input: {', '.join(known)}")
    parser.add_argument("--to", dest="target", help=f"project that the output is for: {', '.join(TARGETS)}")
    parser.add_argument("--input", required=True, help="its file or folder; with --to, a work directory")
    parser.add_argument("--output", required=True, help="work directory, file or folder to write")
    parser.add_argument(
        "--ema_length",
        metavar="LENGTH",
        help="with --to: sigma_rel of the average of the parameters, from 0.01 to 0.28, of a run with "
        "training.ema_snapshot_every; without it the run's own average",
    )
    with command_line.exits():
        args, rest = parser.parse_known_args(arguments)
        print(f"{args.output}: {_convert(args, rest)}")


def _convert(args: argparse.Namespace, rest: list[str]) -> str:
    if (args.source is None) == (args.target is None):
        raise UserError("give either --from=NAME, to read a checkpoint of others, or --to=NAME, to write one")
    if args.target is not None:
        require_choice("to", args.target, TARGETS)
    else:
        require_choice("from", args.source, {**FROM, **SOURCES})
        require(args.ema_length is None, "ema_length", args.ema_length, "left out with --from; it is for --to")
    for text in rest:
        if args.source not in SOURCES or not text.startswith(("--config=", "--config.")):
            raise UserError(f"unrecognized arguments: {text}")
    if args.target is not None:
        key, length = KEYS["sampling.ema_length"], args.ema_length
        length = None if length is None else key.check("ema_length", key.parse("ema_length", length))
        target = TARGETS[args.target]
        return export_run(target, _workdir(args.input, "input"), _file(args.output, "output"), length)
    path = _file(args.input, "input")
    if args.source in FROM:
        return FROM[args.source](path, _file(args.output, "output"))
    source = SOURCES[args.source]
    return import_run(source, path, _workdir(args.output, "output"), settings(source, path, rest))


def _file(text: str, argument: str) -> Path:
    storage.require_local(text, argument)
    storage.path(text, argument)  # an error where there can be no such path
    return Path(text).expanduser()


def _workdir(text: str, argument: str) -> storage.Path:
    """A path as it was given, or one in a bucket: pathlib alone would make gs:/x of gs://x."""
    found = storage.path(text, argument)
    return Path(text) if storage.is_local(found) else found


if __name__ == "__main__":
    main()
