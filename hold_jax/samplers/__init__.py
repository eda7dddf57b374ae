"""Samplers of the reverse process: `sample`, `encode`, `interpolate`, and the methods by name in `SAMPLERS`."""

from hold_jax.samplers.ancestral import Ancestral
from hold_jax.samplers.conjugate import Conjugate
from hold_jax.samplers.driver import UNFINISHED, Encoded, Samples, encode, interpolate, sample
from hold_jax.samplers.euler_maruyama import EulerMaruyama
from hold_jax.samplers.grids import GRIDS
from hold_jax.samplers.heun import Heun
from hold_jax.samplers.lie_trotter import LieTrotter
from hold_jax.samplers.loop import Sampler, Trajectory
from hold_jax.samplers.multistep import Multistep, ddim, dpmpp_2m, dpmpp_3m, gaussian_fitted, unipc
from hold_jax.samplers.poisson_midpoint import PoissonMidpoint
from hold_jax.samplers.predictor_corrector import PredictorCorrector
from hold_jax.samplers.probability_flow import ProbabilityFlow
from hold_jax.samplers.splitting import ReducedSplitting, Splitting, lie_trotter_split
from hold_jax.samplers.strang import Strang
from hold_jax.samplers.table import SAMPLERS

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "UNFINISHED",
    "Ancestral",
    "Conjugate",
    "Encoded",
    "EulerMaruyama",
    "Heun",
    "LieTrotter",
    "Multistep",
    "PoissonMidpoint",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReducedSplitting",
    "Sampler",
    "Samples",
    "Splitting",
    "Strang",
    "Trajectory",
    "ddim",
    "dpmpp_2m",
    "dpmpp_3m",
    "encode",
    "gaussian_fitted",
    "interpolate",
    "lie_trotter_split",
    "sample",
    "unipc",
]


def __dir__() -> list[str]:
    return __all__
