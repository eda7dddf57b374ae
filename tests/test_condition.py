"""Conditions on their way into a network, and exact conditional laws at every order."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import conditional_gaussian as exact
from training.small import quick_compilation  # noqa: F401

from hold_jax import guidance, kernels, likelihood, losses, samplers, sde
from hold_jax.autoguided import Autoguided
from hold_jax.condition import Condition, as_condition
from hold_jax.condition_encoder import ConditionEncoder
from hold_jax.data import Statistics
from hold_jax.errors import UserError
from hold_jax.model import Model
from hold_jax.parameterization import log_noise, sufficient
from hold_jax.training.step import mean_loss

FIELDS = {"vector": (3,), "picture": (4, 4, 2)}
ORDERS = (1, 2, 3, 4)


def case(field, order, dropout=0.0, num=3):
    """The exact model of a field, and as many conditions: standard normal and in data units."""
    shape = FIELDS[field]
    c = np.random.default_rng(0).normal(size=(num, *shape)).astype(np.float32)
    given = Condition(**{field: exact.in_data_units(c)})
    return exact.model(sde.hold(order), shape, field, dropout), c, given


def noise_at_end(process):
    """sigma_eff at T."""
    return float(kernels.effective_noise(process, jnp.float32(process.T)))


# --- The exact conditional laws --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("field", FIELDS)
def test_samples_have_exactly_the_conditional_law(field, order):
    """A deterministic sampler of a Gaussian is affine: its mean and covariance follow from n + 1 starts."""
    model, c, given = case(field, order)
    n, repeated = order, jax.tree.map(lambda a: np.repeat(a, order + 1, axis=0), given)
    starts = np.concatenate([np.zeros((1, n)), np.linalg.cholesky(model.sde.prior_cov).T]).astype(np.float32)
    inner = (1,) * (len(model.data_shape) - 1)
    starts = np.tile(starts, (len(c), 1)).reshape(-1, *inner, n, 1)
    start = np.broadcast_to(starts, (len(starts), *model.data_shape[:-1], n, model.data_shape[-1]))
    eps_fn = model.eps_fn({}, condition=repeated)
    x = np.asarray(samplers.sample("dpmpp_2m", model.sde, eps_fn, start=start, num_steps=100).x, np.float64)
    x = x.reshape(len(c), n + 1, *model.data_shape)
    mean, std = x[:, 0], np.sqrt(np.sum(np.square(x[:, 1:] - x[:, :1]), axis=1))
    # The prior has mean 0, not that of the data under the noise of T.
    want = (exact.SHIFT + exact.GAIN * c) * (1 - exact.STD / np.hypot(exact.STD, noise_at_end(model.sde)))
    np.testing.assert_allclose(mean, want, atol=3e-4)
    np.testing.assert_allclose(std, exact.STD, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_the_loss_of_the_exact_denoiser_is_the_posterior_variance(order):
    """With weight 1/w_n^2 it is Var[x | y, c] = 1 / (1/std^2 + 1/sigma^2) per dimension, and the null condition costs
    the variance without c instead."""
    num, sigma = 8192, 0.4
    model, c, given = case("vector", order, dropout=0.5, num=num)
    rng = np.random.default_rng(1)
    x = exact.SHIFT + exact.GAIN * c + exact.STD * rng.normal(size=c.shape).astype(np.float32)

    def at_one_noise(process, quantile, t_min):
        t = kernels.time_of_noise(process, jnp.full_like(quantile, sigma))
        return losses.Times(t, jnp.ones_like(t))

    def loss(process, eps_fn, x, key, sigma_data):
        del sigma_data
        return losses.bcsm_loss(process, eps_fn, x, key, weighting=losses.q0_weight, time_law=at_one_noise)

    batch = {"x": x, "label": np.zeros(num, np.int32), "vector": given.vector}
    run = jax.jit(lambda batch, key, train: mean_loss(model, loss, {}, batch, key, train=train), static_argnums=2)

    def posterior(var):
        return var * sigma**2 / (var + sigma**2)

    floor, without = posterior(exact.STD**2), posterior(exact.STD**2 + exact.GAIN**2)
    # The standard error of a mean of 3 x 8192 squares is 0.9 %.
    np.testing.assert_allclose(run(batch, jax.random.key(0), False), floor, rtol=0.03)
    # Half of the training examples have the null condition.
    np.testing.assert_allclose(run(batch, jax.random.key(0), True), (floor + without) / 2, rtol=0.04)
    # Conditions of other examples are worse than none.
    shuffled = batch | {"vector": np.roll(given.vector, 1, axis=0)}
    assert run(shuffled, jax.random.key(0), False) > 1.2 * without


@pytest.mark.slow
@pytest.mark.parametrize("order", (1, 3))
def test_bits_given_the_condition(order):
    model, c, given = case("vector", order)
    x = np.random.default_rng(2).normal(size=c.shape).astype(np.float32) * 0.5
    eps_fn = model.eps_fn({}, condition=given)
    found = likelihood.bits_per_dim(model.sde, eps_fn, x, key=jax.random.key(0), probes=0, repeats=4)
    mean = exact.SHIFT + exact.GAIN * c
    z = (x - mean) / exact.STD + mean / noise_at_end(model.sde)  # the prior has mean 0
    want = np.mean(z**2 / 2 + np.log(exact.STD * np.sqrt(2 * np.pi)), axis=1) / np.log(2)
    # The density is that of data with the noise of t_min, 0.002; for n > 1 the bound is tight to the prior at T.
    np.testing.assert_allclose(found.bpd, want, atol=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("order", (1, 3))
def test_guidance_extrapolates_from_the_unconditional_denoiser(order):
    model, c, given = case("vector", order, dropout=0.1)
    u = jax.random.normal(jax.random.key(0), (3, order, 3))
    sigma = 0.7
    t = kernels.time_of_noise(model.sde, jnp.full(3, sigma))
    y, _ = kernels.sufficient_statistic(model.sde, u, t)
    eps = model.eps_fn({}, condition=given, guidance=2.5)(u, t)
    conditional = exact.denoiser(y, sigma, exact.SHIFT + exact.GAIN * c, exact.STD)
    without = exact.denoiser(y, sigma, exact.SHIFT, np.hypot(exact.STD, exact.GAIN))
    want = without + 2.5 * (conditional - without)
    np.testing.assert_allclose(kernels.denoiser(model.sde, u, t, eps), want, atol=2e-4)
    # A condition that is left out is the null condition.
    alone = model.eps_fn({})(u, t)
    np.testing.assert_allclose(kernels.denoiser(model.sde, u, t, alone), without, atol=2e-4)
    both = guidance.classifier_free(model.eps_fn({}, condition=given), model.eps_fn({}), 2.5)(u, t)
    np.testing.assert_allclose(both, eps, atol=1e-4)


# --- What the network sees ---------------------------------------------------------------------------------


class Seen(nn.Module):
    """Returns what it is given, in a form that the model passes on: its output is the sum of its conditions."""

    num_classes: int = 0

    @nn.compact
    def __call__(self, x, noise_cond, condition=None, train=False):
        self.sow("intermediates", "seen", condition)
        return jnp.zeros_like(x)


ALL = Statistics(class_counts=(1, 1, 1), picture_shape=(2, 2, 1), vector_mean=(1.0, -2.0), vector_std=(2.0, 0.5))
RATES = {"label_dropout": 0.2, "picture_dropout": 0.2, "vector_dropout": 0.2}


def everything(**changes):
    options = {"statistics": ALL} | RATES | changes
    return Model(sde.hold(2), Seen(num_classes=3), (4, 4, 1), sufficient, log_noise, 0.5, **options)


def conditions(num):
    """Conditions in data units."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (num, 2, 2, 1), dtype=np.uint8)
    return Condition(rng.integers(0, 3, num).astype(np.int32), pictures, rng.normal(size=(num, 2)).astype(np.float32))


