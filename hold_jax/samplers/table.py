"""The samplers by name. A new one is a new file and a line here."""

from typing import Any

from hold_jax.errors import require, require_choice
from hold_jax.samplers.ancestral import Ancestral
from hold_jax.samplers.conjugate import Conjugate
from hold_jax.samplers.euler_maruyama import EulerMaruyama
from hold_jax.samplers.heun import Heun
from hold_jax.samplers.lie_trotter import LieTrotter
from hold_jax.samplers.loop import Sampler
from hold_jax.samplers.multistep import ddim, dpmpp_2m, dpmpp_3m, gaussian_fitted, unipc
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


def sampler_of(sampler: str | Sampler) -> Sampler:
    """A sampler given by name, with its default options, or as an instance.

    Raises:
      UserError: for an unknown name, and for anything else that is not a sampler.
    """
    if isinstance(sampler, str):
        require_choice("sampler", sampler, SAMPLERS)
        return SAMPLERS[sampler]()
    name: Any = getattr(sampler, "__name__", "unipc")
    is_instance = not isinstance(sampler, type) and hasattr(sampler, "integrate")
    require(is_instance, "sampler", sampler, f"a name of `samplers.SAMPLERS` or a sampler, such as `{name}()`")
    return sampler
