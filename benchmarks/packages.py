"""Prints the packages that compile for TPUs and NVIDIA GPUs, of the versions that fit the installed jax.

    pip install --target DIR --no-deps $(python benchmarks/packages.py)
    PYTHONPATH=DIR python -m pytest tests/aot --all

`--target`, because the CUDA plugin beside jax would be loaded by every program, and `--no-deps`, because its
libraries of 2 GB are not needed to compile.
"""

import importlib.metadata
import re


def packages() -> list[str]:
    """Requirements as pip takes them."""
    version = importlib.metadata.version("jax")
    extras = [re.split(r";\s*", line) for line in importlib.metadata.requires("jax") or []]
    libtpu = [name for name, *condition in extras if name.startswith("libtpu") and "tpu" in "".join(condition)]
    cuda = [f"jax-cuda12-plugin=={version}", f"jax-cuda12-pjrt=={version}", "nvidia-cuda-nvcc-cu12>=12.6,<13"]
    return libtpu[:1] + cuda


if __name__ == "__main__":
    print(" ".join(packages()))
