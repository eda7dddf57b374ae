import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax import guidance
from hold_jax.condition import Condition
from hold_jax.data import Statistics
from hold_jax.errors import UserError
from hold_jax.nn.embeddings import ConditionEmbedding
from hold_jax.parameterization import PARAMETERIZATIONS, eps_function

CASES = {
    "points": (small.mlp(order=3), (2,)),
    "one block of input": (dataclasses.replace(small.mlp(), parameterization=PARAMETERIZATIONS["sufficient"]), (2,)),
    "pictures": (small.unet(), (8, 8, 1)),
    "bfloat16": (small.mlp(dtype=jnp.bfloat16), (2,)),
}


def draw(model, shape, batch=4):
    u = jax.random.normal(jax.random.key(1), (batch, *shape[:-1], model.sde.order, shape[-1]))
    return u, jnp.linspace(model.sde.t_min, model.sde.T, batch)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "shape"), CASES.values(), ids=CASES)
def test_the_noise_of_the_last_block_in_float32(model, shape):
    params = jax.jit(model.init)(jax.random.key(0))
    assert isinstance(params, dict)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    u, t = draw(model, shape)
    eps = jax.jit(lambda p, u, t: model.eps_fn(p)(u, t))(params, u, t)
    assert eps.shape == (4, *shape[:-1], 1, shape[-1]) and eps.dtype == jnp.float32
    assert np.isfinite(eps).all()


def test_one_time_for_all_is_that_time_for_each():
    model = small.mlp(order=3)
    params = jax.jit(model.init)(jax.random.key(0))
    u, t = draw(model, (2,))
    eps_fn = jax.jit(lambda u, t: model.eps_fn(params)(u, t))
    np.testing.assert_allclose(eps_fn(u, t[1]), eps_fn(u, jnp.full(4, t[1])), rtol=1e-5, atol=1e-6)


def test_labels_reach_a_network_that_has_classes_and_no_other():
    u, t = draw(small.mlp(), (2,))
    found = {}
    for classes in (0, 3):
        model = small.mlp(num_classes=classes)
        assert model.takes_labels == (classes > 0)
        params = jax.jit(model.init)(jax.random.key(0))
        of = jax.jit(lambda labels, model=model, params=params: model.eps_fn(params, condition={"label": labels})(u, t))
        found[classes] = [np.asarray(of(jnp.full(4, label, jnp.int32))) for label in (0, 2)]
    np.testing.assert_array_equal(*found[0])
    assert np.abs(found[3][0] - found[3][1]).max() > 1e-3