def test_pictures_are_resized_and_vectors_standardized_with_a_last_one():
    given = conditions(5)
    seen = everything().conditions.encode(given)
    np.testing.assert_array_equal(seen.label, given.label)
    np.testing.assert_allclose(seen.vector[:, :2], (given.vector - [1, -2]) / [2, 0.5], rtol=1e-6)
    assert seen.picture.shape == (5, 4, 4, 2) and np.all(seen.picture[..., 1] == 1) and np.all(seen.vector[:, 2] == 1)
    small = given.picture[..., 0] / 127.5 - 1
    # Bilinear from 2 to 4 pixels: the corners are the pixels, the second row is 3/4 of the first and 1/4 of the other.
    np.testing.assert_allclose(seen.picture[:, 0, 0, 0], small[:, 0, 0], atol=1e-5)
    np.testing.assert_allclose(seen.picture[:, 1, 0, 0], 0.75 * small[:, 0, 0] + 0.25 * small[:, 1, 0], atol=1e-5)
    # A picture of twice the size is averaged, not subsampled.
    big = np.kron(given.picture, np.ones((1, 4, 4, 1), np.uint8))
    again = everything().conditions.encode(dataclasses.replace(given, picture=big)).picture
    assert again.shape == (5, 4, 4, 2) and np.abs(again - seen.picture).max() < 0.6


