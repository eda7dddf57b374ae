"""Frechet distance, kernel distance, precision and recall between two sets of pictures, in features of a network.

    python -m hold_jax.fid SAMPLES DATA [--inception=FILE] [--cache=FOLDER] [--crop=PIXELS] [--features=inception]

Each set is a folder of pictures; an .npz of statistics (pytorch-fid's, score_sde's or our own) or of samples (uint8,
N x H x W x C); or a data source by name with its split, such as digits:test or tfds:cifar10:train.

Pictures are read as by pytorch-fid, each stretched to the network's size, unless --crop gives a size. Precision is the
part of SAMPLES near DATA, recall the part of DATA near SAMPLES.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from hold_jax import command_line, data
from hold_jax.data.dataset import SPLITS, Dataset, array_dataset, default_kind
from hold_jax.data.images import fit_arrays
from hold_jax.data.sources import MEMORY_LIMIT_BYTES
from hold_jax.errors import UserError, require
from hold_jax.evaluation import dinov2 as dinov2_features
from hold_jax.evaluation import figures, reference
from hold_jax.evaluation import inception as inception_features
from hold_jax.evaluation.dinov2 import dinov2
from hold_jax.evaluation.feature_network import FeatureNetwork, Features, distance_of
from hold_jax.evaluation.features import PER_DEVICE, features_of
from hold_jax.evaluation.inception import inception
from hold_jax.evaluation.inception_weights import published
from hold_jax.evaluation.own_function import function_of, is_own, own_function
from hold_jax.evaluation.picture_files import digest, pictures
from hold_jax.evaluation.pixels import pixels
from hold_jax.evaluation.reference import About, Reference
from hold_jax.evaluation.resize import Stretch
from hold_jax.metrics.frechet import frechet_distance, moments
from hold_jax.runtime import schema
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.npz import Npz, NpzError
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.storage import open_regular

_STRETCHES = {"inception": inception_features.STRETCH, "dinov2": dinov2_features.STRETCH}
_SAMPLES = ("x", "images", "samples", "arr_0")

# (shape of an example, its dtype) -> the network that compares such data.
_NetworkFor = Callable[[tuple[int, ...], np.dtype], FeatureNetwork]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures; a user's mistake is one line, exit code 2."""
    lines = (__doc__ or "").split("\n\n")
    parser = command_line.Parser(
        prog="python -m hold_jax.fid", description=lines[0], epilog=" ".join(lines[2:]), allow_abbrev=False
    )
    parser.add_argument("samples", metavar="SAMPLES", help="folder, .npz or data source")
    parser.add_argument("data", metavar="DATA", help="what they are compared with")
    parser.add_argument(
        "--features",
        default="inception",
        metavar="NAME",
        help="what is compared: inception (the default), dinov2, pixels, or a function of your own, module:function",
    )
    parser.add_argument(
        "--inception",
        metavar="FILE",
        help="weights: pytorch-fid's .pth, an .npz of it, or TorchScript; without it the .pth is fetched on first use",
    )
    parser.add_argument("--dinov2", metavar="FILE", help="weights of --features=dinov2: .pth or .safetensors")
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="scale and center crop, instead of stretching")
    parser.add_argument("--cache", metavar="FOLDER", help="keep features here, by the pictures and the weights")
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="what computes them (JAX's choice)")
    parser.add_argument(
        "--batch_size", type=int, default=PER_DEVICE, help=f"pictures at once on a device ({PER_DEVICE})"
    )
    with command_line.exits():
        args = parser.parse_args(arguments)
        require(args.batch_size >= 1, "batch_size", args.batch_size, "1 or more")
        require(args.crop is None or args.crop >= 1, "crop", args.crop, "1 or more")
        if args.device is not None:
            # The processor stays beside it, for functions of your own that call the host.
            jax.config.update("jax_platforms", {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}.get(args.device, args.device))
            try:
                jax.devices()
            except (AssertionError, RuntimeError):  # JAX raises either, by what is installed
                raise UserError(f"`device` is {args.device!r}; JAX finds none here: leave it out") from None
        print(figures.table(_figures(args)))


def _figures(args: argparse.Namespace) -> dict[str, float]:
    network_for = _networks(args)
    stretch = _STRETCHES.get(args.features)
    sides = [_open(getattr(args, name), name, args.crop, stretch) for name in ("samples", "data")]
    # Pictures of several sizes are floats in [0, 255], but these are stretched, for other networks.
    kinds = {side.is_image for side in sides if isinstance(side, Dataset)}
    alike = args.features != "pixels" or len(kinds) < 2
    require(alike, "samples", args.samples, "pictures of 8 bits if `data` are, and floats if they are floats")
    if not is_own(args.features) and not any(isinstance(side, Dataset) for side in sides):
        network_for = None  # no weights are needed
    for side in sides:
        if network_for is not None and isinstance(side, Reference) and side.about is not None:
            shape = side.about.shape
            network = network_for(shape, np.dtype(np.uint8 if default_kind(shape) == "picture" else np.float32))
            _require_same_features(side.about, network.name, network.identity)
    shapes = [side.shape for side in sides if isinstance(side, Dataset)]
    for shape in shapes[1:] if args.features == "pixels" else ():
        require(shapes[0] == shape, "samples", f"{args.samples}, of shape {shapes[0]}", f"of shape {shape}, as `data`")
    a, b = (_reference(side, network_for, args) for side in sides)
    width = b.moments.mean.size
    require(a.moments.mean.size == width, "samples", args.samples, f"of {width} features, as `data` is")
    if network_for is None and a.about is not None and b.about is not None:
        _require_same_features(b.about, a.about.network, a.about.identity)
    name = next((side.about.network for side in (a, b) if side.about is not None), function_of(args.features))
    if a.features is not None:
        return figures.compute(name, Features(a.features, None), b)
    if b.features is not None:  # the distance, which has no direction, and its error
        return figures.compute(name, Features(b.features, None), Reference(a.moments, None, None))
    return {distance_of(name): frechet_distance(a.moments, b.moments)}


