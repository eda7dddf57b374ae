"""The cache of compiled programs on disk."""

import jax

from hold_jax.errors import require
from hold_jax.runtime import storage
from hold_jax.runtime.storage import Path


def cache_compilations(where: str, folder: Path) -> None:
    """Keeps compiled programs in a folder, so that a run that goes on does not wait for them again.

    It also makes a GPU's program the same one after a restart, whatever its autotuner would find now.

    Args:
      where: a folder; "off"; or "auto": `folder`/compilation_cache on accelerators, off on CPUs, whose programs may
        not run on another machine that shares the folder. A folder set by JAX_COMPILATION_CACHE_DIR wins over auto.
      folder: the work directory.

    Raises:
      UserError: if `where` is a file or no path.
    """
    chosen = jax.config.jax_compilation_cache_dir is not None  # pyright: ignore[reportAttributeAccessIssue]
    if where == "off":
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if where == "auto" and (chosen or jax.default_backend() == "cpu"):
        return
    path = folder / "compilation_cache" if where == "auto" else storage.path(where, "compilation_cache")
    require(not storage.is_file(path), "compilation_cache", where, "a folder, auto or off; it is a file")
    if not storage.is_local(path):
        # JAX would pass XLA's autotuner a folder inside this one; its C++ cannot open gs:// and compilation would fail.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(path))