def test_float_pictures_are_standardized_by_channel():
    statistics = dataclasses.replace(ALL, picture_shape=(2, 2, 2), picture_mean=(10.0, 0.0), picture_std=(5.0, 0.1))
    picture = np.random.default_rng(1).normal(size=(3, 4, 4, 2)).astype(np.float32)
    given = dataclasses.replace(conditions(3), picture=picture)
    seen = everything(statistics=statistics).conditions.encode(given).picture
    np.testing.assert_allclose(seen[..., :2], (picture - [10, 0]) / [5, 0.1], rtol=1e-5, atol=1e-5)


def test_each_condition_is_dropped_with_its_probability_alone_and_together():
    encoder, num = everything().conditions, 40_000
    seen = encoder.drop(encoder.encode(conditions(num)), jax.random.key(0))
    dropped = np.stack(
        [seen.label == 3, np.all(seen.picture == 0, axis=(1, 2, 3)), np.all(seen.vector == 0, axis=1)], axis=1
    )
    np.testing.assert_array_equal(dropped[:, 1], seen.picture[:, 0, 0, 1] == 0)
    np.testing.assert_allclose(dropped.mean(axis=0), 0.2, atol=0.01)
    # Half of the examples draw once for all, the other half for each: 0.2 / 2 + 0.2^3 / 2.
    np.testing.assert_allclose(np.all(dropped, axis=1).mean(), 0.104, atol=0.006)
    # The first alone: 0.2 * 0.8^2 / 2.
    np.testing.assert_allclose(np.mean(dropped[:, 0] & ~dropped[:, 1] & ~dropped[:, 2]), 0.064, atol=0.006)


@pytest.mark.slow
def test_a_network_receives_the_null_condition_of_what_is_left_out():
    model = everything()
    u, t = jnp.zeros((5, 4, 4, 2, 1)), jnp.full(5, 0.5)
    state = {}

    def apply(variables, *args, **options):
        state["seen"] = args[2]
        return jnp.zeros_like(args[0])

    object.__setattr__(model.network, "apply", apply)
    given = conditions(5)
    model.eps_fn({}, condition={"vector": given.vector})(u, t)
    np.testing.assert_array_equal(state["seen"].label, 3)
    np.testing.assert_array_equal(state["seen"].picture, np.zeros((5, 4, 4, 2)))
    # Guidance interleaves each example with the one without conditions.
    model.eps_fn({}, condition=given, guidance=2.0)(u, t)
    np.testing.assert_array_equal(state["seen"].label, np.stack([given.label, np.full(5, 3)], axis=1).ravel())
    assert np.all(state["seen"].vector[1::2] == 0) and np.all(state["seen"].vector[::2, 2] == 1)
    # A condition that was never dropped stays in both.
    kept = everything(picture_dropout=0.0)
    object.__setattr__(kept.network, "apply", apply)
    kept.eps_fn({}, condition=given, guidance=2.0)(u, t)
    np.testing.assert_array_equal(state["seen"].picture[1::2], state["seen"].picture[::2])


# --- What does not fit -----------------------------------------------------------------------------------


def refused(**changes):
    return lambda: everything(**RATES_ZERO).eps_fn({}, condition=dataclasses.replace(conditions(5), **changes))


