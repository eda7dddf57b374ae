"""Diffusion generative models driven by high-order Langevin dynamics (HOLD), in JAX.

    import hold_jax

    model = hold_jax.load("runs/digits")             # a trained or converted model: sample, denoise, bits_per_dim, ...
    process = hold_jax.sde.hold(3)                   # the parts, for a model of your own

The modules, in the order of the papers; importing `hold_jax` imports none of them:

- `sde`: the linear SDEs, VP, VE, CLD, PSLD and HOLD of any order.
- `kernels`: their exact transition kernels, and the denoiser, noise and score that a network's output implies.
- `parameterization`: what a network sees and what its output means, as `eps_fn(u, t)`.
- `losses`: score matching (BCSM and DSM), laws of time, weightings.
- `samplers`: `sample`, `encode`, `interpolate`, and all sampling methods by name.
- `guidance`: inpainting, colorization, classifier and classifier-free guidance.
- `operators`, `inverse`: linear measurements of data, and samples of the data given one.
- `likelihood`: bits per dimension.
- `langevin`: Langevin Monte Carlo of any order for unnormalized densities.
- `model`: an SDE, a Flax network and a parameterization as one trainable model.
- `nn`, `data`, `metrics`: networks, data sets, distances between sets of samples.
- `errors`: `UserError`, raised for every mistake in an argument.

Below them is `numerics`; above them are `training`, `evaluation`, `loops`, `runtime`, `weights`, `convert` and `app`,
the parts of the command line (`main.py`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from hold_jax.version import VERSION

if TYPE_CHECKING:
    from hold_jax import (
        data,
        errors,
        guidance,
        inverse,
        kernels,
        langevin,
        likelihood,
        losses,
        metrics,
        model,
        nn,
        operators,
        parameterization,
        samplers,
        sde,
    )
    from hold_jax.pretrained import load

__version__ = VERSION

__all__ = [
    "__version__",
    "data",
    "errors",
    "guidance",
    "inverse",
    "kernels",
    "langevin",
    "likelihood",
    "load",
    "losses",
    "metrics",
    "model",
    "nn",
    "operators",
    "parameterization",
    "samplers",
    "sde",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("hold_jax.pretrained").load
    if name in __all__:
        return importlib.import_module(f"hold_jax.{name}")
    raise AttributeError(f"module 'hold_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
