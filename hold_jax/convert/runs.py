"""Work directories from others' trained networks, and state dicts for others from work directories."""

import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hold_jax.app import build, constructors, flags, packed
from hold_jax.app.config import Config, flat_values
from hold_jax.convert import diffusers, edm, score_sde, to_diffusers
from hold_jax.convert.score_sde import Weights
from hold_jax.errors import UserError, require
from hold_jax.model import Model
from hold_jax.nn import NCSNpp
from hold_jax.runtime import storage, workdir
from hold_jax.runtime.mesh import Devices
from hold_jax.training.checkpoint import FOLDER, Checkpoints
from hold_jax.training.state import TrainState
from hold_jax.weights import safetensors, state_file, torch_save


class Source(NamedTuple):
    """A project whose networks are read.

    Attributes:
      config: name in configs/ of the config of its CIFAR-10 network; or what makes the config from the input.
      read: (file or folder, network, (H, W, C) of its input, what errors call the file) -> weights.
      num_classes: of the network in a file.
      changes: values that all its networks have and the configs have not, by `section.key`.
    """

    config: str | Callable[[Path], ConfigDict]
    read: Callable[[Path, NCSNpp, tuple[int, ...], str], Weights]
    num_classes: Callable[[Path], int] = lambda path: 0
    changes: Mapping[str, Any] = types.MappingProxyType({})


# The networks of CLD-SGM and PSLD are shown t itself, or log t; gDDIM's 999 t.
SOURCES = {
    "cld_sgm": Source("cifar10_cld.py", score_sde.read_torch, changes={"model.time_scale": 1.0}),
    "score_sde_pytorch": Source("cifar10_vp.py", score_sde.read_torch),
    "score_sde": Source("cifar10_vp.py", score_sde.read_flax),
    "psld": Source(
        "cifar10_psld.py",
        score_sde.read_lightning,
        changes={"model.parameterization": "noise", "model.time_scale": 1.0},
    ),
    "gddim": Source(
        "cifar10_cld.py",
        score_sde.read_flax,
        changes={"model.parameterization": "flow_noise", "model.time_scale": 999.0},
    ),
    "diffusers": Source(diffusers.config, diffusers.read),
    "edm": Source("cifar10_edm.py", edm.read, edm.num_classes),
}
_EXPERIMENTS = Path(__file__).parents[2] / "configs"  # of a checkout


class Imported(NamedTuple):
    """A network in its model.

    Attributes:
      config: the resolved settings.
      model: of pictures.
      num_classes: that the network takes; 0: none.
      weights: its parameters, arrays of NumPy.
    """

    config: Config
    model: Model
    num_classes: int
    weights: Weights


def settings(source: Source, path: Path, arguments: Sequence[str] = ()) -> Config:
    """The settings of a network.

    Args:
      source: its project.
      path: of its file or folder.
      arguments: `--config=PATH`, another config than the project's, and `--config.section.key=value`.

    Raises:
      UserError: for a config that cannot be read; for the project's where the package is installed without it.
    """
    chosen = [text.partition("=")[2] for text in arguments if text.startswith("--config=")]
    changes = [text for text in arguments if not text.startswith("--config=")]
    file = str(_EXPERIMENTS / source.config) if isinstance(source.config, str) else None
    if file is not None and not chosen and not Path(file).is_file():
        raise UserError(
            f"configs/{source.config} is not installed: it is in a checkout of hold_jax's repository; give its path, "
            "--config=FILE of the command or `config` of hold_jax.load"
        )
    given = flags.read(chosen[-1] if chosen else file, changes)
    made = {} if chosen or isinstance(source.config, str) else flat_values(source.config(path))
    of_source = {key: value for key, value in source.changes.items() if key not in given.flags}
    start = Config().changed(made)
    lost = constructors.without_options_of(start, given.values)
    if given.values.get("sde.T") is not None:
        lost["sde.sigma_max"] = None  # which is another way to say the end
    return start.changed(lost | given.values | of_source)


def read(source: Source, path: Path, config: Config) -> Imported:
    """The network of a file or folder.

    Raises:
      UserError: if the file is none of `source`, or does not fit the config's network.
    """
    where = f"`input` is {str(path)!r}"
    if not path.exists():
        raise UserError(f"{where}; there is no such file")
    size = config.data.image_size
    if size is None:
        raise UserError(
            "`config.data.image_size` is None; it must be the side of the network's pictures, or (height, width)"
        )
    height, width = (size, size) if isinstance(size, int) else size
    shape = (height, width, config.data.channels or 3)
    num_classes = source.num_classes(path) if config.model.class_conditional else 0
    config = constructors.resolve(config).changed({"model.sigma_data": build.sigma_data(config)})
    model = build.model(config, shape, num_classes)
    weights = source.read(path, _ncsnpp(config, model), model.input_shape, where)
    spec = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf, value: value.reshape(leaf.shape), spec, weights.params)
    return Imported(config, model, num_classes, weights._replace(params=params))


