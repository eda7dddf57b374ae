"""Networks that map a preconditioned input and a noise level to an output of the data's shape."""

from hold_jax.nn.mlp import MLP as MLP
from hold_jax.nn.ncsnpp import NCSNpp as NCSNpp
from hold_jax.nn.ncsnpp import check_image_shape as check_image_shape
