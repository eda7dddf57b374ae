"""Examples from one file that a user names: a picture, an .npy array, or the array `x` of an .npz archive."""

from pathlib import Path

import numpy as np

from hold_jax.data.images import UNREADABLE, read_picture
from hold_jax.errors import UserError, require
from hold_jax.runtime.npz import Npz, NpzError, read_npy
from hold_jax.runtime.storage import open_regular

_LIMIT_BYTES = 4 << 30


def read_input(path: str, argument: str, shape: tuple[int, ...], *, picture: bool) -> np.ndarray:
    """Reads examples.

    Args:
      path: of a picture, an .npy array (N, *shape), or an .npz archive with such an array, called `x` or the only one.
      argument: what errors call the path.
      shape: of one example. A picture file is scaled, so that it covers this, and cropped around its center.
      picture: whether the examples are uint8 pictures; else they are numbers of any kind.

    Returns:
      (N, *shape), uint8 pictures or float32.

    Raises:
      UserError: if the file cannot be read, or holds something else.
    """
    file = Path(path).expanduser()
    require(file.is_file(), argument, path, "a file that exists")
    suffix = file.suffix.lower()
    try:
        if suffix == ".npz":
            with open_regular(file) as opened:
                archive = Npz(opened, _LIMIT_BYTES)
                names = [name for name in archive.names if name == "x"] or list(archive.names)
                if len(names) != 1:
                    raise UserError(f"`{argument}` is {path!r}; it needs an array x; it holds {archive.describe()}")
                x = archive.read(names[0])
        elif suffix == ".npy":
            with open_regular(file) as opened:
                x = read_npy(opened, _LIMIT_BYTES)
        else:
            require(picture, argument, path, "an .npy or .npz file for data that are not pictures")
            x = read_picture(file, (shape[0], shape[1]), shape[-1])[None]
    except (NpzError, *UNREADABLE) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`{argument}` is {path!r}; it cannot be read: {error}") from None
    x = x[..., None] if len(shape) > 1 and x.shape[1:] == shape[:-1] and shape[-1] == 1 else x
    require(
        x.shape[1:] == shape and len(x) > 0,
        argument,
        path,
        f"an array (N, {', '.join(map(str, shape))}); it is {x.shape}",
    )
    if picture:
        require(x.dtype == np.uint8, argument, path, f"pictures of 8 bits, uint8; its values are {x.dtype}")
        return x
    require(x.dtype.kind in "fiu", argument, path, f"an array of numbers; its values are {x.dtype}")
    x = x.astype(np.float32)
    require(bool(np.isfinite(x).all()), argument, path, "an array of finite numbers")
    return x
