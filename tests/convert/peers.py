"""What was recorded from others' networks, and the numbers they were filled with."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np

from hold_jax.convert import edm, score_sde
from hold_jax.nn import NCSNpp
from hold_jax.weights.match import convert

RECORD = json.loads((Path(__file__).parent / "networks.json").read_text())
SIZE = 8
_SMALL = dict(channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
_PLAIN = dict(fir=False, progressive_input="none", embedding="positional")
NETWORKS = {
    "vp": NCSNpp(3, **_SMALL, **_PLAIN),
    "ve": NCSNpp(3, **_SMALL),
    "ve_discrete": NCSNpp(3, **_SMALL, embedding="positional"),
    "ddpm": NCSNpp(3, **(_SMALL | _PLAIN | {"channels": 32}), resblock_type="ddpm", skip_rescale=False, norm_groups=32),
    "cld": NCSNpp(3, **_SMALL),
    "psld": NCSNpp(6, **_SMALL),
    "edm_ddpmpp": NCSNpp(3, **_SMALL, **_PLAIN, num_classes=3, label_place="features"),
    "edm_adm": NCSNpp(
        3,
        **(_SMALL | _PLAIN | {"channels": 32, "channel_multipliers": (1, 4)}),
        attention_up="every",
        attention_head_dim=64,
        scale_shift=True,
        resample_shortcut=False,
        skip_rescale=False,
        norm_eps=1e-5,
        max_period=10_000 ** (15 / 16),
        num_classes=3,
        augment_labels=9,
    ),
    "edm_ncsnpp": NCSNpp(3, **_SMALL, augment_labels=9),
}


def seen(name):
    """(H, W, C) of what the network sees."""
    return (SIZE, SIZE, 6 if name in ("cld", "psld") else 3)


def inputs(name):
    """(B, H, W, C) float32: standard normal, of `ve` and `ve_discrete` with mean and deviation 1/2."""
    height, width, channels = seen(name)
    shape = (len(RECORD[name]["cond"]), channels, height, width)
    x = np.random.RandomState(zlib.crc32(b"x")).standard_normal(shape).astype(np.float32)
    x = (0.5 + 0.5 * x).astype(np.float32) if name.startswith("ve") else x
    return x.transpose(0, 2, 3, 1)


def recorded(y):
    """Of an output (B, H, W, C), what is in the record: (B, numbers)."""
    return np.asarray(y)[:, 1::3, ::3].transpose(0, 3, 1, 2).reshape(len(y), -1)


def numbers(label, shape):
    """A tensor's numbers, the same everywhere; far from those of an initialization, so that every path matters."""
    uniform = 2 * np.random.RandomState(zlib.crc32(label.encode())).random_sample(shape) - 1
    if label.endswith(("freqs", ".W")) and len(shape) == 1:
        value = 8 * uniform
    elif len(shape) > 1:
        value = uniform * np.sqrt(3 / np.prod(shape[1:]))
    else:
        value = (1 if label.endswith("weight") else 0) + 0.2 * uniform
    return value.astype(np.float32)


@functools.cache
def state(name):
    """The state dict of one of `NETWORKS`, in the order of the file."""
    shapes = RECORD[name]["state"]
    return {label: numbers(label, tuple(shape)) for label, shape in shapes.items()}


@functools.cache
def params(name):
    """Parameters of one of `NETWORKS` from its recorded state dict."""
    shapes = seen(name)
    if name.startswith("edm"):
        arrays = {k.removeprefix("model."): v for k, v in state(name).items()}
        arrays = {k: v for k, v in arrays.items() if not edm._UNUSED.search(k)}
        return convert(edm.rules(NETWORKS[name], shapes), arrays, "the state", "the network")
    arrays = {k: v for k, v in state(name).items() if k != "sigmas"}
    rules = [entry.rule for entry in score_sde.torch_entries(NETWORKS[name], shapes)]
    return convert(rules, arrays, "the state", "the network")
