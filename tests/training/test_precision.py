"""Which parts of a bfloat16 training step are in which type, in its jaxpr.

XLA may change types again: `tests/aot` reads what it made of the program.
"""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from hold_jax import losses, sde
from hold_jax.model import Model
from hold_jax.nn import NCSNpp
from hold_jax.parameterization import gaussian, log_noise
from hold_jax.training.step import mean_loss

FLOAT32_LAYERS = ("/conv_in", "/head/", "/embedding/", "/time/", "/filter", "/norm")
# The softmax's logits are float32, so their gradient is too; the other factor, queries or keys, is bfloat16.
LOGITS = "bhqc,bhkc->bhqk"
PRODUCTS = ("conv_general_dilated", "dot_general")


def equations(jaxpr, path=""):
    """Every equation of a jaxpr and of those inside it, with the names of the modules it stands in."""
    for equation in jaxpr.eqns:
        name = f"{path}/{equation.source_info.name_stack}"
        inner = []
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                item = getattr(item, "jaxpr", item)
                if hasattr(item, "eqns"):
                    inner.append(item)
        if not inner:
            yield name, equation
        for item in inner:
            yield from equations(item, name)


def types(variables):
    return {str(v.aval.dtype) for v in variables if jnp.issubdtype(v.aval.dtype, jnp.floating)}


@functools.cache
def step_in(dtype):
    """The equations of loss and gradient of a small network with every layer of the CIFAR-10 one."""
    network = NCSNpp(
        1,
        channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dropout=0.1,
        dtype=dtype,
    )
    model = Model(sde.hold(order=3), network, (8, 8, 1), gaussian, log_noise, 0.5)
    batch = {"x": jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.uint8), "label": jax.ShapeDtypeStruct((4,), jnp.int32)}
    args = (jax.eval_shape(model.init, jax.random.key(0)), batch, jax.eval_shape(lambda: jax.random.key(0)))

    def loss(params, batch, key):
        return mean_loss(model, losses.bcsm_loss, params, batch, key, train=True)

    return list(equations(jax.make_jaxpr(jax.value_and_grad(loss))(*args).jaxpr))


@pytest.fixture
def step():
    return step_in(jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_product_depends_on_the_default_of_a_backend(dtype):
    # By default a TPU rounds float32 factors to bfloat16, and a GPU to TF32.
    found = [(name, e) for name, e in step_in(dtype) if e.primitive.name in PRODUCTS]
    float32 = [(name, e) for name, e in found if types(e.invars) == {"float32"}]
    assert len(float32) > 20 and (len(float32) == len(found)) == (dtype == jnp.float32)
    for name, equation in float32:
        assert equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2, name
    assert all(e.params["precision"] is not None for _, e in found)


def test_products_inside_the_network_are_bfloat16(step):
    inside = [
        (name, equation)
        for name, equation in step
        if equation.primitive.name in PRODUCTS and "(NCSNpp)" in name and not any(p in name for p in FLOAT32_LAYERS)
    ]
    # 11 residual blocks with 2 convolutions each, each with two products in the backward pass.
    assert len(inside) > 3 * 22
    for name, equation in inside:
        logits_gradient = name.endswith(LOGITS) and "transpose(" in name
        assert types(equation.invars) == ({"float32", "bfloat16"} if logits_gradient else {"bfloat16"}), name


def test_first_and_last_convolution_embedding_filters_and_norms_are_float32(step):
    for layer in FLOAT32_LAYERS:
        found = [e for name, e in step if e.primitive.name in PRODUCTS and "(NCSNpp)" in name and layer in name]
        assert found, layer
        assert {t for e in found for t in types([*e.invars, *e.outvars])} == {"float32"}, layer


def test_everything_around_the_network_is_float32(step):
    around = [(name, equation) for name, equation in step if "(NCSNpp)" not in name]
    assert any(equation.primitive.name == "erf_inv" for _, equation in around)
    for name, equation in around:
        assert types([*equation.invars, *equation.outvars]) <= {"float32"}, (name, equation)


def test_sums_and_statistics_are_float32(step):
    seen = set()
    for name, equation in step:
        primitive = equation.primitive.name
        if primitive in ("reduce_sum", "reduce_max", "rsqrt", "exp"):
            shape = equation.invars[0].aval.shape
            if math.prod(shape[axis] for axis in equation.params.get("axes", range(len(shape)))) > 1:
                seen.add(primitive)
                assert "bfloat16" not in types(equation.invars), (name, equation)
    assert seen == {"reduce_sum", "reduce_max", "rsqrt", "exp"}
