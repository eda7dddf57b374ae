"""Initial value problems through diffrax: the probability flow of samplers and of the likelihood."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from hold_jax.errors import require, require_choice

# Solver and its evaluations a step; the first-same-as-last ones make one more at the start.
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

Norm = Callable[[Any], jax.Array]


class Solution(NamedTuple):
    """y: the state at each of the times asked for (leading axis k); nfe () int32 evaluations of the field made;
    reached () bool: False where an adaptive solver gave up, and y is not to be used."""

    y: Any
    nfe: jax.Array
    reached: jax.Array


@dataclasses.dataclass(frozen=True)
class Solver:
    """How an ODE is solved.

    Attributes:
      solver: one of `SOLVERS`.
      adaptive: whether the solver chooses its steps.
      rtol: relative tolerance of a step, > 0.
      atol: absolute tolerance, in the state's units, > 0.
      max_steps: of the solver, rejected ones included; more is an error.
    """

    solver: str = "tsit5"
    adaptive: bool = True
    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000

    def __post_init__(self):
        require_choice("solver", self.solver, SOLVERS)
        require(0 < self.rtol < float("inf"), "rtol", self.rtol, "positive")
        require(0 < self.atol < float("inf"), "atol", self.atol, "positive")
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
        """dy/ds = field(s, y) from clock[0] to clock[-1], either way.

        Args:
          field: what is integrated.
          y: a tree of arrays, at clock[0].
          clock: (N + 1,) monotone; an adaptive solver uses its ends only, any other makes N steps.
          save: which of `clock` to return the state at; None: the last.
          norm: of a tree like y: the size of an error, in units of the tolerance; None: root mean square.
        """
        clock = np.asarray(clock, np.float32)
        solver, calls = SOLVERS[self.solver]
        first = 1 if self.solver in _FIRST_SAME_AS_LAST else 0
        options = {
            "dt0": None,
            "max_steps": len(clock) - 1,
            "stepsize_controller": diffrax.StepTo(ts=jnp.asarray(clock)),
        }
        if self.adaptive:
            measure = {} if norm is None else {"norm": norm}
            options = {
                "dt0": float(clock[-1] - clock[0]) / 50,
                "max_steps": self.max_steps,
                "stepsize_controller": diffrax.PIDController(rtol=self.rtol, atol=self.atol, **measure),
            }
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda s, y, _: field(s, y)),
            solver(),
            t0=clock[0],
            t1=clock[-1],
            y0=y,
            # Times on the way take interpolation: more to compile.
            saveat=diffrax.SaveAt(t1=True) if save is None else diffrax.SaveAt(ts=jnp.asarray(clock[save])),
            throw=False,
            adjoint=diffrax.ForwardMode(),
            **options,
        )
        nfe = jnp.asarray(calls * solution.stats["num_steps"] + first, jnp.int32)
        return Solution(solution.ys, nfe, solution.result == diffrax.RESULTS.successful)
