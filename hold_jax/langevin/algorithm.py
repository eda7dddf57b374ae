"""The sampling algorithm as two pure functions, `init` and `step`, with blackjax's interface."""

import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from hold_jax.errors import UserError, require, require_choice
from hold_jax.langevin import space as spaces
from hold_jax.langevin.dynamics import Dynamics
from hold_jax.langevin.euler_maruyama import EulerMaruyama
from hold_jax.langevin.exponential_euler import ExponentialEuler
from hold_jax.langevin.method import Evaluate, Force, Method
from hold_jax.langevin.metropolis import Metropolis
from hold_jax.langevin.picard_lagrange import PicardLagrange
from hold_jax.langevin.poisson_midpoint import PoissonMidpoint
from hold_jax.langevin.randomized_midpoint import RandomizedMidpoint
from hold_jax.langevin.space import Space
from hold_jax.langevin.splitting import Splitting
from hold_jax.numerics import varying

Position = Any
"""A tree of floating-point arrays."""


def lie_trotter() -> Splitting:
    """The force, then all else exactly."""
    return Splitting("BU")


def strang() -> Splitting:
    """Half of all else, the force, the other half: UBU of Sanz-Serna and Zygalakis (2021), at any order."""
    return Splitting("UBU")


def baoab() -> Splitting:
    """Leimkuhler and Matthews (2013); at n > 2, A holds the rotations among the auxiliaries."""
    return Splitting("BAOAB")


def obabo() -> Splitting:
    """Bussi and Parrinello (2007); at n > 2, A holds the rotations among the auxiliaries."""
    return Splitting("OBABO")


METHODS: dict[str, Callable[..., Method]] = {
    "baoab": baoab,
    "euler_maruyama": EulerMaruyama,
    "exponential_euler": ExponentialEuler,
    "lie_trotter": lie_trotter,
    "metropolis": Metropolis,
    "obabo": obabo,
    "picard_lagrange": PicardLagrange,
    "poisson_midpoint": PoissonMidpoint,
    "randomized_midpoint": RandomizedMidpoint,
    "splitting": Splitting,
    "strang": strang,
}


class State(NamedTuple):
    """The state of a chain.

    Attributes:
      position: the tree q.
      auxiliaries: (n - 1, d) v_1, ..., v_{n-1}, in coordinates of unit scale; N(0, I) under the target.
      start: the log density and the preconditioned gradient at the position, where the next step needs them; or None.
      step: () int32, steps made.
    """

    position: Position
    auxiliaries: jax.Array
    start: Force | None
    step: jax.Array


class Info(NamedTuple):
    """Of a step.

    Attributes:
      num_gradients: () int32, evaluations of the gradient in this step.
      acceptance_rate: () probability with which the step was accepted; 1 without a Metropolis test.
      temperature: () mean of v^2 over all auxiliaries; at n = 1 of the step's displacement^2 / (2 xi h). About 1
        under the target; a step size that is too large makes it grow without bound.
    """

    num_gradients: jax.Array
    acceptance_rate: jax.Array
    temperature: jax.Array


class Algorithm(NamedTuple):
    """Pure functions, with the interface of blackjax's `SamplingAlgorithm`.

    Attributes:
      init: (position, key) -> State of one chain.
      step: (key, State) -> (State, Info) of one chain.
      step_chains: (key, State) -> (State, Info) with a leading axis of chains, each with random numbers of its own; but
        those of the Poisson midpoint method have one random clock, so that no gradient is evaluated without an event.
    """

    init: Callable[..., State]
    step: Callable[[jax.Array, State], tuple[State, Info]]
    step_chains: Callable[[jax.Array, State], tuple[State, Info]]


class Target(NamedTuple):
    """What is sampled.

    Attributes:
      log_density: of the position (and the level), or None.
      gradient: of the log density, or None: by differentiation.
      levels: (N,) the path of an annealed run, one level a step, the last one kept; None: one density.
    """

    log_density: Callable[..., jax.Array] | None
    gradient: Callable[..., Position] | None
    levels: np.ndarray | None

    def force(self, position: Position, *level: jax.Array) -> tuple[jax.Array | None, Position]:
        """The log density, None if unknown, and its gradient."""
        if self.gradient is None:
            assert self.log_density is not None
            return jax.value_and_grad(self.log_density)(position, *level)
        value = None if self.log_density is None else self.log_density(position, *level)
        return value, self.gradient(position, *level)

    def level(self, step: jax.Array) -> tuple[jax.Array, ...]:
        """The arguments that follow the position at this step."""
        if self.levels is None:
            return ()
        return (jnp.asarray(self.levels)[jnp.minimum(step, len(self.levels) - 1)],)


