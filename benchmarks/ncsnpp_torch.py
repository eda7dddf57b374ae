"""The network and the training step of this project once more, in PyTorch: a peer to measure against.

Written the way PyTorch users write it: modules in channels-last memory, depthwise convolutions for the FIR filters,
`scaled_dot_product_attention`, autocast, fused AdamW. It has the options that the image configs use, and no others.
Submodules bear the names of `hold_jax.nn`, so that parameters map by name (`copy_parameters`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hold_jax.nn import NCSNpp


def resample(x: torch.Tensor, change: str, taps: Sequence[float] | None) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W) for 'up', (B, C, H/2, W/2) for 'down'; FIR, or plain if `taps` is None."""
    if taps is None:
        return F.interpolate(x, scale_factor=2, mode="nearest") if change == "up" else F.avg_pool2d(x, 2)
    kernel = _depthwise(taps, x, gain=4 if change == "up" else 1)
    call = {"up": F.conv_transpose2d, "down": F.conv2d}[change]
    return call(x, kernel, stride=2, padding=1, groups=x.shape[1])


def _depthwise(taps: Sequence[float], x: torch.Tensor, gain: int = 1) -> torch.Tensor:
    """The filter of every channel, (C, 1, k, k); symmetric, so that correlating is convolving."""
    kernel = torch.tensor(np.outer(taps, taps) / np.sum(taps) ** 2 * gain, dtype=x.dtype, device=x.device)
    return kernel.expand(x.shape[1], 1, *kernel.shape)


def group_norm(channels: int) -> nn.GroupNorm:
    """min(channels // 4, 32) groups, epsilon 1e-6."""
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class Embedding(nn.Module):
    """Fourier features, dense, SiLU, dense: (B,) -> (B, size)."""

    def __init__(self, size: int, num_frequencies: int):
        super().__init__()
        self.fourier = nn.Module()
        self.fourier.frequencies = nn.Parameter(torch.zeros(num_frequencies), requires_grad=False)
        self.dense0 = nn.Linear(2 * num_frequencies, size)
        self.dense1 = nn.Linear(size, size)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Maps the conditioning scalar to the embedding, in float32."""
        with torch.autocast(t.device.type, enabled=False):
            angle = t[:, None] * self.fourier.frequencies[None, :] * (2 * math.pi)
            features = torch.cat([angle.sin(), angle.cos()], dim=-1)
            return self.dense1(F.silu(self.dense0(features)))


class ResBlock(nn.Module):
    """BigGAN's residual block: (B, C, H, W), (B, E) -> (B, features, H', W')."""

    def __init__(self, channels: int, features: int, size: int, net: NCSNpp, change: str | None = None):
        super().__init__()
        self.change, self.taps, self.dropout = change, net.fir_kernel if net.fir else None, net.dropout
        self.scale = 1 / math.sqrt(2) if net.skip_rescale else 1.0
        self.norm0, self.norm1 = group_norm(channels), group_norm(features)
        self.conv0, self.conv1 = (nn.Conv2d(c, features, 3, padding=1) for c in (channels, features))
        self.time = nn.Linear(size, features)
        self.shortcut = nn.Conv2d(channels, features, 1) if change or channels != features else None

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Maps features and embedding to features."""
        h = F.silu(self.norm0(x))
        if self.change:
            h, x = resample(h, self.change, self.taps), resample(x, self.change, self.taps)
        h = self.conv0(h) + self.time(F.silu(temb))[:, :, None, None]
        h = F.dropout(F.silu(self.norm1(h)), self.dropout, self.training)
        h = self.conv1(h)
        return ((x if self.shortcut is None else self.shortcut(x)) + h) * self.scale


class Attention(nn.Module):
    """One-head self-attention over all pixels, as a residual block."""

    def __init__(self, channels: int, net: NCSNpp):
        super().__init__()
        self.scale = 1 / math.sqrt(2) if net.skip_rescale else 1.0
        self.norm = group_norm(channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, H, W) to the same."""
        h = self.norm(x).flatten(2).transpose(1, 2)[:, None]
        h = F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        h = self.out(h)[:, 0].transpose(1, 2).reshape(x.shape)
        return (x + h) * self.scale


