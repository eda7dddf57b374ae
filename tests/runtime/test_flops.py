"""The operations of products: XLA's own count for a CPU, of one product at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from hold_jax.nn import products
from hold_jax.runtime import flops


def counted(function, *args):
    return flops.of_products(jax.jit(function).trace(*args).jaxpr)


def of_xla(function, *args):
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def convolution(x, kernel, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    given = {"window_strides": (1, 1), "padding": "SAME", "precision": "highest"} | options
    return lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **given)


X = jnp.ones((2, 9, 7, 6))
KERNEL = jnp.ones((3, 3, 6, 4))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "VALID"},
        {"window_strides": (2, 1)},
        {"lhs_dilation": (2, 3), "padding": ((2, 2), (2, 2))},
        {"rhs_dilation": (2, 1)},
        {"padding": ((5, 1), (0, 4)), "window_strides": (2, 2), "lhs_dilation": (2, 1)},
    ],
)
def test_a_convolution_has_as_many_as_xla_counts(options):
    assert counted(lambda x, k: convolution(x, k, **options), X, KERNEL) == of_xla(
        lambda x, k: convolution(x, k, **options), X, KERNEL
    )


def test_groups_share_out_the_channels():
    kernel = jnp.ones((3, 3, 2, 9))
    grouped = lambda x, k: convolution(x, k, feature_group_count=3)  # noqa: E731
    assert counted(grouped, X, kernel) == of_xla(grouped, X, kernel) > 0


def test_a_matrix_product_has_two_for_each_pair():
    assert counted(jnp.matmul, jnp.ones((5, 7)), jnp.ones((7, 3))) == 2 * 5 * 7 * 3
    assert counted(lambda a, b: jnp.einsum("bik,bjk->bij", a, b), jnp.ones((4, 5, 7)), jnp.ones((4, 3, 7))) == 840


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_gradients_of_a_convolution_have_as_many_as_itself(dtype):
    def loss(x, kernel):
        return (products.conv(x.astype(dtype), kernel, (1, 1), "SAME").astype(jnp.float32) ** 2).sum()

    assert counted(jax.grad(loss, (0, 1)), X, KERNEL) == 3 * counted(convolution, X, KERNEL)


@pytest.mark.eight_devices
def test_a_shard_map_counts_on_all_devices():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size > 1
    spread = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert counted(spread, jnp.ones((16, 8)), jnp.ones((8, 4))) == 2 * 16 * 8 * 4


def test_loops_count_as_often_as_they_run_and_conditionals_as_their_largest_branch():
    a = jnp.ones((4, 4))
    scan = lambda a: lax.scan(lambda x, _: (x @ a, None), a, length=5)[0]  # noqa: E731
    nested = lambda a: lax.scan(lambda x, _: (scan(x), None), a, length=2)[0]  # noqa: E731
    loop = lambda a: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ a, a)  # noqa: E731
    either = lambda a: lax.cond(a.sum() > 0, lambda x: x, lambda x: x @ x, a)  # noqa: E731
    assert np.array([counted(f, a) for f in (scan, nested, loop, either)]).tolist() == [640, 1280, 128, 128]
    assert counted(jax.remat(lambda a: a @ a), a) == 128
