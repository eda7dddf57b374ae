"""The choice of a sampler for a number of network calls: candidates are compared on one network by successive halving.

All candidates start from the same states and get the same random numbers, so that most of the error of a difference
cancels. Samples are compared with data by the energy distance in a feature space (Szekely & Rizzo 2013),

    E = 2 E|x - y| - E|x - x'| - E|y - y'|,

which is zero for equal laws only. Its estimate is unbiased for any number of samples; its errors are jackknife errors.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from hold_jax import samplers
from hold_jax.condition import Condition
from hold_jax.errors import require
from hold_jax.loops.conditions import Conditions
from hold_jax.loops.draw import SampleSettings, guided, with_labels
from hold_jax.model import Model
from hold_jax.runtime import plots
from hold_jax.runtime.mesh import Devices
from hold_jax.samplers import Sampler
from hold_jax.sde import LinearSDE

ROUNDS = 4  # samples double from round to round
_KEPT = 3  # a round keeps one candidate of so many


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A way to draw samples.

    Attributes:
      label: in words.
      options: the keys of the config that choose it.
      settings: the same for `samplers.sample`.
    """

    label: str
    options: Mapping[str, Any]
    settings: SampleSettings


class Outcome(NamedTuple):
    """The energy distance of a candidate's samples to the data.

    Attributes:
      candidate: the candidate.
      num: number of samples.
      distance: the estimate; NaN if samples were not finite.
      error: its standard error.
      difference: the distance less that of the default, from the same random numbers.
      difference_error: its standard error.
    """

    candidate: Candidate
    num: int
    distance: float
    error: float
    difference: float
    difference_error: float


class Choice(NamedTuple):
    """What `choose` returns.

    Attributes:
      best: the chosen candidate, on samples that were not used to choose it.
      default: the default, on the same samples.
      tried: all candidates, each after its last round: those of the last round first, the best of them before others.
    """

    best: Outcome
    default: Outcome
    tried: list[Outcome]


@functools.lru_cache(maxsize=128)
def calls_of(sampler: Sampler, sde: LinearSDE, num_steps: int, *, denoise: bool, seed: int = 0) -> int:
    """Returns the number of network calls for each sample; where it is random, that of a run with this seed."""
    options: dict[str, Any] = {"key": jax.random.key(seed), "shape": (1, 1), "num_steps": num_steps, "denoise": denoise}
    with jax.disable_jit():
        return int(samplers.sample(sampler, sde, lambda u, t: u[..., -1:, :], **options).nfe)


