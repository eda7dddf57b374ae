"""Options of XLA that this package sets for its whole programs.

XLA for CPU (JAX 0.10, 0.11) gives float32 convolutions to the library YNNPACK, which computes each of them on one
thread. XLA's own convolutions use all threads, and need 0.7 of the processor time for the gradient of a kernel. Sums
and products of matrices stay with YNNPACK. Measured: docs/results/speed.md.
"""

import functools
from typing import Any

import jax

_OF_CPU: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_DOT"}


@functools.cache
def options(platform: str) -> dict[str, Any] | None:
    """Returns the `compiler_options` of `jax.jit` on a platform ("cpu", "gpu", "tpu"); None where there are none."""
    if platform != "cpu":
        return None
    try:
        jax.jit(lambda: 0).lower().compile(_OF_CPU)
    except jax.errors.JaxRuntimeError:  # an experimental option: another version of XLA may not know it
        return None
    return _OF_CPU
