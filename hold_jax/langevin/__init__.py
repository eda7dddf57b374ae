"""High-order Langevin Monte Carlo: samples from an unnormalized density, at any order (docs/langevin.md)."""

from hold_jax.langevin.adaptation import Adapted, adapt
from hold_jax.langevin.algorithm import METHODS, Algorithm, Info, State, langevin
from hold_jax.langevin.chains import Chains, sample
from hold_jax.langevin.dynamics import Dynamics
from hold_jax.langevin.score import smoothed_score

__all__ = [
    "METHODS",
    "Adapted",
    "Algorithm",
    "Chains",
    "Dynamics",
    "Info",
    "State",
    "adapt",
    "langevin",
    "sample",
    "smoothed_score",
]


def __dir__() -> list[str]:
    return __all__
