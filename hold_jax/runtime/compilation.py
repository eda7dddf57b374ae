"""Options of XLA that this package sets for its whole programs.

CPU: XLA (JAX 0.10, 0.11) gives float32 convolutions to the library YNNPACK, which computes each of them on one thread.
XLA's own convolutions use all threads, and need 0.7 of the processor time for the gradient of a kernel. Sums and
products of matrices stay with YNNPACK. Measured: docs/results/speed.md.

NVIDIA GPU: products of matrices are left to cuBLAS. By default XLA also compiles each of them by Triton in many tilings
and times all; in float32 at full precision one can take minutes. Measured: docs/results/h200.md.
"""

import functools
import os
from typing import Any

import jax

_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_DOT"},
    "gpu": {"xla_gpu_enable_triton_gemm": False},
}


@functools.cache
def options(platform: str) -> dict[str, Any] | None:
    """Returns the `compiler_options` of `jax.jit` on a platform ("cpu", "gpu", "tpu"), None where there are none.

    An option that the environment's `XLA_FLAGS` names is the user's, and left out.
    """
    flags = {flag.partition("=")[0].lstrip("-") for flag in os.environ.get("XLA_FLAGS", "").split()}
    found = {name: value for name, value in _OPTIONS.get(platform, {}).items() if name not in flags} or None
    try:
        jax.jit(lambda: 0).lower().compile(found)
    except jax.errors.JaxRuntimeError:  # an option that another version of XLA may not know
        return None
    return found
