"""Images per second of the Inception network, ours and, where PyTorch and pytorch-fid are installed, theirs.

    python -m benchmarks.inception --batch_size=32 --output=inception.json

Both run in turn in one process, on the same pictures with the same random weights (speed does not depend on them), so
the table also says how far the features are apart. pytorch-fid's own layout is NCHW; PyTorch's faster one, channels
last, is measured beside it.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.alone import alone
from benchmarks.overhead import seconds
from hold_jax.evaluation.inception_network import Inception
from hold_jax.evaluation.inception_weights import from_state_dict, state_shapes
from hold_jax.runtime.mesh import Devices


def random_state() -> dict[str, np.ndarray]:
    """Weights under which activations neither vanish nor grow: denormal numbers would be slow."""
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in state_shapes().items():
        if len(shape) > 1:
            state[name] = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        else:
            state[name] = np.full(shape, name.endswith(("bn.weight", "running_var")), np.float32)
    return state


def ours(state: dict[str, np.ndarray], x: np.ndarray) -> Callable[[], jax.Array]:
    """Pictures to features by `hold_jax`, compiled."""
    params = jax.tree.map(jnp.asarray, from_state_dict(state))
    apply = Devices.all().jit(lambda params, x: Inception().apply({"params": params}, x)[0])
    return lambda: apply(params, x)


def theirs(state: dict[str, np.ndarray], x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Pictures to features by pytorch-fid, in both layouts; empty where it cannot be imported."""
    try:
        import pytorch_fid.inception as peer
        import torch
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another PyTorch
        print(f"pytorch-fid is not measured: {error}")
        return {}
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # as ours
    pictures = torch.tensor(x, device=device).permute(0, 3, 1, 2)
    functions = {}
    for name, layout in {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}.items():
        with mock.patch.object(peer, "load_state_dict_from_url", return_value=tensors):
            network = peer.InceptionV3([3]).eval().to(device, memory_format=layout)

        def features(network: Any = network, layout: Any = layout) -> np.ndarray:
            with torch.inference_mode():
                batch = (pictures / 255).contiguous(memory_format=layout)
                return network(batch)[0][:, :, 0, 0].cpu().numpy()

        functions[f"pytorch-fid, {name}"] = features
    return functions


def main() -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="height and width of the pictures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    args = parser.parse_args()

    state = random_state()
    x = np.random.default_rng(1).integers(0, 256, (args.batch_size, args.size, args.size, 3), dtype=np.uint8)
    functions = {"hold_jax": ours(state, x), **theirs(state, x)}
    features = {name: np.asarray(function()) for name, function in functions.items()}  # compiles
    with alone():
        times = seconds(functions, args.repeats)

    print(f"{'':<28}{'seconds':>10}{'images/s':>10}{'time/ours':>11}{'difference':>12}")
    rows = []
    for name, found in times.items():
        apart = np.abs(features[name] - features["hold_jax"]).max() / np.abs(features["hold_jax"]).max()
        rows.append(
            {
                "name": name,
                "seconds": found,
                "images_per_second": args.batch_size / found,
                "time_over_ours": found / times["hold_jax"],
                "largest_difference_over_largest_feature": float(apart),
            }
        )
        print(
            f"{name:<28}{found:>10.3f}{args.batch_size / found:>10.2f}{found / times['hold_jax']:>11.2f}{apart:>12.1e}"
        )
    if args.output:
        about = {
            "batch_size": args.batch_size,
            "size": args.size,
            "repeats": args.repeats,
            "device": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "jax": jax.__version__,
        }
        args.output.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