def _networks(args: argparse.Namespace) -> _NetworkFor:
    """Returns what makes the network of --features; only one of the user's own depends on the data."""
    if is_own(args.features):
        return functools.cache(functools.partial(own_function, args.features, argument="features"))
    known: dict[str, Callable[[], FeatureNetwork]] = {
        "inception": lambda: inception(args.inception or published("--inception"), "inception"),
        "dinov2": lambda: dinov2(args.dinov2, "dinov2"),
        "pixels": pixels,
    }
    require(args.features in known, "features", args.features, f"{', '.join(known)}, or module:function of your own")
    make = functools.cache(known[args.features])
    return lambda shape, dtype: make()


def _open(text: str, argument: str, crop: int | None, stretch: Stretch | None) -> Dataset | Reference:
    """What a user named, with a line that says how it is read."""
    name, _, split = text.rpartition(":")
    if name and split in SPLITS:
        found, how = (
            data.load(name, split=split, image_size=crop),
            "" if crop is None else f", cropped to {crop} pixels",
        )
        usable = stretch is None or found.is_image
        require(usable, argument, text, "pictures of 8 bits for this network; these are floats (try --features=pixels)")
        _say(f"{argument}: {text}, {len(found):,} examples of shape {found.shape}{how}")
        return found
    allowed = "a folder, an .npz file, or a data source with its split such as digits:test"
    require(bool(text) and schema.is_path(text), argument, text, allowed)
    path = Path(text).expanduser()
    if path.is_dir():
        found, how = pictures(path, crop, stretch)
        _say(f"{argument}: {text}, {len(found):,} pictures, {how}")
        return found
    require(path.is_file() and path.suffix == ".npz", argument, text, allowed)
    x = _samples(path, argument)
    if x is None:
        return reference.load(path, argument)
    _say(f"{argument}: {text}, {len(x):,} pictures of shape {x.shape[1:]}")
    return array_dataset(text, "test", fit_arrays(x, crop, None), None, 0)


def _samples(path: Path, argument: str) -> np.ndarray | None:
    """The pictures of an archive; None if it has statistics."""
    try:
        with open_regular(path) as file:
            archive = Npz(file, MEMORY_LIMIT_BYTES)
            name = next((name for name in _SAMPLES if name in archive), None)
            if name is None or "mu" in archive or "pool_3" in archive:
                return None
            x = archive.read(name)
    except (OSError, NpzError) as error:
        raise UserError(f"`{argument}` is {str(path)!r}; it cannot be read: {error}") from None
    good = x.ndim == 4 and x.dtype == np.uint8 and x.shape[-1] in (1, 3) and len(x) >= 2
    require(good, argument, f"{path}, {name} {x.dtype}{list(x.shape)}", "uint8 pictures [N, H, W, 1 or 3], N >= 2")
    return x


def _require_same_features(about: About, network: str, identity: str) -> None:
    """Checks the record of statistics against a network, which is one of their shape if it is the user's own."""
    if (about.network, about.identity) != (network, identity):
        raise UserError(
            f"the statistics of {about.data} are of features of {about.network} ({about.identity}), not of {network} "
            f"({identity}): give --features and the weights that they were made with"
        )


def _reference(side: Dataset | Reference, network_for: _NetworkFor | None, args: argparse.Namespace) -> Reference:
    """Features and moments, from the cache if the same pictures and weights were there before."""
    if isinstance(side, Reference):
        return side
    assert network_for is not None
    network = network_for(side.shape, side.dtype)
    path = None
    if args.cache is not None:
        require(schema.is_path(args.cache), "cache", args.cache, "a folder")
        key = f"{network.name}_{network.identity.split()[-1]}_{digest(side)}"
        path = Path(args.cache).expanduser() / f"{key}.npz"
        try:  # not after the features, which take long
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"`cache` is {args.cache!r}; it cannot be made: {error.strerror}") from None
        if path.is_file():
            try:
                found = reference.load(path, "cache")
                _say(f"features of {side.name}: {path}")
                return found
            except UserError as error:
                _say(f"{error}: computed again")
    with Progress(len(side), 0, 1, True, unit="picture") as progress:
        out = features_of(network, side, Devices.all(), per_device=args.batch_size, tick=progress.update)
    values = np.asarray(out.values)
    warning = figures.too_few(*values.shape)
    if warning is not None:
        _say(warning)
    found = Reference(moments(values), values, reference.about(network, side))
    if path is not None:
        try:
            found.save(path)
        except OSError as error:
            _say(f"the features are not kept: {path} cannot be written: {error.strerror}")
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