def steps_for(
    sampler: Sampler, sde: LinearSDE, calls: int, *, denoise: bool, seed: int = 0, argument: str = "sampling.calls"
) -> int:
    """Returns the number of steps that makes at most `calls` network calls, while one more makes more.

    `argument` is what errors call them.

    Raises:
      UserError: if the sampler needs more calls for one step, or chooses its steps itself.
    """
    made = functools.partial(calls_of, sampler, sde, denoise=denoise, seed=seed)
    few, many = made(1), made(17)
    require(many > few, argument, calls, "left out for a sampler that chooses its steps itself")
    require(few <= calls, argument, calls, f"{few} or more for this sampler")
    steps = max(1, 1 + 16 * (calls - few) // (many - few))  # near it, where the number of calls is random
    while made(steps) > calls:
        steps -= 1
    while made(steps + 1) <= calls:
        steps += 1
    return steps


class Network:
    """The noise predictor of a model, compiled once for all samplers: their loops run in Python around it.

    Args:
      model: the trained model.
      params: averaged parameters.
      settings: seed, classes, guidance and limits of the denoiser (`draw.guided`), the same for all samplers.
      conditions: of the samples.
      size: number of samples at once.
    """

    def __init__(self, model: Model, params: Any, settings: SampleSettings, conditions: Conditions, size: int) -> None:
        self._model, self._settings, self._conditions, self._size = model, settings, conditions, size
        self._params = jax.device_put(params, jax.devices()[0])

        def eps(params: Any, u: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
            return guided(model, settings, functools.partial(model.eps_fn, params, condition=condition))(u, t)

        self._eps = Devices.all().jit(eps)

    def draw(self, settings: SampleSettings, block: int) -> np.ndarray | None:
        """Returns samples number `block` x size on, as data; None if they are not finite."""
        numbers = (block * self._size + np.arange(self._size)).astype(np.int32)
        index = jnp.asarray(numbers)
        condition = with_labels(self._model, self._settings, index, self._conditions.of(numbers))

        def eps_fn(u: jax.Array, t: jax.Array) -> jax.Array:
            with jax.disable_jit(False):
                return self._eps(self._params, u, jnp.broadcast_to(t, (self._size,)), condition)

        with jax.disable_jit():
            out = samplers.sample(
                settings.sampler,
                self._model.sde,
                eps_fn,
                key=jax.random.key(settings.seed),
                shape=(self._size, *self._model.data_shape),
                index=index,
                num_steps=settings.num_steps,
                grid=settings.grid,
                t_min=settings.t_min,
                denoise=settings.denoise,
            )
        x = np.asarray(out.x)
        return np.asarray(self._model.to_data(x)) if np.isfinite(x).all() else None


class Reference:
    """Features of data, to which samples are compared.

    Args:
      features: (M, d).
    """

    def __init__(self, features: np.ndarray) -> None:
        self._y = np.asarray(features, np.float64)
        self._within = _distances(self._y, self._y).sum() / (len(self._y) * (len(self._y) - 1))

    def energy(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the energy distance of samples to the data, and its values without each one of the samples.

        Args:
          x: (n, d) features of the samples, n >= 3.

        Returns:
          The unbiased estimate, and (n,) its jackknife values.
        """
        x = np.asarray(x, np.float64)
        n, cross, within = len(x), _distances(x, self._y).mean(axis=1), _distances(x, x).sum(axis=1)
        value = 2 * cross.mean() - within.sum() / (n * (n - 1)) - self._within
        without = 2 * (cross.sum() - cross) / (n - 1) - (within.sum() - 2 * within) / ((n - 1) * (n - 2))
        return float(value), without - self._within


def choose(
    candidates: Sequence[Candidate],
    draw: Callable[[SampleSettings, int], np.ndarray | None],
    reference: Reference,
    say: Callable[[str], None] = lambda line: None,
) -> Choice:
    """Returns the best candidate; the first one, the default, unless another is better by more than its error.

    Round k compares the candidates that are left on 2^k blocks of samples and keeps the best third. The winner and the
    default are then compared on as many new samples as the last round had: an estimate that was the least of many is
    too low.

    Args:
      candidates: the default first.
      draw: (settings, block) -> (b, d) features of a block of samples, or None if they are not finite.
      reference: the data.
      say: called with a line before each round.
    """
    default, left, tried = candidates[0], list(candidates), {}
    kept: dict[Candidate, list[np.ndarray | None]] = {candidate: [] for candidate in candidates}
    for k in range(ROUNDS):
        say(f"round {k + 1} of {ROUNDS}: {len(left)} samplers")
        for candidate in left:
            for block in range(len(kept[candidate]), 2**k):
                kept[candidate].append(draw(candidate.settings, block))
        found = _outcomes(left, kept, reference)
        tried |= {outcome.candidate: outcome for outcome in found}
        ranked = [outcome.candidate for outcome in sorted(found, key=_rank)]
        most = max(2, -(-len(ranked) // _KEPT)) if k < ROUNDS - 1 else 1
        left = ranked[:most] + [default] * (default not in ranked[:most])
    best = min((tried[candidate] for candidate in left), key=_rank).candidate
    fresh = range(2 ** (ROUNDS - 1), 2**ROUNDS)
    again = {c: [draw(c.settings, block) for block in fresh] for c in {default, best}}
    finals = {o.candidate: o for o in _outcomes(list(again), again, reference, default)}
    first, second = tried[best], finals[best]
    better = first.difference < -first.difference_error and second.difference < 0
    better = better or (math.isnan(finals[default].distance) and not math.isnan(second.distance))
    return Choice(
        second if better else finals[default], finals[default], sorted(tried.values(), key=lambda o: (-o.num, _rank(o)))
    )


def _outcomes(
    candidates: Sequence[Candidate],
    kept: Mapping[Candidate, Sequence[np.ndarray | None]],
    reference: Reference,
    default: Candidate | None = None,
) -> list[Outcome]:
    """Returns the outcomes of candidates with equally many samples; differences are to `default`, or the first kept."""
    found = {}
    for candidate in candidates:
        blocks = [block for block in kept[candidate] if block is not None]
        whole = len(blocks) == len(kept[candidate])
        found[candidate] = reference.energy(np.concatenate(blocks)) if whole else (math.nan, np.full(1, math.nan))
    base = found[next(iter(kept)) if default is None else default]
    outcomes = []
    for candidate, (value, without) in found.items():
        difference = without - base[1] if len(without) == len(base[1]) else np.full(1, math.nan)
        outcomes.append(Outcome(candidate, len(without), value, _error(without), value - base[0], _error(difference)))
    return outcomes


def _error(without: np.ndarray) -> float:
    """Returns the jackknife error of an estimate from its values without one sample each."""
    return math.sqrt((len(without) - 1) * without.var())


def _rank(outcome: Outcome) -> float:
    return math.inf if math.isnan(outcome.distance) else outcome.distance


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns |x_i - y_j| (n, m)."""
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None] - 2 * x @ y.T
    if x is y:
        np.fill_diagonal(squares, 0.0)
    return np.sqrt(np.maximum(squares, 0.0))


def table(choices: Mapping[int, Choice], most: int = 4) -> str:
    """Returns the best candidates for each number of calls in words, and the choice."""
    lines = ["calls samples   distance to the data   less that of the default   sampler"]
    for calls, choice in choices.items():
        rows = [*choice.tried[:most]]
        rows += [o for o in choice.tried if o.candidate is choice.default.candidate and o not in rows]
        lines += [_row(calls, outcome) for outcome in rows]
        lines.append(f"{_row(calls, choice.best)}  <- kept; on other samples")
    return "\n".join(lines)


def _row(calls: int, o: Outcome) -> str:
    figures = f"{o.distance:11.3g} +- {o.error:<8.2g}{o.difference:11.3g} +- {o.difference_error:<8.2g}"
    return f"{calls:5}{o.num:8}{figures}  {o.candidate.label}"


def plot(choices: Mapping[int, Choice]) -> PIL.Image.Image:
    """Returns a picture of the distances of all candidates over the number of calls."""
    from matplotlib.figure import Figure  # in the extra [train]

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for calls, choice in choices.items():
        values = [o.distance for o in choice.tried if not math.isnan(o.distance)]
        axes.plot([calls] * len(values), values, "_", color="#bbbbbb", markersize=12, zorder=1)
    for name, color in (("default", "#1f77b4"), ("best", "#d62728")):
        found = [getattr(choice, name) for choice in choices.values()]
        label = "default" if name == "default" else "chosen"
        axes.errorbar(
            list(choices), [o.distance for o in found], [o.error for o in found], color=color, marker="o", label=label
        )
    axes.set(xscale="log", yscale="symlog", xlabel="network calls", ylabel="energy distance to the data")
    axes.set_yscale("symlog", linthresh=max(1e-6, min(abs(c.default.error) for c in choices.values())))
    axes.set_xticks(list(choices), [str(calls) for calls in choices])
    axes.legend(frameon=False)
    return plots.to_image(figure)
