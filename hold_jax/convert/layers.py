"""The layers of an NCSN++ in the order of their calls, which is that of score_sde's module list."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hold_jax.condition import Condition
from hold_jax.nn import NCSNpp

# Modules of ours that are one module there; any other layer stands for itself.
_OWNERS = (
    "ResBlockBigGAN",
    "ResBlockDDPM",
    "SelfAttention",
    "ConvUpsample",
    "ConvDownsample",
    "InputSkip",
)
_LEAVES = ("GaussianFourierFeatures", "Dense", "Conv", "GroupNorm", "_ConvParameters", "Embed")


class Layer(NamedTuple):
    """A layer with parameters.

    Attributes:
      path: where its parameters lie, such as down0_block0/conv0.
      kind: its class.
      owner: class of the block that it is part of, or `kind`.
      owner_path: of that block, or `path`.
      shapes: of its parameters, by name.
    """

    path: str
    kind: str
    owner: str
    owner_path: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        """Within its owner; '' if it stands for itself."""
        return self.path[len(self.owner_path) + 1 :]


def layers(network: NCSNpp, inputs: tuple[int, ...]) -> tuple[Layer, ...]:
    """Returns every layer of `network` that has parameters, each once, in the order of the calls.

    Args:
      network: any NCSN++.
      inputs: shape (H, W, C) of the network's input.
    """
    return _layers(network, inputs)  # pyright: ignore[reportArgumentType]  # Flax modules are hashable


@functools.lru_cache(maxsize=16)
def _layers(network: Any, inputs: tuple[int, ...]) -> tuple[Layer, ...]:
    network = network.clone(remat=False, parent=None)  # remat would call the blocks twice
    calls: list[tuple[str, tuple[str, ...]]] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__":
            calls.append((_kind(context.module), context.module.path))
        return call(*args, **kwargs)

    condition = Condition(label=jnp.zeros((1,), jnp.int32)) if network.num_classes else None
    with nn.intercept_methods(record):
        spec = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *inputs)), jnp.zeros((1,)), condition)

    kinds = {path: kind for kind, path in calls}
    found = []
    for path, kind in kinds.items():
        if kind not in _LEAVES:
            continue
        above = [path[:i] for i in range(1, len(path)) if kinds.get(path[:i]) in _OWNERS]
        owner_path = above[0] if above else path
        shapes = spec["params"]
        for name in path:
            shapes = shapes[name]
        shapes = {name: leaf.shape for name, leaf in shapes.items()}
        found.append(Layer("/".join(path), kind, kinds[owner_path], "/".join(owner_path), shapes))
    count = sum(math.prod(shape) for layer in found for shape in layer.shapes.values())
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(spec["params"]))
    if count != total:
        raise AssertionError(f"{total - count} parameters of the network belong to no known layer")
    return tuple(found)


def _kind(module: nn.Module) -> str:
    """The name of its class, or of the one of `_LEAVES` that it derives from."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return next((name for name in names if name in _LEAVES), names[0])
