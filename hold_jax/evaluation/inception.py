"""The features of the Frechet Inception distance."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.errors import require
from hold_jax.evaluation.feature_network import FeatureNetwork, Features
from hold_jax.evaluation.inception_network import SIZE, Inception
from hold_jax.evaluation.inception_weights import load
from hold_jax.evaluation.resize import Stretch, bilinear

# Pictures of many sizes, as they are read; the network itself stretches those of one size.
STRETCH = Stretch(SIZE, "bilinear", lambda x: bilinear(x.astype(np.float32), SIZE))


def inception(weights: str | Path, argument: str = "weights") -> FeatureNetwork:
    """pool3 features (B, 2048) and logits without bias (B, 1008) of pictures (B, H, W, 1 or 3), uint8 or in [0, 255].

    Weights without the last layer give no logits, and so no inception score. Gray pictures are seen as color ones of
    three equal channels.

    Args:
      weights: pytorch-fid's file pt_inception-2015-12-05-6726825d.pth, what `python -m hold_jax.convert` made of it, or
        a TorchScript archive of the network.
      argument: what errors call it.
    """
    params, identity = load(weights, argument)
    return FeatureNetwork("inception", identity, jax.tree.map(jnp.asarray, params), _apply)


def _apply(params: Any, x: jax.Array) -> Features:
    require(x.ndim == 4 and x.shape[-1] in (1, 3), "x.shape", x.shape, "(B, H, W, 1 or 3): Inception sees pictures")
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
    features: Any = Inception(logits="fc" in params).apply({"params": params}, x)
    return Features(*features)
