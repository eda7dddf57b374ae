"""Time grids, from T down to t_min, on the host in float64."""

from collections.abc import Callable, Sequence

import numpy as np

from hold_jax import kernels
from hold_jax.errors import UserError, chosen, require, require_number, require_whole
from hold_jax.numerics import exact
from hold_jax.sde import LinearSDE

Grid = Callable[[LinearSDE, float, int], np.ndarray]
"""(SDE, t_min, num_steps) -> times (num_steps + 1,), falling from T to t_min."""


def uniform(sde: LinearSDE, t_min: float, num_steps: int) -> np.ndarray:
    """Equal steps in t."""
    return np.linspace(sde.T, t_min, num_steps + 1)


def quadratic(sde: LinearSDE, t_min: float, num_steps: int) -> np.ndarray:
    """t_min + (T - t_min) (j/N)^2, j = N, ..., 0: quadratic striding, as in the code of CLD (2112.07068) and PSLD."""
    times = t_min + (sde.T - t_min) * np.square(np.linspace(1, 0, num_steps + 1))
    # t_min + (T - t_min) may differ from T by a rounding error.
    times[0] = sde.T
    return times


def karras(sde: LinearSDE, t_min: float, num_steps: int, *, rho: float = 7.0) -> np.ndarray:
    """Equal steps in sigma_eff^(1/rho) (EDM, 2206.00364, eq. 5), the clock on which all orders agree."""
    rho = require_number("rho", rho, lambda rho: rho > 0, "positive")
    roots = lambda first, last: np.linspace(first ** (1 / rho), last ** (1 / rho), num_steps + 1) ** rho  # noqa: E731
    return _at_noise(sde, t_min, roots)


def log(sde: LinearSDE, t_min: float, num_steps: int) -> np.ndarray:
    """Equal steps in log sigma_eff (DPM-Solver's uniform lambda, 2206.00927): data of every width meet equal steps."""
    return _at_noise(sde, t_min, lambda first, last: np.geomspace(first, last, num_steps + 1))


def _at_noise(sde: LinearSDE, t_min: float, between: Callable[[float, float], np.ndarray]) -> np.ndarray:
    """The times at the effective noises `between`(noise at T, noise at t_min)."""
    ends = sde.schedule.integral(0.0, np.array([sde.T, t_min]))
    sigma = between(*exact.effective_noise(sde.F, sde.G, sde.cov0, ends))
    times = sde.schedule.time(exact.integral_of_noise(sde.F, sde.G, sde.cov0, sigma))
    times[[0, -1]] = sde.T, t_min
    if not np.all(np.diff(times) < 0):
        kernels.require_t_min(sde, t_min, least_b=exact.LEAST_B)
    return times


GRIDS: dict[str, Grid] = {"uniform": uniform, "quadratic": quadratic, "karras": karras, "log": log}


def times_of(sde: LinearSDE, grid: str | Grid | Sequence[float], t_min: float, num_steps: int) -> np.ndarray:
    """The grid's times (num_steps + 1,) float64: a name of `GRIDS`, a function, or your own falling times.

    Raises:
      UserError: for an unknown name, num_steps < 1, times that do not fall within (0, T], and a t_min, or a last time,
        that is outside (0, T) or has no kernel in float32.
    """
    num_steps = require_whole("num_steps", num_steps, 1)
    t_min = kernels.require_t_min(sde, t_min)
    grid = chosen("grid", grid, GRIDS)
    try:
        times = np.array(grid(sde, t_min, num_steps) if callable(grid) else grid, np.float64)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        kind = "a name of `samplers.GRIDS`, a function (sde, t_min, num_steps) -> times, or falling times"
        raise UserError(f"`grid` cannot be used ({str(error).splitlines()[0]}); it must be {kind}") from error
    require(times.shape == (num_steps + 1,), "grid", times.shape, f"of shape ({num_steps + 1},)")
    if times[0] == np.float32(sde.T):  # which may be above T
        times[0] = min(times[0], sde.T)
    falls = np.all(np.diff(times) < 0) and 0 < times[-1] and times[0] <= sde.T
    require(bool(falls), "grid", tuple(times.tolist()), f"strictly falling within (0, T = {sde.T}]")
    kernels.require_t_min(sde, float(times[-1]), "grid[-1]")
    return times


def fixed_grid(
    sde: LinearSDE, grid: str | Grid | Sequence[float], t_min: float | None, num_steps: int
) -> str | tuple[float, ...]:
    """A name, or the times of the grid: what a grid function reads may change from call to call."""
    if isinstance(grid, str):
        return grid
    times = times_of(sde, grid, sde.t_min if t_min is None else t_min, num_steps).tolist()
    ends = t_min is None or callable(grid) or np.isclose(t_min, times[-1])
    require(bool(ends), "t_min", t_min, f"left out, or the end of the times of `grid`, {times[-1]:.6g}")
    return tuple(times)