class InputPyramid(nn.Module):
    """FIR filter and strided convolution of the image on its way down, summed with the features."""

    def __init__(self, channels: int, features: int, net: NCSNpp):
        super().__init__()
        self.taps = net.fir_kernel if net.fir else None
        self.scale = 1 / math.sqrt(2) if net.skip_rescale else 1.0
        self.down = nn.Module()
        self.down.conv = nn.Conv2d(channels, features, 3, stride=2, padding=0 if net.fir else 1)

    def forward(self, pyramid: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Maps the pyramid (B, C, 2H, 2W) and h (B, features, H, W) to their sum."""
        if self.taps is not None:
            pyramid = F.conv2d(pyramid, _depthwise(self.taps, pyramid), padding=2, groups=pyramid.shape[1])
        return (self.down.conv(pyramid) + h) * self.scale


class TorchNCSNpp(nn.Module):
    """The network of `net`, a `hold_jax.nn.NCSNpp`, for pictures of `in_channels` channels and `size` pixels a side."""

    def __init__(self, net: NCSNpp, in_channels: int, size: int):
        super().__init__()
        _require_supported(net)
        widths = [net.channels * multiplier for multiplier in net.channel_multipliers]
        deepest, embedding = len(widths) - 1, 4 * net.channels
        self.levels, self.num_res_blocks, self.pyramid = len(widths), net.num_res_blocks, net.progressive_input
        self.embedding = Embedding(embedding, net.channels)
        self.conv_in = nn.Conv2d(in_channels, net.channels, 3, padding=1)

        at, skips, image = net.channels, [net.channels], in_channels
        for level, width in enumerate(widths):
            attends = size >> level in net.attention_resolutions
            for i in range(net.num_res_blocks):
                setattr(self, f"down{level}_block{i}", ResBlock(at, width, embedding, net))
                if attends:
                    setattr(self, f"down{level}_attention{i}", Attention(width, net))
                at = width
                skips.append(at)
            if level < deepest:
                setattr(self, f"down{level}_resample", ResBlock(at, at, embedding, net, "down"))
                if self.pyramid == "residual":
                    setattr(self, f"down{level}_pyramid", InputPyramid(image, at, net))
                    image = at
                skips.append(at)
        self.mid_block0, self.mid_block1 = (ResBlock(at, at, embedding, net) for _ in range(2))
        self.mid_attention = Attention(at, net)
        for level, width in reversed(list(enumerate(widths))):
            for i in range(net.num_res_blocks + 1):
                setattr(self, f"up{level}_block{i}", ResBlock(at + skips.pop(), width, embedding, net))
                at = width
            if size >> level in net.attention_resolutions:
                setattr(self, f"up{level}_attention", Attention(width, net))
            if level > 0:
                setattr(self, f"up{level}_resample", ResBlock(at, at, embedding, net, "up"))
        self.head = nn.Module()
        self.head.norm = group_norm(at)
        self.head.conv = nn.Conv2d(at, net.out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, noise_cond: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, H, W) and (B,) to (B, out_channels, H, W), float32; first and last convolution in float32."""
        children = dict(self.named_children())
        temb = self.embedding(noise_cond)
        pyramid = x
        with torch.autocast(x.device.type, enabled=False):
            h = self.conv_in(x)
        skips = [h]
        for level in range(self.levels):
            for i in range(self.num_res_blocks):
                h = children[f"down{level}_block{i}"](h, temb)
                if f"down{level}_attention{i}" in children:
                    h = children[f"down{level}_attention{i}"](h)
                skips.append(h)
            if level < self.levels - 1:
                h = children[f"down{level}_resample"](h, temb)
                if self.pyramid == "residual":
                    pyramid = h = children[f"down{level}_pyramid"](pyramid, h)
                skips.append(h)
        h = self.mid_block1(self.mid_attention(self.mid_block0(h, temb)), temb)
        for level in reversed(range(self.levels)):
            for i in range(self.num_res_blocks + 1):
                h = children[f"up{level}_block{i}"](torch.cat([h, skips.pop()], dim=1), temb)
            if f"up{level}_attention" in children:
                h = children[f"up{level}_attention"](h)
            if level > 0:
                h = children[f"up{level}_resample"](h, temb)
        with torch.autocast(x.device.type, enabled=False):
            return self.head.conv(F.silu(self.head.norm(h.float())))


def _require_supported(net: NCSNpp) -> None:
    supported = {
        "resblock_type": ("biggan",),
        "progressive": ("none",),
        "progressive_input": ("none", "residual"),
        "embedding": ("fourier",),
        "conditional": (True,),
        "num_classes": (0,),
    }
    for name, values in supported.items():
        if getattr(net, name) not in values:
            raise ValueError(f"{name} is {getattr(net, name)!r}; the PyTorch network has {values}")
    taps = tuple(net.fir_kernel)
    if net.fir and (len(taps) != 4 or taps != taps[::-1]):
        raise ValueError(f"fir_kernel is {taps}; the PyTorch network has symmetric filters of 4 taps")


def copy_parameters(network: nn.Module, params: Mapping[str, Any]) -> int:
    """Copies Flax parameters into a `TorchNCSNpp`; returns how many numbers there are.

    Raises:
      ValueError: unless both have the same parameters of the same shapes.
    """
    flat = {}

    def walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                walk(value, (*path, name))
            else:
                flat[".".join((*path, {"kernel": "weight", "scale": "weight"}.get(name, name)))] = np.array(value)

    walk(params, ())
    theirs = dict(network.named_parameters())
    if flat.keys() != theirs.keys():
        raise ValueError(f"parameters of one network only: {sorted(flat.keys() ^ theirs.keys())}")
    order = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
    with torch.no_grad():
        for name, parameter in theirs.items():
            value = flat[name].transpose(order[flat[name].ndim])
            if value.shape != tuple(parameter.shape):
                raise ValueError(f"{name} is {tuple(parameter.shape)}, its peer {value.shape}")
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return sum(parameter.numel() for parameter in theirs.values())


class TorchTrainer:
    """Network, averaged network and optimizer, and a training step on one device.

    Args:
      network: on the device already.
      table: what the loss needs at each of K equally likely times: `mean` (K, n) and `chol` (K, n, n) of u_t given the
        data, `c_in` (K, k, n), `c_skip` (K, 1, n), `c_out` (K,), `noise_cond` (K,).
      bfloat16: compute under autocast.
      compiled: pass the network through torch.compile.
      b1, b2, eps, learning_rate, clip_norm, ema_decay: of the optimizer.
    """

    def __init__(
        self,
        network: TorchNCSNpp,
        table: Mapping[str, np.ndarray],
        *,
        bfloat16: bool,
        compiled: bool,
        learning_rate: float,
        b1: float,
        b2: float,
        eps: float,
        clip_norm: float,
        ema_decay: float,
    ):
        self.device = next(network.parameters()).device
        self.network = network.to(memory_format=torch.channels_last).train()
        self.call: Callable[..., torch.Tensor] = torch.compile(self.network) if compiled else self.network
        self.table = {name: torch.from_numpy(np.array(value)).to(self.device) for name, value in table.items()}
        self.bfloat16, self.clip_norm, self.ema_decay = bfloat16, clip_norm, ema_decay
        self.params = [p for p in network.parameters() if p.requires_grad]
        self.ema = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.AdamW(
            self.params, lr=learning_rate, betas=(b1, b2), eps=eps, weight_decay=0.0, fused=True
        )

    def predict(self, x: torch.Tensor, k: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The last block's noise as predicted from the perturbed pictures, and as it is.

        Args:
          x: (B, H, W, C) uint8.
          k: (B,) times' places in the table.
          noise: (B, n, C, H, W).

        Returns:
          Twice (B, C, H, W) float32.
        """
        at = {name: value[k] for name, value in self.table.items()}
        q = x.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        u = at["mean"][:, :, None, None, None] * q[:, None] + torch.einsum("bij,bjchw->bichw", at["chol"], noise)
        inputs = torch.einsum("bki,bichw->bkchw", at["c_in"], u).flatten(1, 2)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            out = self.call(inputs, at["noise_cond"])
        skip = torch.einsum("bi,bichw->bchw", at["c_skip"][:, 0], u)
        return skip + at["c_out"][:, None, None, None] * out.float(), noise[:, -1]

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """The loss at random times."""
        B, H, W, C = x.shape
        K, n = self.table["mean"].shape
        # Stratified, as ours.
        quantile = (torch.arange(B, device=self.device) + torch.rand(B, device=self.device)) / B
        k = (quantile * K).long().clamp_(max=K - 1)
        return F.mse_loss(*self.predict(x, k, torch.randn(B, n, C, H, W, device=self.device)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss alone, no gradient."""
        with torch.no_grad():
            return self.loss(x)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """Forward, backward, clipped AdamW, average."""
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss(x)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.clip_norm or math.inf)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.params, 1 - self.ema_decay)
        return value

    def wait(self) -> None:
        """Waits for what was started."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
