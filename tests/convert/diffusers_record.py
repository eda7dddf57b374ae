"""Networks of diffusers: their settings, the numbers that fill them, and what they are shown. NumPy alone."""

import zlib

import numpy as np

_DDPM = {
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "time_embedding_type": "positional",
}
_NCSNPP = {
    "center_input_sample": False,
    "time_embedding_type": "fourier",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "downsample_padding": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "attention_head_dim": None,
    "mid_block_scale_factor": 2**0.5,
}
_BETAS = {"_class_name": "DDPMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_VE = {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 1348.0, "num_train_timesteps": 2000}
_TINY = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32)}
_DOWN_UP = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}

# Small versions of the published configurations, and of the defaults of diffusers' own training script.
SMALL = {
    "ddpm": {
        "unet": {**_TINY, **_DDPM, **_DOWN_UP, "norm_num_groups": 8},
        "scheduler": _BETAS,
        "times": [0, 3, 700],
    },
    "default": {
        "unet": {**_TINY, **_DOWN_UP, "norm_num_groups": 4, "attention_head_dim": 8},
        "scheduler": {**_BETAS, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
        | {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
        "times": [1, 500, 999],
    },
    "sample": {
        "unet": {**_TINY, **_DOWN_UP, "norm_num_groups": 4, "attention_head_dim": 8},
        "scheduler": {**_BETAS, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
        "times": [5, 400, 900],
    },
    "ncsnpp": {
        "unet": {
            **_TINY,
            **_NCSNPP,
            "block_out_channels": (32, 128),
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        },
        "scheduler": _VE,
        "times": [0.05, 1.0, 40.0],
    },
}
# The published ones (their config.json), at one picture.
FULL = {
    "ddpm-cifar10-32": {
        "unet": {
            **_DDPM,
            "sample_size": 32,
            "block_out_channels": (128, 256, 256, 256),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
        "scheduler": _BETAS,
        "times": [321],
    },
    "ddpm-celebahq-256": {
        "unet": {
            **_DDPM,
            "sample_size": 256,
            "block_out_channels": (128, 128, 256, 256, 512, 512),
            "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
        },
        "scheduler": _BETAS,
        "times": [321],
    },
    "ncsnpp-celebahq-256": {
        "unet": {
            **_NCSNPP,
            "sample_size": 256,
            "block_out_channels": (128, 128, 256, 256, 256, 256, 256),
            "down_block_types": (*["SkipDownBlock2D"] * 4, "AttnSkipDownBlock2D", *["SkipDownBlock2D"] * 2),
            "up_block_types": (*["SkipUpBlock2D"] * 2, "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 4),
        },
        "scheduler": _VE,
        "times": [2.5],
    },
}


def inputs(spec):
    """What the network sees, (B, H, W, 3) float32: standard normal; of VE with mean and deviation 1/2."""
    size = spec["unet"]["sample_size"]
    x = np.random.RandomState(zlib.crc32(b"x")).standard_normal((len(spec["times"]), size, size, 3))
    return (0.5 + 0.5 * x if spec["scheduler"]["_class_name"] == _VE["_class_name"] else x).astype(np.float32)


def outputs_kept(y):
    """Of an output (B, H, W, C), what is in the record: (B, numbers)."""
    return np.asarray(y)[:, 1::3, ::3].reshape(len(y), -1)


def numbers(label, shape):
    """A tensor's numbers, the same everywhere; far from those of an initialization, so that every path matters."""
    uniform = 2 * np.random.RandomState(zlib.crc32(label.encode())).random_sample(shape) - 1
    if label == "time_proj.weight":
        return (8 * uniform).astype(np.float32)
    if len(shape) > 1:
        return (uniform * np.sqrt(3 / np.prod(shape[1:]))).astype(np.float32)
    return ((1 if label.endswith("weight") else 0) + 0.2 * uniform).astype(np.float32)
