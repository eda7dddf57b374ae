"""Samplers of the reverse process. A new one is a new file and a line in `SAMPLERS`."""

from hold_jax.samplers.ancestral import Ancestral
from hold_jax.samplers.conjugate import Conjugate
from hold_jax.samplers.driver import UNFINISHED, Encoded, Sampler, Samples, encode, interpolate, sample
from hold_jax.samplers.euler_maruyama import EulerMaruyama
from hold_jax.samplers.grids import GRIDS
from hold_jax.samplers.heun import Heun
from hold_jax.samplers.lie_trotter import LieTrotter
from hold_jax.samplers.multistep import Multistep, ddim, dpmpp_2m, dpmpp_3m, gaussian_fitted, unipc
from hold_jax.samplers.poisson_midpoint import PoissonMidpoint
from hold_jax.samplers.predictor_corrector import PredictorCorrector
from hold_jax.samplers.probability_flow import ProbabilityFlow
from hold_jax.samplers.splitting import ReducedSplitting, Splitting, lie_trotter_split
from hold_jax.samplers.strang import Strang

SAMPLERS = {
    "ancestral": Ancestral,
    "conjugate": Conjugate,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "euler_maruyama": EulerMaruyama,
    "gaussian_fitted": gaussian_fitted,
    "heun": Heun,
    "lie_trotter": LieTrotter,
    "lie_trotter_split": lie_trotter_split,
    "poisson_midpoint": PoissonMidpoint,
    "predictor_corrector": PredictorCorrector,
    "probability_flow": ProbabilityFlow,
    "reduced_splitting": ReducedSplitting,
    "splitting": Splitting,
    "strang": Strang,
    "unipc": unipc,
}

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
