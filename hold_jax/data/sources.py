"""`load`, which returns the `Dataset` of a given name."""

from collections.abc import Callable

from hold_jax.data import digits, folder, npz, tfds_source, toy
from hold_jax.data.dataset import SPLITS, Dataset
from hold_jax.errors import UserError, require, require_choice
from hold_jax.runtime.storage import require_local

MEMORY_LIMIT_BYTES = 4 << 30

_IMAGE = {"image_size", "channels"}
_DISK = {"data_dir", "memory_limit_bytes"}
# Name, or prefix with its colon -> the loader and the options of `load` that it takes.
_SOURCES: dict[str, tuple[Callable[..., Dataset], set[str]]] = {
    "digits": (digits.load, _IMAGE),
    **{name: (toy.load, {"size", "seed"}) for name in toy.TOYS},
    "tfds:": (tfds_source.load, _IMAGE | _DISK),
    "folder:": (folder.load, _IMAGE | _DISK | {"bits"}),
    "npz:": (npz.load, _IMAGE | _DISK),
}
# These two options do not change the data, so a source without files may ignore them.
_IGNORABLE = _DISK


def load(
    name: str,
    *,
    split: str,
    image_size: int | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
    bits: int | None = None,
    size: int | None = None,
    seed: int | None = None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> Dataset:
    """Loads one split of a data set.

    Args:
      name: digits | swissroll | swissroll5 | gaussians8 | diamond9 | checkerboard | tfds:NAME | folder:PATH | npz:PATH.
      split: "train" or "test".
      image_size: the shorter side of pictures is scaled to this, and the central square cropped; None: no change.
      channels: 1 or 3; None: those of the source (folder: 3).
      data_dir: root of relative PATHs, and the folder of the data of TFDS.
      bits: folder only: number of bits that the gray values of 16-bit files use, 9 to 16; required for such files.
      size: toys only: the number of points (default 50,000 for train, 10,000 for test).
      seed: toys only: which draw (default 0); the splits of one seed are independent.
      memory_limit_bytes: larger sets of pictures stay on disk, and a picture is decoded each time it is used; a larger
        array in an npz is an error.

    Raises:
      UserError: for an unknown name, an option that the source does not have, or data that cannot be used.
    """
    require(isinstance(name, str) and bool(name), "name", name, "the name of a data set")
    prefix, colon, rest = name.partition(":")
    require_choice("name", prefix + colon, _SOURCES)
    require_choice("split", split, SPLITS)
    require(not colon or bool(rest), "name", name, f"{prefix}: followed by a name or path")
    for argument, value in (("image_size", image_size), ("size", size), ("memory_limit_bytes", memory_limit_bytes)):
        require(value is None or (_is_int(value) and value >= 1), argument, value, "a positive integer, or None")
    require(seed is None or (_is_int(seed) and 0 <= seed < 2**32), "seed", seed, "an integer in [0, 2^32), or None")
    require(bits is None or (_is_int(bits) and 9 <= bits <= 16), "bits", bits, "from 9 to 16, or None")
    require(channels in (None, 1, 3), "channels", channels, "1, 3 or None")
    if data_dir is not None:
        require_local(data_dir, "data_dir")

    loader, accepted = _SOURCES[prefix + colon]
    options = {
        "image_size": image_size,
        "channels": channels,
        "data_dir": data_dir,
        "bits": bits,
        "size": size,
        "seed": seed,
        "memory_limit_bytes": memory_limit_bytes,
    }
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() - accepted - _IGNORABLE:
        raise UserError(f"`{key}` is {given[key]!r}; the data set {name!r} has no such option: leave it None")
    return loader(name, split=split, **{key: given[key] for key in given.keys() & accepted})


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
