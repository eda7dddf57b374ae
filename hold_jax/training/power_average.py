"""Power-function averages of the parameters, of any length after training (EDM2, arXiv:2312.02696, section 3).

The average of length sigma_rel after t steps is theta_hat(t) = int_0^t p(tau) theta(tau) dtau with the profile
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), whose standard deviation is sigma_rel t. Training keeps the averages of
two lengths and writes them to files as it goes on. A weighted sum of these snapshots has nearly the profile of any
other average (post-hoc EMA, appendix C).
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hold_jax.errors import UserError, require
from hold_jax.runtime import storage
from hold_jax.runtime.npz import Npz, NpzError
from hold_jax.runtime.storage import Path

SIGMAS = (0.05, 0.10)
"""Lengths of the averages that training keeps."""
FOLDER = "averages"
_LONGEST = 0.28  # at 1 / sqrt(12) the average is the mean of all steps
_RUN = "run"  # name of the array with the identity of the run
_LIMIT_BYTES = 16 << 30


def exponent(sigma_rel: float) -> float:
    """Returns gamma of a length: the root of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), above 0.

    Raises:
      UserError: for a length outside (0, 0.28].
    """
    require(0 < sigma_rel <= _LONGEST, "sigma_rel", sigma_rel, f"in (0, {_LONGEST}]")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def update(average: Any, params: Any, step: jax.Array, sigma_rel: float) -> Any:
    """Returns a power-function average after one more update, weight (1 - 1/t)^(gamma + 1) of the old one at step t.

    The first update, t = 1, gives the parameters.

    Args:
      average: the average so far, a tree like `params`.
      params: the parameters after the update.
      step: () number of updates before this one, t - 1.
      sigma_rel: length of the average.
    """
    t = jnp.asarray(step, jnp.float32) + 1
    new = -jnp.expm1((exponent(sigma_rel) + 1) * jnp.log1p(-1 / t))
    return jax.tree.map(lambda old, value: old + new * (value - old), average, params)


class Average(NamedTuple):
    """A power-function average.

    Attributes:
      sigma_rel: its length.
      step: number of steps t that it is taken over.
    """

    sigma_rel: float
    step: int


def combination(kept: Sequence[Average], wanted: Average) -> tuple[np.ndarray, float]:
    """Returns the weights of known averages whose sum is nearest to a wanted one (EDM2, appendix C.2).

    The weights minimize int (p - sum_i x_i p_i)^2, with sum 1, so that parameters that do not change come out exactly.

    Returns:
      Weights, float64, one for each of `kept`; and the error of the profile, the root of that integral over int p^2.
    """
    averages = [*kept, wanted]
    gamma = np.array([exponent(average.sigma_rel) for average in averages])
    t = np.array([average.step for average in averages], np.float64) / wanted.step
    first = t[:, None] <= t  # which of two ends first, at t1
    t1, t2 = np.minimum(t[:, None], t), np.maximum(t[:, None], t)
    later = np.where(first, gamma, gamma[:, None])  # gamma of the other
    product = (gamma[:, None] + 1) * (gamma + 1) / (gamma[:, None] + gamma + 1) * (t1 / t2) ** later / t2
    inner, right, size = product[:-1, :-1], product[:-1, -1], product[-1, -1]
    ones = np.ones((len(kept), 1))
    system = np.block([[inner, ones], [ones.T, np.zeros((1, 1))]])
    x = np.linalg.lstsq(system, np.append(right, 1.0), rcond=None)[0][:-1]
    return x, math.sqrt(max(0.0, (size - 2 * right @ x + x @ inner @ x) / size))


def write(workdir: Path, averages: Sequence[Any], step: int, run: str) -> None:
    """Writes the averages of `SIGMAS` after `step` steps to a file of `workdir`/averages.

    As float32: averages of a run whose learning rate decays differ by less than float16 resolves.

    Args:
      workdir: of the run.
      averages: a tree of parameters for each of `SIGMAS`.
      step: number of steps.
      run: the run's identity.

    Raises:
      UserError: if it cannot be written.
    """
    arrays = {_RUN: np.frombuffer(run.encode(), np.uint8)}
    for sigma_rel, tree in zip(SIGMAS, averages, strict=True):
        flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
        arrays |= {f"{sigma_rel:g}/{name}": np.asarray(value) for name, value in flat.items()}
    path = workdir / FOLDER / f"step_{step:08d}.npz"
    try:
        with storage.writing(path) as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  # NumPy's stub takes a flag by keyword
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); run the same command again") from None


class Reconstruction(NamedTuple):
    """What `reconstruct` found.

    Attributes:
      params: float32 parameters, nested.
      step: number of steps that the average is taken over.
      error: of the profile, see `combination`.
      num_snapshots: files that it was made of.
    """

    params: dict[str, Any]
    step: int
    error: float
    num_snapshots: int


def reconstruct(workdir: Path, run: str, sigma_rel: float, step: int) -> Reconstruction:
    """Returns the average of length `sigma_rel` over the steps up to the newest snapshot at or before `step`.

    Args:
      workdir: of the run.
      run: the run's identity; files of another one are left out.
      sigma_rel: length, in (0, 0.28].
      step: of a checkpoint.

    Raises:
      UserError: if there is no snapshot, or one is damaged.
    """
    paths = {at: path for at, path in snapshots(workdir, run).items() if at <= step}
    if not paths:
        raise UserError(
            f"there is no snapshot of the run's averages up to step {step:,} in {workdir / FOLDER}: train with "
            "training.ema_snapshot_every, e.g. a thirtieth of training.num_steps"
        )
    newest = max(paths)
    kept = [Average(sigma, at) for at in paths for sigma in SIGMAS]
    weights, error = combination(kept, Average(sigma_rel, newest))
    total: dict[str, np.ndarray] = {}
    for i, path in enumerate(paths.values()):
        for sigma, weight in zip(SIGMAS, weights[len(SIGMAS) * i :], strict=False):
            for name, value in _arrays(path, f"{sigma:g}/").items():
                total[name] = total.get(name, np.float32(0)) + np.float32(weight) * value
    return Reconstruction(traverse_util.unflatten_dict(total, sep="/"), newest, error, len(paths))


def lateness(at: Sequence[int], step: int, every: int) -> str:
    """What to say of a step that is further from its newest snapshot than snapshots are from each other; else "".

    Args:
      at: the steps of the snapshots, rising.
      step: of a checkpoint.
      every: the interval that the run has now, 0 for none; it may have had a longer one.
    """
    before = [0, *(a for a in at if a <= step)]
    every = max([every, *np.diff(before).tolist()])
    if len(before) == 1 or step - before[-1] <= every:
        return ""
    return f"the newest snapshot of its averages is of step {before[-1]:,}; they were made every {every:,} steps"


def drop_after(workdir: Path, run: str, step: int) -> None:
    """Deletes the files of steps after `step`, where a run goes on: it may come to other averages, at other steps."""
    for at, path in snapshots(workdir, run).items():
        if at > step:
            storage.remove(path)


def snapshots(workdir: Path, run: str) -> dict[int, Path]:
    """Returns the files of a run's averages by step, rising.

    Raises:
      UserError: if one is damaged.
    """
    folder = workdir / FOLDER
    found = {int(match[1]): name for name in storage.names(folder) if (match := re.fullmatch(r"step_(\d+)\.npz", name))}
    return {at: folder / found[at] for at in sorted(found) if _run_of(folder / found[at]) == run}


def _run_of(path: Path) -> str:
    return b"".join(array.tobytes() for array in _arrays(path, _RUN).values()).decode("ascii", "replace")


def _arrays(path: Path, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a snapshot whose names begin with `prefix`, without it."""
    try:
        with storage.opened(path) as file:
            archive = Npz(file, _LIMIT_BYTES)
            return {name.removeprefix(prefix): archive.read(name) for name in archive.names if name.startswith(prefix)}
    except (OSError, NpzError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and go on without it") from None
