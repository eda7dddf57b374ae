"""A state dict in a file, whichever of the two formats it has."""

from pathlib import Path
from typing import Any

from hold_jax.weights import safetensors, torch_file

ENDING = ".safetensors"


def read(path: Path, argument: str = "input") -> Any:
    """What the file holds: of a name that ends in .safetensors a dict of arrays, of another what `torch.save` saved.

    Raises:
      UserError: if it is neither.
    """
    return safetensors.read(path, argument) if path.suffix == ENDING else torch_file.read(path, argument)
