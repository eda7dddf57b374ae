import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.nn import products

CASES = {
    "3x3": ((2, 6, 8, 3), (3, 3, 3, 5), dict(strides=(1, 1), padding="SAME")),
    "1x1": ((2, 4, 4, 3), (1, 1, 3, 5), dict(strides=(1, 1), padding="SAME")),
    "stride, same": ((2, 6, 8, 3), (3, 3, 3, 4), dict(strides=(2, 2), padding="SAME")),
    "stride, valid": ((2, 7, 9, 3), (3, 3, 3, 4), dict(strides=(2, 2), padding="VALID")),
    "stride, a row unused": ((2, 8, 9, 3), (3, 3, 3, 4), dict(strides=(2, 2), padding="VALID")),
    "signal": ((2, 9, 3), (3, 3, 4), dict(strides=(2,), padding="SAME")),
    "transposed signal": ((2, 5, 3), (3, 3, 4), dict(strides=(1,), padding=[(2, 2)], dilation=(2,))),
    "transposed": ((2, 4, 5, 3), (3, 3, 3, 4), dict(strides=(1, 1), padding=[(2, 2)] * 2, dilation=(2, 2))),
}


def draw(shape, seed):
    """Numbers that bfloat16 holds exactly, so that float32 products are the truth."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16).astype(jnp.float32)


def both(product, reference, x, kernel):
    """(y, gradient of x, gradient of the kernel), of ours in bfloat16 and of JAX in float32."""
    y_bar = draw(jax.eval_shape(reference, x, kernel).shape, 2)
    y, pull = jax.vjp(product, x.astype(jnp.bfloat16), kernel)
    want_y, want_pull = jax.vjp(reference, x, kernel)
    return (y, *pull(y_bar.astype(jnp.bfloat16))), (want_y, *want_pull(y_bar))


def check(got, want):
    assert [str(a.dtype) for a in got] == ["bfloat16", "bfloat16", "float32"]
    for a, b, bound in zip(got, want, (2**-8, 2**-8, 1e-6), strict=True):
        assert a.shape == b.shape
        assert float(jnp.abs(a.astype(jnp.float32) - b).max()) < bound * float(jnp.abs(b).max())


@pytest.mark.parametrize("case", CASES)
def test_a_convolution_s_kernel_has_the_float32_gradient(case):
    x_shape, kernel_shape, options = CASES[case]

    numbers = {4: ("NHWC", "HWIO", "NHWC"), 3: ("NWC", "WIO", "NWC")}[len(x_shape)]
    theirs = {"strides": "window_strides", "dilation": "lhs_dilation"}

    def reference(x, kernel):
        renamed = {theirs.get(name, name): value for name, value in options.items()}
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, precision="highest", **renamed)

    check(*both(lambda x, k: products.conv(x, k, **options), reference, draw(x_shape, 0), draw(kernel_shape, 1)))


@pytest.mark.parametrize("rows", [(4,), (2, 3, 4)])
def test_a_matrix_product_s_kernel_has_the_float32_gradient(rows):
    def product(x, kernel):
        return products.dot(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))

    reference = functools.partial(jnp.matmul, precision="highest")
    check(*both(product, reference, draw((*rows, 5), 0), draw((5, 6), 1)))


def test_forward_mode_vmap_and_recomputation_agree_with_reverse_mode():
    x, kernel = draw((2, 4, 4, 3), 0).astype(jnp.bfloat16), draw((3, 3, 3, 4), 1)
    v = draw(kernel.shape, 3)

    def loss(kernel):
        return jnp.sum(products.conv(x, kernel, (1, 1), "SAME").astype(jnp.float32))

    gradient = jax.grad(loss)(kernel)
    np.testing.assert_allclose(jax.jvp(loss, (kernel,), (v,))[1], jnp.vdot(gradient, v), rtol=2e-2)
    np.testing.assert_array_equal(jax.vmap(jax.grad(loss))(kernel[None])[0], gradient)
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(loss))(kernel), gradient)


def test_with_equal_types_it_is_the_plain_product():
    x, kernel = draw((2, 4, 4, 3), 0), draw((3, 3, 3, 4), 1)
    jaxpr = str(jax.make_jaxpr(lambda k: products.conv(x, k, (1, 1), "SAME"))(kernel))
    assert "custom" not in jaxpr and "conv_general_dilated" in jaxpr


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_the_tests_see_tf32(precision):
    """What conftest.py does. Without it a missing `precision` in the package would be seen on GPUs only."""
    x, one = jnp.full((1, 1, 1), 1 + 2.0**-12), jnp.ones((1, 1, 1))
    want = 1.0 if precision == "default" else 1 + 2.0**-12
    conv = functools.partial(jax.lax.conv_general_dilated, window_strides=(1,), padding="SAME", precision=precision)
    for product in (functools.partial(jnp.matmul, precision=precision), conv):
        assert jax.jit(product)(x, one) == want
        assert jax.grad(lambda y: jnp.sum(product(x, y)))(one) == want  # noqa: B023
