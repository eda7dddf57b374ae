"""What samples were made by: the record beside them, `sampling.json`, and in the lines of `results.jsonl`."""

import dataclasses
import functools
import hashlib
import json
import math
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hold_jax.autoguided import Autoguided
from hold_jax.loops.draw import SampleSettings
from hold_jax.model import Model
from hold_jax.runtime import schema, storage
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.storage import Path
from hold_jax.version import VERSION

FILE = "sampling.json"
_SHORT = 6  # digits of the digest that tells folders apart


def digest(*parts: Any) -> str:
    """Returns a short name of texts and arrays: the first 12 digits of their SHA-256."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:12]


def fingerprint(params: Any) -> str:
    """Returns the digest of a tree of parameters: one changed bit gives another."""
    return digest(*jax.tree.leaves(jax.tree.map(np.asarray, params)))


def weights_of(model: Model, params: Any) -> str:
    """Returns the digest of a model's own parameters, without those of its guide."""
    return fingerprint(params[0] if isinstance(model, Autoguided) else params)


def of_parameters(settings: SampleSettings, *, step: int, weights: str) -> dict[str, Any]:
    """Returns which parameters of a run were taken: step, digest and, where it was chosen, the average's length."""
    length = {} if settings.ema_length is None else {"ema_length": settings.ema_length}
    return {"step": step, "checkpoint": weights, **length}


def of_samples(
    model: Model, settings: SampleSettings, devices: Devices, *, step: int, weights: str, conditions: str = ""
) -> dict[str, Any]:
    """Returns what samples depend on, bit by bit, as JSON values.

    Equal records give equal samples, up to the version of JAX. The number of samples is not part of it.

    Args:
      model: the trained model.
      settings: how samples are drawn.
      devices: over which batches are spread.
      step: training step of the checkpoint.
      weights: `weights_of` the averaged parameters.
      conditions: digest of the samples' conditions; empty if they have none.
    """
    sde = model.sde
    kind = devices.mesh.devices.flat[0].device_kind
    return {
        **of_parameters(settings, step=step, weights=weights),
        "process": {
            "order": sde.order,
            "F": sde.F.tolist(),
            "G": sde.G.tolist(),
            "start_covariance": sde.cov0.tolist(),
            "prior_covariance": sde.prior_cov.tolist(),
            "beta": repr(sde.schedule),
            "T": float(sde.T),
        },
        "sampler": {"name": settings.name, **_options(settings.sampler)},
        "grid": _grid(settings.grid),
        "steps": settings.num_steps,
        "t_min": float(sde.t_min if settings.t_min is None else settings.t_min),
        "denoise": settings.denoise,
        "label": settings.label,
        "classes": settings.classes if model.takes_labels and settings.label is None else None,
        "guidance": settings.guidance,
        **({"guide": dict(model.named)} if isinstance(model, Autoguided) else {}),
        "guidance_interval": None if settings.guidance_interval is None else list(settings.guidance_interval),
        "clip": settings.clip,
        "threshold": settings.threshold,
        "conditions": conditions or None,
        "seed": settings.seed,
        "frames": settings.frames,
        "batch_size": settings.batch_size,
        "dtype": model.dtype.name,
        "devices": f"{devices.mesh.size} x {kind}",
    }


def versions() -> dict[str, str]:
    """Returns the versions of what computed."""
    return {"hold_jax": VERSION, "jax": jax.__version__, "python": platform.python_version()}


def average_of(ema_length: float | None) -> str:
    """Returns the part of a folder's name for an average made of snapshots, such as _ema0.1; "" for the run's own."""
    return "" if ema_length is None else f"_ema{ema_length:g}"


def name_of(made: Mapping[str, Any]) -> str:
    """Returns the name of a folder of samples, such as step_1000_unipc20_label3, or ..._inpaint for a task."""
    label = "" if made["label"] is None else f"_label{made['label']}"
    guidance = "" if made["guidance"] is None else f"_guidance{made['guidance']:g}"
    average = average_of(made.get("ema_length"))
    task = f"_{made['task']['name']}" if "task" in made else ""
    return f"step_{made['step']}_{made['sampler']['name']}{made['steps']}{label}{guidance}{average}{task}"


def place(parent: Path, made: Mapping[str, Any]) -> tuple[Path, Path]:
    """Returns the two folders of `parent` that samples with the record `made` may have.

    The first is called `name_of(made)`. Samples of other settings may be there already (another seed, for example); the
    second has a digest of all settings in its name.
    """
    name = name_of(made)
    text = json.dumps(made, sort_keys=True)
    return parent / name, parent / f"{name}_{digest(text)[:_SHORT]}"


def write(folder: Path, made: Mapping[str, Any], calls: int) -> None:
    """Writes the record of samples to `folder`.

    Args:
      folder: of the samples.
      made: what they depend on.
      calls: number of network evaluations for each sample; an adaptive solver makes as many in the first batch.
        Those of a guide are not among them.
    """
    record = {**made, "calls": calls, "versions": versions()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    storage.write(folder / FILE, f"{{\n{lines}\n}}\n".encode())


def read(folder: Path) -> dict[str, Any] | None:
    """Returns what `write` wrote to `folder`; None if there is no such file, or it is damaged."""
    try:
        return schema.json_object(storage.read(folder / FILE))
    except (OSError, ValueError):
        return None


def is_of(found: Mapping[str, Any] | None, made: Mapping[str, Any]) -> bool:
    """Returns whether a record that `read` returned is of samples that depend on `made`."""
    return found is not None and all(found.get(name) == value for name, value in made.items())


def _options(sampler: Any) -> dict[str, Any]:
    """Returns the fields of a sampler as JSON values."""
    fields = {field.name: getattr(sampler, field.name) for field in dataclasses.fields(sampler)}
    plain = {
        name: isinstance(v, str | int | None) or (isinstance(v, float) and math.isfinite(v))
        for name, v in fields.items()
    }
    return {name: value if plain[name] else repr(value) for name, value in fields.items()}


def _grid(grid: Any) -> Any:
    """Returns a time grid in words: its name, with its options, or its times."""
    if isinstance(grid, functools.partial):
        options = ", ".join(f"{name}={value:g}" for name, value in grid.keywords.items())
        return f"{_grid(grid.func)}({options})"
    if callable(grid):
        return getattr(grid, "__name__", type(grid).__name__)
    return grid if isinstance(grid, str) else np.asarray(grid, np.float64).tolist()
