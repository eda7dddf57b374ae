"""The options of XLA: known to the installed version, and of effect; the numbers are those of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.runtime import compilation
from hold_jax.runtime.mesh import Devices

X, KERNEL = jnp.ones((2, 8, 8, 32)), jnp.full((3, 3, 32, 32), 0.5)


@pytest.fixture(autouse=True)
def with_optimizations():
    """As users compile: the other tests do without."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def convolution(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_the_installed_xla_knows_the_options():
    for platform in ("cpu", "gpu"):
        assert compilation.options(platform) == compilation._OPTIONS[platform]
    assert compilation.options("tpu") is None


def test_an_option_of_another_version_is_left_out(monkeypatch):
    monkeypatch.setitem(compilation._OPTIONS, "cpu", {"xla_cpu_of_another_version": "1"})
    assert compilation.options("cpu") is None
    gpu = compilation._OPTIONS["gpu"]
    monkeypatch.setitem(compilation._OPTIONS, "gpu", {"xla_gpu_of_another_version": True} | gpu)
    assert compilation.options("gpu") == gpu


def test_an_option_that_the_user_sets_is_left_to_the_user(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm_int4=true")
    assert compilation.options("gpu") == compilation._OPTIONS["gpu"]
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp --xla_gpu_enable_triton_gemm=true")
    assert compilation.options("gpu") == {"xla_gpu_enable_dynamic_slice_fusion": False}
    assert compilation.options("cpu") == compilation._OPTIONS["cpu"]


def test_no_level_of_optimization_is_set_where_jax_is_told_not_to_optimize():
    assert "xla_backend_optimization_level" in compilation.options("cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    assert "xla_backend_optimization_level" not in compilation.options("cpu")


@pytest.mark.parametrize("jit, by_library", [(jax.jit, True), (Devices.all().jit, False)])
def test_float32_convolutions_are_not_given_to_a_library(jit, by_library):
    text = jit(convolution).lower(X, KERNEL).compile().as_text()
    assert text.count(" convolution(") == 1 and ("ynn_fusion" in text) == by_library


def test_the_convolution_is_right():
    out = Devices.all().jit(convolution)(X, KERNEL)
    np.testing.assert_array_equal(out[:, 1:-1, 1:-1], 9 * 32 * 0.5)
    np.testing.assert_array_equal(out[:, 0, 0], 4 * 32 * 0.5)
