"""Calls as a user of the library writes them: by name, with the defaults, without jit; and mistakes, each named."""

import inspect
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.suite import hold, network

from hold_jax import guidance, likelihood, losses, parameterization, samplers
from hold_jax.app.config import get_config
from hold_jax.errors import UserError
from hold_jax.numerics import ode
from hold_jax.samplers import SAMPLERS, Strang, encode, interpolate, sample, unipc

M = hold(2)
SHORT = {"num_steps": 4, "denoise": False}
KEY = jax.random.key(0)
X = 0.3 * jax.random.normal(jax.random.key(1), (3, 2))


def test_defaults_are_those_of_the_command_line():
    config = get_config()
    for function in (sample, encode):
        defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        for name in {"num_steps", "grid", "t_min", "denoise", "frames"} & defaults.keys():
            assert defaults[name] == config.sampling[name], name
    defaults = {n: p.default for n, p in inspect.signature(losses.score_matching_loss).parameters.items()}
    assert defaults["time_law"] is losses.TIME_LAWS[config.loss.time_law]
    assert defaults["weighting"] is losses.WEIGHTINGS[config.loss.weighting]
    assert (defaults["stratified"], defaults["t_min"]) == (config.loss.stratified, config.loss.t_min)


def test_names_in_the_table_are_those_of_the_constructors():
    for name, constructor in SAMPLERS.items():
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", constructor.__name__).lower()
        assert snake == name
        assert constructor.__name__ in samplers.__all__


def test_a_name_stands_for_the_default_sampler_and_repeated_calls_are_not_traced_again():
    traced = []

    def eps_fn(u, t):
        traced.append(t)
        return network(u, t)

    options = {"key": KEY, "shape": (3, 2), **SHORT}
    by_name = sample("unipc", M, eps_fn, **options)
    count = len(traced)
    again = sample("unipc", M, eps_fn, **options)
    instance = sample(unipc(), M, eps_fn, **options)
    assert len(traced) == count
    np.testing.assert_array_equal(by_name.u, again.u)
    np.testing.assert_array_equal(by_name.u, instance.u)
    other = sample("unipc", M, eps_fn, **{**options, "key": jax.random.key(1)})
    assert len(traced) == count and np.abs(other.u - by_name.u).min() > 0
    jitted = jax.jit(lambda key: sample("unipc", M, eps_fn, key=key, shape=(3, 2), **SHORT))(KEY)
    np.testing.assert_allclose(jitted.u, by_name.u, rtol=1e-5, atol=1e-6)


def test_a_batch_may_be_a_symbol_of_an_exported_program():
    (size,) = jax.export.symbolic_shape("b")
    shapes = jax.ShapeDtypeStruct((size, 2, 2), jnp.float32), jax.ShapeDtypeStruct((size,), jnp.int32)
    draw = lambda u, index: sample("ancestral", M, network, start=u, key=KEY, index=index, **SHORT).x  # noqa: E731
    assert jax.export.export(jax.jit(draw))(*shapes).out_avals[0].shape == (size, 2)


def test_a_call_that_is_an_error_leaves_the_next_one_alone():
    call = lambda **options: sample("ddim", M, network, key=KEY, **{"shape": (3, 2), **SHORT, **options}).u  # noqa: E731
    numpy = call(num_steps=np.int64(4), t_min=jnp.float32(0.01), shape=[np.int64(3), 2])
    np.testing.assert_array_equal(numpy, call(t_min=float(np.float32(0.01))))
    for wrong in (4.0, True, 0, "4"):
        with pytest.raises(UserError, match=f"`num_steps` is {wrong!r}; it must be a whole number >= 1"):
            call(num_steps=wrong)
        with pytest.raises(UserError, match=f"`num_steps` is {wrong!r}; it must be a whole number >= 1"):
            encode("ddim", M, network, X, key=KEY, num_steps=wrong)


def test_a_grid_function_is_called_at_each_call():
    middle = 1.0
    grid = lambda sde, t_min, num_steps: np.array([sde.T, middle, t_min])  # noqa: E731
    call = lambda grid: sample("ddim", M, network, key=KEY, shape=(3, 2), grid=grid, num_steps=2).u  # noqa: E731
    for middle in (1.0, 0.5):
        np.testing.assert_array_equal(call(grid), call([M.T, middle, M.t_min]))


