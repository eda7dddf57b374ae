"""Networks that map a preconditioned input and a noise level to an output of the shape of the data."""

from hold_jax.nn.mlp import MLP
from hold_jax.nn.ncsnpp import NCSNpp, check_sides

__all__ = [
    "MLP",
    "NCSNpp",
    "check_sides",
]


def __dir__() -> list[str]:
    return __all__
