"""Compilations for hardware that is not there: XLA's passes all on, unlike in the other tests."""

import jax
import pytest

from benchmarks import topologies

topologies.prepare()


@pytest.fixture(autouse=True, scope="package")
def every_pass():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
