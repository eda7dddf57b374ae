"""A fully connected score network for vectors, such as the toy data of CLD and TOLD++ (arXiv:2409.07697)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hold_jax.condition import Condition
from hold_jax.errors import require, require_choice
from hold_jax.nn.embeddings import EMBEDDINGS, ConditionEmbedding, EmbeddingKind
from hold_jax.nn.layers import dense

# 1 / E[SiLU(z)^2] for z ~ N(0, 1): keeps the variance from layer to layer. With 1 instead, the signal vanishes over
# seven layers, and training stalls before it has learned all coordinates of the data.
_SILU_SCALE = 2.81


class MLP(nn.Module):
    """Dense layers with SiLU between them; the embedded noise level and condition are added to the first.

    h_1 = SiLU(W_1 x + b_1 + embedding), h_{k+1} = SiLU(W_{k+1} h_k + b_{k+1}), output = W h + b. The first and last
    layers always compute in float32, as in `NCSNpp`.

    Attributes:
      out_channels: length of the output.
      hidden_layers: number of hidden layers, at least 1.
      width: units of each hidden layer.
      embedding: of the noise level: 'fourier' (random frequencies, for log sigma) or 'positional' (for 999 t).
      fourier_scale: standard deviation of the random frequencies, in cycles per unit of `noise_cond`.
      init_scale: variance scale of the output layer; 0 stands for 1e-10: the network starts at zero.
      conditional: whether the network sees the noise level; if False `noise_cond` is ignored.
      num_classes: number of classes; label `num_classes` is the null class of classifier-free guidance; 0: no labels.
      dtype: compute type, jnp.float32, jnp.bfloat16 or, not for training, jnp.float16; parameters are float32.
    """

    out_channels: int
    hidden_layers: int = 7
    width: int = 128
    embedding: EmbeddingKind = "fourier"
    fourier_scale: float = 1.0
    init_scale: float = 0.0
    conditional: bool = True
    num_classes: int = 0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Raises `UserError` for an option out of range."""
        require_choice("embedding", self.embedding, EMBEDDINGS)
        require(self.hidden_layers >= 1, "hidden_layers", self.hidden_layers, "1 or more")
        require(self.num_classes >= 0, "num_classes", self.num_classes, "0 or more")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, noise_cond: jax.Array, condition: Condition | None = None, train: bool = False
    ) -> jax.Array:
        """Maps a vector and its noise level to a vector of length `out_channels`.

        Args:
          x: (B, d) float32.
          noise_cond: (B,) float32, the conditioning scalar as embedded.
          condition: in the network's range, `label` (B,) int32, 0 to `num_classes`, and `vector` (B, k) float32 as in
            `ConditionEmbedding`, without a picture; None: no condition.
          train: ignored, since there is no dropout; all networks have this argument.

        Returns:
          (B, out_channels) float32.
        """
        del train
        picture = None if condition is None else condition.picture
        require(picture is None, "condition.picture", getattr(picture, "shape", None), "None for a network of vectors")
        require(x.ndim == 2, "x", x.shape, "an array of shape (batch, features)")
        require(noise_cond.shape == x.shape[:1], "noise_cond", noise_cond.shape, f"an array of shape {x.shape[:1]}")
        embedding = ConditionEmbedding(
            self.width,
            self.width,
            self.embedding,
            self.fourier_scale,
            self.conditional,
            self.num_classes,
            name="embedding",
        )(noise_cond, condition)

        h = dense(self.width, name="hidden0", dtype=jnp.float32, init_scale=_SILU_SCALE)(x)
        h = nn.silu(h if embedding is None else h + embedding)
        for i in range(1, self.hidden_layers):
            h = nn.silu(dense(self.width, name=f"hidden{i}", init_scale=_SILU_SCALE, dtype=self.dtype)(h))
        return dense(self.out_channels, name="out", dtype=jnp.float32, init_scale=self.init_scale)(h)
