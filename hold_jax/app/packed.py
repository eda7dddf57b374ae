"""A trained model in one file: the averaged parameters as safetensors, and beside them the experiment.

The file's metadata has one entry, `hold_jax`: JSON of the config's values that differ from the base config's, by dotted
key, so that the file stays readable where keys are added; the shape of the data, the number of classes, the statistics
of the data and the step.
"""

import dataclasses
import importlib.resources
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from hold_jax.app import build, experiment
from hold_jax.app.config import Config
from hold_jax.errors import UserError
from hold_jax.runtime import schema
from hold_jax.runtime.workdir import Record
from hold_jax.weights import safetensors

_KEY = "hold_jax"
# Models of the package itself, by name.
SHIPPED = {"digits": "digits.safetensors"}


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """What a file holds.

    Attributes:
      record: the resolved config, and what the run wrote about its data.
      params: averaged parameters, float32, nested.
      step: optimizer steps taken.
    """

    record: Record
    params: dict[str, Any]
    step: int

    @property
    def config(self) -> Config:
        """The resolved settings."""
        return experiment.of_record(self.record, "the model's config")


def write(path: Path, packed: Packed, dtype: str = "float32") -> None:
    """Writes a model; `dtype` is that of the parameters in the file.

    Raises:
      UserError: if the file cannot be written.
    """
    defaults = schema.flatten(build.as_json(Config()))
    own = {key: value for key, value in schema.flatten(packed.record.config).items() if value != defaults.get(key)}
    about = {**dataclasses.asdict(packed.record), "config": own, "step": packed.step}
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(packed.params, sep="/"))
    arrays = {name: np.asarray(value).astype(dtype) for name, value in sorted(flat.items())}
    safetensors.write(path, arrays, {_KEY: json.dumps(about, sort_keys=True)})


def read(path: Path, argument: str = "input") -> Packed:
    """The model of a file of `write`.

    Args:
      path: the file.
      argument: what errors call it.

    Raises:
      UserError: if it is missing, damaged or of something else.
    """
    text = safetensors.read_metadata(path, argument).get(_KEY)
    try:
        about = schema.json_object(b"" if text is None else text.encode())
        step = about.pop("step")
        # Files leave out defaults; this one was the default before sigma_data was measured.
        config = Config().changed({"model.sigma_data": build.NOMINAL_SIGMA_DATA} | about.pop("config"))
        record = schema.read(Record, about | {"config": build.as_json(config)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"`{argument}` is {str(path)!r}; it is no model of this package, or of another version of it ({error}); "
            "python -m hold_jax.convert --to=hold_jax writes such files"
        ) from None
    arrays = {name: value.astype(np.float32) for name, value in safetensors.read(path, argument).items()}
    return Packed(record, traverse_util.unflatten_dict(arrays, sep="/"), step)


def shipped(name: str) -> Path:
    """The file of one of `SHIPPED`."""
    return Path(str(importlib.resources.files("hold_jax"))) / "pretrained" / SHIPPED[name]
