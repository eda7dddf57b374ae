"""The features of FD-DINOv2 (arXiv:2306.04675): the class token of the vision transformer DINOv2 (arXiv:2304.07193).

As in the first paper's code, dgm-eval: pictures stretched to 224 x 224 by Pillow's bicubic rule, values normalized as
for ImageNet, the network ViT-L/14 without registers. All products are full float32.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hold_jax.errors import require
from hold_jax.evaluation.dinov2_weights import GRID, PATCH, load
from hold_jax.evaluation.feature_network import FeatureNetwork, Features, digest_of
from hold_jax.evaluation.resize import Stretch, bicubic

SIZE = GRID * PATCH
# Pictures of many sizes, as they are read; the network itself stretches those of one size.
STRETCH = Stretch(SIZE, "bicubic", lambda x: bicubic(x, SIZE))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HEAD = 64  # features of each attention head, for every width
_EPS = 1e-6  # of layer normalization
_PRECISION = lax.Precision.HIGHEST


def dinov2(weights: str | Path | None, argument: str = "weights") -> FeatureNetwork:
    """Returns the network from uint8 pictures (B, H, W, 1 or 3) to features (B, width), 1024 for ViT-L.

    Gray pictures are seen as color ones of three equal channels.

    Args:
      weights: a file that `dinov2_weights.load` reads; None is an error.
      argument: what errors call it.

    Raises:
      UserError: if the file is missing, damaged, or of another network.
    """
    params = load(weights, argument)
    return FeatureNetwork("dinov2", f"dinov2 {digest_of(params)}", jax.tree.map(jnp.asarray, params), _apply)


def _apply(params: Any, x: jax.Array) -> Features:
    right = x.ndim == 4 and x.shape[-1] in (1, 3) and x.dtype == jnp.uint8
    require(right, "x", f"{x.dtype}{list(x.shape)}", "uint8 [B, H, W, 1 or 3]: DINOv2 sees pictures")
    mean, std = (jnp.array(values, jnp.float32).reshape(1, 1, 1, 3) for values in (_MEAN, _STD))
    x = jnp.broadcast_to(bicubic(x, SIZE), (len(x), SIZE, SIZE, 3))
    return Features(class_token(params, (x.astype(jnp.float32) / 255 - mean) / std), None)


def class_token(params: Any, x: jax.Array) -> jax.Array:
    """Maps normalized pictures (B, 224, 224, 3) float32 to the class token (B, width) after the last normalization.

    Args:
      params: of `dinov2_weights.load`.
      x: the pictures.
    """
    patches = x.reshape(len(x), GRID, PATCH, GRID, PATCH, 3)
    kernel, bias = params["patch_embed"]["proj"]["weight"], params["patch_embed"]["proj"]["bias"]
    h = jnp.einsum("byixjc,wcij->byxw", patches, kernel, precision=_PRECISION).reshape(len(x), GRID**2, -1)
    start = jnp.broadcast_to(params["cls_token"], (len(x), *params["cls_token"].shape[1:]))
    h = jnp.concatenate([start, h + bias[None, None]], axis=1) + params["pos_embed"]
    h, _ = lax.scan(_block, h, params["blocks"])
    return _normalized(params["norm"], h[:, :1])[:, 0]


def _block(h: jax.Array, params: Any) -> tuple[jax.Array, None]:
    """A block on tokens (B, T, width): attention and perceptron, each scaled and added."""
    h = h + params["ls1"]["gamma"][None, None] * _attention(params["attn"], _normalized(params["norm1"], h))
    x, mlp = _normalized(params["norm2"], h), params["mlp"]
    if "w12" in mlp:  # ViT-g
        gate, x = jnp.split(_dense(mlp["w12"], x), 2, axis=-1)
        x = _dense(mlp["w3"], jax.nn.silu(gate) * x)
    else:
        x = _dense(mlp["fc2"], jax.nn.gelu(_dense(mlp["fc1"], x), approximate=False))
    return h + params["ls2"]["gamma"][None, None] * x, None


def _attention(params: Any, x: jax.Array) -> jax.Array:
    shape = (*x.shape[:2], 3, x.shape[-1] // _HEAD, _HEAD)
    query, key, value = jnp.moveaxis(_dense(params["qkv"], x).reshape(shape), 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query * _HEAD**-0.5, key, precision=_PRECISION)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), value, precision=_PRECISION)
    return _dense(params["proj"], mixed.reshape(x.shape))


def _dense(params: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("bti,oi->bto", x, params["weight"], precision=_PRECISION) + params["bias"][None, None]


def _normalized(params: Any, x: jax.Array) -> jax.Array:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + _EPS)
    return x * params["weight"][None, None] + params["bias"][None, None]