RATES_ZERO = dict.fromkeys(RATES, 0.0)
WRONG = {
    "a missing vector": (
        refused(vector=None),
        "`condition.vector` is None; it must be an array of floats, of shape (B, 2): the network is conditioned on it",
    ),
    "a vector of another length": (
        refused(vector=np.zeros((5, 3), np.float32)),
        "`condition.vector` is 'float32[5, 3]'; it must be an array of floats, of shape (B, 2)",
    ),
    "integers": (
        refused(vector=np.zeros((5, 2), np.int32)),
        "`condition.vector` is 'int32[5, 2]'; it must be an array of floats, of shape (B, 2)",
    ),
    "a float picture": (
        refused(picture=np.zeros((5, 2, 2, 1), np.float32)),
        "`condition.picture` is 'float32[5, 2, 2, 1]'; it must be an array of uint8, of shape (B, 2, 2, 1)",
    ),
    "another number of channels": (
        refused(picture=np.zeros((5, 2, 2, 3), np.uint8)),
        "`condition.picture` is 'uint8[5, 2, 2, 3]'; it must be an array of uint8, of shape (B, 2, 2, 1)",
    ),
    "float classes": (
        refused(label=np.zeros(5, np.float32)),
        "`condition.label` is 'float32[5]'; it must be an array of integers, of shape (B,)",
    ),
    "no class": (
        refused(label=np.array([0, 1, 2, 4, 1])),
        "`condition.label` is 'from 0 to 4'; it must be classes from 0 to 2",
    ),
    "not finite": (
        refused(vector=np.full((5, 2), np.nan, np.float32)),
        "`condition.vector` is 'not finite'; it must be finite",
    ),
    "no class, an array of JAX": (
        lambda: refused(label=jnp.array([0, 1, 2, -1, 1]))(),
        "`condition.label` is 'from -1 to 2'; it must be classes from 0 to 2",
    ),
    "not finite, an array of JAX": (
        lambda: refused(vector=jnp.full((5, 2), jnp.nan, jnp.bfloat16))(),
        "`condition.vector` is 'not finite'; it must be finite",
    ),
    "ragged": (refused(vector=[[1.0, 2.0], [1.0]]), "`condition.vector` is no array: its rows differ in length"),
    "text": (
        refused(label=["seven"]),
        "`condition.label` is '<U5[1]'; it must be an array of integers, of shape (B,)",
    ),
    "a number": (
        refused(label=3),
        "`condition.label` is 'int64[]'; it must be an array of integers, of shape (B,)",
    ),
    "a key": (
        lambda: everything().eps_fn({}, condition={"labels": np.zeros(5, np.int32)}),
        "`condition` has the keys labels; it must be a Condition or a dictionary with keys among label, picture, "
        "vector",
    ),
    "an array": (
        lambda: everything().eps_fn({}, condition=np.zeros(5)),
        "`condition` is of type ndarray; it must be a Condition or a dictionary with keys among label, picture, vector",
    ),
    "a picture for a network of classes": (
        lambda: everything(statistics=Statistics(), **RATES_ZERO).eps_fn({}, condition=conditions(5)),
        "`condition.picture` is (5, 2, 2, 1); it must be None: the network takes no picture, because it was trained "
        "without `data.condition` of one",
    ),
    "dropout of what is not there": (
        lambda: everything(statistics=Statistics()),
        "`picture_dropout` is 0.2; it must be 0 or None unless data.condition has a picture",
    ),
    "always": (lambda: everything(vector_dropout=1.0), "`vector_dropout` is 1.0; it must be in [0, 1)"),
}


