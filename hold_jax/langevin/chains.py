"""Many chains at once: a compiled, thinned scan, run in parts between which the host shows progress and checks."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hold_jax.errors import UserError, require, require_whole
from hold_jax.langevin.algorithm import Algorithm, Info, Position, State, first_of, require_finite
from hold_jax.numerics.random import require_key

_PARTS = 50
# A mean square of auxiliaries that should be near 1. Starts far out exceed it too, but only at first.
_HOT = 100.0


class Chains(NamedTuple):
    """What `sample` returns; NumPy arrays.

    Attributes:
      position: the tree, its leaves (num_chains, num_samples, *shape): what arviz calls (chain, draw, ...).
      info: `Info` of (num_chains, num_samples): gradients of all steps since the sample before, the mean acceptance
        over them, the temperature at the sample.
      num_gradients: gradients of all chains and steps, the discarded ones among them.
      state: of all chains at the end; pass it as `state` to go on.
    """

    position: Position
    info: Info
    num_gradients: int
    state: State


def sample(
    algorithm: Algorithm,
    key: jax.Array,
    position: Position = None,
    *,
    num_samples: int,
    num_chains: int = 1,
    thin: int = 1,
    burn_in: int = 0,
    stacked: bool = False,
    state: State | None = None,
    progress: bool = False,
) -> Chains:
    """Runs `num_chains` chains and keeps every `thin`-th position.

    Args:
      algorithm: of `langevin`.
      key: of the run; the result does not depend on the parts it is computed in. With the same key a run that goes on
        from `state` is the rest of one long run.
      position: the start: one, for all chains, or with `stacked` one for each chain on a leading axis.
      num_samples: kept positions of each chain.
      num_chains: chains, run side by side.
      thin: steps for each kept position.
      burn_in: steps made before the first kept one and discarded.
      stacked: whether `position` has a leading axis of chains.
      state: of all chains, to go on from in place of `position`: the end of a run of this algorithm. It holds the
        density and the gradient there; for another density or order give `position=state.position, stacked=True`.
      progress: whether to show a progress bar.

    Raises:
      UserError: for numbers that cannot be; where a chain diverges.
    """
    is_one = hasattr(algorithm, "step_chains")
    require(is_one, "algorithm", algorithm, "what `langevin(log_density, step_size=...)` returns")
    num_samples, num_chains = require_whole("num_samples", num_samples, 1), require_whole("num_chains", num_chains, 1)
    thin, burn_in = require_whole("thin", thin, 1), require_whole("burn_in", burn_in, 0)
    require((position is None) != (state is None), "position", position, "given, or `state`, and not both")
    require_key(key)
    init_key, key = jax.random.split(key)
    now = _start(algorithm, init_key, position, num_chains, stacked) if state is None else state
    if state is not None:
        _check_state(algorithm, init_key, state)
    require(now.step.shape == (num_chains,), "num_chains", num_chains, f"the state's, {now.step.shape}")

    # The noise of a step depends on its number, so that a run that goes on does not repeat the noise of the first.
    begin = int(now.step[0])
    total = burn_in + num_samples * thin
    discarded = np.zeros((), np.int64)
    kept: list[tuple[Position, Info]] = []
    watch = _Watch(None if state is None else state.auxiliaries)
    with tqdm(total=total, unit="step", disable=not progress) as bar:
        if burn_in:
            size = max(1, -(-burn_in // _PARTS))
            for first in range(0, burn_in, size):
                steps = min(size, burn_in - first)
                now, (_, info) = _run(algorithm, now, key, jnp.int32(begin + first), 1, steps, False)
                discarded += np.sum(np.asarray(info.num_gradients), dtype=np.int64)
                watch.look(info, now, first + steps)
                bar.update(steps)
        size = -(-num_samples // _PARTS)
        for first in range(0, num_samples, size):
            count = min(size, num_samples - first)
            now, out = _run(algorithm, now, key, jnp.int32(begin + burn_in + first * thin), count, thin, True)
            out = jax.tree.map(np.asarray, out)
            watch.look(out[1], now, burn_in + (first + count) * thin)
            kept.append(out)
            bar.update(count * thin)
    watch.end()
    positions, info = jax.tree.map(lambda *parts: np.swapaxes(np.concatenate(parts), 0, 1), *kept)
    return Chains(positions, info, int(discarded + np.sum(info.num_gradients, dtype=np.int64)), now)


def _check_state(algorithm: Algorithm, key: jax.Array, state: Any) -> None:
    """Raises UserError for a state that is none of this algorithm, as its shapes tell."""
    require(isinstance(state, State), "state", type(state).__name__, "the state of an earlier run")
    one = jax.eval_shape(algorithm.init, jax.tree.map(lambda a: a[0], state.position), key)
    found, want = (jax.tree.map(lambda a: a.shape, tree) for tree in (jax.tree.map(lambda a: a[0], state), one))
    require(found == want, "state", f"of shapes {found}", f"of this algorithm, {want}")


def _start(algorithm: Algorithm, key: jax.Array, position: Position, num_chains: int, stacked: bool) -> State:
    algorithm.init(first_of(position, num_chains, stacked), key)  # outside vmap, where values can be checked
    keys = jax.random.split(key, num_chains)
    state = jax.jit(jax.vmap(algorithm.init, in_axes=(0 if stacked else None, 0)))(position, keys)
    require_finite(state)
    return state


@functools.partial(jax.jit, static_argnames=("algorithm", "count", "thin", "keep"))
def _run(
    algorithm: Algorithm, state: State, key: jax.Array, first: jax.Array, count: int, thin: int, keep: bool
) -> tuple[State, Any]:
    """`count` times `thin` steps; positions and `Info` (count, num_chains, ...), no positions unless `keep`."""

    def step(state: State, number: jax.Array) -> tuple[State, Info]:
        return algorithm.step_chains(jax.random.fold_in(key, number), state)

    def group(state: State, index: jax.Array) -> tuple[State, Any]:
        state, info = jax.lax.scan(step, state, first + index * thin + jnp.arange(thin))
        summary = Info(jnp.sum(info.num_gradients, 0), jnp.mean(info.acceptance_rate, 0), info.temperature[-1])
        return state, (state.position if keep else None, summary)

    return jax.lax.scan(group, state, jnp.arange(count))


class _Watch:
    """Finds chains that diverge: not finite, or ever hotter although they began cool."""

    def __init__(self, auxiliaries: jax.Array | None) -> None:
        """Begins with (num_chains, n - 1, d) auxiliaries; None: of a fresh start, which may be far out, and heat up."""
        self._temperatures: list[np.ndarray] = []
        if auxiliaries is not None and auxiliaries.size:
            self._temperatures.append(np.mean(np.square(np.asarray(auxiliaries)), axis=(1, 2)))
        self._step = 0

    def look(self, info: Info, state: State, step: int) -> None:
        """After each part of the run, which ends at `step`."""
        self._temperatures.append(np.max(np.asarray(info.temperature), axis=0))
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.position)]
        finite = np.stack([np.isfinite(leaf.reshape(len(leaf), -1)).all(1) for leaf in leaves]).all(0)
        if not finite.all():
            chain = int(np.argmin(finite))
            earlier = f"between steps {self._step} and {step}"
            raise UserError(
                f"`step_size` is too large for this density: chain {chain} left the finite numbers {earlier}; "
                "it must be smaller, e.g. half, if the gradient is finite everywhere"
            )
        self._step = step

    def end(self) -> None:
        """After the run: growth that has not overflowed yet."""
        heat = np.stack(self._temperatures)
        half = len(heat) // 2
        if half == 0:
            return
        late, early = heat[half:].max(0), heat[:half].max(0)
        wild = (late > _HOT) & (late > early)
        if wild.any():
            chain = int(np.argmax(wild))
            raise UserError(
                f"`step_size` is too large for this density: chain {chain} diverges (mean square of its velocities "
                f"{late[chain]:.3g}, which is 1 under the target); it must be smaller, e.g. half, or, from a start "
                "far out, the run longer"
            )
