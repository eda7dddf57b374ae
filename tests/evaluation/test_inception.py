import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights.torch_bytes import RECORD, inception_state

from hold_jax.errors import UserError
from hold_jax.evaluation.feature_network import distance_of
from hold_jax.evaluation.inception import inception
from hold_jax.evaluation.inception_weights import from_state_dict, save_npz

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.npz"
    save_npz(from_state_dict(inception_state()), path)
    return inception(path)


def test_gray_pictures_are_seen_as_color_and_logits_have_no_bias(network):
    x = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3)).astype(np.uint8)[2:, ..., :1]
    values, logits = jax.jit(network.apply)(network.params, x)
    np.testing.assert_allclose(values[:, ::32], RECORD["features"][2:], rtol=1e-4, atol=1e-5)
    bias = network.params["fc"]["bias"]
    assert np.abs(bias).max() > 0.9
    np.testing.assert_allclose(logits[:, ::16] + bias[None, ::16], RECORD["logits"][2:], rtol=1e-4, atol=1e-4)


def test_color_pictures_need_no_repeating(network):
    values, logits = jax.eval_shape(network.apply, network.params, jnp.zeros((2, 64, 48, 3), jnp.uint8))
    assert (values.shape, values.dtype) == ((2, 2048), jnp.float32)
    assert (logits.shape, logits.dtype) == ((2, 1008), jnp.float32)


def test_names(network):
    assert (network.name, distance_of(network.name)) == ("inception", "fid")
    assert network.identity.startswith("fid_inception ")
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(network.params))


def test_errors_name_the_fix(network, tmp_path):
    with pytest.raises(
        UserError, match=r"`weights` is '.*none.pth'; there is no such file; get pt_inception.*pytorch-fid"
    ):
        inception(tmp_path / "none.pth")
    for shape in [(4, 2), (2, 8, 8, 2)]:
        with pytest.raises(UserError, match=r"`x.shape` is \(.*\(B, H, W, 1 or 3\)"):
            jax.eval_shape(network.apply, network.params, jnp.zeros(shape))
