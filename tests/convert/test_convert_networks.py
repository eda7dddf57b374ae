"""Others' networks against numbers recorded from their authors' code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert.peers import NETWORKS, RECORD, SIZE, inputs, numbers, params, recorded, seen, state
from flax import serialization, traverse_util

from hold_jax import kernels, noise_conditioning, parameterization, sde
from hold_jax.condition import Condition
from hold_jax.convert import edm, score_sde
from hold_jax.convert.layers import layers
from hold_jax.errors import UserError
from hold_jax.weights.match import convert

# Of the output, which is of order 1; float32 through a third-order state with noise 60 costs two digits of it.
TOLERANCE = 2e-4


@functools.partial(jax.jit, static_argnums=0)
def apply(network, params, x, noise, condition):
    """Compiled once for the networks that are the same."""
    return network.apply({"params": params}, x, noise, condition)


def eps_fn(m, name, form, clock, augmentation=None):
    labels = RECORD[name].get("labels")
    condition = Condition(None if labels is None else jnp.asarray(labels), augmentation=augmentation)

    def network(x, noise):
        return apply(NETWORKS[name], params(name), x, noise, condition)

    return parameterization.eps_function(
        m,
        network,
        parameterization=parameterization.PARAMETERIZATIONS[form],
        conditioning=parameterization.CONDITIONINGS[clock],
        sigma_data=0.5,
    )


def denoised(m, name, form, clock, y, sigma, augmentation=None):
    """D of a state of `m` whose sufficient statistic is y, with anything beside it."""
    fn = eps_fn(m, name, form, clock, augmentation)
    y = y.astype(np.float32)
    rest = np.random.default_rng(0).standard_normal((*y.shape[:-1], m.order - 1, y.shape[-1])).astype(np.float32)
    t = kernels.time_of_noise(m, sigma.astype(np.float32))
    u = kernels.state_of(m, y, rest, t)
    return np.asarray(kernels.denoiser(m, u, t, fn(u, t)), np.float64)


def images(value):
    """(B,) against (B, H, W, C)."""
    return np.asarray(value, np.float64)[:, None, None, None]


# Each gives what its authors' network put out, from D at order three: y, sigma -> D -> output.
@pytest.mark.slow
def test_score_sde_vp_is_a_denoiser_at_order_three():
    t = np.array(RECORD["vp"]["cond"])
    rate = 0.1 * t + 9.95 * t**2  # int_0^t of beta from 0.1 to 20
    alpha, std = np.exp(-rate / 2), np.sqrt(-np.expm1(-rate))
    y = inputs("vp") / images(alpha)
    D = denoised(sde.hold(order=3), "vp", "vp", "vp_time", y, std / alpha)
    got = (y - D) * images(alpha / std)  # the score is -output / std, D = (x + std^2 score) / alpha
    np.testing.assert_allclose(recorded(got), RECORD["vp"]["output"], atol=TOLERANCE)


@pytest.mark.slow
def test_score_sde_ve_is_a_denoiser_at_order_three():
    sigma = np.array(RECORD["ve"]["cond"])  # theirs, of pictures in [0, 1]
    D = denoised(sde.hold(order=3), "ve", "ve", "ve_noise", 2 * inputs("ve") - 1, 2 * sigma)
    got = ((D + 1) / 2 - inputs("ve")) / images(sigma)  # sigma times the score
    np.testing.assert_allclose(recorded(got), np.array(RECORD["ve"]["output"]) * sigma[:, None], atol=TOLERANCE)


@pytest.mark.slow
def test_score_sde_s_discrete_ddpm_is_a_denoiser_at_order_three():
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[RECORD["ddpm"]["cond"]]
    alpha, std = np.sqrt(abar), np.sqrt(1 - abar)
    y = inputs("ddpm") / images(alpha)
    D = denoised(sde.hold(order=3), "ddpm", "vp", "discrete_time", y, std / alpha)
    got = (y - D) * images(alpha / std)
    np.testing.assert_allclose(recorded(got), RECORD["ddpm"]["output"], atol=TOLERANCE)


@pytest.mark.slow
def test_score_sde_s_discrete_ve_is_a_denoiser_at_order_three():
    sigma = np.geomspace(50, 0.01, 1000)[RECORD["ve_discrete"]["cond"]]  # theirs, of pictures in [0, 1]
    D = denoised(sde.hold(order=3), "ve_discrete", "ve", "discrete_noise", 2 * inputs("ve_discrete") - 1, 2 * sigma)
    got = ((D + 1) / 2 - inputs("ve_discrete")) / images(sigma)
    want = np.array(RECORD["ve_discrete"]["output"]) * sigma[:, None]
    np.testing.assert_allclose(recorded(got), want, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("edm_ddpmpp", "output"),
        ("edm_ncsnpp", "output"),
        ("edm_ncsnpp", "augmented"),
        pytest.param("edm_adm", "output", marks=pytest.mark.slow),
        pytest.param("edm_adm", "augmented", marks=pytest.mark.slow),
    ],
)
def test_edm_is_a_denoiser_at_order_three(name, output):
    sigma = np.array(RECORD[name]["cond"])
    total = sigma**2 + 0.25
    augmentation = numbers("augmentation", (3, 9)) if output == "augmented" else None
    y = inputs(name) * images(np.sqrt(total))
    D = denoised(sde.hold(order=3), name, "sufficient", "log_noise", y, sigma, augmentation)
    out = np.sqrt(total) / (sigma * 0.5)  # 1 / c_out
    np.testing.assert_allclose(
        recorded(D) * out[:, None], np.array(RECORD[name][output]) * out[:, None], atol=TOLERANCE
    )


@pytest.mark.slow
def test_cld_s_kernel_and_score():
    m, t = sde.cld(), np.array(RECORD["cld"]["cond"])
    kernel = kernels.marginal(m, t.astype(np.float32))
    xx, xv, vv = np.array(RECORD["cld"]["covariance"]).T
    np.testing.assert_allclose(kernel.phi[:, :, 0], RECORD["cld"]["mean"], atol=1e-6)
    covariance = np.asarray(kernel.chol, np.float64) @ np.asarray(kernel.chol, np.float64).swapaxes(1, 2)
    # Theirs has 1e-9 added; at t = 1 the entry beside the diagonal is 7e-6.
    np.testing.assert_allclose(covariance, np.stack([xx, xv, xv, vv], 1).reshape(-1, 2, 2), rtol=5e-6, atol=1e-9)
    u = inputs("cld").reshape(-1, SIZE, SIZE, 2, 3)
    got = eps_fn(m, "cld", "mixed", "log_time")(jnp.asarray(u), t.astype(np.float32))[..., 0, :]
    last = np.sqrt(vv - xv**2 / xx)
    np.testing.assert_allclose(recorded(got), -np.array(RECORD["cld"]["output"]) * last[:, None], atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "process", "form", "clock"),
    [
        ("psld", sde.psld(), "noise", parameterization.log_time),
        ("gddim", sde.cld(), "flow_noise", noise_conditioning.log_time_by(999.0)),
    ],
)
def test_the_noise_of_both_blocks_is_a_denoiser(name, process, form, clock):
    t = np.array(RECORD[name]["cond"], np.float32)
    x = jnp.asarray(inputs("psld"))

    def network(x, noise):
        return apply(NETWORKS["psld"], params("psld"), x, noise, None)

    np.testing.assert_allclose(
        recorded(network(x, clock(process, t))), RECORD[name]["output"], atol=TOLERANCE
    )  # both its blocks
    fn = parameterization.eps_function(
        process, network, parameterization=parameterization.PARAMETERIZATIONS[form], conditioning=clock
    )
    u = x.reshape(-1, SIZE, SIZE, 2, 3)
    D = kernels.denoiser(process, u, t, fn(u, t))
    # D is y minus sigma_eff times the noise: errors grow with the noise.
    scale = 1 + np.asarray(kernels.effective_noise(process, t), np.float64)[:, None]
    np.testing.assert_allclose(recorded(D) / scale, np.array(RECORD[name]["denoised"]) / scale, atol=TOLERANCE)


def test_flax_s_names_are_the_same_network():
    # PyTorch's parameters under Flax's names, in Flax's axes: shapes and names are score_sde's own, recorded.
    network, shape = NETWORKS["ve"], seen("ve")
    flax = score_sde.flax_entries(network, shape)
    assert {entry.name: list(entry.shape) for entry in flax} == RECORD["flax"]
    ours = traverse_util.flatten_dict(params("ve"), sep="/")
    theirs = {entry.name: ours[entry.path] for entry in flax}
    got = convert([entry.rule for entry in flax], theirs, "the file", "the network")
    jax.tree.map(np.testing.assert_array_equal, got, params("ve"))


def test_flax_s_names_of_ddpm_are_read_from_its_own_checkpoint(tmp_path):
    network, shape = NETWORKS["ddpm"], seen("ddpm")
    flax = score_sde.flax_entries(network, shape, score_sde._FLAX_DDPM_CLASSES)
    assert {entry.name: list(entry.shape) for entry in flax} == RECORD["flax_ddpm"]
    ours = traverse_util.flatten_dict(params("ddpm"), sep="/")
    tree = traverse_util.unflatten_dict({entry.name: ours[entry.path] for entry in flax}, sep="/")
    path = tmp_path / "checkpoint_3"
    path.write_bytes(serialization.msgpack_serialize({"step": 3, "params_ema": tree}))
    found = score_sde.read_flax(path, network, shape, "it")
    jax.tree.map(np.testing.assert_array_equal, found.params, params("ddpm"))


def test_flax_counts_modules_without_parameters(tmp_path):
    # A pyramid of pictures resamples with modules of the class that the blocks use, which has the numbers between.
    network = NETWORKS["ve"].clone(
        resblock_type="ddpm", progressive="output_skip", progressive_input="input_skip", channel_multipliers=(1, 2, 2)
    )
    names = {entry.name.split("/")[0] for entry in score_sde.flax_entries(network, (SIZE, SIZE, 3))}
    # Down: a resampling, then the pyramid's; up: none at the deepest level, then the pyramid's before the resampling.
    assert {name for name in names if "sample" in name} == {"Downsample_0", "Downsample_2", "Upsample_0", "Upsample_2"}


def test_averages_are_a_list_in_the_order_of_the_trained_parameters():
    entries = score_sde.torch_entries(NETWORKS["cld"], seen("cld"))
    trained = [entry.name for entry in entries if not entry.path.endswith("frequencies")]
    assert trained == RECORD["cld"]["parameters"]


def test_every_parameter_has_a_layer_and_the_null_class_no_vector():
    found = layers(NETWORKS["edm_ddpmpp"].clone(remat=True), seen("edm_ddpmpp"))
    spec = jax.eval_shape(
        NETWORKS["edm_ddpmpp"].init,
        jax.random.key(0),
        jnp.zeros((1, 8, 8, 3)),
        jnp.zeros(1),
        Condition(label=jnp.zeros(1, int)),
    )["params"]
    flat = traverse_util.flatten_dict(spec, sep="/")
    assert {f"{layer.path}/{k}" for layer in found for k in layer.shapes} == set(flat)
    table = params("edm_ddpmpp")["embedding"]["labels"]["embedding"]
    weight, bias = (state("edm_ddpmpp")[f"model.map_label.{part}"] for part in ("weight", "bias"))
    np.testing.assert_array_equal(table[3], bias)
    np.testing.assert_allclose(table[1], bias + np.sqrt(3) * weight[:, 1], rtol=1e-6)


def test_what_does_not_fit_is_listed_on_both_sides():
    arrays = dict(state("vp"))
    del arrays["sigmas"]
    arrays["all_modules.2.extra"] = arrays.pop("all_modules.2.bias")
    arrays["all_modules.0.bias"] = arrays["all_modules.0.bias"][:5]
    rules = [entry.rule for entry in score_sde.torch_entries(NETWORKS["vp"], seen("vp"))]
    with pytest.raises(UserError) as error:
        convert(rules, arrays, "the file", "the network")
    assert str(error.value) == (
        "the file; it is not of the network: it lacks all_modules.2.bias; it has, and the network has not, "
        "all_modules.2.extra; of other shapes than the network's are all_modules.0.bias (5,) for (32,)"
    )
    arrays = {k: v for k, v in state("vp").items() if k != "sigmas"}
    for bad, fault in (
        (np.full(32, np.inf, np.float32), "has values that are not finite in float32"),
        (np.full(32, 1e300), "has values that are not finite in float32"),
        (np.arange(32), "is of type int64; it must be of floating numbers"),
        (np.ones(32, np.complex64), "is of type complex64; it must be of floating numbers"),
    ):
        raises = pytest.raises(UserError, match=rf"^the file; its all_modules.1.bias {fault}$")
        with raises, np.errstate(over="raise"):  # NumPy's warnings are lines of their own
            convert(rules, arrays | {"all_modules.1.bias": bad}, "the file", "the network")


def test_a_network_with_classes_or_another_pyramid_has_no_names():
    with pytest.raises(UserError, match=r"`model.class_conditional` is True; it must be False"):
        score_sde.torch_entries(NETWORKS["edm_ddpmpp"], seen("vp"))
    with pytest.raises(UserError, match=r"`model.label_place` is 'embedding'; it must be 'features'"):
        edm.rules(NETWORKS["edm_ddpmpp"].clone(label_place="embedding"), seen("vp"))
    with pytest.raises(UserError, match=r"`model` has up1_pyramid/norm, which EDM's network has not"):
        edm.rules(NETWORKS["ve"].clone(progressive="residual"), seen("vp"))


def test_torch_and_flax_layouts_give_back_what_they_took():
    network, shape = NETWORKS["ve"], seen("ve")
    back = score_sde.to_torch(params("ve"), network, shape)
    original = {k: v for k, v in state("ve").items() if k != "sigmas"}
    assert list(back) == list(original)
    for name, value in original.items():
        np.testing.assert_array_equal(back[name], value)
    again = serialization.msgpack_restore(serialization.msgpack_serialize(params("ve")))
    jax.tree.map(np.testing.assert_array_equal, again, params("ve"))
