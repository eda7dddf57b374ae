import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from weights.torch_bytes import RECORD, inception_state

from hold_jax.errors import UserError
from hold_jax.evaluation.inception_network import Inception, _Conv, _convolve
from hold_jax.evaluation.inception_weights import from_state_dict
from hold_jax.evaluation.resize import bilinear


def pictures():
    x = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    x[2] = x[2, ..., :1]
    return x


@pytest.fixture(scope="module")
def outputs():
    params = from_state_dict(inception_state())
    features, logits = jax.jit(Inception().apply)({"params": params}, pictures())
    return features, logits + params["fc"]["bias"][None]


@pytest.mark.slow
def test_features_and_logits_are_those_recorded_from_pytorch_fid(outputs):
    features, logits = outputs
    assert features.shape == (3, 2048) and logits.shape == (3, 1008)
    assert features.dtype == logits.dtype == jnp.float32
    np.testing.assert_allclose(features[:, ::32], RECORD["features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[:, ::16], RECORD["logits"], rtol=1e-4, atol=1e-4)


def test_features_and_logits_are_those_of_pytorch_fid_here(outputs, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the recorded figures are tested instead")
    peer = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed; as above")
    state = inception_state()
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *_, **__: tensors)
    network = peer.InceptionV3([3]).eval()
    with torch.no_grad():
        want = network(torch.tensor(pictures()).permute(0, 3, 1, 2) / 255)[0][:, :, 0, 0].numpy()
    features, logits = outputs
    scale = np.abs(want).max()
    np.testing.assert_allclose(features, want, rtol=1e-4, atol=1e-6 * scale)
    want = want @ state["fc.weight"].T + state["fc.bias"]
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("size", RECORD["resized"])
def test_resize_is_pytorchs_bilinear_without_antialiasing(size):
    H, W = map(int, size.split("x"))
    x = np.random.RandomState(H).randint(0, 256, (1, H, W, 3)).astype(np.float32)
    got = np.asarray(bilinear(x, 299)).reshape(-1)[::29989]
    np.testing.assert_allclose(got, RECORD["resized"][size], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 9])
def test_padded_row_leaves_no_trace(stride, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": "highest"}
    want = lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", **options)
    np.testing.assert_allclose(_convolve(x, kernel, stride, same=False), want, atol=1e-5)


def test_average_leaves_the_padding_out_of_the_count(random_params):
    x = np.random.default_rng(1).normal(size=(1, 4, 5, 3)).astype(np.float32)
    conv = _Conv(2, average=True)
    params = jax.tree.map(np.asarray, random_params(conv, x))
    averaged = np.empty_like(x)
    for i in range(4):
        for j in range(5):
            averaged[:, i, j] = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean(axis=(1, 2))
    want = np.maximum(averaged @ params["kernel"][0, 0] + params["bias"], 0)
    assert (want > 0).any()
    np.testing.assert_allclose(conv.apply({"params": params}, x), want, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 32, 32, 1), (32, 32, 3), (2, 3)])
def test_what_is_no_color_picture_is_named(shape):
    with pytest.raises(UserError, match=r"`x.shape` is \(.*\(B, H, W, 3\)"):
        jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros(shape))
