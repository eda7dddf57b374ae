"""Tuned samplers: which are tried, and the file that keeps the best for each number of calls."""

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from hold_jax import kernels
from hold_jax.app import build, constructors
from hold_jax.app.config import Config
from hold_jax.errors import require
from hold_jax.loops import tune
from hold_jax.loops.tune import Candidate, Choice
from hold_jax.runtime import distributed, schema, storage
from hold_jax.runtime.storage import Path

FILE = "tuned.json"
# Keys that choose a sampler: a command that gives one of them chooses itself.
CHOOSING = ("name", "grid", "rho", "times", "t_min", "order", "corrector", "churn", "gauge", "num_steps", "denoise")
# Keys that change the network's output: a choice holds for their values alone.
_GUIDING = ("guidance", "guidance_interval", "guide", "clip", "threshold", "ema_length")
_SAMPLERS: tuple[dict[str, Any], ...] = (
    *({"name": "gaussian_fitted", "churn": churn} for churn in (0.0, 0.5, 1.0)),
    *({"name": "unipc", "order": order} for order in (2, 3)),
    *({"name": "dpmpp_2m", "churn": churn} for churn in (0.0, 1.0)),
    {"name": "heun"},
)
_GRIDS: tuple[dict[str, Any], ...] = ({"grid": "log"}, {"grid": "karras", "rho": 7.0})
_END = 0.02  # effective noise where sampling stops, or else at that of the process


def with_calls(config: Config, calls: int, argument: str = "sampling.calls") -> Config:
    """The same sampler with as many steps as `calls` network calls allow; `argument` is what errors call them.

    Raises:
      UserError: if it needs more calls for one step, or chooses its steps itself.
    """
    settings = build.sampling(config.changed({"sampling.times": None, "sampling.frames": 0}))
    process = build.process(config)
    own = {"denoise": settings.denoise, "seed": settings.seed, "argument": argument}
    steps = tune.steps_for(settings.sampler, process, calls, **own)
    frames = config.sampling.frames
    return config.changed(
        {
            "sampling.num_steps": steps,
            "sampling.times": None,
            "sampling.frames": frames if frames and steps % frames == 0 else steps * (frames > 0),
        }
    )


def candidates(config: Config, calls: int) -> list[Candidate]:
    """The samplers that are tried for a number of calls: the config's own first.

    Raises:
      UserError: if the config's own makes more calls in one step.
    """
    ends = None, float(np.asarray(kernels.time_of_noise(build.process(config), _END)))
    changes, found = [{}] + [s | g | {"t_min": end} for s in _SAMPLERS for g in _GRIDS for end in ends], []
    for options in changes:
        keys = {f"sampling.{key}": value for key, value in options.items()}
        lost = constructors.without_options_of(config, keys) if options else {}
        own = {"sampling.rho": None, "sampling.times": None} if options else {}
        whole = constructors.resolve(config.changed(lost | own | keys | {"sampling.frames": 0}))
        changed = with_calls(whole, calls, "tune.calls")
        # The run's own is kept with all that chooses it: the command may name it, and the run may change.
        chosen = options or {key: getattr(changed.sampling, key) for key in CHOOSING if key != "times"}
        kept = {**chosen, "num_steps": changed.sampling.num_steps}
        found.append(Candidate(_label(options), kept, build.sampling(changed)))
    return found


def write(path: Path, config: Config, step: int, features: str, choices: dict[int, Choice]) -> None:
    """Keeps the choices in `path`/tuned.json; those for other processes, guidance and numbers of calls stay."""
    about = _about(config)
    entries = [e for e in read(path) if not (_is_of(e, about) and e.get("calls") in choices)]
    for calls, choice in choices.items():
        best, default = choice.best, choice.default
        entries.append({
            "calls": calls,
            **about,
            "sampling": dict(best.candidate.options),
            "distance": _finite(best.distance),
            "error": _finite(best.error),
            "default": _finite(default.distance),
            "difference": _finite(best.difference),
            "difference_error": _finite(best.difference_error),
            "samples": best.num,
            "features": features,
            "step": step,
        })  # fmt: skip
    storage.write(path / FILE, (json.dumps({"tuned": entries}, indent=2) + "\n").encode())


def _finite(value: float) -> float | None:
    """A number as JSON has it; None for NaN, of samples that are not finite."""
    return value if math.isfinite(value) else None


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of `path`/tuned.json; empty if there is no such file, or it is damaged."""
    try:
        found = schema.json_object(storage.read(path / FILE)).get("tuned")
    except (OSError, ValueError):
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def apply(config: Config, path: Path, flags: Collection[str] = ()) -> Config:
    """The settings with the sampler for `sampling.calls` network calls: the tuned one, or the config's own.

    Args:
      flags: keys that the command line gives; one that chooses a sampler wins over the tuned one, and one that chooses
        the steps over the number of calls that the run was made with.

    Raises:
      UserError: if the tuned entry was edited and is not allowed, no number of steps makes so few calls, or the command
        gives the number of steps too.
    """
    calls = config.sampling.calls
    if calls is None:
        return config
    steps = [key for key in ("sampling.num_steps", "sampling.times") if key in flags]
    if steps:
        both = "sampling.calls" in flags
        require(not both, "sampling.calls", calls, f"left out beside {steps[0]}, which says the steps itself")
        return config.changed({"sampling.calls": None})
    about = _about(config)
    known = {e["calls"]: e for e in read(path) if isinstance(e.get("calls"), int) and _is_of(e, about)}
    own = any(f"sampling.{key}" in flags for key in CHOOSING)
    options = known[calls].get("sampling") if calls in known and not own else None
    if not isinstance(options, dict):
        changed = with_calls(config, calls)
        if not own:
            there = f"tuned there: {', '.join(map(str, sorted(known)))}" if known else "--mode=tune finds the best"
            distributed.say(f"{calls} calls: {changed.sampling.name} in {changed.sampling.num_steps} steps; {there}")
        return changed
    chosen = {f"sampling.{key}": value for key, value in options.items()}
    if len(options) > 1:
        chosen = {**constructors.without_options_of(config, chosen), "sampling.rho": None, **chosen}
    changed = constructors.resolve(config.changed({**chosen, "sampling.times": None, "sampling.frames": 0}))
    distributed.say(f"{calls} calls, as tuned: {_label(options)} in {changed.sampling.num_steps} steps")
    return with_calls(changed.changed({"sampling.frames": config.sampling.frames}), calls)


def _about(config: Config) -> dict[str, Any]:
    """What a choice holds for: the process, and what changes the network's output."""
    kept = build.as_json(config)
    return {"sde": kept["sde"]} | {key: kept["sampling"][key] for key in _GUIDING}


def _is_of(entry: dict[str, Any], about: dict[str, Any]) -> bool:
    return all(entry.get(key) == value for key, value in about.items())


def _label(options: dict[str, Any]) -> str:
    words = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in options.items()
             if value is not None and key not in ("name", "num_steps")]  # fmt: skip
    return " ".join([options.get("name", "the run's own"), *words])


def calls_of(config: Config) -> Sequence[int]:
    """The numbers of calls to tune for, rising."""
    calls = config.tune.calls
    return sorted(set(calls)) if isinstance(calls, tuple) else [calls]
