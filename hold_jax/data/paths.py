"""Paths in names of data sets: `folder:PATH`, `npz:PATH`."""

from pathlib import Path

from hold_jax.errors import UserError


def local_path(name: str, data_dir: str | None) -> Path:
    """Returns the path of `prefix:PATH`; a relative one starts at `data_dir`, or else at the working directory.

    Raises:
      UserError: for a URL, or a path that cannot be used.
    """
    text = name.partition(":")[2]
    if "://" in text:
        raise UserError(f"`name` is {name!r}; only local paths can be read: copy the data to a local disk first")
    try:
        path = Path(data_dir or ".").expanduser() / Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, a NUL, a folder that may not be read
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"`name` is {name[:200]!r}; the path cannot be used: {reason}") from None
    return path
