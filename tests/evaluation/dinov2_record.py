"""Small versions of DINOv2: the numbers that fill them, and the pictures they are shown. NumPy and Pillow alone."""

import zlib

import numpy as np
from PIL import Image

WIDTH, DEPTH, GRID = 128, 2, 20
GATED = {"vit": False, "gated": True}


def shapes(gated):
    """Names and shapes of the authors' state dict."""
    w = WIDTH
    found = {
        "cls_token": (1, 1, w),
        "pos_embed": (1, 1 + GRID**2, w),
        "mask_token": (1, w),
        "patch_embed.proj.weight": (w, 3, 14, 14),
        "patch_embed.proj.bias": (w,),
    }
    dense = {"attn.qkv": (3 * w, w), "attn.proj": (w, w)}
    dense |= {"mlp.w12": (688, w), "mlp.w3": (w, 344)} if gated else {"mlp.fc1": (4 * w, w), "mlp.fc2": (w, 4 * w)}
    for i in range(DEPTH):
        for name, shape in dense.items():
            found |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for j in (1, 2):
            found |= {f"blocks.{i}.norm{j}.{part}": (w,) for part in ("weight", "bias")}
            found[f"blocks.{i}.ls{j}.gamma"] = (w,)
    return found | {"norm.weight": (w,), "norm.bias": (w,)}


def state(gated):
    """Numbers for every array, of a size that keeps all parts of the network visible in its output."""
    found = {}
    for name, shape in shapes(gated).items():
        x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        scale = shape[-1] ** -0.5 if len(shape) == 2 else (3 * 14 * 14) ** -0.5 if len(shape) == 4 else 0.5
        found[name] = (x * scale + (name.endswith(("norm.weight", "gamma")) or ".norm" in name)).astype(np.float32)
    return found


def transformers_state(gated):
    """The same numbers under the names of the files of transformers."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "mask_token": "embeddings.mask_token",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "encoder.layer.",
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "mlp.w12": "mlp.weights_in",
        "mlp.w3": "mlp.weights_out",
    }
    found = {}
    for name, value in state(gated).items():
        name = "layernorm." + name.partition(".")[2] if name.startswith("norm.") else name
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                found[name.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            found[name] = value
    return found


def pictures():
    """Three of each size, smaller and larger than 224; the last is gray."""
    rng = np.random.RandomState(0)
    coarse = rng.randint(0, 256, (3, 6, 5, 3)).astype(np.uint8)
    coarse[2] = coarse[2, ..., :1]
    sizes = {"32x32": (32, 32), "250x300": (300, 250)}
    return {k: np.stack([np.asarray(Image.fromarray(x).resize(size)) for x in coarse]) for k, size in sizes.items()}