def import_run(source: Source, path: Path, output: storage.Path, config: Config) -> str:
    """Makes a work directory of a file or folder, for sampling and evaluation; returns in words what was done.

    The checkpoint's parameters and averaged parameters are both the file's averaged ones, the optimizer is new, the
    step is the file's.

    Raises:
      UserError: if the file is none of `source`, does not fit the config's network, or `output` holds a run.
    """
    folder = build.workdir(str(output))
    taken = [name for name in (workdir.RECORD_FILE, FOLDER) if (folder / name).exists()]
    require(not taken, "output", str(output), f"a new folder, not one that holds a run ({' and '.join(taken)})")
    config, model, num_classes, weights = read(source, path, config)
    optimizer = build.optimizer(config)
    params = jax.tree.map(jnp.asarray, weights.params)
    state = TrainState(
        step=jnp.asarray(weights.step, jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=params,
        key=jax.random.split(jax.random.key(config.seed))[1],  # as of a run that begins with this seed
    )
    state = jax.device_put(state, Devices.all().replicated)  # as training has it
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`output` is {str(output)!r}; it cannot be written: {error.strerror or error}") from None
    workdir.write(folder, workdir.Record(build.as_json(config), model.data_shape, num_classes, run=workdir.new_run()))
    with Checkpoints.open(folder) as checkpoints:
        checkpoints.save(state)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{weights.which}, step {weights.step}, {count / 1e6:.3g} million parameters"


def export_run(
    target: Callable[[packed.Packed, Path], str], path: storage.Path, output: Path, ema_length: float | None = None
) -> str:
    """Writes the averaged parameters of a work directory's newest checkpoint; returns in words what was written.

    Args:
      target: one of `TARGETS`' values.
      path: the work directory, or a .safetensors file of this package.
      output: the file or folder.
      ema_length: of an average made of snapshots in a work directory, `sampling.ema_length`; None: the run's own.

    Raises:
      UserError: if `path` holds no run, or none of such an average, or one whose network `target` has not, or `output`
        cannot be written.
    """
    if ema_length is None:
        found = packed.find(str(path), "input")
    else:
        require(not packed.is_file(str(path)), "ema_length", ema_length, "left out for a file, which has one average")
        found = packed.of_run(build.workdir(str(path)), ema_length=ema_length)
    return f"the averaged weights of step {found.step}, {target(found, output)}"


def _to_diffusers(found: packed.Packed, output: Path) -> str:
    model, network = _with_ncsnpp(found)
    return f"{to_diffusers.write(found.params, model, network, found.config, output)} tensors"


def _to_file(found: packed.Packed, output: Path) -> str:
    ending = state_file.ENDING
    require(output.suffix == ending, "output", str(output), f"a file whose name ends in {ending}")
    packed.write(output, found)
    return f"{sum(leaf.size for leaf in jax.tree.leaves(found.params)):,} parameters"


def _to_score_sde(found: packed.Packed, output: Path) -> str:
    model, network = _with_ncsnpp(found)
    arrays = score_sde.to_torch(jax.tree.map(np.asarray, found.params), network, model.input_shape)
    write = safetensors.write if output.suffix == state_file.ENDING else torch_save.write
    write(output, arrays)
    return f"{len(arrays)} tensors"


TARGETS = {"diffusers": _to_diffusers, "hold_jax": _to_file, "score_sde_pytorch": _to_score_sde}
"""Project -> (model, file or folder) -> what was written, in words."""


def _with_ncsnpp(found: packed.Packed) -> tuple[Model, NCSNpp]:
    """The model and its network for others, whose networks take pictures and their noise levels alone.

    The map of the augmentation's labels is left out: it has no bias, and samplers feed it zeros.
    """
    config, record = found.config, found.record
    model = build.model(config, record.data_shape, record.num_classes, build.statistics(record))
    network = _ncsnpp(config, model)
    classes, others = model.takes_labels, set(model.conditions.takes) - {"label"}
    require(not classes, "model.class_conditional", True, "False: the networks of `to` have no classes")
    require(not others, "data.condition", config.data.condition, "None: the networks of `to` take no conditions")
    return model, network.clone(augment_labels=0)


def _ncsnpp(config: Config, model: Model) -> NCSNpp:
    if not isinstance(model.network, NCSNpp):
        raise UserError(f"`config.model.name` is {config.model.name!r}; it must be 'ncsnpp', the only one known")
    return model.network