def test_latents_and_what_lies_between_them_go_into_sample_as_they_are():
    # Deterministic, from a start: no key, no shape.
    latent = encode("ddim", M, network, X, key=KEY, num_steps=4)
    between = interpolate(M, latent.u, latent.u[::-1], jnp.array([0.0, 0.5, 1.0]))
    assert between.shape == (9, 2, 2)
    out = sample("ddim", M, network, start=between, **SHORT)
    alone = sample("ddim", M, network, start=latent.u, **SHORT)
    np.testing.assert_allclose(out.x[:3], alone.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.x[6:], alone.x[::-1], rtol=1e-4, atol=1e-5)


def test_a_network_that_is_replaced_is_seen_through_the_wrappers():
    shift = 0.0

    def net(x, noise_cond):
        return shift + 0 * x

    eps_fn = parameterization.eps_function(M, net)
    guided = guidance.clip(M, guidance.classifier_free(eps_fn, network, 2.0), 3.0)
    start = jnp.ones((3, 2, 2))

    def drawn():
        return [sample("ddim", M, f, start=start, num_steps=2).x for f in (eps_fn, guided)]

    before, shift = drawn(), 1.0
    for old, new in zip(before, drawn(), strict=True):
        assert jnp.abs(new - old).max() > 0.01


def test_all_is_float32_with_double_precision_enabled_too():
    eps_fn = parameterization.eps_function(M, lambda x, noise_cond: x[..., :2], parameterization=parameterization.mixed)

    def loss():
        return jax.jit(lambda x: losses.bcsm_loss(M, eps_fn, x, KEY))(np.asarray(X))

    def others(x):
        names = ("gaussian_fitted", "poisson_midpoint", "probability_flow")
        drawn = [sample(name, M, eps_fn, key=KEY, shape=x.shape, num_steps=2).x for name in names]
        return *drawn, losses.dsm_loss(M, eps_fn, x, KEY), likelihood.bits_per_dim(M, eps_fn, x, key=KEY).bpd

    want = loss()
    with jax.enable_x64(True):
        got = loss()
        assert {a.dtype.name for a in (got, *jax.eval_shape(others, np.asarray(X)))} == {"float32"}
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_denoiser_of_double_precision_does_not_change_the_type_of_a_loop():
    def eps_fn(u, t):
        return network(u, t) * jnp.array([[[0.1, 0.2]]])

    def all_of(x):
        names = ("unipc", "ancestral", "poisson_midpoint", "probability_flow")
        drawn = [sample(name, M, eps_fn, key=KEY, shape=x.shape, num_steps=2, frames=1).x for name in names]
        bits = likelihood.bits_per_dim(M, eps_fn, x, key=KEY, solver=ode.Solver("heun")).bpd
        return *drawn, encode("unipc", M, eps_fn, x, key=KEY, num_steps=2).u, bits

    with jax.enable_x64(True):
        assert eps_fn(jnp.ones((3, 2, 2), jnp.float32), 1.0).dtype == jnp.float64
        assert {a.dtype.name for a in jax.eval_shape(all_of, np.asarray(X))} == {"float32"}
        loss = lambda x: losses.bcsm_loss(M, lambda u, t: u[..., -1:, :] * jnp.array([[[0.1, 0.2]]]), x, KEY)  # noqa: E731
        assert jax.eval_shape(loss, np.asarray(X)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("of", "found"),
    [(lambda eps: eps * 1j, "complex64"), (lambda eps: (eps,), "tuple"), (lambda eps: None, "NoneType")],
)
@pytest.mark.parametrize("use", ["bcsm", "bits", "unipc", "probability_flow"])
def test_noise_that_is_no_real_array_is_named(use, of, found):
    eps_fn = lambda u, t: of(u[..., -1:, :])  # noqa: E731
    with pytest.raises(UserError, match=rf"`eps_fn\(u, t\)` is .*{found}.*; it must be one array of real numbers"):
        if use == "bcsm":
            losses.bcsm_loss(M, eps_fn, X, KEY)
        elif use == "bits":
            likelihood.bits_per_dim(M, eps_fn, X, key=KEY)
        else:
            sample(use, M, eps_fn, key=KEY, shape=X.shape, **SHORT)


def test_latents_of_another_order_are_named():
    latents = jnp.zeros((3, 5, 2))
    with pytest.raises(UserError, match=r"`u.shape\[-2\]` is 5; it must be 2, the number of blocks"):
        interpolate(M, latents, latents, jnp.array([0.0, 1.0]))


