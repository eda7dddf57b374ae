"""A warm-up that finds a step size and a mass matrix: dual averaging of the acceptance, variances of the chains."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from hold_jax.errors import require, require_number, require_whole
from hold_jax.langevin import space as spaces
from hold_jax.langevin.algorithm import Position, State, Target, advance, check, first_of, require_finite, start
from hold_jax.langevin.dynamics import Dynamics
from hold_jax.langevin.metropolis import Metropolis
from hold_jax.numerics.random import require_key

_PARTS = 20
# After these parts of the warm-up the mass matrix is computed anew, from the samples since the time before.
_RENEWALS = (3, 6, 10, 17)
_LARGEST = 16.0


class Adapted(NamedTuple):
    """What `adapt` returns.

    Attributes:
      step_size: for `method="metropolis"` at the order and with the mass matrix of the warm-up.
      inverse_mass_matrix: (d,), or (d, d) if dense, of the flattened position.
      position: of all chains at the end, on a leading axis: `sample(..., stacked=True)` goes on from it.
      acceptance_rate: over the last tenth.
      num_gradients: of all chains.
    """

    step_size: float
    inverse_mass_matrix: np.ndarray
    position: Position
    acceptance_rate: float
    num_gradients: int


class _Average(NamedTuple):
    """Dual averaging of Hoffman and Gelman (1111.4246, section 3.2), with their gamma, t_0 and kappa."""

    log_step: jax.Array
    log_mean: jax.Array
    error: jax.Array
    count: jax.Array
    center: jax.Array

    @classmethod
    def begin(cls, step_size: float) -> "_Average":
        """Before the first step."""
        log = jnp.float32(np.log(step_size))
        return cls(log, log, jnp.float32(0), jnp.float32(0), log + np.float32(np.log(10)))

    def update(self, error: jax.Array) -> "_Average":
        """After a step whose acceptance was lower than the goal by `error`."""
        count = self.count + 1
        weight = 1 / (count + 10)
        mean_error = (1 - weight) * self.error + weight * error
        log_step = jnp.minimum(self.center - jnp.sqrt(count) / 0.05 * mean_error, np.float32(np.log(_LARGEST)))
        forget = count**-0.75
        return _Average(log_step, forget * log_step + (1 - forget) * self.log_mean, mean_error, count, self.center)


def adapt(
    log_density: Callable[..., jax.Array],
    key: jax.Array,
    position: Position,
    *,
    order: int = 2,
    num_steps: int = 2000,
    num_chains: int = 4,
    target_acceptance: float | None = None,
    dense: bool = False,
    stacked: bool = False,
    step_size: float = 0.1,
    gammas: Sequence[float] | None = None,
    xi: float | None = None,
    progress: bool = False,
) -> Adapted:
    """Finds a step size and an inverse mass matrix by Metropolis-adjusted steps of the same order.

    The step size follows the mean acceptance of all chains; the mass matrix is that of their samples, shrunk towards
    a small multiple of the identity as in Stan. The mass matrix serves every method; the step size is that of
    `method="metropolis"`.

    Args:
      log_density: position -> scalar.
      key: of the warm-up.
      position: one start for all chains or, with `stacked`, one each.
      order: n.
      num_steps: of each chain; whole twentieths are made.
      num_chains: chains, whose samples are pooled.
      target_acceptance: None: 0.574 at order 1, as is optimal for MALA in high dimension; 0.9 above, because a
        rejection turns the velocity round.
      dense: whether the mass matrix is a full covariance.
      stacked: whether `position` has a leading axis of chains.
      step_size: to begin with.
      gammas: as in `langevin`.
      xi: as in `langevin`.
      progress: whether to show a progress bar.

    Raises:
      UserError: for arguments that cannot be.
    """
    goal = 0.574 if order == 1 else 0.9
    if target_acceptance is not None:
        goal = require_number("target_acceptance", target_acceptance, lambda p: 0 < p < 1, "between 0 and 1")
    require(callable(log_density), "log_density", log_density, "a function")
    require_key(key)
    num_steps = require_whole("num_steps", num_steps, 10 * _PARTS)
    num_chains = require_whole("num_chains", num_chains, 1)
    allowed = f"positive and below {_LARGEST}"
    step_size = require_number("step_size", step_size, lambda h: 0 < h < _LARGEST, allowed)
    dynamics, method = Dynamics(order, gammas, xi), Metropolis()
    target = Target(log_density, None, None)
    first = first_of(position, num_chains, stacked)
    flat, _ = ravel_pytree(check(target, first))
    table = method.table(dynamics, _LARGEST)
    space_of = spaces.dense if dense else spaces.diagonal

    def begin(position: Position, key: jax.Array) -> State:
        return start(target, order, spaces.diagonal(1.0), position, key, True)

    def restart(state: State, scale: jax.Array, key: jax.Array) -> State:
        # The cached force belongs to the old mass matrix.
        fresh = start(target, order, space_of(scale), state.position, key, True)
        return fresh._replace(step=state.step)

    def step(carry: tuple, key: jax.Array) -> tuple:
        states, average, scale = carry
        c = jax.tree.map(lambda a: a.astype(flat.dtype), table(jnp.exp(average.log_step)))

        def one(state: State, key: jax.Array) -> tuple:
            noise_key, clock_key = jax.random.split(key)
            return advance(method, c, target, space_of(scale), state, noise_key, clock_key)

        states, info = jax.vmap(one)(states, jax.random.split(key, num_chains))
        rate = jnp.mean(info.acceptance_rate)
        positions = jax.vmap(lambda p: ravel_pytree(p)[0])(states.position)
        return (states, average.update(jnp.float32(goal - rate)), scale), (positions, rate)

    size = num_steps // _PARTS
    run = jax.jit(lambda carry, key: jax.lax.scan(step, carry, jax.random.split(key, size)))
    renew = jax.jit(jax.vmap(restart, in_axes=(0, None, 0)))

    begin_key, key = jax.random.split(key)
    keys = jax.random.split(begin_key, num_chains)
    states = jax.jit(jax.vmap(begin, in_axes=(0 if stacked else None, 0)))(position, keys)
    require_finite(states)
    variance = np.eye(flat.size) if dense else np.ones(flat.size)
    scale = jnp.asarray(variance, flat.dtype)
    states = renew(states, scale, keys)
    average = _Average.begin(step_size)
    seen: list[np.ndarray] = []
    rates: list[np.ndarray] = []
    for part in tqdm(range(_PARTS), unit="part", disable=not progress):
        (states, average, _), (positions, rate) = run((states, average, scale), jax.random.fold_in(key, part))
        seen.append(np.asarray(positions, np.float64).reshape(-1, flat.size))
        rates.append(np.asarray(rate))
        if part + 1 in _RENEWALS:
            variance = _variance(np.concatenate(seen), dense)
            seen = []
            scale = jnp.asarray(np.linalg.cholesky(variance) if dense else np.sqrt(variance), flat.dtype)
            renew_key = jax.random.fold_in(jax.random.fold_in(key, _PARTS), part)
            states = renew(states, scale, jax.random.split(renew_key, num_chains))
            average = _Average.begin(float(jnp.exp(average.log_mean)))
    return Adapted(
        step_size=float(jnp.exp(average.log_mean)),
        inverse_mass_matrix=variance,
        position=states.position,
        acceptance_rate=float(np.mean(rates[-2:])),
        num_gradients=num_chains * (1 + len(_RENEWALS) + 1 + _PARTS * size),
    )


def _variance(samples: np.ndarray, dense: bool) -> np.ndarray:
    n, d = samples.shape
    raw = np.cov(samples, rowvar=False).reshape(d, d) if dense else samples.var(axis=0, ddof=1)
    small = 1e-3 * (np.eye(d) if dense else np.ones(d))
    return (n * raw + 5 * small) / (n + 5)
