"""Test-wide JAX settings: eight fake CPU devices, strict rank promotion, quick compilation."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The suite's time is compilation: XLA's slower passes buy nothing here.
jax.config.update("jax_disable_most_optimizations", True)
