"""A trained or converted model as one object, for use as a library: `hold_jax.load`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hold_jax import kernels, likelihood, samplers
from hold_jax.app import build, packed
from hold_jax.app.config import Config
from hold_jax.condition import Condition, as_condition
from hold_jax.convert import diffusers, runs
from hold_jax.errors import UserError, naming, require, require_choice, require_whole
from hold_jax.loops import conditions
from hold_jax.loops.draw import SampleSettings, guided, with_labels
from hold_jax.model import Model
from hold_jax.numerics import programs
from hold_jax.numerics.random import require_key
from hold_jax.parameterization import EpsFn
from hold_jax.runtime import compilation, schema
from hold_jax.samplers.grids import fixed_grid
from hold_jax.sde import LinearSDE

__all__ = ["Pretrained", "load"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model with its averaged parameters.

    Data are what the model was trained on: uint8 pictures (B, H, W, C), or floats in their own units: vectors (B, d),
    signals (B, length, C) or arrays (B, H, W, C).

    Attributes:
      model: the SDE, the network and the parameterization.
      params: averaged parameters.
      config: the resolved config of the run.
      settings: how samples are drawn unless `sample` is given other options: the run's `config.sampling`.
      step: optimizer steps of the checkpoint.
    """

    model: Model
    params: Any
    config: Config
    settings: SampleSettings
    step: int

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        data = "x".join(map(str, self.model.data_shape))
        name = self.config.data.name
        return f"Pretrained({name!r}, {data}, order {self.sde.order}, {count:,} parameters, step {self.step:,})"

    def __getstate__(self) -> dict[str, Any]:
        # Not the functions that are made at their first use, which cannot be pickled.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def sde(self) -> LinearSDE:
        """The process that samples are drawn by."""
        return self.model.sde

    @functools.cached_property
    def eps_fn(self) -> EpsFn:
        """The noise of the last block, for `samplers`, `guidance` and `likelihood`, in the model's range.

        With a condition or guidance: `model.eps_fn(params, condition=..., guidance=...)`.
        """
        return self.model.eps_fn(self.params)

    def with_sde(self, sde: LinearSDE | int) -> "Pretrained":
        """The same denoiser, sampled and evaluated by another process of any order.

        Args:
          sde: an order, of the run's own process with all its other settings, such as the greatest noise of large
            pictures (`config.sde.sigma_max`); or a process, which has only what it was given itself.

        Raises:
          UserError: if the network is not a denoiser of the sufficient statistic, and so depends on the process; for an
            order of a process that has only one.
        """
        how = self.model.parameterization.__name__
        allowed = f"the one of training: this network, of parameterization {how!r}, depends on the process"
        require(build.any_process(self.config), "sde", getattr(sde, "order", sde), allowed)
        if not isinstance(sde, LinearSDE):
            sde = build.process(self.config.changed({"sde.order": require_whole("sde", sde, 1)}))
        return dataclasses.replace(self, model=dataclasses.replace(self.model, sde=sde))

    def sample(
        self,
        num: int,
        key: jax.Array,
        *,
        condition: Condition | Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Draws samples. Sample i depends on `key`, i and its condition alone.

        Args:
          num: how many.
          key: a `jax.random.key`.
          condition: as in `Model.eps_fn`; of N rows, of which sample i has number i mod N. Classes that are not here
            are chosen by the options, and by the frequencies of the data.
          batch_size: samples drawn at once; None: the run's.
          progress: called with the number of samples done after each batch.
          **options: `sampler` (a name or an instance), `num_steps`, `grid`, `t_min`, `denoise` as in `samplers.sample`;
            `label`, the number or name of one class for all, `guidance`, its scale, and `guidance_interval`,
            `clip` and `threshold` as in `SampleSettings`; those left out are the run's.

        Returns:
          (num, *data_shape) data: uint8 pictures or float32.

        Raises:
          UserError: for a bad option, and for samples that are NaN.
        """
        num = require_whole("num", num, 1)
        require_key(key)
        guidance = ("guidance", "guidance_interval", "clip", "threshold")
        known = ("sampler", "num_steps", "grid", "t_min", "denoise", "label", *guidance)
        wrong = sorted(options.keys() - set(known))
        require(not wrong, "options", wrong, f"among {', '.join(known)}")
        size = min(num, self.settings.batch_size if batch_size is None else batch_size)
        settings = dataclasses.replace(self.settings, batch_size=size, **options)
        grid = fixed_grid(self.sde, settings.grid, settings.t_min, settings.num_steps)
        settings = dataclasses.replace(settings, grid=grid)
        given = jax.tree.map(np.asarray, as_condition(condition))
        self.model.conditions.check("condition", given)
        rows = conditions.of_arrays(given)
        compiled = compilation.options(jax.default_backend())
        blocks = []
        for first in range(0, num, size):
            index = first + np.arange(size, dtype=np.int32)
            arrays = (self.params, key, index, rows.of(index))
            x = programs.run(_sample, self._predictor, (self.model, settings), *arrays, compiler_options=compiled)
            if np.isnan(x).any():
                raise UserError(samplers.UNFINISHED)
            blocks.append(np.asarray(self.model.to_data(x))[: num - first])
            if progress is not None:
                progress(min(first + size, num))
        return np.concatenate(blocks)

    def denoise(
        self,
        y: jax.Array,
        sigma: jax.Array | float,
        *,
        condition: Condition | Mapping[str, Any] | None = None,
    ) -> jax.Array:
        """The denoiser D(y, sigma) = E[x | x + sigma noise = y].

        Args:
          y: (B, *data_shape) float32 noisy data in the model's range: `model.to_model(x)` plus noise.
          sigma: () or (B,) noise level in the model's range, from 1e-5 to that of the SDE at T; NaN outside.
          condition: as in `Model.eps_fn`.

        Returns:
          (B, *data_shape) float32 in the model's range; `model.to_data` makes data of it.

        Raises:
          UserError: for y that is not floating, such as uint8 pictures, or of another shape; for a sigma that is no
            number; for a condition as in `Model.eps_fn`.
        """
        given = as_condition(condition)
        self.model.conditions.check("condition", given)
        self._require_data("y", y)
        in_range = "floating, noisy data in the model's range (pictures: [-1, 1]): `model.model.to_model(x)` plus noise"
        require(jnp.issubdtype(_dtype(y), jnp.floating), "y", f"of type {_dtype(y)}", in_range)
        real = any(jnp.issubdtype(_dtype(sigma), kind) for kind in (jnp.floating, jnp.integer))
        require(real, "sigma", sigma, "real, one noise level or one for each example")
        shape = np.shape(sigma)
        require(shape in ((), np.shape(y)[:1]), "sigma", f"of shape {shape}", f"of shape () or {np.shape(y)[:1]}")
        arrays = (self.params, jnp.asarray(y, jnp.float32), jnp.asarray(sigma, jnp.float32), given)
        return programs.run(_denoise, self._predictor, (self.model,), *arrays)

    def encode(
        self,
        x: jax.Array,
        key: jax.Array,
        *,
        condition: Condition | Mapping[str, Any] | None = None,
        sampler: str | samplers.Sampler = "unipc",
        **options: Any,
    ) -> samplers.Encoded:
        """Data to latent states, (B, *S, n, C): `samplers.encode` of this model.

        `samplers.sample(sampler, model.sde, eps_fn, start=encoded.u)` leads back, in the model's range, with
        `model.eps_fn` or, given a condition, `model.model.eps_fn(model.params, condition=condition)`.

        Args:
          x: (B, *data_shape) data.
          key: as in `samplers.encode`.
          condition: as in `Model.eps_fn`.
          sampler: a deterministic one, by name or as an instance.
          **options: others of `samplers.encode`.

        Returns:
          samplers.Encoded.

        Raises:
          UserError: for a bad argument, as `Model.eps_fn` and `samplers.encode`.
        """
        self._require_data("x", x)
        x = self.model.to_model(x)
        if condition is None:
            return samplers.encode(sampler, self.sde, self.eps_fn, x, key=key, **options)
        given = as_condition(condition)
        self.model.conditions.check("condition", given)
        require_key(key)
        index, grid = options.pop("index", None), options.get("grid")
        if grid is not None and not isinstance(grid, str) and not callable(grid):
            options["grid"] = tuple(np.asarray(grid).tolist())
        settings = (self.model, sampler, tuple(options.items()))
        found = programs.run(_encode, self._predictor, settings, self.params, x, key, given, index)
        if not isinstance(found.u, Tracer) and jnp.isnan(found.u).any():
            raise UserError(samplers.UNFINISHED)
        return found

    def bits_per_dim(
        self,
        x: jax.Array,
        key: jax.Array,
        *,
        condition: Condition | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> likelihood.Likelihood:
        """Bits per dimension of data: of the values of pictures and integers, else of the density in data units.

        The network computes in float32, whatever its type (`Model.in_float32`).

        Args:
          x: (B, *data_shape) data.
          key: as in `likelihood.bits_per_dim`.
          condition: as in `Model.eps_fn`.
          **options: others of `likelihood.bits_per_dim`.

        Returns:
          Likelihood.
        """
        self._require_data("x", x)
        options.setdefault("bin_width", self.model.bin_width)
        model = self.model.in_float32
        eps_fn = self._exact_eps_fn if condition is None else model.eps_fn(self.params, condition=condition)
        found = likelihood.bits_per_dim(self.sde, eps_fn, self.model.to_model(x), key=key, **options)
        return found if options["bin_width"] else found._replace(bpd=found.bpd + self.model.log2_scale)

    def _require_data(self, argument: str, x: Any) -> None:
        shape, own = np.shape(x), self.model.data_shape
        allowed = f"a batch of the model's data, (B, {', '.join(map(str, own))})"
        require(shape[1:] == own and len(shape) > 1, argument, f"of shape {shape}", allowed)

    @functools.cached_property
    def _exact_eps_fn(self) -> EpsFn:
        """`eps_fn` in float32; the same function at each call, so that its programs are found again."""
        return self.model.in_float32.eps_fn(self.params)

    @functools.cached_property
    def _predictor(self) -> Callable[..., EpsFn]:
        """Of parameters, condition and guidance: parameters are then an argument of a program, not a constant in it."""
        model = self.model
        return lambda params, condition, guidance: model.eps_fn(params, condition=condition, guidance=guidance)


def _dtype(x: Any) -> Any:
    """Of an array of any library, a number or a list."""
    return x.dtype if isinstance(x, jax.Array) else np.asarray(x).dtype


def _encode(
    predictor: Callable[..., EpsFn],
    static: tuple[Model, str | samplers.Sampler, tuple[tuple[str, Any], ...]],
    params: Any,
    x: jax.Array,
    key: jax.Array,
    condition: Condition,
    index: jax.Array | None,
) -> samplers.Encoded:
    model, sampler, options = static
    eps_fn = predictor(params, condition, None)
    return samplers.encode(sampler, model.sde, eps_fn, x, key=key, index=index, **dict(options))


def _sample(
    predictor: Callable[..., EpsFn],
    static: tuple[Model, SampleSettings],
    params: Any,
    key: jax.Array,
    index: jax.Array,
    condition: Condition,
) -> jax.Array:
    """A batch of samples in the model's range."""
    model, c = static
    condition = with_labels(model, c, index, condition)
    eps_fn = guided(model, c, lambda guidance: predictor(params, condition, guidance))
    options = {"num_steps": c.num_steps, "grid": c.grid, "t_min": c.t_min, "denoise": c.denoise}
    shape = (c.batch_size, *model.data_shape)
    return samplers.sample(c.sampler, model.sde, eps_fn, key=key, shape=shape, index=index, **options).x


def _denoise(
    predictor: Callable[..., EpsFn],
    static: tuple[Model],
    params: Any,
    y: jax.Array,
    sigma: jax.Array,
    condition: Condition,
) -> jax.Array:
    """D at the state with sufficient statistic y and all coordinates without information about the data at zero."""
    sde = static[0].sde
    t = kernels.time_of_noise(sde, sigma)
    u = kernels.state_of(sde, y, jnp.zeros((*y.shape[:-1], sde.order - 1, y.shape[-1]), y.dtype), t)
    return kernels.denoiser(sde, u, t, predictor(params, condition, None)(u, t))


def load(
    workdir: str | Path,
    checkpoint: int | None = None,
    *,
    ema_length: float | None = None,
    source: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Pretrained:
    """A trained model, from a work directory, a file, the package itself, or another project's file.

    Args:
      workdir: a work directory, trained by `main.py` or made by `python -m hold_jax.convert` (a folder, or
        gs://BUCKET/PATH); a .safetensors file of `python -m hold_jax.convert --to=hold_jax`; a pipeline's folder of
        diffusers; "digits", the model that the package contains (`app.packed.SHIPPED`); or, with `source`, what that
        project's checkpoints are (docs/importers.md).
      checkpoint: the step to load from a work directory; None: the newest.
      ema_length: sigma_rel of a power-function average of the parameters, in [0.01, 0.28], made of the snapshots of a
        run with `training.ema_snapshot_every` (EDM2, 2312.02696); None: the run's own average.
      source: the project that made the checkpoint, as `--from` of `python -m hold_jax.convert`: "psld", "edm" and the
        like. None: this package, or diffusers.
      config: with `source`, the path of another config than the project's, or values by "section.key" that differ from
        the project's; None: the project's.

    Returns:
      Pretrained.

    Raises:
      UserError: if there is no model there, or it cannot be read.
    """
    name = str(workdir)
    require(schema.is_path(name), "workdir", name, "a path that there can be, or the name of a model of the package")
    require(
        config is None or isinstance(config, str | Path | Mapping), "config", config, "a path, values by key, or None"
    )
    if checkpoint is not None:
        require_whole("checkpoint", checkpoint, 0)
    if source is None and not packed.is_file(name) and diffusers.is_pipeline(Path(name)):
        source = "diffusers"
    require(source is not None or config is None, "config", config, "None without `source`")
    in_file = source is not None or packed.is_file(name)
    require(ema_length is None or not in_file, "ema_length", ema_length, "None for weights that are no work directory")
    if source is not None:
        require_choice("source", source, runs.SOURCES)
        require(checkpoint is None, "checkpoint", checkpoint, f"None for a file or folder of {source}")
        return _of_project(runs.SOURCES[source], name, config)
    if packed.is_file(name):
        require(checkpoint is None, "checkpoint", checkpoint, "None for a model in one file")
        return _pretrained(packed.find(name, "workdir"))
    return _pretrained(packed.of_run(build.workdir(name), checkpoint, ema_length))


def _of_project(source: runs.Source, name: str, config: str | Path | Mapping[str, Any] | None) -> Pretrained:
    of_file = isinstance(config, str | Path)
    with naming("`input`", "`workdir`"):
        settings = runs.settings(source, Path(name), [f"--config={config}"] if of_file else [])
        found = runs.read(source, Path(name), settings if config is None or of_file else settings.changed(config))
    params = jax.tree.map(jnp.asarray, found.weights.params)
    return Pretrained(found.model, params, found.config, build.sampling(found.config), found.weights.step)


def _pretrained(found: packed.Packed) -> Pretrained:
    config, record = found.config, found.record
    model = build.model(config, record.data_shape, record.num_classes, build.statistics(record))
    return Pretrained(model, jax.tree.map(jnp.asarray, found.params), config, build.sampling(config), found.step)


def __dir__() -> list[str]:
    return __all__
