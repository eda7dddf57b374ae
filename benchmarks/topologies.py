"""Devices that are not there, to compile for: TPUs by libtpu, NVIDIA GPUs by JAX's CUDA plugin."""

import importlib.util
import os
from pathlib import Path

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from hold_jax.runtime.mesh import Devices

HOW = "pip install --target DIR --no-deps $(python benchmarks/packages.py), and PYTHONPATH=DIR"
_PACKAGES = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}
_H100 = Path(__file__).parent / "h100.txtpb"  # XLA's GpuTargetConfigProto, of an H100 with 80 GB


def prepare() -> None:
    """Sets what the compilers read from the environment. Must be called before JAX's first use of a backend."""
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # no metadata server
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # no warnings
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    plugin = importlib.util.find_spec(_PACKAGES["cuda"])
    if plugin is not None and plugin.origin is not None:
        compiler = Path(plugin.origin).parents[1] / "nvidia" / "cuda_nvcc"
        os.environ["PATH"] = f"{compiler / 'bin'}{os.pathsep}{os.environ['PATH']}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_cuda_data_dir={compiler}"


def platform(name: str) -> str:
    """What the programs for a topology are lowered for: "cuda" or "tpu"."""
    return "cuda" if name.startswith("h100") else "tpu"


def available(name: str) -> bool:
    """Whether the compiler for a topology is installed."""
    return importlib.util.find_spec(_PACKAGES[platform(name)]) is not None


def devices(name: str) -> Devices:
    """The mesh of a topology.

    Args:
      name: KIND:SHAPE, "h100:1x1x8" (partitions x hosts x cards) or, say, "v5e:4x4" (chips); "@N": its first N devices.
        "local": the devices of this machine.
    """
    if name == "local":
        return Devices.all()
    name, _, count = name.partition("@")
    kind, shape = name.split(":")
    if kind == "h100":
        found = topologies.get_topology_desc(
            platform="cuda", topology_name=shape, topology=shape, target_config=_H100.read_text()
        )
    else:
        # A chip of these kinds has two cores, which together are one device.
        cores = {"chip_config_name": "megacore"} if kind in ("v4", "v5p") else {}
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **cores)
    ordered = sorted(found.devices, key=lambda device: (device.process_index, device.id))
    return Devices(Mesh(np.array(ordered[: int(count or len(ordered))]), ("data",)))