def test_latents_between_which_there_is_no_circle_are_named():
    latents = jnp.ones((3, 2, 2))
    with pytest.raises(UserError, match=r"`second` is \(2, 2, 2\); it must be of the shape of `first`, \(3, 2, 2\)"):
        interpolate(M, latents, latents[:2], jnp.array([0.5]))
    with pytest.raises(UserError, match="`first or second` is 'zero'; it must be a latent other than zero"):
        interpolate(M, latents, latents.at[1].set(0), jnp.array([0.5]))


def test_frames_come_with_their_times():
    times = np.array([M.T, 1.5, 1.0, 0.5, 0.2])
    options = {"grid": times, "num_steps": 4}
    out = sample(Strang(), M, network, key=KEY, shape=(3, 2), frames=2, denoise=False, **options)
    np.testing.assert_allclose(out.times, [M.T, 1.0, 0.2])
    np.testing.assert_array_equal(out.frames[-1], out.x)
    latent = encode("ddim", M, network, X, key=KEY, frames=4, **options)
    np.testing.assert_allclose(latent.times, times[::-1])
    np.testing.assert_array_equal(latent.frames[-1], latent.u[..., 0, :])
    # The first frame is a draw of u(0.2) | x.
    assert latent.frames.shape == (5, 3, 2)
    back = sample("ddim", M, network, start=latent.u, frames=4, denoise=False, **options)
    np.testing.assert_array_equal(back.frames[0], latent.frames[-1])
    plain = sample("ddim", M, network, start=latent.u, denoise=False, **options)
    assert plain.frames is None and plain.times is None