def langevin(
    log_density: Callable[..., jax.Array] | None = None,
    *,
    step_size: float,
    order: int = 3,
    method: str = "strang",
    gradient: Callable[..., Position] | None = None,
    inverse_mass_matrix: Any = None,
    preconditioner: Callable[[Position], Position] | None = None,
    gammas: Sequence[float] | None = None,
    xi: float | None = None,
    levels: Any = None,
    level_scale: Callable[[jax.Array], jax.Array] | None = None,
    **options: Any,
) -> Algorithm:
    """A Langevin Monte Carlo algorithm of order n for the density exp(log_density), up to a constant.

    Args:
      log_density: position -> scalar; with `levels`, (position, level) -> scalar.
      step_size: h > 0, in the units in which the preconditioned target has unit scale.
      order: n, 1 (overdamped) to 6.
      method: one of `METHODS`; what follows as `options` (K, sequence, nodes, sweeps) is the method's own.
      gradient: position -> the gradient of the log density, a tree like the position; in place of `log_density`, e.g.
        `smoothed_score` of a diffusion model, or with it, in place of differentiation.
      inverse_mass_matrix: about the target's covariance: a number, (d,), (d, d), or a tree of variances like the
        position. Critical damping is for a target of unit scale, so this decides how good the friction is.
      preconditioner: instead of a matrix, a linear function S of a tree like the position, S S' about the covariance.
      gammas: n - 1 couplings; None: critical damping.
      xi: friction; None: critical damping.
      levels: (N,) for annealed Langevin: step i samples the density at levels[i], steps after the last at the last.
      level_scale: level -> the scale of the density at that level: multiplies S.
      options: of the method.

    Returns:
      init, step and step_chains.

    Raises:
      UserError: for arguments that cannot be; from `init`, for densities and positions that cannot be.
    """
    known = log_density is not None or gradient is not None
    require(known, "log_density", log_density, "a function, unless `gradient` is given")
    if isinstance(step_size, (np.ndarray, jax.Array)) and not step_size.ndim and not isinstance(step_size, Tracer):
        step_size = float(step_size)
    positive = isinstance(step_size, numbers.Real) and 0 < step_size < np.inf
    require(positive, "step_size", step_size, "a positive number")
    require_choice("method", method, METHODS)
    allowed = tuple(inspect.signature(METHODS[method]).parameters)
    for name in options:
        require(name in allowed, name, options[name], f"left out with `method` {method!r}, which has no such option")
    chosen = METHODS[method](**options)
    exact = log_density is not None or not chosen.metropolis
    require(exact, "log_density", log_density, f"given with `method` {method!r}, whose test needs the density")
    both = inverse_mass_matrix is not None and preconditioner is not None
    require(not both, "preconditioner", preconditioner, "left out where `inverse_mass_matrix` is given")
    if levels is not None:
        levels = np.asarray(levels)
        require(levels.ndim == 1 and levels.size > 0, "levels.shape", levels.shape, "one axis, not empty")
    require(level_scale is None or levels is not None, "level_scale", level_scale, "left out where `levels` is")

    dynamics = Dynamics(order, gammas, xi)
    target = Target(log_density, gradient, levels)
    coefficients = chosen.coefficients(dynamics, float(step_size))

    def space(position: Position, *level: jax.Array) -> Space:
        if preconditioner is not None:
            found = spaces.of_callable(preconditioner, position)
        else:
            found = spaces.of_mass(inverse_mass_matrix, position)
        return found if level_scale is None else spaces.scaled(found, level_scale(*level))

    def init(position: Position, rng_key: jax.Array | None = None) -> State:
        require(rng_key is not None or order == 1, "rng_key", rng_key, "a key at orders above 1: it draws auxiliaries")
        position = check(target, position)
        if rng_key is not None:  # one start for chains whose keys differ among the devices of a mesh
            position = jax.tree.map(lambda x: varying.like(x, rng_key), position)
        found = space(position, *target.level(jnp.int32(0)))
        cached = chosen.reads_start(coefficients) and levels is None
        return start(target, order, found, position, rng_key, cached)

    def one(key: jax.Array, state: State, clock_key: jax.Array) -> tuple[State, Info]:
        flat, _ = ravel_pytree(state.position)
        c = jax.tree.map(lambda a: np.asarray(a, flat.dtype), coefficients)
        found = space(state.position, *target.level(state.step))
        state, info = advance(chosen, c, target, found, state, key, clock_key)
        if order == 1:
            info = info._replace(temperature=info.temperature / (2 * dynamics.kick[0] * step_size))
        return state, info

    def step(rng_key: jax.Array, state: State) -> tuple[State, Info]:
        noise_key, clock_key = jax.random.split(rng_key)
        return one(noise_key, state, clock_key)

    def step_chains(rng_key: jax.Array, state: State) -> tuple[State, Info]:
        noise_key, clock_key = jax.random.split(rng_key)
        keys = jax.random.split(noise_key, state.step.shape[0])
        # Chains that accept together, or share a random midpoint, would not be independent.
        if not chosen.shared_clock:
            return jax.vmap(one)(keys, state, jax.random.split(clock_key, state.step.shape[0]))
        return jax.vmap(one, in_axes=(0, 0, None))(keys, state, clock_key)

    return Algorithm(init, step, step_chains)


