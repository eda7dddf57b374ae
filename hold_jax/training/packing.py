"""The packed form of a train state: large arrays of equal shape are stacked, all small arrays form one vector.

A score network has a few hundred convolution kernels of a dozen shapes, and twice as many biases and scales of a few
hundred numbers each. An update of each array launches several device kernels per array; an update of the packed form
launches them about a dozen times. Checkpoints and samplers use the network's own tree. Both conversions are exact.
"""

import collections
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from hold_jax.runtime.mesh import LARGE
from hold_jax.training.state import TrainState

Packed = dict[str, jax.Array]
""""small": (n,); for each shape of large arrays, "3x3x256x256" for one: (count, *shape)."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the leaves of a parameter tree are packed.

    Attributes:
      structure: structure of the tree.
      shapes: shapes of the leaves, in the order of the tree.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: Any) -> "Packing":
        """Returns the packing for a tree of arrays, or of their shapes and dtypes; all have one dtype."""
        leaves, structure = jax.tree.flatten(params)
        return cls(structure, tuple(leaf.shape for leaf in leaves))

    def pack(self, tree: Any) -> Packed:
        """Packs a tree of this structure: stacks leaves of `LARGE` numbers or more by shape, concatenates the rest."""
        small: list[jax.Array] = [jnp.zeros((0,))]
        stacks: dict[str, list[jax.Array]] = {}
        for leaf in self.structure.flatten_up_to(tree):
            if leaf.size < LARGE:
                small.append(jnp.ravel(leaf))
            else:
                stacks.setdefault(_name(leaf.shape), []).append(leaf)
        return {"small": jnp.concatenate(small)} | {name: jnp.stack(leaves) for name, leaves in stacks.items()}

    def unpack(self, packed: Packed, *, copied: bool = False) -> Any:
        """The inverse of `pack`.

        Args:
          packed: the packed tree.
          copied: copy each small leaf out of its vector before it is used. Otherwise its place in the vector is a
            constant of every kernel that reads it, and XLA for CPU compiles the kernels of equal layers one by one.
        """
        leaves, start, taken = [], 0, collections.Counter()
        for shape in self.shapes:
            size = math.prod(shape)
            if size >= LARGE:
                leaves.append(packed[_name(shape)][taken[shape]])
                taken[shape] += 1
            elif copied:
                with set_xla_metadata(inlineable="false"):
                    leaf, start = _copy(packed["small"], start, shape)
                leaves.append(leaf)
            else:
                leaves.append(packed["small"][start : start + size].reshape(shape))
                start += size
        return jax.tree.unflatten(self.structure, leaves)

    def pack_state(self, state: TrainState) -> TrainState:
        """Packs the parameters, the average, and every tree of this structure in the optimizer's state."""
        return _map_trees(self.pack, self.structure, state)

    def unpack_state(self, state: TrainState) -> TrainState:
        """The inverse of `pack_state`."""
        leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self.shapes]
        packed = jax.eval_shape(self.pack, jax.tree.unflatten(self.structure, leaves))
        return _map_trees(self.unpack, jax.tree.structure(packed), state)


@functools.partial(jax.jit, static_argnums=2)
def _copy(vector: jax.Array, start: Any, shape: tuple[int, ...]) -> tuple[jax.Array, Any]:
    """The array of `shape` at `start` of a vector, and its end.

    XLA moves a constant argument into a copy of this function, but not a result: hence the end is one.
    """
    size = math.prod(shape)
    return jax.lax.dynamic_slice_in_dim(vector, start, size).reshape(shape), start + size


def _name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _map_trees(function: Any, structure: Any, state: TrainState) -> TrainState:
    """Applies `function` to every subtree that has the given structure, and keeps the other leaves."""

    def matches(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    return jax.tree.map(lambda node: function(node) if matches(node) else node, state, is_leaf=matches)
