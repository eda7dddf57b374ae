"""All devices as one mesh, over which the batch and the large arrays of the train state are spread."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hold_jax.errors import UserError
from hold_jax.runtime import compilation

LARGE = 2**14
"""Arrays of the train state with at least this many numbers are spread over the devices, not put in one vector."""

_CPU_FLAGS = Path("/proc/cpuinfo")


@dataclasses.dataclass(frozen=True)
class Devices:
    """All devices of all processes on one axis "data"."""

    mesh: Mesh

    @classmethod
    def all(cls) -> "Devices":
        """Returns the mesh of all devices, ordered by process, so that the rows of a batch keep their order."""
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        return cls(Mesh(np.array(devices), ("data",)))

    @property
    def replicated(self) -> NamedSharding:
        """The sharding with a full copy of an array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self, axis: int = 0) -> NamedSharding:
        """Returns the sharding that splits axis `axis` of an array over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, "data"))

    def spread(self, shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding of an array of the train state.

        A large array is split along its second-to-last axis, the input channels of a kernel, or else along its last. A
        TPU stores these two axes in tiles of 8 x 128, and parts along the axis of 8 fill them more easily. Arrays with
        fewer than `LARGE` numbers are replicated, and so are arrays of which the number of devices divides neither
        axis. A stack of arrays is split like each of its arrays.
        """
        if self.mesh.size > 1 and math.prod(shape) >= LARGE:
            for axis in (len(shape) - 2, len(shape) - 1):
                if axis >= 0 and shape[axis] % self.mesh.size == 0:
                    return self.batch(axis)
        return self.replicated

    def put(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, jax.Array]:
        """Makes global arrays of a batch from the rows of this process.

        Args:
          batch: arrays by name, with the rows of this process along `axis`.
          axis: the axis that is split over the devices.
        """
        sharding = self.batch(axis)
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}

    def require_divides(self, argument: str, batch_size: int, parts: int = 1) -> None:
        """Checks that a batch can be divided evenly among the devices.

        Args:
          argument: name of the batch size in the error.
          batch_size: size of the global batch.
          parts: number of accumulation steps.

        Raises:
          UserError: if it cannot; the message contains the nearest valid sizes.
        """
        unit = self.mesh.size * parts
        if batch_size < 1 or batch_size % unit:
            near = sorted({max(unit, batch_size // unit * unit), (max(batch_size, 0) // unit + 1) * unit})
            of = f"{self.mesh.size} devices" + (f" x {parts} accumulation steps" if parts > 1 else "")
            raise UserError(
                f"`{argument}` is {batch_size}; it must be a multiple of {unit} ({of}): "
                f"the nearest are {' and '.join(map(str, near))}"
            )

    def have_bfloat16(self) -> bool:
        """Returns whether the devices multiply bfloat16 in hardware.

        TPUs and AMD GPUs do, NVIDIA GPUs from Ampere (compute capability 8.0) on, and CPUs with such a flag in
        /proc/cpuinfo.
        """
        if self.platform == "gpu":
            capability = str(getattr(self.mesh.devices.flat[0], "compute_capability", "8.0"))
            return capability.startswith("gfx") or float(capability) >= 8.0  # gfx90a and the like are AMD's
        if self.platform == "cpu":
            return _CPU_FLAGS.exists() and "bf16" in _CPU_FLAGS.read_text()  # avx512_bf16, amx_bf16, Arm's bf16
        return True

    @property
    def platform(self) -> str:
        """Returns "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    def jit(self, function: Callable[..., Any], **options: Any) -> Any:
        """Returns `jax.jit(function, **options)` for a whole program, compiled as `compilation.options` says.

        JAX raises a ValueError if the result is called inside another traced function.
        """
        return jax.jit(function, compiler_options=compilation.options(self.platform), **options)

    def init(self, function: Any, *args: Any) -> Any:
        """Returns function(*args), computed on every device without a copy on the host."""
        return jax.jit(function, out_shardings=self.replicated)(*args)
