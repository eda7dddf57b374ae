"""Records diffusers' own networks for `test_convert_diffusers.py`; run by hand, with PyTorch and diffusers, no JAX.

    python tests/convert/record_diffusers.py OUTPUT         # tests/convert/diffusers.json, and folders below OUTPUT
    python tests/convert/record_diffusers.py OUTPUT --full  # folders of full-size networks, each with its outputs.npz

The folders are what `save_pretrained` writes; `python -m hold_jax.convert --from=diffusers` reads them.
"""

import json
import sys
import zlib
from pathlib import Path

import diffusers
import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from diffusers_record import FULL, SMALL, inputs, numbers, outputs_kept  # noqa: E402


def record(name, spec, folder, full):
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**spec["unet"]).eval()
    with torch.no_grad():
        for label, value in net.state_dict().items():
            value.copy_(torch.from_numpy(numbers(label, tuple(value.shape))))
    scheduler = getattr(diffusers, spec["scheduler"]["_class_name"])(
        **{key: value for key, value in spec["scheduler"].items() if not key.startswith("_")}
    )
    root = folder / name
    net.save_pretrained(root / "unet")
    scheduler.save_pretrained(root / "scheduler")
    x = torch.from_numpy(inputs(spec)).permute(0, 3, 1, 2)
    times = torch.tensor(spec["times"])
    with torch.no_grad():
        y = net(x, times).sample.permute(0, 2, 3, 1).numpy()
    kept = {"state": {k: list(v.shape) for k, v in net.state_dict().items()}}
    if hasattr(scheduler, "alphas_cumprod"):
        kept["abar"] = [float(scheduler.alphas_cumprod[t]) for t in spec["times"]]
    if full:
        np.savez(root / "outputs.npz", y=y, abar=kept.get("abar", []))
        print(name, sum(v.numel() for v in net.state_dict().values()) / 1e6, "million", np.abs(y).max())
        return None
    return kept | {"output": np.round(outputs_kept(y).astype(np.float64), 7).tolist()}


def main(folder, full):
    found = {name: record(name, spec, folder, full) for name, spec in (FULL if full else SMALL).items()}
    if not full:
        (HERE / "diffusers.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")
    print(diffusers.__version__, torch.__version__, zlib.crc32(json.dumps(found).encode()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--full" in sys.argv)