def test_a_numbered_example_has_the_same_latent_in_every_batch():
    index = jnp.array([4, 7, 9])
    whole = encode("ddim", M, network, X, key=KEY, index=index, num_steps=4).u
    part = encode("ddim", M, network, X[1:], key=KEY, index=index[1:], num_steps=4).u
    np.testing.assert_allclose(part, whole[1:], rtol=1e-5, atol=1e-6)
    other = encode("ddim", M, network, X, key=KEY, index=index + 1, num_steps=4).u
    assert np.abs(other - whole).min() > 0


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("unpic", r"`sampler` is 'unpic' \(did you mean 'unipc'\?\); it must be one of: ancestral, "),
        (
            Strang,
            r"`sampler` is <class .*; it must be a name of `samplers.SAMPLERS` or a sampler, such as `Strang\(\)`",
        ),
        (unipc, r"`sampler` is <function unipc .*such as `unipc\(\)`"),
        (3, "`sampler` is 3; "),
        (None, r"`sampler` is None; .*such as `unipc\(\)`"),
        (M, r"`sampler` is LinearSDE.*such as `unipc\(\)`"),
    ],
)
def test_a_sampler_that_is_none_is_named(sampler, message):
    with pytest.raises(ValueError, match=message):
        sample(sampler, M, network, key=KEY, shape=(3, 2), **SHORT)
    with pytest.raises(ValueError, match=message):
        encode(sampler, M, network, X, key=KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (3,)}, r"`shape` is \(3,\); it must be \(B, \*S, C\) with the batch first"),
        ({"shape": None}, "`shape` is None; it must be .*or left out with a `start`"),
        ({"shape": (0, 2)}, r"`shape` is \(0, 2\)"),
        ({"key": None}, "`key` is None; it must be a `jax.random.key`"),
        ({"key": None, "sampler": "strang", "start": jnp.zeros((3, 2, 2))}, "`key` is None"),
        ({"key": jnp.zeros(7, jnp.uint32)}, r"`key` is Array\(.*; it must be one key of JAX"),
        ({"shape": 8}, r"`shape` is 8; it must be \(B, \*S, C\) with the batch first"),
        ({"shape": "82"}, "`shape` is '82'; it must be "),
        ({"shape": ("8", 2)}, r"`shape` is \('8', 2\)"),
        ({"shape": (3.0, 2)}, r"`shape` is \(3.0, 2\)"),
        ({"shape": (True, 2)}, r"`shape` is \(True, 2\)"),
        ({"frames": "2"}, "`frames` is '2'; it must be a whole number >= 0"),
        ({"frames": None}, "`frames` is None; it must be a whole number"),
        ({"frames": 2.0}, "`frames` is 2.0; it must be a whole number"),
        ({"frames": True}, "`frames` is True; it must be a whole number"),
        ({"t_min": "a"}, "`t_min` is 'a'; it must be a number, between 0 and T"),
        ({"t_min": True}, "`t_min` is True; it must be a number, between 0 and T"),
        ({"t_min": np.ones(2)}, r"`t_min` is array\(.*; it must be a number, between 0 and T"),
        ({"index": jnp.arange(2)}, r"`index` is .*; it must be 3 whole numbers, one for each example"),
        ({"index": 3}, r"`index` is 3; it must be 3 whole numbers"),
        ({"index": jnp.ones((3, 1), int)}, "`index` is .*; it must be 3 whole numbers"),
        ({"index": np.ones(3)}, "`index` is .*; it must be 3 whole numbers"),
        ({"index": "a"}, "`index` is 'a'; it must be 3 whole numbers"),
        ({"grid": ["a"] * 5}, "`grid` cannot be used"),
        ({"eps_fn": None}, r"`eps_fn` is None; it must be a function \(u, t\)"),
        ({"eps_fn": {"w": 1}}, r"`eps_fn` is \{'w': 1\}; it must be a function"),
        ({"sde": "hold"}, "`sde` is 'hold'; it must be a `LinearSDE`, such as"),
        ({"sde": network, "eps_fn": M}, "`sde` is <function .*; it must be a `LinearSDE`, such as"),
        ({"start": jnp.zeros((3, 2))}, r"`start` is 'float32\[3, 2\]'; it must be a state \(B, \*S, 2, C\)"),
        ({"start": jnp.zeros((3, 3, 2)), "shape": None}, r"`start` is 'float32\[3, 3, 2\]'; it must be a state"),
        ({"start": "a"}, r"`start` is 'a'; it must be a state"),
        ({"start": jnp.zeros((3, 2, 2), complex)}, r"`start` is 'complex64\[3, 2, 2\]'"),
    ],
)
def test_mistakes_of_sample_are_named(change, message):
    arguments = {"sampler": "unipc", "sde": M, "eps_fn": network, "key": KEY, "shape": (3, 2), **SHORT, **change}
    sample("unipc", M, network, key=KEY, shape=(3, 2), **SHORT)  # a program that equal arguments would find
    with pytest.raises(UserError, match=message):
        sample(**arguments)
    if "index" in change:
        with pytest.raises(UserError, match=message):
            encode("unipc", M, network, X, key=KEY, **change)
        with pytest.raises(UserError, match=message):
            likelihood.bits_per_dim(M, network, X, key=KEY, **change)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("t_min", lambda v: {"t_min": v}, "is JitTracer.*; it must be a number, not traced by JAX, between 0 and T"),
        (
            "churn",
            lambda v: {"sampler": unipc(churn=v)},
            "is JitTracer.*; it must be a number, not traced by JAX",
        ),
        ("grid", lambda v: {"grid": v * jnp.arange(5, 0, -1.0)}, "cannot be used .*traced"),
    ],
)
def test_a_traced_option_is_named(name, options, message):
    def draw(value):
        return sample(
            **{"sampler": "unipc", "sde": M, "eps_fn": network, "key": KEY, "shape": (3, 2), **options(value)}
        ).x

    with pytest.raises(UserError, match=f"`{name}` {message}"):
        jax.jit(draw)(0.1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((4, 2), 200, np.uint8), "`x` is 'uint8'; it must be floating, in the model's range: .*to_model_range"),
        (np.zeros(4, np.float32), r"`x` is \(4,\); it must be of shape \(B, \*S, C\)"),
    ],
)
def test_data_that_cannot_be_meant_are_named(x, message):
    with pytest.raises(ValueError, match=message):
        encode("unipc", M, network, x, key=KEY)


@pytest.mark.parametrize(
    ("eps_fn", "shape"),
    [
        (lambda u, t: u[..., -1, :], "(3, 2)"),  # without the block axis
        (lambda u, t: u, "(3, 2, 2)"),  # of all blocks
    ],
)
@pytest.mark.parametrize(
    "use", ["bcsm", "dsm", "bits", "unipc", "euler_maruyama", "poisson_midpoint", "probability_flow"]
)
def test_noise_of_another_shape_is_named_and_does_not_broadcast(use, eps_fn, shape):
    with pytest.raises(UserError) as caught:
        if use in losses.LOSSES:
            losses.LOSSES[use](M, eps_fn, X, KEY)
        elif use == "bits":
            likelihood.bits_per_dim(M, eps_fn, X, key=KEY)
        else:
            sample(use, M, eps_fn, key=KEY, shape=X.shape, **SHORT)
    allowed = "it must be of shape (3, 1, 2), the noise of the last block"
    assert str(caught.value) == f"`eps_fn(u, t)` is {shape}; {allowed}"