def start(target: Target, order: int, space: Space, position: Position, key: jax.Array | None, cached: bool) -> State:
    """The state of a chain that starts at `position`, with auxiliaries drawn from N(0, I)."""
    flat, _ = ravel_pytree(position)
    auxiliaries = jnp.zeros((order - 1, flat.size), flat.dtype)
    if key is not None:
        auxiliaries = jax.random.normal(key, auxiliaries.shape, flat.dtype)
    force = _evaluate(target, space, position)(jnp.zeros_like(flat)) if cached else None
    return State(position, auxiliaries, force, jnp.int32(0))


def advance(
    method: Method, c: Any, target: Target, space: Space, state: State, key: jax.Array, clock_key: jax.Array
) -> tuple[State, Info]:
    """One step of one chain."""
    flat, unravel = ravel_pytree(state.position)
    evaluate = _evaluate(target, space, state.position, *target.level(state.step))
    # A step works in z with its origin at the step's start: only S is needed, not its inverse.
    origin = jnp.zeros_like(flat)
    u = jnp.concatenate([origin[None], state.auxiliaries])
    noise = jax.random.normal(key, (method.rows(c), flat.size), flat.dtype)
    before = state.start
    calls: Any = 0
    if method.reads_start(c) and before is None:
        before, calls = evaluate(origin), 1
    done = method.step(c, u, before, evaluate, noise, method.clock(clock_key))
    end = None
    if state.start is not None:
        end = done.end
        if end is None:
            end, calls = evaluate(done.u[0]), calls + 1
    moments = done.u[1:] if len(done.u) > 1 else done.u
    info = Info(
        num_gradients=jnp.asarray(calls + done.num_gradients, jnp.int32),
        acceptance_rate=jnp.ones((), flat.dtype) if done.acceptance is None else done.acceptance,
        temperature=jnp.mean(jnp.square(moments)),
    )
    return State(unravel((flat + space.push(done.u[0])).astype(flat.dtype)), done.u[1:], end, state.step + 1), info


def _evaluate(target: Target, space: Space, position: Position, *level: jax.Array) -> Evaluate:
    flat, unravel = ravel_pytree(position)

    def evaluate(z: jax.Array) -> Force:
        value, gradient = target.force(unravel((flat + space.push(z)).astype(flat.dtype)), *level)
        # A gradient, a level or a map of another type must not change that of the chain.
        return Force(value, space.pull(ravel_pytree(gradient)[0].astype(flat.dtype)).astype(flat.dtype))

    return evaluate


def first_of(position: Position, num_chains: int, stacked: bool) -> Position:
    """The start of one chain, to check values outside `vmap`."""
    leaves = jax.tree.leaves(position)
    require(bool(leaves), "position", position, "a tree of arrays")
    if not stacked:
        return position
    sizes = sorted({np.shape(leaf)[:1] for leaf in leaves})
    require(sizes == [(num_chains,)], "position.shape[:1]", sizes, f"of {num_chains} chains (`stacked`)")
    return jax.tree.map(lambda leaf: leaf[0], position)


def require_finite(state: State) -> None:
    """Checks the starts of all chains."""
    finite = _finite((state.position, state.start))
    require(finite, "position", "not finite, or its density", "finite in every chain")


def check(target: Target, position: Position) -> Position:
    """The position as arrays, after a check of it and of the density, by value where it has one (not under jit)."""
    leaves = jax.tree.leaves(position)
    types = jax.tree.map(lambda leaf: leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype, position)
    floating = bool(leaves) and all(jnp.issubdtype(dtype, jnp.floating) for dtype in jax.tree.leaves(types))
    require(floating, "position", types, "of floating-point arrays")
    position = jax.tree.map(jnp.asarray, position)
    level = target.level(jnp.int32(0))
    if target.log_density is not None:
        value = _shape("log_density", target.log_density, position, *level)
        scalar = getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.floating)
        require(scalar, "log_density", f"a function that returns {_short(value)}", "a function to a float scalar")
    name = "log_density" if target.gradient is None else "gradient"
    _, gradient = _shape(name, target.force, position, *level)
    alike = jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, position)
    require(alike, "gradient", f"a function that returns {_short(gradient)}", f"a function to {_short(position)}")
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return position
    require(_finite(position), "position", "not finite", "finite at the start")
    value, gradient = jax.jit(target.force)(position, *level)
    require(value is None or _finite(value), "log_density", f"{value} at the start", "finite there")
    require(_finite(gradient), "gradient of log_density", "not finite at the start", "finite there")
    return position


def _shape(name: str, function: Callable, *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except UserError:
        raise
    except Exception as error:  # whatever the user's function raises
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"`{name}` is a function that JAX cannot trace or differentiate at this position "
            f"({type(error).__name__}: {reason}); it must be a differentiable JAX function"
        ) from error


def _short(tree: Any) -> str:
    return str(jax.tree.map(lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}", tree)).replace("'", "")


def _finite(tree: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))
