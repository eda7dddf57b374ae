"""Paths given after a prefix: `folder:PATH`, `npz:PATH`."""

from pathlib import Path

from hold_jax.errors import UserError


def local_path(name: str, data_dir: str | None) -> Path:
    """Returns the path of `prefix:PATH`; a relative one starts at `data_dir`, or where the program runs."""
    text = name.partition(":")[2]
    if "://" in text:
        raise UserError(f"`name` is {name!r}; only local paths can be read: copy the data to a local disk first")
    return Path(data_dir or ".").expanduser() / Path(text).expanduser()