@pytest.mark.parametrize(("act", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(act, message):
    with pytest.raises(UserError) as caught:
        act()
    assert str(caught.value) == message


def test_pictures_and_vectors_need_neither_classes_nor_dropout():
    encoder = ConditionEncoder(0, (2, 2, 1), (), (), (0.0, 0.0), (1.0, 1.0), (2, 2), (0.0, 0.0, 0.0))
    given = Condition(picture=np.zeros((5, 2, 2, 1), np.uint8), vector=np.zeros((5, 2), np.float32))
    encoder.check("condition", given)
    with pytest.raises(UserError, match=r"`condition\.vector` is 'not finite'"):
        encoder.check("condition", dataclasses.replace(given, vector=np.full((5, 2), np.inf, np.float32)))


def test_values_are_checked_where_they_are_known():
    model = everything()
    wrong = dataclasses.replace(conditions(5), label=np.full(5, 99, np.int32))
    shapes = jax.eval_shape(lambda: wrong)
    model.conditions.check("condition", shapes)
    jax.eval_shape(model.conditions.encode, shapes)  # traced
    constant = jax.tree.map(jnp.asarray, wrong)
    with pytest.raises(UserError, match=r"`condition\.label` is 'from 99 to 99'; it must be classes from 0 to 2, or 3"):
        jax.eval_shape(lambda: model.conditions.encode(constant))  # a constant of what is traced


def test_conditions_are_float32_with_x64_too():
    encoder = ConditionEncoder(0, (2, 2, 1), (), (), (0.0, 0.0), (1.0, 1.0), (2, 2), (0.0, 0.5, 0.5))
    given = Condition(picture=np.zeros((5, 2, 2, 1), np.uint8), vector=np.zeros((5, 2), np.float32))
    plain = encoder.drop(encoder.encode(given), jax.random.key(0))
    with jax.enable_x64(True):
        dropped = encoder.drop(encoder.encode(given), jax.random.key(0))
        null = encoder.without(encoder.encode(given), ("picture", "vector"), 5)
        found = [dropped.picture, dropped.vector, null.picture, null.vector]
        assert {array.dtype for array in found} == {jnp.dtype("float32")}
        np.testing.assert_array_equal(dropped.vector, plain.vector)


def test_conditions_must_be_as_many_as_examples():
    eps_fn = everything().eps_fn({}, condition=conditions(4))
    with pytest.raises(
        UserError, match=r"`condition\.\w+` is 'of length 4'; it must be of length 5, that of the batch"
    ):
        eps_fn(jnp.zeros((5, 4, 4, 2, 1)), jnp.full(5, 0.5))


def test_a_dictionary_is_a_condition():
    np.testing.assert_array_equal(as_condition({"vector": [[1, 2.5]]}).vector, [[1, 2.5]])
    assert as_condition(None) == Condition()


# --- A weaker model as a guide ---------------------------------------------------------------------------


def test_an_autoguided_model_is_the_combination_of_two():
    model, _, given = case("vector", 2, dropout=0.1)
    # The guide knows the condition less well: half of it is the null condition's denoiser.
    other = dataclasses.replace(model, network=Weak("vector"))
    both = Autoguided.of(model, other)
    assert both.conditions == model.conditions
    u = jax.random.normal(jax.random.key(0), (3, 2, 3))
    t = jnp.full(3, 0.8)
    of = [m.eps_fn({}, condition=given)(u, t) for m in (model, other)]
    want = of[1] + 1.5 * (of[0] - of[1])
    np.testing.assert_allclose(both.eps_fn(({}, {}), condition=given, guidance=1.5)(u, t), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(both.eps_fn(({}, {}), condition=given)(u, t), of[0])
    assert np.abs(of[0] - of[1]).max() > 0.01


class Weak(exact.Exact):
    """Uses half of the condition."""

    @nn.compact
    def __call__(self, x, noise_cond, condition=None, train=False):
        half = jax.tree.map(lambda a: jnp.concatenate([0.5 * a[..., :-1], a[..., -1:]], axis=-1), condition)
        return exact.Exact(self.field)(x, noise_cond, half)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data_shape=(4,)), r"`guide` is 'a model with data \(4,\)'; it must be one with data \(3,\)"),
        (
            dict(statistics=Statistics(), vector_dropout=0.0),
            r"`guide` is 'a model with conditions \(\)'; it must",
        ),
        (
            dict(sde=sde.hold(3)),
            "`guide` is 'a model of another process'; it must be one of the process of",
        ),
    ],
)
def test_a_guide_of_something_else_is_named(change, message):
    model, _, _ = case("vector", 2, dropout=0.1)
    with pytest.raises(UserError, match=message):
        Autoguided.of(model, dataclasses.replace(model, **change))


def test_a_guide_of_other_conditions_is_named():
    model, _, given = case("vector", 2, dropout=0.1)
    longer = dataclasses.replace(model.statistics, vector_mean=(0.0,) * 4, vector_std=(1.0,) * 4)
    with pytest.raises(UserError, match=r"'a model with conditions of shape \(\(4,\),\)'; it must be .* \(\(3,\),\)"):
        Autoguided.of(model, dataclasses.replace(model, statistics=longer))
    # The null condition, which the guide was never trained with.
    both = Autoguided.of(model, dataclasses.replace(model, vector_dropout=0.0))
    both.eps_fn(({}, {}), condition=given, guidance=2.0)
    with pytest.raises(UserError, match=r"`guide` cannot be used with these conditions: `condition.vector` is None;"):
        both.eps_fn(({}, {}), guidance=2.0)


def test_a_guide_of_another_kind_of_data_is_named():
    """Pictures in [-1, 1] against numbers of 0 to 255."""
    model, _, _ = case("picture", 2)
    pictures, arrays = (
        dataclasses.replace(model, statistics=dataclasses.replace(model.statistics, kind=kind))
        for kind in ("picture", "array")
    )
    with pytest.raises(UserError, match=r"'a model with data of kind array'; it must be one with .* picture"):
        Autoguided.of(pictures, arrays)


def test_a_guide_in_other_units_is_named():
    model, _, _ = case("vector", 2, dropout=0.1)
    statistics = dataclasses.replace(model.statistics, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = dataclasses.replace(model, statistics=statistics)
    wider = dataclasses.replace(statistics, std=(1.0, 1.0, 1.1))
    for change in (dict(sigma_data=1.0), dict(statistics=wider)):
        with pytest.raises(UserError, match=r"`guide` is 'a model with units \(mean, deviation, sigma_data\) \(\(0"):
            Autoguided.of(model, dataclasses.replace(model, **change))
    Autoguided.of(model, model)
