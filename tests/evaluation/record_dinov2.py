"""Records the authors' DINOv2 and that of transformers for `test_dinov2.py`; run by hand, with PyTorch, without JAX.

    python tests/evaluation/record_dinov2.py  # writes tests/evaluation/dinov2.json

`dinov2`, a clone of github.com/facebookresearch/dinov2, and transformers must be importable.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import dinov2_record as small  # noqa: E402
from dinov2.models.vision_transformer import DinoVisionTransformer  # noqa: E402
from transformers import Dinov2Config, Dinov2Model  # noqa: E402


def stretched(x):
    """dgm-eval's pipeline: Pillow's bicubic resizing, values in [0, 1], normalization."""
    x = np.stack([np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC)) for picture in x])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(x).float() / 255 - mean) / std).permute(0, 3, 1, 2)


def authors(gated):
    net = DinoVisionTransformer(
        img_size=14 * small.GRID,
        patch_size=14,
        embed_dim=small.WIDTH,
        depth=small.DEPTH,
        num_heads=small.WIDTH // 64,
        init_values=1.0,
        ffn_layer="swiglufused" if gated else "mlp",
        block_chunks=0,
    )
    net.load_state_dict({name: torch.from_numpy(value) for name, value in small.state(gated).items()}, strict=True)
    return net.eval()


def transformers(gated, folder):
    config = Dinov2Config(
        hidden_size=small.WIDTH,
        num_hidden_layers=small.DEPTH,
        num_attention_heads=small.WIDTH // 64,
        image_size=14 * small.GRID,
        patch_size=14,
        use_swiglu_ffn=gated,
    )
    config.save_pretrained(folder)
    safetensors.numpy.save_file(small.transformers_state(gated), folder / "model.safetensors", {"format": "pt"})
    net, said = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    return net.eval()


def main():
    found = {}
    for name, gated in small.GATED.items():
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            nets = {"authors": authors(gated), "transformers": transformers(gated, Path(folder))}
            found[name] = {}
            for size, x in small.pictures().items():
                x = stretched(x)
                y = {who: net(x) for who, net in nets.items()}
                y["transformers"] = y["transformers"].pooler_output
                found[name][size] = {who: np.round(v.numpy()[:, ::4].astype(float), 6).tolist() for who, v in y.items()}
    (HERE / "dinov2.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
