"""Networks of signals against those of pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.errors import UserError
from hold_jax.nn import NCSNpp
from hold_jax.nn.resample import downsample, upsample


@pytest.mark.parametrize("taps", [None, (1, 3, 3, 1), (1, 2, 1)])
@pytest.mark.parametrize("change", [upsample, downsample])
def test_resampling_of_an_outer_product_is_that_of_its_factors(change, taps):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 3)).astype(np.float32), rng.normal(size=(2, 6, 3)).astype(np.float32)
    whole = change(jnp.asarray(x[:, :, None] * y[:, None]), taps)
    parts = change(jnp.asarray(x), taps)[:, :, None] * change(jnp.asarray(y), taps)[:, None]
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def in_the_middle_row(leaf, like):
    """A kernel of signals as the kernel of pictures that does the same to every row."""
    if leaf.shape == like.shape:
        return leaf
    assert leaf.shape == like.shape[1:]
    return jnp.zeros(like.shape).at[like.shape[0] // 2].set(leaf)


# Without a filter: a filter takes the values outside of a picture as zero, so that rows would not stay equal.
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"progressive_input": "input_skip"},
        {
            "resblock_type": "ddpm",
            "progressive_input": "none",
            "progressive": "output_skip",
            "resample_with_conv": False,
        },
    ],
)
def test_a_signal_is_a_picture_of_equal_rows(options, random_params):
    network = NCSNpp(2, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), fir=False,
                     **options)  # fmt: skip
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 3)), jnp.float32)
    noise = jnp.array([-0.3, 0.4])
    params = random_params(network, x, noise)
    picture = jnp.broadcast_to(x[:, None], (2, 4, 8, 3))
    like = jax.eval_shape(network.init, jax.random.key(0), picture, noise)["params"]
    wide = jax.tree.map(in_the_middle_row, params, like)
    of_signal, of_picture = (jax.jit(network.apply)({"params": p}, a, noise) for p, a in ((params, x), (wide, picture)))
    assert of_signal.shape == (2, 8, 2) and float(jnp.std(of_signal)) > 0.1
    np.testing.assert_allclose(of_picture, jnp.broadcast_to(of_signal[:, None], of_picture.shape), atol=2e-5)


def test_a_length_that_cannot_be_halved_is_named():
    with pytest.raises(UserError, match=r"`length` is 10; it must be a multiple of 4 .* nearest: 8 or 12"):
        jax.eval_shape(
            NCSNpp(1, channel_multipliers=(1, 1, 1)).init, jax.random.key(0), jnp.zeros((1, 10, 1)), jnp.zeros(1)
        )
