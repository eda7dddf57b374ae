"""`load`, which returns the `Dataset` of a given name."""

from collections.abc import Callable
from typing import Any

from hold_jax.data import digits, folder, measured, npz, tfds_source, toy, toy_signals
from hold_jax.data.dataset import KINDS, SPLITS, Dataset
from hold_jax.data.images import Size
from hold_jax.errors import UserError, of_an_extra, require, require_choice
from hold_jax.runtime.storage import require_local

MEMORY_LIMIT_BYTES = 4 << 30

_IMAGE = {"image_size", "channels"}
_DISK = {"data_dir", "memory_limit_bytes"}
# Name, or prefix with its colon -> the loader and the options of `load` that it takes.
_SOURCES: dict[str, tuple[Callable[..., Dataset], set[str]]] = {
    "digits": (digits.load, _IMAGE),
    **{name: (toy.load, {"size", "seed"}) for name in toy.TOYS},
    "damped_sines": (toy_signals.load, {"size", "seed"}),
    "tfds:": (tfds_source.load, _IMAGE | _DISK),
    "folder:": (folder.load, _IMAGE | _DISK | {"bits", "kind", "condition"}),
    "npz:": (npz.load, _IMAGE | _DISK | {"bits", "kind", "condition"}),
}
# These two options do not change the data, so a source without files may ignore them.
_IGNORABLE = _DISK


def load(
    name: str,
    *,
    split: str,
    kind: str | None = None,
    image_size: Size = None,
    channels: int | None = None,
    condition: str | None = None,
    data_dir: str | None = None,
    bits: int | None = None,
    size: int | None = None,
    seed: int | None = None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> Dataset:
    """Loads one split of a data set.

    Args:
      name: digits, a toy (swissroll, swissroll5, gaussians8, diamond9, checkerboard, damped_sines), tfds:NAME,
        folder:PATH or npz:PATH.
      split: "train" or "test".
      kind: one of `KINDS`. folder: "array" keeps the values of the files as floats; None: "picture". npz: what the
        array holds; None: by the rule of `npz.load`.
      image_size: pictures are scaled so that they cover a square of this side, or (height, width), and cropped around
        the center; None: no change.
      channels: 1 or 3; None: those of the source (folder: 3).
      condition: of the examples: a measurement of each, in a form of `measured.FORMS`, such as inpaint:upper; npz:
        names of arrays, comma-separated; folder: a second PATH with a picture of the same name for each picture.
      data_dir: root of relative PATHs, and the folder of the data of TFDS.
      bits: folder and npz only: number of bits that the values of 16-bit pictures use, 9 to 16; required for those.
      size: toys only: the number of examples (default 50,000 for train, 10,000 for test; of signals 20,000 and 2,000).
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
    for argument, value in (("size", size), ("memory_limit_bytes", memory_limit_bytes)):
        require(value is None or (_is_int(value) and value >= 1), argument, value, "a positive integer, or None")
    if image_size is not None:
        both = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size, image_size)
        fits = len(both) == 2 and all(_is_int(side) and side >= 1 for side in both)
        require(fits, "image_size", image_size, "a positive integer, two for height and width, or None")
    if kind is not None:
        require_choice("kind", kind, KINDS)
    require(seed is None or (_is_int(seed) and 0 <= seed < 2**32), "seed", seed, "an integer in [0, 2^32), or None")
    require(bits is None or (_is_int(bits) and 9 <= bits <= 16), "bits", bits, "from 9 to 16, or None")
    require(channels in (None, 1, 3), "channels", channels, "1, 3 or None")
    if data_dir is not None:
        require_local(data_dir, "data_dir")

    loader, accepted = _SOURCES[prefix + colon]
    measurements, named = measured.split(condition)
    if named is not None and "condition" not in accepted:
        raise UserError(
            f"`condition` is {condition!r}; for {name!r} it must be None or a measurement, {measured.FORMS}; "
            "other conditions are arrays in an .npz (npz:PATH) or a second folder (folder:PATH)"
        )
    options = {
        "kind": kind,
        "image_size": image_size if image_size is None or isinstance(image_size, int) else tuple(image_size),
        "channels": channels,
        "condition": named,
        "data_dir": data_dir,
        "bits": bits,
        "size": size,
        "seed": seed,
        "memory_limit_bytes": memory_limit_bytes,
    }
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() - accepted - _IGNORABLE:
        raise UserError(f"`{key}` is {given[key]!r}; the data set {name!r} has no such option: leave it None")
    try:
        found = loader(name, split=split, **{key: given[key] for key in given.keys() & accepted})
    except ModuleNotFoundError as error:
        raise of_an_extra(error) from None
    return measured.add(found, measurements) if measurements else found


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
