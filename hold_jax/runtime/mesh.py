"""Devices as one mesh: the batch, and what of the training state can be, is spread over it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hold_jax.errors import UserError

LARGE = 2**14
"""Numbers from which an array of the training state is spread over the devices and updated by itself."""

_CPU_FLAGS = Path("/proc/cpuinfo")


@dataclasses.dataclass(frozen=True)
class Devices:
    """All devices of all processes on one axis "data"."""

    mesh: Mesh

    @classmethod
    def all(cls) -> "Devices":
        """The mesh over every device there is, each process's side by side: rows of a batch keep their order."""
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        return cls(Mesh(np.array(devices), ("data",)))

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds all of an array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self, axis: int = 0) -> NamedSharding:
        """Axis `axis` of an array is spread over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, "data"))

    def spread(self, shape: tuple[int, ...]) -> NamedSharding:
        """Each device holds one part of an array of the training state.

        The parts are along the last axis but one, a kernel's input channels, or else along the last: a TPU lays these
        two out in tiles of 8 x 128, of which the 8 are the easier to fill. Arrays below `LARGE` numbers, and those of
        which the number of devices divides neither axis, are replicated. A stack of arrays is split as each of them.
        """
        if self.mesh.size > 1 and math.prod(shape) >= LARGE:
            for axis in (len(shape) - 2, len(shape) - 1):
                if axis >= 0 and shape[axis] % self.mesh.size == 0:
                    return self.batch(axis)
        return self.replicated

    def put(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, jax.Array]:
        """This process's rows of a global batch as one global array each."""
        sharding = self.batch(axis)
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}

    def require_divides(self, argument: str, batch_size: int, parts: int = 1) -> None:
        """Raises `UserError`, naming the nearest sizes that work, unless the devices share a batch evenly."""
        unit = self.mesh.size * parts
        if batch_size < 1 or batch_size % unit:
            near = sorted({max(unit, batch_size // unit * unit), (max(batch_size, 0) // unit + 1) * unit})
            of = f"{self.mesh.size} devices" + (f" x {parts} accumulation steps" if parts > 1 else "")
            raise UserError(
                f"`{argument}` is {batch_size}; it must be a multiple of {unit} ({of}): "
                f"the nearest are {' and '.join(map(str, near))}"
            )

    def have_bfloat16(self) -> bool:
        """Whether they multiply bfloat16 in hardware: TPUs, NVIDIA GPUs from Ampere (8.0) on, and CPUs that say so."""
        device = self.mesh.devices.flat[0]
        if device.platform == "gpu":
            return float(getattr(device, "compute_capability", "8.0")) >= 8.0
        if device.platform == "cpu":
            return _CPU_FLAGS.exists() and "bf16" in _CPU_FLAGS.read_text()  # avx512_bf16, amx_bf16, Arm's bf16
        return True

    def init(self, function: Any, *args: Any) -> Any:
        """function(*args) computed in place on every device (no copy on the host first)."""
        return jax.jit(function, out_shardings=self.replicated)(*args)
