"""Test-wide JAX settings: eight fake CPU devices, strict rank promotion, quick compilation."""

import os
import sys
from importlib.metadata import version

os.environ["XLA_FLAGS"] = " ".join(
    [
        # Before what is given: of two values XLA takes the last, so one device can be asked for.
        "--xla_force_host_platform_device_count=8",
        os.environ.get("XLA_FLAGS", ""),
        # In the fast tier XLA's older code generator, which compiles in half the time; jaxlib 0.11 does not have it.
        # Workers of xdist have the flags of the process that starts them.
        "--xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.")
        and not {"--all", "PYTEST_XDIST_WORKER"} & {*sys.argv, *os.environ}
        and not any("::" in argument for argument in sys.argv)
        else "",
    ]
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# HOLD_JAX_TEST_PLATFORM=cuda or tpu: on an accelerator, with the processor beside it, as JAX has it by default: without
# it the tests that call the host from a program fail.
PLATFORM = os.environ.get("HOLD_JAX_TEST_PLATFORM", "cpu")
jax.config.update("jax_platforms", PLATFORM if PLATFORM == "cpu" else f"{PLATFORM},cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")


def _as_on_gpus(product):
    """Rounds the float32 factors of products of default precision to ten binary digits, as TF32 of NVIDIA's GPUs does.

    So a number of ours that depends on the default precision is wrong here too, not only there.
    """
    bind = product.bind

    def rounded(x, y, *, precision, **options):
        of_both = precision if isinstance(precision, tuple) else (precision, precision)
        if set(of_both) <= {None, jax.lax.Precision.DEFAULT} and x.dtype == y.dtype == jnp.float32:
            x, y = (jax.lax.reduce_precision(a, exponent_bits=8, mantissa_bits=10) for a in (x, y))
        return bind(x, y, precision=precision, **options)

    product.bind = rounded


_as_on_gpus(jax.lax.dot_general_p)
_as_on_gpus(jax.lax.conv_general_dilated_p)
# The suite's time is compilation: XLA's slower passes buy nothing here.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_addoption(parser):
    """`python -m pytest` runs the fast tier, `python -m pytest --all` every test."""
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    """Skips what needs more devices; leaves out slow tests, unless `--all` or the test's own name was given."""
    if len(jax.devices()) < 8:
        for item in items:
            if item.get_closest_marker("eight_devices"):
                item.add_marker(pytest.mark.skip(reason="needs eight devices"))
    if config.getoption("--all") or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture
def random_params():
    """A function (module, *args, seed=0) -> parameters: kernels N(0, 1/fan_in), vectors N(1/2, 1/4).

    At initialization the networks' last layers are near zero and would hide mistakes.
    """

    def draw(module, *args, seed=0):
        rng = np.random.default_rng(seed)

        def leaf(spec):
            value = rng.normal(size=spec.shape)
            value = 0.5 + 0.5 * value if len(spec.shape) == 1 else value / np.sqrt(np.prod(spec.shape[:-1]))
            return jnp.asarray(value, jnp.float32)

        return jax.tree.map(leaf, jax.eval_shape(module.init, jax.random.key(0), *args)["params"])

    return draw