class Tiny(nn.Module):
    """Pictures, labels and dropout in what compiles at once."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, noise_cond, condition=None, train=False):
        embedding = ConditionEmbedding(8, 8, "positional", 1.0, True, self.num_classes, name="embedding")
        h = nn.Dense(1)(jnp.sin(nn.Conv(8, (3, 3))(x) + embedding(noise_cond, condition)[:, None, None]))
        return nn.Dropout(0.5, deterministic=not train)(h)


LABELS = jnp.array([0, 2, 1, 2], jnp.int32)
NULL = jnp.full(4, 3, jnp.int32)
GUIDED = {
    "points": (small.mlp(num_classes=3, label_dropout=0.5), (2,)),
    "pictures": (dataclasses.replace(small.unet(), network=Tiny(), label_dropout=0.5), (8, 8, 1)),
}


def params_of(model):
    """Random parameters; class vectors as large as the rest, so that labels matter."""
    params = jax.jit(model.init)(jax.random.key(0))
    params["embedding"]["labels"]["embedding"] *= 50
    return params


@pytest.mark.parametrize(("model", "shape"), GUIDED.values(), ids=GUIDED)
def test_guidance_is_the_classifier_free_combination(model, shape):
    params, (u, t) = params_of(model), draw(model, shape)

    @jax.jit
    def of(labels, scale):
        plain, null = (model.eps_fn(params, condition=Condition(label)) for label in (labels, NULL))
        together = model.eps_fn(params, condition=Condition(labels), guidance=scale)
        return together(u, t), guidance.classifier_free(plain, null, scale)(u, t), plain(u, t), null(u, t)

    for scale in (0.0, 1.0, 2.5):
        got, want, conditional, unconditional = of(LABELS, scale)
        assert np.abs(conditional - unconditional).max(axis=tuple(range(1, u.ndim))).min() > 0.01
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        if scale < 2:
            np.testing.assert_allclose(got, (unconditional, conditional)[int(scale)], rtol=1e-4, atol=1e-5)
    scales = jnp.linspace(0.0, 2.5, len(u))
    each = jnp.stack([of(LABELS, scale)[0][i] for i, scale in enumerate(scales)])
    np.testing.assert_allclose(of(LABELS, scales)[0], each, rtol=1e-4, atol=1e-5)
    # At scale 0 labels say nothing.
    np.testing.assert_allclose(of(LABELS[::-1], 0.0)[0], of(LABELS, 0.0)[0], rtol=1e-4, atol=1e-5)


def test_guidance_is_one_network_call_of_twice_the_batch():
    model, shape = GUIDED["points"]
    params, (u, t) = params_of(model), draw(model, shape)

    def products(scale):
        text = str(jax.make_jaxpr(model.eps_fn(params, condition=Condition(LABELS), guidance=scale))(u, t))
        return re.findall(r":f32\[(\d+),\d+\] = dot_general", text)

    plain = products(None)
    assert set(plain) == {"4"} and products(2.0) == ["8"] * len(plain)


def test_guidance_moves_no_row_to_another_device():
    model, shape = GUIDED["points"]
    params, (u, t), devices = params_of(model), draw(model, shape, batch=16), small.devices(8)
    labels = jnp.arange(16, dtype=jnp.int32) % 3

    def guided(params, u, t, labels):
        return model.eps_fn(params, condition=Condition(labels), guidance=2.0)(u, t)

    spread = (jax.device_put(a, devices.batch()) for a in (u, t, labels))
    compiled = jax.jit(guided, out_shardings=devices.batch()).lower(params, *spread).compile()
    assert not re.findall(r"all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text())


@pytest.mark.slow
def test_labels_are_dropped_with_their_probability():
    # One state many times over: in training its rows are the class's or the null class's, and say which was drawn.
    num, rate = 4000, 0.3
    model = small.mlp(num_classes=3, label_dropout=rate)
    params, (u, t) = params_of(model), draw(model, (2,), batch=1)
    u, labels = jnp.repeat(u, num, axis=0), jnp.full(num, 2)

    @jax.jit
    def of(labels, key):
        eps_fn = model.eps_fn(params, condition=Condition(labels), dropout=key)
        return eps_fn(u, t[0])[:, 0, 0], eps_fn(-u, t[0])[:, 0, 0]

    @jax.jit
    def plain(labels):
        return model.eps_fn(params, condition={"label": labels})(u, t[0])[:, 0, 0]

    given, null = plain(labels)[0], plain(jnp.full(num, 3))[0]
    assert np.abs(given - null) > 0.01
    dropped = []
    for seed in (0, 0, 1):
        rows, again = (np.asarray(a) for a in of(labels, jax.random.key(seed)))
        is_null = np.abs(rows - null) < 1e-5
        np.testing.assert_allclose(rows[~is_null], given, atol=1e-5)
        assert abs(is_null.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / num)
        # One function drops the same rows at every call.
        values, which = np.unique(np.round(again, 4), return_inverse=True)
        assert len(values) == 2 and len(set(zip(which.tolist(), is_null.tolist(), strict=True))) == 2
        dropped.append(is_null)
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert 0.3 < np.mean(dropped[0] != dropped[2]) < 0.55  # 2 rate (1 - rate) = 0.42


def test_without_label_dropout_training_draws_what_it_drew():
    # Bitwise: the network's own dropout has the key it was given.
    model = dataclasses.replace(small.unet(), network=Tiny())
    params, (u, t) = params_of(model), draw(model, (8, 8, 1))

    def by_hand(inputs, noise_cond):
        rngs = {"dropout": jax.random.key(5)}
        return model.network.apply({"params": params}, inputs, noise_cond, Condition(LABELS), True, rngs=rngs)

    options = {"parameterization": model.parameterization, "conditioning": model.conditioning}
    want = jax.jit(eps_function(model.sde, by_hand, sigma_data=model.sigma_data, **options))(u, t)
    got = jax.jit(model.eps_fn(params, condition=Condition(LABELS), dropout=jax.random.key(5)))(u, t)
    np.testing.assert_array_equal(got, want)
    other = jax.jit(model.eps_fn(params, condition=Condition(LABELS), dropout=jax.random.key(6)))(u, t)
    assert np.abs(other - got).max() > 1e-3


def eps_shape(model, **options):
    u, t = draw(model, (2,))
    return jax.eval_shape(lambda params: model.eps_fn(params, **options)(u, t), params_of(model))


REFUSED = {
    "guidance without label dropout": (
        lambda: small.mlp(num_classes=3).eps_fn(None, condition=Condition(LABELS), guidance=2.0),
        "`guidance` is 2.0; it must be None for a model without dropout of a condition: train with "
        "model.label_dropout, model.picture_dropout or model.vector_dropout = 0.1",
    ),
    "guidance without labels": (
        lambda: eps_shape(GUIDED["points"][0], guidance=2.0),
        "`guidance` is 2.0; it must be None without a condition to guide to: give a label",
    ),
    "guidance by labels of another shape": (
        lambda: eps_shape(GUIDED["points"][0], guidance=2.0, condition=Condition(LABELS[:3])),
        "`condition.label` is 'of length 3'; it must be of length 4, that of the batch",
    ),
    "training without labels": (
        lambda: GUIDED["points"][0].eps_fn(None, dropout=jax.random.key(0)),
        "`condition.label` is None; it must be given in training",
    ),
    "always": (
        lambda: small.mlp(num_classes=3, label_dropout=1.0),
        "`label_dropout` is 1.0; it must be in [0, 1)",
    ),
    "no number": (
        lambda: small.mlp(num_classes=3, label_dropout=float("nan")),
        "`label_dropout` is nan; it must be in [0, 1)",
    ),
    "no Flax module of this package's form": (
        lambda: dataclasses.replace(small.mlp(), network=nn.Dense(2)),
        "`network` is 'Dense'; it must be a Flax module with an attribute `num_classes`, 0 without classes",
    ),
    "a name": (
        lambda: dataclasses.replace(small.mlp(), conditioning="log_noise"),
        "`conditioning` is 'log_noise'; it must be a function of `parameterization.CONDITIONINGS`, or your own",
    ),
    "no classes": (
        lambda: small.mlp(label_dropout=0.1),
        "`label_dropout` is 0.1; it must be 0 or None unless model.class_conditional is True",
    ),
}


@pytest.mark.parametrize(("act", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_named(act, message):
    with pytest.raises(UserError) as caught:
        act()
    assert str(caught.value) == message


SCALED = dataclasses.replace(small.mlp(sigma_data=0.5), statistics=Statistics(mean=(1000.0, -3.0), std=(50.0, 0.1)))


def test_vectors_are_standardized_to_sigma_data_and_back():
    x = np.random.default_rng(0).normal(size=(5000, 2)) * (50, 0.1) + (1000, -3)
    inside = np.asarray(SCALED.to_model(x.astype(np.float32)), np.float64)
    np.testing.assert_allclose(inside.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(inside.std(axis=0), 0.5, rtol=0.05)
    np.testing.assert_allclose(SCALED.to_data(inside.astype(np.float32)), x, rtol=1e-6, atol=1e-4)


def test_bits_gain_the_logarithm_of_the_scale():
    """log2 of the determinant of dx_data / dx_model, over d."""
    jacobian = np.asarray(jax.jacfwd(SCALED.to_data)(jnp.zeros(2)), np.float64)
    assert SCALED.log2_scale == pytest.approx(np.log2(np.linalg.det(jacobian)) / 2, rel=1e-6)
    assert small.mlp().log2_scale == 0


def test_pictures_are_bytes_and_other_vectors_stay():
    x = jnp.linspace(-1.21, 1.19, 64).reshape(1, 8, 8, 1)  # none of them halfway between two bytes
    back = small.unet().to_data(x)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, np.clip(np.round((np.asarray(x) + 1) * 127.5), 0, 255))
    np.testing.assert_allclose(small.unet().to_model(back), np.clip(x, -1, 1), atol=1 / 255)
    np.testing.assert_array_equal(small.mlp().to_data(x[0, :1, :2, 0]), x[0, :1, :2, 0])
