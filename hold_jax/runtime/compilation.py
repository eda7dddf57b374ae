"""Options of XLA that this package sets for its whole programs.

CPU: XLA (JAX 0.10, 0.11) gives float32 convolutions to the library YNNPACK, which computes each of them on one thread.
XLA's own convolutions use all threads, and need 0.7 of the processor time for the gradient of a kernel. Sums and
products of matrices stay with YNNPACK. Measured: docs/results/speed.md. LLVM optimizes at level 1 in place of 3: to
compile takes 0.85 of the time, and what is compiled is as fast. Measured: docs/hardware.md.

NVIDIA GPU: products of matrices are left to cuBLAS. By default XLA also compiles each of them by Triton in many tilings
and times all; in float32 at full precision one can take minutes. Measured: docs/results/h200.md. And slices that a
library's product reads are copied first. By default XLA (JAX 0.11) passes the address in the middle of the sliced
array; cuBLAS refuses one that is no multiple of 16 bytes, as of a parameter in the vector of the small ones, and the
program stops at its first call. Seen: docs/results/h100.md.
"""

import functools
import os
from typing import Any

import jax

_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_DOT",
        "xla_backend_optimization_level": 1,
    },
    "gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_enable_dynamic_slice_fusion": False},
}


def options(platform: str) -> dict[str, Any] | None:
    """Returns the `compiler_options` of `jax.jit` on a platform ("cpu", "gpu", "tpu"), None where there are none.

    An option that the environment's `XLA_FLAGS` names is the user's, and left out; so is the level of optimization
    under JAX's `jax_disable_most_optimizations`, and an option that the installed XLA does not know.
    """
    users = {flag.partition("=")[0].lstrip("-") for flag in os.environ.get("XLA_FLAGS", "").split()}
    if jax.config.read("jax_disable_most_optimizations"):
        users.add("xla_backend_optimization_level")
    options = _OPTIONS.get(platform, {})
    return {name: options[name] for name in options if name not in users and _known(name, options[name])} or None


@functools.cache
def _known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile({name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True
