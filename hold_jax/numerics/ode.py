"""Solver of initial value problems: the probability flow ODE of samplers and of the likelihood.

The solvers and the step size control are those of diffrax; the loop is written here. `diffrax.diffeqsolve` checks its
arguments with callbacks to the host, even with `throw=False`. A program with such callbacks cannot be exported or
cached, and on a TPU its loop waits for the host.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hold_jax.errors import require, require_choice, require_number
from hold_jax.numerics import varying

# Solver and its number of evaluations per step. A first-same-as-last solver makes one more at the start.
SOLVERS = {
    "euler": (diffrax.Euler, 1),
    "heun": (diffrax.Heun, 2),
    "midpoint": (diffrax.Midpoint, 2),
    "bosh3": (diffrax.Bosh3, 3),
    "tsit5": (diffrax.Tsit5, 6),
    "dopri5": (diffrax.Dopri5, 6),
    "dopri8": (diffrax.Dopri8, 13),
}
_FIXED_ONLY = ("euler",)
_FIRST_SAME_AS_LAST = ("bosh3", "tsit5", "dopri5", "dopri8")
# diffrax begins their loop over the stages with zeros that are the same on all devices of `jax.shard_map`.
_INVARIANT_STAGES = ("heun", "midpoint")

Norm = Callable[[Any], jax.Array]


class Solution(NamedTuple):
    """The result of `Solver.solve`.

    Attributes:
      y: the state at each requested time, a tree of arrays with leading axis k.
      nfe: () int32 number of evaluations of the field.
      reached: () bool; False where an adaptive solver made `max_steps` steps before the end: y is then invalid.
    """

    y: Any
    nfe: jax.Array
    reached: jax.Array


class _GridSteps(NamedTuple):
    """Steps along a given grid of times, with the interface of diffrax's step size controllers."""

    ts: jax.Array

    def init(self, *_: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the end of the first step and the index of the next one."""
        return self.ts[1], jnp.int32(2)

    def adapt_step_size(self, t0: Any, t1: Any, *rest: Any) -> tuple[Any, ...]:
        """Accepts every step and returns the next time of the grid."""
        index = rest[-1]
        return jnp.bool_(True), t1, self.ts[index], False, index + 1, None


class _Loop(NamedTuple):
    """The state of the loop: the next step is from `t` to `t_next`."""

    t: jax.Array
    t_next: jax.Array
    y: Any
    solver_state: Any
    step_state: Any
    num_steps: jax.Array
    num_saved: jax.Array
    saved: Any


@dataclasses.dataclass(frozen=True)
class Solver:
    """The method that solves an ODE.

    Attributes:
      solver: one of `SOLVERS`.
      adaptive: whether the solver chooses its steps.
      rtol: relative tolerance of a step, > 0.
      atol: absolute tolerance, in the state's units, > 0.
      max_steps: largest number of steps of an adaptive solver, including rejected steps.

    Raises:
      UserError: for an option out of range.
    """

    solver: str = "tsit5"
    adaptive: bool = True
    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000

    def __post_init__(self):
        require_choice("solver", self.solver, SOLVERS)
        require_number("rtol", self.rtol, lambda r: 0 < r < float("inf"), "positive")
        require_number("atol", self.atol, lambda a: 0 < a < float("inf"), "positive")
        whole = isinstance(self.max_steps, int) and self.max_steps >= 1
        require(whole, "max_steps", self.max_steps, "a whole number >= 1")
        adapts = not self.adaptive or self.solver not in _FIXED_ONLY
        require(adapts, "solver", self.solver, "one with an error estimate, or set adaptive = False")

    def solve(
        self,
        field: Callable[[jax.Array, Any], Any],
        y: Any,
        clock: np.ndarray,
        *,
        save: slice | None = None,
        norm: Norm | None = None,
    ) -> Solution:
        """Solves dy/ds = field(s, y) from clock[0] to clock[-1], forward or backward.

        Traceable, with no callback to the host; differentiable in forward mode.

        Args:
          field: the right-hand side, (s, y) -> a tree like y.
          y: the state at clock[0], a tree of float32 arrays.
          clock: (N + 1,) monotone times, known at trace time. An adaptive solver uses only the first and the last; with
            fixed steps the solver makes N steps.
          save: the times of `clock` at which the state is returned; None: the last.
          norm: norm of the ratios of error to tolerance, a tree like y; None: their root mean square.

        Returns:
          The state at the times `save`, the number of evaluations, and whether the end was reached.
        """
        clock = np.asarray(clock, np.float32)
        # The solver's own time runs forward.
        direction = 1.0 if clock[-1] > clock[0] else -1.0
        ts = direction * clock
        end, stops = ts[-1], jnp.asarray(ts if save is None else ts[save])
        term = diffrax.ODETerm(
            lambda t, y, _: jax.tree.map(lambda v: direction * v, field(jnp.asarray(direction * t), y))
        )
        constructor, calls = SOLVERS[self.solver]
        # The default loop over the stages of a Runge-Kutta solver has no forward-mode derivative.
        stages: dict[str, Any] = {"scan_kind": "lax"} if issubclass(constructor, diffrax.AbstractRungeKutta) else {}
        solver = constructor(**stages)
        order = solver.error_order(term)
        if self.adaptive:
            measure: dict[str, Any] = {} if norm is None else {"norm": norm}
            steps: Any = diffrax.PIDController(rtol=self.rtol, atol=self.atol, **measure)
            limit = self.max_steps
        else:
            steps = _GridSteps(jnp.asarray(ts))
            limit = len(ts) - 1

        def unfinished(loop: _Loop) -> jax.Array:
            return (loop.t < end) & (loop.num_steps < limit)

        def step(loop: _Loop) -> _Loop:
            y, error, dense, solver_state, _ = solver.step(
                term, loop.t, loop.t_next, loop.y, None, loop.solver_state, made_jump=False
            )
            # Reject a step that leaves the domain of the field: its error is NaN.
            error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
            kept, t, t_next, _, step_state, _ = steps.adapt_step_size(
                loop.t, loop.t_next, loop.y, y, None, error, order, loop.step_state
            )
            # The last step ends exactly at `end`. No earlier step may end within a few roundings of it.
            t = jnp.minimum(t, end)
            last = jnp.where(kept, end, t + 0.5 * (end - t))
            t_next = jnp.where(t_next > end - 100 * np.spacing(abs(end)), last, t_next)
            num_saved, saved = loop.num_saved, loop.saved
            if save is not None:
                between = solver.interpolation_cls(t0=loop.t, t1=loop.t_next, **dense)

                def due(found: tuple[jax.Array, Any]) -> jax.Array:
                    return kept & (found[0] < len(stops)) & (stops[found[0]] <= loop.t_next)

                def interpolate(found: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
                    i, saved = found
                    return i + 1, jax.tree.map(lambda a, y: a.at[i].set(y), saved, between.evaluate(stops[i]))

                num_saved, saved = lax.while_loop(due, interpolate, varying.carried(interpolate, (num_saved, saved)))
            choose = lambda new, old: jax.tree.map(lambda a, b: jnp.where(kept, a, b), new, old)  # noqa: E731
            y, solver_state = choose(y, loop.y), choose(solver_state, loop.solver_state)
            return _Loop(t, t_next, y, solver_state, step_state, loop.num_steps + 1, num_saved, saved)

        t, dt = jnp.asarray(ts[0]), float(end - ts[0]) / 50
        y = varying.carried(lambda y: term.vf(t, y, None), y)
        fits = self.solver not in _INVARIANT_STAGES or not varying.axes(*jax.tree.leaves(y))
        require(fits, "solver", self.solver, "another, such as 'tsit5', under `jax.shard_map` with check_vma=True")
        t_next, step_state = steps.init(term, t, end, y, dt, None, solver.func, order)
        solver_state = solver.init(term, t, t_next, y, None)
        if self.solver in _FIRST_SAME_AS_LAST:
            solver_state = varying.carried(lambda state: (state[0], term.vf(t, y, None)), solver_state)
        saved = None if save is None else jax.tree.map(lambda a: jnp.full((len(stops), *a.shape), jnp.nan, a.dtype), y)
        start = _Loop(t, t_next, y, solver_state, step_state, jnp.int32(0), jnp.int32(0), saved)
        found = lax.while_loop(unfinished, step, varying.carried(step, jax.tree.map(jnp.asarray, start)))
        first = 1 if self.solver in _FIRST_SAME_AS_LAST else 0
        states = jax.tree.map(lambda a: a[None], found.y) if save is None else found.saved
        return Solution(states, calls * found.num_steps + first, found.t >= end)
