"""Samplers of the reverse process. A new one is a new file and a line in `SAMPLERS`."""

from hold_jax.samplers.euler_maruyama import EulerMaruyama
from hold_jax.samplers.grids import GRIDS
from hold_jax.samplers.lie_trotter import LieTrotter
from hold_jax.samplers.sample import Sampler, Samples, sample
from hold_jax.samplers.strang import Strang

SAMPLERS = {"euler_maruyama": EulerMaruyama, "lie_trotter": LieTrotter, "strang": Strang}

__all__ = ["GRIDS", "SAMPLERS", "EulerMaruyama", "LieTrotter", "Sampler", "Samples", "Strang", "sample"]
